# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The protocol's arithmetic: counts, stratification, nesting, and what is said when there are too few anomalies."""

import math
import pickle
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anomalib_comet.data.contamination.protocol import (
    NotEnoughAnomaliesError,
    contamination_share,
    injected_count,
    largest_ratio,
    plan_draw,
    spread_positions,
    stratified_order,
)

# Up to six defect types with up to twelve anomalies each, by key.
data_sets = st.lists(st.integers(1, 12), min_size=1, max_size=6).map(
    lambda sizes: {
        f"test/t{kind}/{number:03}.png": f"t{kind}" for kind, size in enumerate(sizes) for number in range(size)
    }
)
seeds = st.integers(-(2**40), 2**40)


@pytest.mark.parametrize(("normal_count", "moved"), [(391, 39), (213, 21), (264, 26), (247, 24), (209, 20)], ids=str)
def test_counts_of_mvtec_at_a_tenth(normal_count, moved):
    """The table that published results at r = 10 % go by rounds down: .1 * 209 normal images are 20 anomalies."""
    assert injected_count(0.1, normal_count) == moved


def test_counts_are_not_lost_to_binary_fractions():
    assert 0.29 * 100 < 29
    assert injected_count(0.29, 100) == 29


def test_share_is_smaller_than_ratio():
    assert contamination_share(0.1) == pytest.approx(0.0909, abs=1e-4)
    assert contamination_share(0.0) == 0
    assert contamination_share(1.0) == 0.5


@given(available=st.integers(0, 500), normal_count=st.integers(1, 500))
def test_largest_ratio_is_possible_and_nothing_much_larger_is(available, normal_count):
    ratio = largest_ratio(available, normal_count)
    assert injected_count(ratio, normal_count) <= available
    assert ratio == 1 or ratio > available / normal_count - 1e-4


@given(defect_types=data_sets, seed=seeds)
def test_every_prefix_of_the_order_is_stratified(defect_types, seed):
    order = stratified_order(defect_types, seed)
    assert sorted(order) == sorted(defect_types)
    sizes = Counter(defect_types.values())
    taken = Counter()
    for place, key in enumerate(order, start=1):
        taken[defect_types[key]] += 1
        for name, size in sizes.items():
            assert abs(taken[name] - Fraction(place * size, len(order))) < 1


@given(defect_types=data_sets, seed=seeds, data=st.data())
def test_order_does_not_depend_on_the_order_of_the_files(defect_types, seed, data):
    shuffled = dict(data.draw(st.permutations(list(defect_types.items()))))
    assert stratified_order(shuffled, seed) == stratified_order(defect_types, seed)


def test_order_is_the_same_in_every_version():
    """Recorded draws and published tables rest on this very order."""
    types = {f"test/{name}/{number:03}.png": name for name, size in (("hole", 4), ("cut", 2)) for number in range(size)}
    assert stratified_order(types, seed=0) == [
        "test/hole/000.png",
        "test/hole/002.png",
        "test/cut/000.png",
        "test/hole/003.png",
        "test/hole/001.png",
        "test/cut/001.png",
    ]


def test_seeds_draw_different_images():
    types = {f"{number:03}.png": "bad" for number in range(50)}
    draws = {frozenset(stratified_order(types, seed)[:10]) for seed in range(10)}
    assert len(draws) == 10


@given(
    defect_types=data_sets,
    ratios=st.lists(st.integers(0, 100), min_size=2, max_size=4).map(lambda percent: sorted(p / 100 for p in percent)),
    labelled=st.integers(0, 3),
    max_draw=st.sampled_from([1.0, 0.5]),
    resample=st.booleans(),
    seed=seeds,
)
def test_draws_of_a_sweep_are_nested_and_leave_one_test_set(defect_types, ratios, labelled, max_draw, resample, seed):
    normal_count = 40
    ratios = [ratio for ratio in ratios if ratio == 0 or ratio * normal_count >= 1]
    assume(ratios)
    sweep = {"seed": seed, "labelled": labelled, "max_draw": max_draw, "resample": resample}
    needed = math.floor(Fraction(str(ratios[-1])) * normal_count)
    distinct = math.floor(max_draw * len(defect_types)) - labelled
    if distinct < 0 or (needed > distinct and not (resample and distinct > 0)):
        # Every ratio of the sweep fails, the small ones too: none of them may go first and move the test set later.
        for ratio in ratios:
            with pytest.raises(NotEnoughAnomaliesError):
                plan_draw(defect_types, normal_count, ratio=ratio, max_ratio=ratios[-1], **sweep)
        return
    draws = [plan_draw(defect_types, normal_count, ratio=ratio, max_ratio=ratios[-1], **sweep) for ratio in ratios]
    for ratio, draw in zip(ratios, draws, strict=True):
        assert len(draw.injected) == math.floor(Fraction(str(ratio)) * normal_count)
        assert draw.pool == draws[-1].injected
        assert draw.injected == draws[-1].injected[: len(draw.injected)]
        assert draw.labelled == draws[0].labelled
        assert len(draw.labelled) == labelled
        assert not {entry.key for entry in draw.labelled} & {entry.key for entry in draw.pool}
        assert len({(entry.key, entry.copy) for entry in draw.pool}) == len(draw.pool)
        assert len(draw.withdrawn_keys) <= max_draw * len(defect_types)


