# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Numbers of a sweep against values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from anomalib_comet.sweep import Published
from anomalib_comet.sweep.metrics import image_metrics, label_free_threshold, metrics_at, pixel_metrics
from anomalib_comet.sweep.report import published_lines
from anomalib_comet.sweep.statistics import beside_published, curves, differing_test_sets, mean_interval, seed_means


def table(values, **more):
    """A row a cell: (model, category, ratio, seed) -> image AUROC."""
    keys = ("model", "category", "ratio", "seed")
    rows = [{**dict(zip(keys, key, strict=True)), "overlap": False, "image_auroc": v} for key, v in values.items()]
    return pd.DataFrame(rows).assign(**more)


def test_interval_of_three_values_by_hand():
    # t_2 at 97.5 % is 4.302653; the standard deviation of 1, 2, 3 is 1.
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - low == pytest.approx(high - 2)
    assert math.isnan(mean_interval([1.0])[1])


def test_a_seed_counts_once_and_only_with_all_its_categories():
    frame = table({("A", "a", 0.0, 0): 0.6, ("A", "b", 0.0, 0): 0.8, ("A", "a", 0.0, 1): 0.9})
    values = seed_means(frame, "image_auroc", categories=2)
    assert values["seed"].tolist() == [0]
    assert values["value"].tolist() == pytest.approx([0.7])


def test_degradation_is_paired_by_seed():
    # Seeds differ by .1 from each other, and each of them falls by .05 exactly: the interval of the fall is empty.
    frame = table({("A", "", r, s): 0.9 - 0.1 * s - 0.5 * r for r in (0.0, 0.1) for s in (0, 1, 2)})
    result = curves(frame, 1, ["image_auroc"]).set_index("ratio")
    assert result.loc[0.1, "mean"] == pytest.approx(0.75)
    assert result.loc[0.1, "drop"] == pytest.approx(0.05)
    assert result.loc[0.1, "drop_high"] == pytest.approx(0.05)
    assert result.loc[0.1, "high"] > result.loc[0.1, "mean"] + 0.1
    assert result.loc[0.1, "share"] == pytest.approx(1 / 11)
    assert result.loc[0.0, "drop"] == 0


def test_published_values_stand_beside_the_mean_of_their_cells():
    frame = table({("A", c, r, s): 0.8 + 0.1 * (c == "b") - r for c in "ab" for r in (0.0, 0.1) for s in (0, 1)})
    entries = [
        Published("A", "image_auroc", 0.9, "paper", ratio=0.1),
        Published("A", "image_auroc", 0.7, "paper", ratio=0.1, category="a"),
        Published("B", "image_auroc", 0.5, "paper", ratio=0.1),
    ]
    result = beside_published(frame, entries, categories=2)
    assert result["measured"].tolist()[:2] == pytest.approx([0.75, 0.7])
    assert result["difference"].tolist()[:2] == pytest.approx([-0.15, 0.0])
    assert math.isnan(result["measured"][2])
    assert result["seeds"].tolist() == [2, 2, 0]
    assert published_lines(result) == [
        "A, Image AUROC, mean, r = 0.1: published 0.900, measured 0.750 ± 0.000 (2 seeds)",
        "A, Image AUROC, a, r = 0.1: published 0.700, measured 0.700 ± 0.000 (2 seeds)",
        "B, Image AUROC, mean, r = 0.1: published 0.500, not measured",
    ]
    frame.loc[frame["seed"] == 1, "image_auroc"] += 0.2
    assert beside_published(frame, entries[:1], categories=2)["sd"].tolist() == pytest.approx([0.2 / math.sqrt(2)])


def test_test_sets_that_differ_are_named():
    frame = table({("A", "a", 0.0, 0): 1, ("A", "a", 0.1, 0): 1, ("A", "b", 0.0, 0): 1, ("A", "b", 0.1, 0): 1})
    assert differing_test_sets(frame.assign(test_set=["x", "x", "y", "y"])) == []
    assert differing_test_sets(frame.assign(test_set=["x", "x", "y", "z"])) == ["b, seed 0"]


def test_image_metrics_by_hand():
    # In order of score: anomalous, normal, anomalous, normal. 3 of 4 pairs are in order; AP = 1/2 (1 + 2/3);
    # the best threshold takes the first three: precision 2/3, recall 1, F1 .8.
    found = image_metrics(np.array([40.0, 30.0, 20.0, 10.0]), np.array([1, 0, 1, 0]))
    assert found["image_auroc"] == pytest.approx(0.75)
    assert found["image_ap"] == pytest.approx(5 / 6)
    best = (found["f1_max"], found["precision_at_f1_max"], found["recall_at_f1_max"])
    assert best == pytest.approx((0.8, 2 / 3, 1.0))
    assert image_metrics(np.array([1.0, 2.0]), np.array([1, 1])) == {}


def test_metrics_at_a_threshold_that_no_label_has_set():
    # Quartiles 2 and 4 of the training scores: the fence is 4 + 1.5 * 2 = 7.
    threshold = label_free_threshold(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert threshold == 7
    # Above it, strictly: one of three anomalies and one of two normal images.
    found = metrics_at(threshold, np.array([8.0, 7.0, 1.0, 9.0, 2.0]), np.array([1, 1, 1, 0, 0]))
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert set(metrics_at(99.0, np.array([1.0, 2.0]), np.array([0, 1])).values()) == {0}
    assert metrics_at(0.0, np.array([1.0, 2.0]), np.array([1, 1])) == {}


def test_scores_far_beyond_one_do_not_saturate():
    scores = np.concatenate([np.linspace(20, 30, 50), np.linspace(31, 40, 50)])
    assert image_metrics(scores, np.arange(100) >= 50)["image_auroc"] == 1


def test_per_region_overlap_weighs_regions_and_not_pixels():
    # A region of 8 pixels that is found and one of 1 pixel that scores below everything: the curve stays at 1/2
    # until all normal pixels are above it, so its mean up to 30 % false positives is 1/2.
    mask, scores = np.zeros((1, 10, 10), dtype=bool), np.random.default_rng(0).random((1, 10, 10)).astype(np.float32)
    mask[0, 0, :8], mask[0, 9, 9] = True, True
    scores[0, 0, :8], scores[0, 9, 9] = 100.0, -1.0
    found = pixel_metrics(list(scores), list(mask))
    assert found["aupro"] == pytest.approx(0.5, abs=1e-6)
    assert found["pixel_auroc"] == pytest.approx(8 / 9)
    assert pixel_metrics([], []) == {}
    assert pixel_metrics(list(scores), [np.zeros((10, 10), dtype=bool)]) == {}


def test_regions_of_several_images_are_regions_of_their_own():
    # Image 0: found (1 pixel). Image 1: missed (1 pixel). As one region of two pixels it would be half found too, so
    # image 1 gets a second, found region: 2 of 3 regions.
    masks, scores = np.zeros((2, 8, 8), dtype=bool), np.random.default_rng(0).random((2, 8, 8)).astype(np.float32)
    masks[0, 0, 0] = masks[1, 0, 0] = masks[1, 4, 4] = True
    scores[0, 0, 0], scores[1, 0, 0], scores[1, 4, 4] = 9.0, -1.0, 9.0
    assert pixel_metrics(list(scores), list(masks))["aupro"] == pytest.approx(2 / 3, abs=1e-6)
