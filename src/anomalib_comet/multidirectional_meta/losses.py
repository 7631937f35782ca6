# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Formulas of multidirectional meta-learning as pure functions (Roy, Mili, Boker, arXiv 2601.19833).

``s`` is the margin of a sample, the logit of "normal" minus the logit of "anomaly"; with the temperature ``T`` the
softmax confidence of "normal" is ``S = sigmoid(s / T)``. The paper's abstract leaves the losses open; what stands here
follows docs/multidirectional_meta.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T_BOUNDS = (0.5, 10.0)
"""Bounds of the temperature: without the lower one, T -> 0 alone satisfies any margin."""


def temperature(log_temperature: torch.Tensor) -> torch.Tensor:
    """Return the temperature within :data:`T_BOUNDS`.

    Example:
        >>> temperature(torch.tensor([0.0, -5.0, 5.0]))
        tensor([ 1.0000,  0.5000, 10.0000])
    """
    return log_temperature.exp().clamp(*T_BOUNDS)


def inner_loss(margins: torch.Tensor) -> torch.Tensor:
    """Return ``BCE(S, 1)`` at T = 1 over normal samples.

    Args:
        margins: ``s`` of normal samples, shape ``(N,)``.

    Example:
        >>> inner_loss(torch.zeros(2))
        tensor(0.6931)
    """
    return F.softplus(-margins).mean()


def outer_terms(
    normal: torch.Tensor,
    anomalies: Sequence[torch.Tensor],
    alpha: float = 0.1,
    margin: float = 0.5,
) -> list[torch.Tensor]:
    """Return the terms of the outer loss: that of the normal samples, and one for each class of anomalies.

    ``BCE(S_normal, 1) + mean_c BCE(S_c, 0) + alpha max(0, margin - gap)`` with ``gap = mean s / T`` of the normal
    samples minus the mean over classes of the anomalies'. The hinge is shared out over the classes (ours), so that each
    class is a term of its own; the sum is the loss.

    Args:
        normal: ``s / T`` of normal samples, shape ``(N,)``.
        anomalies: ``s / T`` of the anomalies of each class, at least one class, shapes ``(A_c,)``.
        alpha: Weight of the hinge. Defaults to ``0.1``.
        margin: Gap beyond which the hinge is 0. Defaults to ``0.5``.

    Returns:
        ``1 + len(anomalies)`` scalars.

    Example:
        >>> outer_terms(torch.tensor([2.0]), [torch.tensor([-2.0])])
        [tensor(0.1269), tensor(0.1269)]
    """
    count = len(anomalies)
    hinge = alpha * F.relu(margin - (normal.mean() - torch.stack([part.mean() for part in anomalies]).mean()))
    return [F.softplus(-normal).mean(), *((F.softplus(part).mean() + hinge) / count for part in anomalies)]


def hardest_classes(
    confidences: Mapping[str, torch.Tensor], generator: torch.Generator, hardest: int = 2, random: int = 1
) -> list[str]:
    """Return the classes of an episode: those that look most normal after the inner phase, and others at random.

    Args:
        confidences: ``S`` of the labelled anomalies by class.
        generator: Draws the random ones.
        hardest: How many of the classes with the highest mean confidence. Defaults to ``2``.
        random: How many of the others, at random. Defaults to ``1``.

    Returns:
        Names of classes; all of them, hardest first, if there are ``hardest + random`` or fewer.
    """
    order = sorted(confidences, key=lambda name: (-float(confidences[name].mean()), name))
    if len(order) <= hardest + random:
        return order
    rest = order[hardest:]
    drawn = torch.randperm(len(rest), generator=generator)[:random].tolist()
    return order[:hardest] + [rest[k] for k in drawn]


def without_conflicts(gradients: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Return the sum of gradients of which none works against another (PCGrad, Yu et al., NeurIPS 2020).

    Each gradient loses its component along every other one that it conflicts with, in random order.

    Args:
        gradients: One flat gradient a term, shapes ``(P,)``.
        generator: Draws the orders.

    Returns:
        Shape ``(P,)``.

    Example:
        >>> without_conflicts([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])], torch.Generator())
        tensor([0.5000, 1.5000])
    """
    total = torch.zeros_like(gradients[0])
    for k, gradient in enumerate(gradients):
        projected = gradient.clone()
        for other in torch.randperm(len(gradients), generator=generator).tolist():
            if other == k:
                continue
            along = torch.dot(projected, gradients[other])
            norm = gradients[other].square().sum()
            if along < 0 and norm > 0:
                projected -= along / norm * gradients[other]
        total += projected
    return total


def latent_spread(latents: torch.Tensor) -> torch.Tensor:
    """Return the effective share of dimensions that latents use, in [0, 1]: 0 for a collapsed encoder.

    The participation ratio of the covariance's eigenvalues ``(sum l)^2 / sum l^2``, divided by the dimension.

    Args:
        latents: Shape ``(N, D)``.

    Example:
        >>> latent_spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        tensor(1.)
    """
    centred = latents - latents.mean(dim=0)
    covariance = centred.T @ centred / max(1, len(latents))
    squares = covariance.square().sum()
    share = covariance.diagonal().sum().square() / squares.clamp(min=torch.finfo(squares.dtype).tiny)
    return torch.where(squares > 0, share / latents.shape[1], torch.zeros_like(share))