def test_labelled_and_injected_anomalies_are_stratified_each_on_its_own():
    types = {f"{name}{number}": name for name, size in (("a", 20), ("b", 10), ("c", 10)) for number in range(size)}
    draw = plan_draw(types, 80, ratio=0.25, labelled=8)
    assert Counter(entry.defect_type for entry in draw.labelled) == {"a": 4, "b": 2, "c": 2}
    assert Counter(entry.defect_type for entry in draw.injected) == {"a": 10, "b": 5, "c": 5}


def test_copies_come_after_every_image_was_drawn_once():
    types = {f"{number}": "bad" for number in range(4)}
    draw = plan_draw(types, 10, ratio=1.0, max_draw=0.75, resample=True)
    assert [entry.copy for entry in draw.pool] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert len(draw.withdrawn_keys) == 3


def test_too_few_anomalies_are_counted_out():
    types = {f"{number}": "bad" for number in range(40)}
    with pytest.raises(NotEnoughAnomaliesError) as caught:
        plan_draw(types, 213, ratio=0.1, max_ratio=0.2)
    error = caught.value
    assert (error.needed, error.available, error.largest_ratio) == (42, 40, 0.1877)
    assert str(error) == (
        "Not enough anomalies: 40 anomalies may be drawn, 42 are needed (42 for ratio 0.2 of 213 normal training "
        "images); the largest possible ratio is 0.1877, or set resample_dir to re-sample with small changes."
    )
    assert len(plan_draw(types, 213, ratio=error.largest_ratio).injected) == 39
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - parallel jobs send errors this way


def test_labelled_anomalies_count_as_drawn():
    types = {f"{number}": "bad" for number in range(10)}
    with pytest.raises(NotEnoughAnomaliesError, match=r"5 for ratio 0.5 of 10 .* and 6 with labels.*ratio is 0.4,"):
        plan_draw(types, 10, ratio=0.5, labelled=6)
    with pytest.raises(NotEnoughAnomaliesError, match="labelled can be at most 10"):
        plan_draw(types, 10, ratio=0.5, labelled=11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": float("nan")}, r"ratio must lie in \[0, 1\] .*nan"),
        ({"ratio": -0.1}, r"ratio must lie in \[0, 1\]"),
        ({"ratio": 10}, r"0.1 stands for 10 %"),
        ({"ratio": True}, "ratio must be a number"),
        ({"ratio": 0.2, "max_ratio": 0.1}, "max_ratio=0.1 is smaller than ratio=0.2"),
        ({"ratio": 0.1, "max_draw": 0}, r"max_draw must lie in \(0, 1\]"),
        ({"ratio": 0.1, "labelled": 1.5}, "labelled must be a whole number"),
        ({"ratio": 0.1, "labelled": -1}, "labelled must be 0 or more"),
        ({"ratio": 0.04}, "less than one anomaly; use 0 or at least 0.05"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, message):
    types = {f"{number}": "bad" for number in range(10)}
    with pytest.raises((ValueError, TypeError), match=message):
        plan_draw(types, 20, **arguments)


@given(count=st.integers(0, 200), percent=st.integers(1, 99))
def test_held_out_positions_are_the_stated_share_of_every_prefix(count, percent):
    marked = spread_positions(count, percent / 100)
    for length in range(count + 1):
        assert sum(marked[:length]) == length * percent // 100
