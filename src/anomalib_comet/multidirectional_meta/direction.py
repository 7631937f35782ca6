# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The supervised part of a score, weighted by how well it finds classes that it was not told of (ours).

What separates labelled anomalies from normal samples may be what all defects share, or what these few have by chance.
Which of the two it is can be measured without any test label: hold out each class of labelled anomalies in turn, and a
quarter of the normal samples, and see which mixture with the Mahalanobis distance finds the held-out class best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from anomalib_comet.backbones import FeatureScaling

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARES = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Weights of the supervised part, in units of the Mahalanobis distance's standard deviation over normal samples."""

PENALTY = 0.2
"""Ridge of the logistic regression on whitened features: half of it times the squared norm is added to mean losses."""

FOLDS = 4
"""Parts of the normal samples, each of which is held out in turn."""

SMALLEST_CLASS = 2
"""Samples that a class needs to be held out: one alone does not say how well its class is found."""

SMALLEST_COUNT = 2
"""Classes to hold out, without which nothing says how well an unknown one is found."""

MAX_SAMPLES = 20_000
"""Normal samples used, at most."""


@dataclass(frozen=True)
class Direction:
    """A direction in scaled features, along which samples look like the labelled anomalies.

    Args:
        weights: Shape ``(D,)``; its product with scaled features is to be added to a distance in units of ``std``.
        share: Weight of the supervised part, one of :data:`SHARES`: the smallest that is as good as the best.
        std: Standard deviation of the squared Mahalanobis distance over normal samples that it was not fitted to.
        auroc: Mean AUROC on held-out classes by share.
    """

    weights: torch.Tensor
    share: float
    std: float
    auroc: dict[float, float]


def fit_direction(
    normals: torch.Tensor,
    anomalies: Mapping[str, torch.Tensor],
    scaling: FeatureScaling,
    generator: torch.Generator,
    images: torch.Tensor | None = None,
) -> Direction | None:
    """Fit the supervised part, and choose its share by held-out classes.

    Args:
        normals: Features of normal samples, shape ``(N, D)``.
        anomalies: Features of labelled anomalies by class, shapes ``(A_c, D)``.
        scaling: Scaling fitted to all normal samples.
        generator: Draws the folds.
        images: Number of the image that each normal sample is of, shape ``(N,)``: patches of an image are held out
            together. Defaults to ``None``, an image a sample.

    Returns:
        The direction, or ``None`` where there is too little to hold out, see :func:`too_little`.
    """
    members = torch.arange(len(normals)) if images is None else images.unique(return_inverse=True)[1]
    n_images = int(members.max()) + 1
    if too_little(anomalies, n_images):
        return None
    held = _held_out(anomalies)
    order = torch.randperm(len(normals), generator=generator)[:MAX_SAMPLES]
    fold_of = torch.randperm(n_images, generator=generator)[members[order]] % FOLDS
    aurocs: list[list[float]] = []  # fold by fold, and in a fold class by class
    spreads: list[tuple[float, float]] = []
    for number in range(FOLDS):
        known, other = normals[order[fold_of != number]], normals[order[fold_of == number]]
        fold = FeatureScaling(normals.shape[1], "pca")
        fold.fit(known, torch.ones(len(known)))
        scaled = {name: fold(part) for name, part in anomalies.items()}
        learned, sound = fold(known), fold(other)
        distance = sound.square().sum(dim=1)
        for name in held:
            held_out = scaled[name]
            seen = [part for other_name, part in scaled.items() if other_name != name]
            weights = _logistic(learned, seen)
            along = sound @ weights
            units = (float(distance.std()), float(along.std()))
            found = held_out.square().sum(dim=1), held_out @ weights
            aurocs.append(
                [_auroc(_mixed(distance, along, units, share), _mixed(*found, units, share)) for share in SHARES]
            )
            spreads.append(units)
    by_class = np.reshape(aurocs, (FOLDS, len(held), len(SHARES))).mean(axis=0)
    share = SHARES[smallest_as_good(by_class)]
    mean = by_class.mean(axis=0)
    std, along_std = np.mean(spreads, axis=0)
    weights = _logistic(scaling(normals[order]), [scaling(part) for part in anomalies.values()])
    return Direction(
        weights=weights * (share / max(float(along_std), 1e-12)),
        share=share,
        std=max(float(std), 1e-12),
        auroc=dict(zip(SHARES, map(float, mean), strict=True)),
    )


def too_little(anomalies: Mapping[str, torch.Tensor], n_images: int) -> str:
    """Return what is missing for a supervised part whose share can be measured, an empty text if nothing is.

    Args:
        anomalies: Features of labelled anomalies by class, shapes ``(A_c, D)``.
        n_images: Number of normal images.

    Example:
        >>> too_little({"scratch": torch.zeros(5, 2)}, 100)
        '2 types of at least 2 labelled anomalies each are needed to hold one out, there is 1'
    """
    missing = []
    count = len(_held_out(anomalies))
    if count < SMALLEST_COUNT:
        missing.append(
            f"{SMALLEST_COUNT} types of at least {SMALLEST_CLASS} labelled anomalies each are needed to hold one out, "
            f"there {'is' if count == 1 else 'are'} {count}"
        )
    if n_images < 3 * FOLDS:
        missing.append(f"{3 * FOLDS} normal images are needed to hold a quarter of them out, there are {n_images}")
    return ", and ".join(missing)


def smallest_as_good(values: np.ndarray) -> int:
    """Return the first column whose mean is within a standard error of the best column's, row by row.

    Args:
        values: Larger is better, shape ``(rows, columns)``; rows are held-out classes, which vary independently, as
            folds of the same normal samples do not.

    Example:
        >>> smallest_as_good(np.array([[0.8, 0.9], [0.9, 0.85]]))  # the second is better by 0.025 with error 0.075
        0
        >>> smallest_as_good(np.array([[0.8, 0.9], [0.8, 0.85]]))
        1
    """
    best = int(values.mean(axis=0).argmax())
    behind = values[:, [best]] - values
    error = behind.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
    return int((behind.mean(axis=0) <= error).argmax())


def _held_out(anomalies: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the classes that are held out in turn."""
    return [name for name, part in anomalies.items() if len(part) >= SMALLEST_CLASS]


def _auroc(normal: torch.Tensor, anomalous: torch.Tensor) -> float:
    truth = [0] * len(normal) + [1] * len(anomalous)
    return float(roc_auc_score(truth, torch.cat([normal, anomalous])))


def _mixed(distance: torch.Tensor, along: torch.Tensor, units: tuple[float, float], share: float) -> torch.Tensor:
    return distance / max(units[0], 1e-12) + share * along / max(units[1], 1e-12)


def _logistic(normals: torch.Tensor, classes: list[torch.Tensor]) -> torch.Tensor:
    """Return the weights of a ridge logistic regression; normal samples and anomalies, and classes, count the same."""
    samples = torch.cat([normals, *classes]).double().numpy()
    labels = np.r_[np.zeros(len(normals)), np.ones(len(samples) - len(normals))]
    counts = np.concatenate([np.full(len(part), 1.0 / (len(classes) * len(part))) for part in classes])
    weights = np.r_[np.full(len(normals), 1.0 / len(normals)), counts]
    fitted = LogisticRegression(C=1.0 / PENALTY, max_iter=200, tol=1e-6).fit(samples, labels, sample_weight=weights)
    return torch.from_numpy(fitted.coef_[0]).float()
