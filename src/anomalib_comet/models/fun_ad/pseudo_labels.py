# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Pseudo-labels of patches from their distances to the memory bank (Im, Son, Hong, WACV 2025)."""

from __future__ import annotations

import numpy as np
import torch

SCOPES = ("batch", "epoch", "robust")

TAU_N = 0.5
"""``tau_n``: a patch whose scaled distance is above it is a pseudo-anomaly."""

TAU_C = 0.9
"""``tau_c``: a pseudo-anomaly whose scaled distance is below it is not certain, and gets perturbed."""


def min_max(values: torch.Tensor) -> torch.Tensor:
    """Return ``(x - min) / (max - min)`` over all values, zeros where all are equal or there are none.

    Args:
        values: Any shape.

    Returns:
        Same shape, in [0, 1].

    Example:
        >>> min_max(torch.tensor([1.0, 2.0, 5.0]))
        tensor([0.0000, 0.2500, 1.0000])
    """
    if not values.numel():
        return values.clone()
    lowest, highest = values.min(), values.max()
    width = highest - lowest
    return torch.where(width > 0, (values - lowest) / torch.where(width > 0, width, torch.ones_like(width)), 0.0)


def fence(values: torch.Tensor, kappa: float) -> float:
    """Return Tukey's fence ``Q3 + kappa (Q3 - Q1)`` over all values.

    Args:
        values: Any shape, at least one value.
        kappa: Width of the fence in interquartile ranges.
    """
    # Not by torch.quantile, which refuses more than 2^24 values.
    q1, q3 = (float(q) for q in np.quantile(values.float().cpu().numpy(), [0.25, 0.75]))
    return q3 + kappa * (q3 - q1)


def robust_scale(distances: torch.Tensor, kappa: float, tau: float = TAU_N) -> torch.Tensor:
    """Scale distances so that Tukey's fence comes to lie at ``tau`` (ours).

    The published min-max calls something anomalous in every batch, or every training set: whatever lies farthest away
    gets 1. Quartiles do not move with the farthest, so clean data may have no pseudo-anomaly at all, and a few
    anomalies do not hide each other behind a larger one.

    Args:
        distances: Not negative, any shape.
        kappa: Width of the fence in interquartile ranges.
        tau: Scaled distance of the fence. Defaults to :data:`TAU_N`.

    Returns:
        Same shape: 0 at distance 0, ``tau`` at the fence, linear, at most 1. Zeros where all distances are equal, or
        the fence is at 0.
    """
    if not distances.numel():
        return distances.clone()
    limit = fence(distances, kappa)
    if limit <= 0 or bool((distances == distances.flatten()[0]).all()):
        return torch.zeros_like(distances)
    return (distances * (tau / limit)).clamp(max=1.0)


def scale_distances(distances: torch.Tensor, scope: str, kappa: float = 3.0) -> torch.Tensor:
    """Scale the distances of all patches of one scope.

    Args:
        distances: Squared distances to the nearest bank vector: of a batch for ``"batch"``, of the training set for
            the other scopes.
        scope: One of :data:`SCOPES`. ``"batch"`` and ``"epoch"`` are :func:`min_max`, ``"robust"`` is
            :func:`robust_scale`.
        kappa: Width of the fence under ``"robust"``. Defaults to ``3.0``.

    Raises:
        ValueError: If the scope is unknown.
    """
    if scope not in SCOPES:
        msg = f"scope must be one of {SCOPES}, got '{scope}'."
        raise ValueError(msg)
    return robust_scale(distances, kappa) if scope == "robust" else min_max(distances)


def centred_log(distances: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of squared distances less their mean (ours).

    Args:
        distances: Squared distances of all patches of the training set, any shape. Those below a millionth of their
            mean (duplicates) count as that much.

    Returns:
        Same shape; zeros where all distances are zero.

    Example:
        >>> centred_log(torch.tensor([1.0, torch.e**2]))
        tensor([-1.,  1.])
    """
    if not distances.numel() or float(distances.max()) <= 0:
        return torch.zeros_like(distances)
    logs = distances.clamp(min=1e-6 * float(distances.mean())).log()
    return logs - logs.mean()


def pseudo_labels(scaled: torch.Tensor, tau_n: float = TAU_N) -> torch.Tensor:
    """Return which patches are pseudo-anomalies, ``d > tau_n``.

    Example:
        >>> pseudo_labels(torch.tensor([0.2, 0.5, 0.6]))
        tensor([False, False,  True])
    """
    return scaled > tau_n


def uncertain(scaled: torch.Tensor, tau_n: float = TAU_N, tau_c: float = TAU_C) -> torch.Tensor:
    """Return which pseudo-anomalies are not certain, ``tau_n < d < tau_c``: those that get perturbed.

    Example:
        >>> uncertain(torch.tensor([0.4, 0.6, 0.95]))
        tensor([False,  True, False])
    """
    return (scaled > tau_n) & (scaled < tau_c)


def perturb(
    descriptors: torch.Tensor,
    chosen: torch.Tensor,
    sigma: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return descriptors of which the chosen ones have Gaussian noise; the given tensor stays as it is.

    Smoothness is computed on clean scores. In the authors' program an aliased tensor leaks the noise into them.

    Args:
        descriptors: Shape ``(..., D)``.
        chosen: Shape ``(...)``, boolean.
        sigma: Standard deviation of the noise a channel, shape ``(D,)``.
        generator: Source of the noise, on the CPU; the numbers do not depend on the device. Defaults to ``None``.
    """
    noise = torch.randn(descriptors.shape, generator=generator).to(descriptors)
    return torch.where(chosen[..., None], descriptors + noise * sigma.to(descriptors), descriptors)
