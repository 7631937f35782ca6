# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The inner and outer step on a model small enough to differentiate by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anomalib_comet.confident_meta_learning.meta import inner_update, meta_gradient, split_tasks, surrogate


def squared_error(parameters, inputs):
    """L(x | theta) = (theta - x)^2, so dL/dtheta = 2 (theta - x)."""
    return (parameters["theta"] - inputs).square()


def theta(value=0.0):
    return {"theta": torch.tensor(value, dtype=torch.float64, requires_grad=True)}


X = torch.tensor([1.0, 2.0, 5.0, 8.0], dtype=torch.float64)
W = torch.tensor([1.0, 0.5, 1.0, 0.25], dtype=torch.float64)


@given(st.integers(4, 70), st.integers(4, 32), st.floats(0.05, 0.95))
def test_every_image_is_in_both_loops_once(n, task_size, share):
    everyone = torch.arange(n)
    splits = [(everyone[train].tolist(), everyone[val].tolist()) for train, val in split_tasks(n, task_size, share)]
    assert sorted(i for train, _ in splits for i in train) == everyone.tolist()
    assert sorted(i for _, val in splits for i in val) == everyone.tolist()
    for train, val in splits:
        assert len(train) >= 2
        assert len(val) >= 2
        assert not set(train) & set(val)


def test_too_few_images_make_no_task():
    assert split_tasks(3, 8) == []


def test_inner_step_by_hand():
    # theta = 0, x = (1, 2), w = (1, .5): gradient = mean(w * 2 (0 - x)) = (-2 - 2) / 2 = -2, theta' = 0.1 * 2.
    adapted, loss = inner_update(squared_error, theta(), X[:2], W[:2], step_size=0.1)
    assert adapted["theta"].item() == pytest.approx(0.2)
    assert loss.item() == pytest.approx((1 + 4) / 2)  # un-weighted, at theta
    # A second step: gradient = mean(2 (.2 - 1), .5 * 2 (.2 - 2)) = (-1.6 - 1.8) / 2 = -1.7.
    adapted, _ = inner_update(squared_error, theta(), X[:2], W[:2], step_size=0.1, steps=2)
    assert adapted["theta"].item() == pytest.approx(0.2 + 0.17)


def test_inner_gradient_is_bounded():
    # The gradient of -2 above is scaled down to -.5; one within the bound is left alone.
    adapted, _ = inner_update(squared_error, theta(), X[:2], W[:2], step_size=0.1, max_norm=0.5)
    assert adapted["theta"].item() == pytest.approx(0.05)
    adapted, _ = inner_update(squared_error, theta(), X[:2], W[:2], step_size=0.1, max_norm=3.0)
    assert adapted["theta"].item() == pytest.approx(0.2)


@pytest.mark.parametrize("first_order", [True, False])
def test_parameters_that_the_loss_does_not_reach_stay_where_they_are(first_order):
    parameters = {**theta(), "spare": torch.ones(2, dtype=torch.float64, requires_grad=True)}
    adapted, _ = inner_update(squared_error, parameters, X[:2], W[:2], step_size=0.1, first_order=first_order)
    assert torch.equal(adapted["spare"], parameters["spare"])
    outcome = meta_gradient(squared_error, parameters, X, W, task_size=4, step_size=0.1, first_order=first_order)
    if first_order:
        assert outcome.gradients["spare"].tolist() == [0.0, 0.0]
    else:
        outcome.loss.backward()
        assert parameters["spare"].grad is None or not parameters["spare"].grad.any()


