# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What makes somebody else's detector give its losses and scores per sample."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from anomalib_comet.confident_meta_learning import (
    given_outputs,
    recorded_outputs,
    sample_by_sample,
    standing_in,
)


def test_a_loss_that_is_a_mean_falls_into_samples():
    outputs = {"a": torch.randn(5, 3), "b": [torch.randn(5, 2, 4)]}

    def loss(parts, target):
        total = torch.tensor(0.0)
        total += (parts["a"] - target).square().mean()  # in place, and over a dictionary
        return total + parts["b"][0].abs().mean()

    target = torch.randn(5, 3)
    losses = sample_by_sample(loss, outputs, target)
    assert losses.shape == (5,)
    assert losses.mean() == pytest.approx(loss(outputs, target).item(), rel=1e-6)
    expected = (outputs["a"][3] - target[3]).square().mean() + outputs["b"][0][3].abs().mean()
    assert losses[3] == pytest.approx(expected.item(), rel=1e-6)


def test_a_sample_gives_gradients_to_itself_only():
    x = torch.randn(4, 3, requires_grad=True)
    sample_by_sample(lambda t: t.square().sum(), x)[2].backward()
    assert (x.grad.abs().sum(dim=1) > 0).tolist() == [False, False, True, False]


class Counted(nn.Module):
    """A frozen part that counts its calls, and a head."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)
        self.head = nn.Linear(3, 2)
        self.calls = 0

    def features(self, x):
        self.calls += 1
        return self.frozen(x)

    def forward(self, x):
        return self.head(self.features(x)).sigmoid()


def test_given_outputs_take_the_place_of_a_module_or_method_within_the_context_only():
    model, x = Counted(), torch.randn(4, 3)
    expected = model(x)
    features = model.features(x)
    calls = model.calls
    with given_outputs(model, features, "features"):
        assert torch.equal(model(torch.zeros(4, 3)), expected)
    assert model.calls == calls
    with given_outputs(model.frozen, features):
        assert torch.equal(model(torch.zeros(4, 3)), expected)
    assert not torch.equal(model(torch.zeros(4, 3)), expected)
    assert "forward" not in vars(model.frozen)
    assert "features" not in vars(model)


def test_given_outputs_hold_while_parameters_are_swapped():
    model, x = Counted(), torch.randn(4, 3)
    with given_outputs(model.frozen, torch.zeros(4, 3)):
        out = functional_call(model, {"head.bias": torch.tensor([50.0, -50.0])}, (x,))
    assert out.round().tolist() == [[1.0, 0.0]] * 4


def test_what_stood_in_before_comes_back_after_an_error():
    module = nn.Linear(2, 2)

    def earlier(x):
        return x + 1

    module.forward = earlier

    def failing(x):
        msg = "inside"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="inside"), standing_in(module, failing):
        module(torch.zeros(1))
    assert module(torch.zeros(1)).item() == 1


def test_recorded_outputs_are_what_lies_under_the_sigmoid():
    model, x = Counted(), torch.full((1, 3), 1e4)
    with recorded_outputs(model.head) as outputs:
        saturated = model(x)
        model(x)
    model(x)
    assert len(outputs) == 2
    assert torch.equal(outputs[0].sigmoid(), saturated)
    assert outputs[0].abs().max() > 100
