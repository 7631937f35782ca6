# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Scaling of features before they enter a flow: a linear layer fitted in closed form.

Ours; the original feeds features as they are. For a Gaussian the soft confident loss ``sum_i w_i L(x_i)`` has its
minimum at the weighted mean and covariance, so the layer is fitted with the confidence weights of the images where
these are known before training (``cross_fit_folds``).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import nn

Scaling = Literal["none", "standardize", "whiten"]


def check_scaling(feature_scaling: str) -> Scaling:
    """Return ``feature_scaling`` if it is a known one.

    Raises:
        ValueError: If it is not.
    """
    if feature_scaling not in get_args(Scaling):
        msg = f"feature_scaling must be one of {get_args(Scaling)}, got '{feature_scaling}'."
        raise ValueError(msg)
    return feature_scaling  # type: ignore[return-value]


def weighted_moments(vectors: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weighted mean and standard deviation of every feature.

    Args:
        vectors: Shape ``(N, D)``.
        weights: Shape ``(N,)``, not negative, not all zero.

    Returns:
        Mean and standard deviation, shape ``(D,)`` each, in double precision. A feature that hardly varies (below a
        thousandth of the mean standard deviation, or a hundred-thousandth of its own size, which is rounding) gets 1,
        so that it is only shifted.

    Example:
        >>> weighted_moments(torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([1.0, 1.0, 0.0]))
        (tensor([1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    mean, std, _ = _moments(vectors, weights)
    return mean, std


def _moments(vectors: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what :func:`weighted_moments` does, and which features vary."""
    shares = (weights / weights.sum()).double()[:, None]
    values = vectors.double()
    mean = (shares * values).sum(0)
    std = (shares * (values - mean).square()).sum(0).sqrt()
    varies = (std > 1e-3 * std.mean()) & (std > 1e-5 * mean.abs())
    return mean, torch.where(varies, std, torch.ones_like(std)), varies


def whitening_matrix(
    vectors: torch.Tensor, weights: torch.Tensor, principal_axes: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weighted mean ``m`` and matrix ``W``, so that ``W (x - m)`` has the identity for its weighted covariance.

    ``W = R^(-1/2) diag(1 / std)`` with R the correlation matrix, shrunk towards the identity by the intensity of
    Ledoit and Wolf (2004), which needs no labels: without it directions in which the training images happen not to vary
    would be blown up.

    Args:
        vectors: Shape ``(N, D)``.
        weights: Shape ``(N,)``, not negative, not all zero.
        principal_axes: Whether the result lies in the principal axes of R, largest variance first, and not, as far as
            that goes, in the features' own. Defaults to ``False``.

    Returns:
        Mean of shape ``(D,)`` and matrix of shape ``(D, D)``, in double precision.
    """
    mean, std, varies = _moments(vectors, weights)
    scaled = (vectors.double() - mean) / std * (weights / weights.mean()).double().sqrt()[:, None]
    shrinkage = float(ledoit_wolf_shrinkage(scaled.float().numpy(), assume_centered=True))
    correlation = scaled.T @ scaled / len(scaled)
    shrunk = (1.0 - shrinkage) * correlation + shrinkage * torch.eye(len(mean), dtype=torch.float64)
    # A feature that hardly varies keeps its size; shrunk towards 1 alone, its variance would be blown up.
    still = ~varies
    shrunk[still] = 0.0
    shrunk[:, still] = 0.0
    shrunk[still, still] = 1.0
    values, axes = torch.linalg.eigh(shrunk)
    scaled_axes = torch.diag(values.clamp(min=1e-6).rsqrt()) @ axes.T / std
    return mean, scaled_axes.flip(0) if principal_axes else axes @ scaled_axes


class FeatureScaling(nn.Module):
    """Shift and scale features to zero mean and unit variance over the training set; the identity until fitted.

    Args:
        n_features: Number of features D.
        scaling: ``"none"`` for the identity, ``"standardize"`` for each feature by itself, ``"whiten"`` for unit
            variance in every direction, ``"pca"`` for the same in principal axes. Defaults to ``"standardize"``.
    """

    def __init__(self, n_features: int, scaling: Scaling | Literal["pca"] = "standardize") -> None:
        super().__init__()
        self.scaling = scaling
        self._turns = scaling in {"whiten", "pca"}
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("matrix", torch.eye(n_features) if self._turns else torch.ones(n_features))
        self.register_buffer("is_fitted", torch.tensor(data=scaling == "none"))
        self.mean: torch.Tensor
        self.matrix: torch.Tensor
        self.is_fitted: torch.Tensor

    @torch.no_grad()
    def fit(self, vectors: torch.Tensor, weights: torch.Tensor) -> None:
        """Fit mean and scale to features of the training set; nothing with ``"none"``.

        Args:
            vectors: Shape ``(N, D)``.
            weights: Confidence weight of every vector, shape ``(N,)``.
        """
        if self.scaling == "none":
            return
        vectors, weights = vectors.float().cpu(), weights.float().cpu()
        if self._turns:
            mean, matrix = whitening_matrix(vectors, weights, principal_axes=self.scaling == "pca")
        else:
            mean, std = weighted_moments(vectors, weights)
            matrix = 1.0 / std
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)
        self.is_fitted.fill_(value=True)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was fitted."""
        self.mean.zero_()
        self.matrix.copy_(torch.eye(len(self.mean)) if self._turns else torch.ones(len(self.mean)))
        self.is_fitted.fill_(self.scaling == "none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scaled features of the same shape ``(..., D)``."""
        centred = x - self.mean
        return nn.functional.linear(centred, self.matrix) if self._turns else centred * self.matrix
