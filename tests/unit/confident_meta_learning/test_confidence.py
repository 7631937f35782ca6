# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Confidence weights against values computed by hand, and their properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anomalib_comet.confident_meta_learning.confidence import (
    anchored_scores,
    confidence_weights,
    iqr_threshold,
    smoothed,
    training_set_weights,
)
from anomalib_comet.confident_meta_learning.table import ConfidenceTable

positive_scores = st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=40)


def test_threshold_is_the_third_quartile_plus_kappa_interquartile_ranges():
    # Quartiles of 1..5 are 2 and 4 (linear interpolation), so t = 4 + kappa * 2.
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert iqr_threshold(scores, 1.5).item() == 7.0
    assert iqr_threshold(scores, 0.0).item() == 4.0


def test_weight_is_threshold_over_score_capped_at_one():
    weights = confidence_weights(torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0]), 2.0)
    assert weights.tolist() == [1.0, 1.0, 1.0, 0.5, 0.25]
    assert confidence_weights(torch.tensor([4.0, 8.0]), 2.0, power=2.0).tolist() == [0.25, 0.0625]


@given(positive_scores, st.floats(0, 3), st.floats(0.5, 4), st.floats(0.1, 50))
def test_weights_are_free_of_scale_and_fall_with_the_score(values, kappa, power, scale):
    scores = torch.tensor(values, dtype=torch.float64)
    weights, threshold = training_set_weights(scores, kappa, power)
    rescaled, _ = training_set_weights(scores * scale, kappa, power)
    assert torch.allclose(weights, rescaled, rtol=1e-6)
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert (weights[scores <= threshold] == 1).all()
    order = scores.argsort()
    assert (weights[order].diff() <= 1e-12).all()


def test_no_spread_gives_full_confidence():
    for values in ([2.0] * 8, [1.0] * 7 + [50.0]):  # an interquartile range of zero has no scale
        weights, _ = training_set_weights(torch.tensor(values))
        assert (weights == 1).all()


def test_weights_are_constants_of_the_optimisation():
    scores = torch.rand(8, requires_grad=True)
    weights, threshold = training_set_weights(scores)
    assert not weights.requires_grad
    assert not threshold.requires_grad


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, math.nan, 2.0])])
def test_unusable_scores_are_refused(bad):
    with pytest.raises(ValueError, match="score"):
        training_set_weights(bad)


def test_negative_scores_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        confidence_weights(torch.tensor([-1.0, 2.0]), 1.0)


def test_table_smooths_by_path_not_by_position():
    table = ConfidenceTable(kappa=0.0, power=1.0, momentum=0.5)
    table.refresh(["a", "b", "c", "d"], torch.tensor([1.0, 2.0, 3.0, 12.0]))
    # Quartiles of (1, 2, 3, 12): Q3 = 3 + 0.25 * 9 = 5.25, so d starts at 5.25 / 12.
    assert table.lookup(["d", "unseen", "a"]).tolist() == pytest.approx([5.25 / 12, 1.0, 1.0])
    table.refresh(["d", "c", "b", "a"], torch.tensor([1.0, 3.0, 2.0, 12.0]))  # now a is suspicious
    assert table.lookup(["a", "d"]).tolist() == pytest.approx(
        [
            float(smoothed(torch.tensor(1.0), torch.tensor(5.25 / 12), 0.5)),
            float(smoothed(torch.tensor(5.25 / 12), torch.tensor(1.0), 0.5)),
        ]
    )


def test_table_survives_a_checkpoint_and_writes_ranks(tmp_path):
    table = ConfidenceTable()
    table.refresh(["b.png", "a.png", "c.png"], torch.tensor([1.0, 1.0, 9.0]))
    torch.save(table.state(), tmp_path / "state.pt")
    restored = ConfidenceTable()
    restored.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.frame().equals(table.frame())
    table.write_csv(tmp_path / "deep" / "weights.csv")
    lines = (tmp_path / "deep" / "weights.csv").read_text().splitlines()
    assert lines[0] == "rank,image_path,anomaly_score,confidence_weight"
    assert [line.split(",")[1] for line in lines[1:]] == ["c.png", "a.png", "b.png"]  # ties by path


def test_anchored_scores_start_at_a_low_quantile():
    scores = torch.linspace(-5.0, 5.0, 201)  # the 0.5 % quantile is the second smallest, -4.95
    anchored = anchored_scores(scores)
    assert anchored[0] > 0
    assert anchored[0] < 1e-4
    torch.testing.assert_close(anchored[2:], scores[2:] + 4.95)
    torch.testing.assert_close(anchored_scores(scores + 100.0)[2:], anchored[2:], rtol=1e-4, atol=1e-4)


def test_anchored_scores_of_equal_images_give_them_all_full_weight():
    weights, _ = training_set_weights(anchored_scores(torch.full((9,), -0.7)))
    assert weights.tolist() == [1.0] * 9