def test_outer_gradient_by_hand():
    # One task of four, parts (x1, x2) and (x3, x4). Adapting on the first: theta' = .2 as above.
    # On the second: gradient = (-10 + .25 * -16) / 2 = -7, theta' = .7.
    # Outer gradient = sum_i w_i 2 (theta'_i - x_i) / 4 with theta' of the other part:
    #   i = 3, 4 at .2: -9.6 + .25 * -15.6 = -13.5;  i = 1, 2 at .7: -.6 + .5 * -2.6 = -1.9.
    outcome = meta_gradient(squared_error, theta(), X, W, task_size=4, step_size=0.1, train_share=0.5)
    assert outcome.gradients["theta"].item() == pytest.approx((-13.5 - 1.9) / 4)
    # Outer loss: (4.8^2 + .25 * 7.8^2 + .3^2 + .5 * 1.3^2) / 4.
    assert outcome.loss.item() == pytest.approx((23.04 + 15.21 + 0.09 + 0.845) / 4)
    # Pairs: (L_train at theta, L_val at theta'), un-weighted.
    expected = torch.tensor([[2.5, (23.04 + 60.84) / 2], [44.5, (0.09 + 1.69) / 2]], dtype=torch.float64)
    assert torch.allclose(outcome.pairs, expected)
    assert outcome.inner_improvement.item() == pytest.approx((44.5 - 41.94 + 2.5 - 0.89) / 2)


def test_second_order_goes_through_the_inner_step():
    # theta' = theta - alpha mean(w 2 (theta - x)), so dtheta'/dtheta = 1 - 2 alpha mean(w): .85 for the first part
    # (mean w = .75), .875 for the second (mean w = .625), and each multiplies the gradient taken at its theta'.
    parameters = theta()
    outcome = meta_gradient(
        squared_error, parameters, X, W, task_size=4, step_size=0.1, train_share=0.5, first_order=False
    )
    assert outcome.gradients is None
    outcome.loss.backward()
    assert parameters["theta"].grad.item() == pytest.approx((-13.5 * 0.85 - 1.9 * 0.875) / 4)


def test_no_inner_step_is_the_plain_weighted_gradient():
    parameters = theta(0.3)
    plain = torch.autograd.grad((W * squared_error(parameters, X)).mean(), parameters["theta"])[0]
    outcome = meta_gradient(squared_error, parameters, X, W, task_size=4, step_size=0.0)
    assert outcome.gradients["theta"].item() == pytest.approx(plain.item())
    assert outcome.inner_improvement.item() == pytest.approx(0.0)


@pytest.mark.parametrize("first_order", [True, False])
def test_regulariser_acts_on_adapted_matrices(first_order):
    # Mean over the two splits of d(3 theta'^2)/dtheta' = 6 theta' = 6 (.2 + .7) / 2; a scalar counts as no matrix.
    def outcome(shape, strength):
        parameters = {"theta": torch.zeros(shape, dtype=torch.float64, requires_grad=True)}
        result = meta_gradient(
            lambda p, x: (p["theta"].reshape(()) - x).square(),
            parameters,
            X,
            W,
            task_size=4,
            step_size=0.1,
            train_share=0.5,
            l2_strength=strength,
            first_order=first_order,
        )
        if first_order:
            return result.gradients["theta"].item(), result.loss.item()
        result.loss.backward()
        return parameters["theta"].grad.item(), result.loss.item()

    bare, matrix, scalar = outcome((1, 1), 0.0), outcome((1, 1), 3.0), outcome((), 3.0)
    chain = (1.0, 1.0) if first_order else (0.85, 0.875)  # dtheta'/dtheta, as above
    assert matrix[0] - bare[0] == pytest.approx(3 * (0.2 * chain[0] + 0.7 * chain[1]))
    assert matrix[1] - bare[1] == pytest.approx(3 * (0.04 + 0.49) / 2)
    assert scalar == pytest.approx(bare)


def test_surrogate_carries_value_and_gradient():
    parameters = {"a": torch.ones(3, requires_grad=True), "b": torch.ones(2, 2, requires_grad=True)}
    gradients = {"a": torch.tensor([1.0, -2.0, 3.0]), "b": torch.full((2, 2), 0.5)}
    loss = surrogate(torch.tensor(7.0), parameters, gradients)
    assert loss.item() == 7.0
    loss.backward()
    assert torch.equal(parameters["a"].grad, gradients["a"])
    assert torch.equal(parameters["b"].grad, gradients["b"])
