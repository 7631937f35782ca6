# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Model uncertainty and the adaptive regulariser against values computed by hand."""

import pytest
import torch

from anomalib_comet.confident_meta_learning.uncertainty import (
    LossPairWindow,
    adaptive_l2,
    check_scale,
    loss_covariance,
    model_uncertainty,
)

# Means (2, 3); deviations (-1, 0, 1) and (-2, 2, 0): variances 1 and 4, covariance 1 (all over K - 1 = 2).
PAIRS = torch.tensor([[1.0, 1.0], [2.0, 5.0], [3.0, 3.0]])


def test_covariance_and_determinant():
    assert loss_covariance(PAIRS).tolist() == [[1.0, 1.0], [1.0, 4.0]]
    assert model_uncertainty(PAIRS, "raw").item() == pytest.approx(1 * 4 - 1 * 1)
    assert model_uncertainty(PAIRS, "correlation").item() == pytest.approx(1 - 1 / 4)
    assert model_uncertainty(PAIRS, "relative").item() == pytest.approx(3 / (2 * 3) ** 2)


def test_scale_free_uncertainty_ignores_the_unit_of_the_loss():
    for scale in ("correlation", "relative"):
        assert model_uncertainty(PAIRS * 1e-3, scale).item() == pytest.approx(model_uncertainty(PAIRS, scale).item())
    assert model_uncertainty(PAIRS * 1e-3, "raw").item() == pytest.approx(3e-12, rel=1e-4)


def test_perfectly_predictable_losses_have_no_uncertainty():
    line = torch.tensor([[1.0, 2.0], [2.0, 4.0], [5.0, 10.0]])
    assert model_uncertainty(line, "correlation").item() == pytest.approx(0.0, abs=1e-6)
    assert model_uncertainty(torch.ones(5, 2), "correlation").item() == 0.0
    assert model_uncertainty(PAIRS[:2]).item() == 0.0  # too few pairs for a covariance


def test_regulariser_follows_the_uncertainty():
    assert adaptive_l2(0.5, lambda0=1e-5, gamma=0.5) == pytest.approx(1e-5 * 1.25)
    assert adaptive_l2(0.0, lambda0=1e-5, gamma=0.5) == 1e-5


def test_window_slides_and_is_plain_data():
    window = LossPairWindow(size=3)
    window.extend([(float(k), float(-k)) for k in range(5)])
    assert window.tensor().tolist() == [[2, -2], [3, -3], [4, -4]]
    other = LossPairWindow(size=3)
    other.restore(window.state())
    assert other.state() == [[2.0, -2.0], [3.0, -3.0], [4.0, -4.0]]
    assert LossPairWindow().tensor().shape == (0, 2)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        LossPairWindow(size=2)
    with pytest.raises(ValueError, match="uncertainty_scale"):
        check_scale("log")
