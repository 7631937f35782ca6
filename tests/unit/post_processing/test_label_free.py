# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds that see no labels."""

from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch

from anomalib_comet.post_processing import LabelFreePostProcessor
from anomalib_comet.post_processing.label_free import fence


def test_fence_by_hand():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert fence(values, 0.75, 1.5).item() == 7.0  # 4 + 1.5 * (4 - 2)
    assert fence(values, 0.5, 1.5).item() == 6.0


def validate(processor, scores, labels):
    for part in (slice(0, 4), slice(4, None)):
        maps = scores[part, None, None, None].expand(-1, 1, 4, 4).clone()
        maps[:, :, 1:, 1:] *= 0.5  # the largest value of a map is the image's score
        batch = ImageBatch(
            image=torch.zeros(len(maps), 3, 4, 4), pred_score=scores[part], anomaly_map=maps, gt_label=labels[part]
        )
        processor.on_validation_batch_end(SimpleNamespace(), SimpleNamespace(), batch)
    processor.on_validation_epoch_end(SimpleNamespace(), SimpleNamespace())


def test_thresholds_come_from_scores_and_not_from_labels():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 2.5, 3.5, 30.0])
    processors = [LabelFreePostProcessor(), LabelFreePostProcessor()]
    validate(processors[0], scores, torch.zeros(8, dtype=torch.bool))
    validate(processors[1], scores, scores > 3)
    assert processors[0].state_dict().keys() == processors[1].state_dict().keys()
    for name, value in processors[0].state_dict().items():
        assert torch.equal(value, processors[1].state_dict()[name]), name
    assert processors[0].image_threshold.item() == pytest.approx(fence(scores, 0.75, 1.5).item())
    assert processors[0].pixel_threshold.item() == pytest.approx(fence(scores, 0.5, 1.5).item())
    assert processors[0].image_threshold < 30  # one image in eight is anomalous, and stands out
    assert (scores > processors[0].image_threshold).sum() == 1


def test_configuration_survives_a_checkpoint():
    restored = LabelFreePostProcessor()
    restored.load_checkpoint_config(LabelFreePostProcessor(kappa=3.0).checkpoint_config())
    assert restored.kappa == 3.0
    with pytest.raises(ValueError, match="kappa must not be negative"):
        LabelFreePostProcessor(kappa=-1)
