# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Ranking and evaluation against values computed by hand."""

import numpy as np
import pandas as pd
import pytest

from anomalib_comet.audit import (
    average_precision,
    evaluate,
    precision_recall_curve,
    recall_among_first,
    suspicion_table,
)

NAN = float("nan")


def test_order_ranks_and_images_without_a_score():
    table = suspicion_table(["b", "c", "a", "x"], [1.0, 3.0, 1.0, NAN], weights=[1.0, 0.5, 1.0, NAN])
    assert table["image_path"].tolist() == ["c", "a", "b", "x"]  # equal scores by path
    assert table["rank"].tolist() == [1, 2, 3, pd.NA]
    assert table["confidence_weight"].tolist()[:3] == [0.5, 1.0, 1.0]
    assert "injected" not in table


def test_weights_follow_from_the_scores():
    # 0.5 % quantile of 0..8 is 0.04; anchored: 100 - 0.04 is far beyond the fence of 0..8 shifted by 0.04.
    scores = [*np.arange(9.0), 100.0]
    anchored = np.array(scores) - np.quantile(scores, 0.005)
    q1, q3 = np.quantile(np.maximum(anchored, 1e-6), [0.25, 0.75])
    table = suspicion_table([f"{k}" for k in range(10)], scores)
    assert table["confidence_weight"].iloc[0] == pytest.approx((q3 + 1.5 * (q3 - q1)) / anchored[-1])
    assert (table["confidence_weight"].iloc[1:] == 1).all()


def test_negative_scores_get_weights_too():
    table = suspicion_table(list("abcdefgh"), [-9.0, -8.5, -8.0, -7.5, -7.0, -6.5, -6.0, 50.0])
    assert table["confidence_weight"].iloc[0] < 0.2
    assert table["confidence_weight"].between(0, 1).all()


def test_truth_is_joined_by_path_and_may_be_incomplete():
    truth = pd.DataFrame(
        {"image_path": ["b", "a"], "injected": [True, False], "defect_type": ["crack", ""], "split": "train"}
    )
    table = suspicion_table(["a", "b", "c"], [1.0, 2.0, 3.0], truth=truth)
    assert table.columns.tolist()[-2:] == ["injected", "defect_type"]
    assert table.set_index("image_path").loc["b", "defect_type"] == "crack"
    evaluation = evaluate(table)  # "c" is first, but nobody knows what it is
    assert (evaluation.images, evaluation.injected, evaluation.average_precision) == (2, 1, 1.0)


@pytest.mark.parametrize(
    ("paths", "scores", "weights", "message"),
    [
        (["a"], [1.0, 2.0], None, "one anomaly score an image"),
        (["a", "b"], [1.0, float("inf")], None, "infinite"),
        (["a", "a"], [1.0, 2.0], None, "occurs twice"),
        (["a", "b"], [1.0, 2.0], [1.0], "one confidence weight an image"),
    ],
)
def test_bad_tables_are_refused(paths, scores, weights, message):
    with pytest.raises(ValueError, match=message):
        suspicion_table(paths, scores, weights)


def test_curve_by_hand():
    # Ranking: hit, miss, hit, miss, hit.
    precision, recall = precision_recall_curve([5, 4, 3, 2, 1], [1, 0, 1, 0, 1])
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    assert recall == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert average_precision([5, 4, 3, 2, 1], [1, 0, 1, 0, 1]) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_equal_scores_share_a_point_whatever_their_order():
    for truth in ([1, 0, 0, 1], [0, 1, 1, 0]):
        precision, recall = precision_recall_curve([2, 2, 1, 1], truth)
        assert precision == pytest.approx([1 / 2, 1 / 2])
        assert recall == pytest.approx([1 / 2, 1])
        assert average_precision([2, 2, 1, 1], truth) == pytest.approx(1 / 2)
    assert average_precision([7, 7, 7, 7], [1, 0, 0, 0]) == pytest.approx(1 / 4)  # chance
    assert recall_among_first([7, 7, 7, 7], [1, 0, 0, 0], 2) == pytest.approx(1 / 2)


def test_recall_among_the_first():
    scores, truth = [5, 4, 3, 2, 1], [1, 0, 1, 0, 1]
    found = [recall_among_first(scores, truth, count) for count in (0, 1, 2, 3, 5, 99)]
    assert found == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1, 1])


def test_against_sklearn_s_definition_on_random_rankings():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for _ in range(20):
        truth = generator.random(50) < 0.2
        truth[0] = True
        scores = np.round(generator.random(50) + 0.3 * truth, 1)  # many ties
        assert average_precision(scores, truth) == pytest.approx(metrics.average_precision_score(truth, scores))


def test_evaluation_of_a_table():
    truth = pd.DataFrame({"image_path": list("abcdef"), "injected": [True, False, True, False, False, False]})
    table = suspicion_table(list("abcdef"), [6.0, 5.0, 4.0, 3.0, 2.0, NAN], truth=truth)
    evaluation = evaluate(table)
    assert (evaluation.images, evaluation.injected) == (5, 2)  # the image without a score does not count
    assert evaluation.chance == pytest.approx(2 / 5)
    assert evaluation.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert evaluation.recall_k == pytest.approx(1 / 2)
    assert evaluation.recall_2k == 1
    assert "average precision 0.833 (chance 0.400)" in evaluation.summary()


def test_nothing_to_evaluate():
    table = suspicion_table(["a", "b"], [1.0, 2.0])
    assert evaluate(table) is None
    assert evaluate(table.assign(injected=False)) is None
    with pytest.raises(ValueError, match="at least one injected"):
        average_precision([1.0], [False])
    with pytest.raises(ValueError, match="not finite"):
        average_precision([NAN], [True])
    with pytest.raises(ValueError, match="one length"):
        average_precision([1.0, 2.0], [True])
