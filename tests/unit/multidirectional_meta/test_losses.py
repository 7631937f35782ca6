# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Formulas of multidirectional meta-learning against values by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anomalib_comet.multidirectional_meta.losses import (
    T_BOUNDS,
    hardest_classes,
    inner_loss,
    latent_spread,
    outer_terms,
    temperature,
    without_conflicts,
)


def test_inner_loss_is_cross_entropy_of_confidence_with_one():
    # S = 3/4 and 1/2: -(log 3/4 + log 1/2) / 2
    margins = torch.tensor([math.log(3.0), 0.0])
    assert float(inner_loss(margins)) == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)


def test_outer_loss_by_hand():
    normal = torch.tensor([math.log(3.0), math.log(3.0)])  # S = 3/4
    anomalies = [torch.tensor([0.0]), torch.tensor([-math.log(3.0), math.log(3.0)])]  # S = 1/2; 1/4 and 3/4
    terms = outer_terms(normal, anomalies, alpha=0.5, margin=2.0)
    gap = math.log(3.0) - 0.0
    hinge = 0.5 * (2.0 - gap)
    classes = [-math.log(0.5), -(math.log(0.75) + math.log(0.25)) / 2]
    assert [float(t) for t in terms] == pytest.approx(
        [-math.log(0.75), (classes[0] + hinge) / 2, (classes[1] + hinge) / 2]
    )
    # Beyond the margin nothing is left of the hinge.
    assert float(sum(outer_terms(normal, anomalies, alpha=0.5, margin=1.0))) == pytest.approx(
        -math.log(0.75) + sum(classes) / 2
    )


@given(st.floats(-30, 30))
def test_temperature_stays_within_its_bounds(value):
    assert T_BOUNDS[0] <= float(temperature(torch.tensor(value))) <= T_BOUNDS[1]


def test_hardest_classes_look_most_normal_and_one_is_drawn():
    confidences = {name: torch.tensor([value]) for name, value in zip("abcde", (0.1, 0.9, 0.5, 0.8, 0.2), strict=True)}
    drawn = {tuple(hardest_classes(confidences, torch.Generator().manual_seed(seed))) for seed in range(30)}
    assert drawn == {("b", "d", "a"), ("b", "d", "c"), ("b", "d", "e")}
    few = {name: confidences[name] for name in "abc"}
    assert hardest_classes(few, torch.Generator()) == ["b", "c", "a"]


def test_no_gradient_works_against_another():
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    # (1, 0) - (-1/2)(-1, 1) = (1/2, 1/2); (-1, 1) - (-1)(1, 0) = (0, 1)
    assert without_conflicts([first, second], torch.Generator()).tolist() == [0.5, 1.5]
    agreeing = torch.tensor([1.0, 1.0])
    assert without_conflicts([first, agreeing], torch.Generator()).tolist() == [2.0, 1.0]
    assert without_conflicts([first, torch.zeros(2)], torch.Generator()).tolist() == [1.0, 0.0]


def test_spread_is_zero_for_a_collapsed_encoder():
    assert float(latent_spread(torch.ones(5, 3))) == 0.0
    line = torch.arange(6.0)[:, None] * torch.tensor([[1.0, 0.0, 0.0]])
    assert float(latent_spread(line)) == pytest.approx(1 / 3)
