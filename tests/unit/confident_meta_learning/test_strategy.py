# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The strategy around a detector that is not ours, with batch norm and weight decay."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from anomalib_comet.confident_meta_learning import ConfidentMetaLearning
from anomalib_comet.confident_meta_learning.cross_fit import fold_indices, on_one_scale


class Distance(LightningModule):
    """Distance of a batch-normalised projection to a learned centre."""

    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.centre = nn.Parameter(torch.zeros(width))

    def training_inputs(self, batch):
        return {"x": batch.image}

    def sample_losses(self, inputs):
        return (self.norm(self.project(inputs["x"])) - self.centre).square().mean(1)

    def sample_scores(self, batch):
        return self.sample_losses(self.training_inputs(batch))

    def training_step(self, batch, batch_idx):
        return {"loss": self.sample_losses(self.training_inputs(batch)).mean()}

    def log(self, *args, **kwargs):
        """There is no trainer in these tests."""


class CoMetDistance(ConfidentMetaLearning, Distance):
    pass


IMAGES = torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
BATCH = SimpleNamespace(image=IMAGES, image_path=[*"abcdefghijkl"])


def gradients(model, batch=BATCH):
    model.train()
    model.training_step(batch, 0)["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def running(model):
    return {name: b.clone() for name, b in model.norm.named_buffers()}


def test_running_statistics_see_the_whole_batch_once_at_theta():
    base, ours = Distance(), CoMetDistance(inner_lr=0.5, inner_steps=3, task_size=4)
    gradients(base)
    gradients(ours)
    for name, expected in running(base).items():
        assert torch.allclose(expected, running(ours)[name]), name


def test_weights_scale_the_loss_of_their_image():
    model = CoMetDistance(use_meta=False, use_adaptive_l2=False)
    plain = gradients(model)
    model.confidence.weights = dict.fromkeys(BATCH.image_path, 0.5)
    model.zero_grad()
    for name, halved in gradients(model).items():
        assert torch.allclose(halved, 0.5 * plain[name], atol=1e-7), name


def test_meta_gradient_without_an_inner_step_is_that_of_the_parts():
    # Batch norm sees a part at a time, so the comparison is with the same parts.
    model = CoMetDistance(use_weights=False, use_adaptive_l2=False, inner_lr=0.0, task_size=12, train_share=0.5)
    reference = Distance().train()
    torch.cat([reference.sample_losses({"x": part}) for part in BATCH.image.split(6)]).mean().backward()
    found = gradients(model)
    for name, parameter in reference.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


def test_adaptive_l2_pulls_on_matrices_only():
    settings = {"use_weights": False, "use_meta": False, "lambda0": 0.1, "gamma": 0.0}
    model = CoMetDistance(**settings, use_adaptive_l2=True)
    pulled, plain = gradients(model), gradients(Distance())
    assert torch.allclose(pulled["project.weight"], plain["project.weight"] + 0.2 * model.project.weight, atol=1e-6)
    for name in ("project.bias", "norm.weight", "centre"):
        assert torch.allclose(pulled[name], plain[name], atol=1e-6), name


def test_last_batch_of_one_image_trains():
    one = SimpleNamespace(image=torch.randn(1, 3), image_path=["a"])
    model = CoMetDistance().train()
    model.norm.eval()  # batch norm itself refuses a batch of one in training
    model.training_step(one, 0)["loss"].backward()
    assert model.centre.grad is not None


def test_weight_decay_is_replaced_where_the_regulariser_is_on():
    for on, expected in ((True, 0.0), (False, 0.01)):
        model = CoMetDistance(use_adaptive_l2=on)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        model.trainer = SimpleNamespace(optimizers=[optimizer], precision="32-true", fabric=None)
        model.on_train_start()
        assert optimizer.param_groups[0]["weight_decay"] == expected


def test_loss_scaled_precision_is_refused_with_meta_learning():
    model = CoMetDistance()
    model.trainer = SimpleNamespace(optimizers=[], precision="16-mixed", fabric=None)
    with pytest.raises(ValueError, match=r"use --trainer\.precision bf16-mixed or 32-true"):
        model.on_train_start()


def test_a_detector_without_the_three_methods_is_refused():
    class Bare(LightningModule):
        pass

    class CoMetBare(ConfidentMetaLearning, Bare):
        pass

    with pytest.raises(TypeError, match=r"CoMetBare cannot be trained by CoMet: its detector lacks the methods"):
        CoMetBare()


def test_folds_part_the_images():
    folds = fold_indices(10, 3, seed=0)
    assert sorted(torch.cat(folds).tolist()) == list(range(10))
    assert [len(fold) for fold in folds] == [4, 3, 3]
    with pytest.raises(ValueError, match="needs as many training images, there are 2"):
        fold_indices(2, 3, seed=0)


def test_folds_are_brought_to_one_scale():
    scores = torch.tensor([2.0, 4.0, 6.0, 8.0, 40.0])
    torch.testing.assert_close(on_one_scale(scores, start_at_zero=True), scores / 6.0)
    torch.testing.assert_close(on_one_scale(scores, start_at_zero=False), (scores - 6.0) / 4.0)
    shifted = on_one_scale(scores * 3.0 - 100.0, start_at_zero=False)
    torch.testing.assert_close(shifted, on_one_scale(scores, start_at_zero=False))
    assert on_one_scale(torch.tensor([5.0, 5.0]), start_at_zero=False).tolist() == [0.0, 0.0]
