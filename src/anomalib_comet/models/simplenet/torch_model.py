# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of SimpleNet: frozen patch features, a linear adaptor, a discriminator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import nn

from anomalib_comet.backbones import FeatureScaling, FrozenBackbone, check_scaling, weighted_moments
from anomalib_comet.models.differnet.anomaly_map import AnomalyMapGenerator

from .aggregation import make_aggregation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class SimpleNetModel(nn.Module):
    """SimpleNet (Liu, Zhou, Xu, Wang, CVPR 2023): does this patch look like one of the training set, or like noise?

    Args:
        backbone: Name of the frozen network, see :class:`anomalib_comet.backbones.FrozenBackbone`. Defaults to
            ``"wide_resnet50_2.tv_in1k"``.
        layers: Names of its layers, or ``None`` for its defaults. Defaults to ``None``.
        pre_trained: Whether to load published weights. Defaults to ``True``.
        backbone_weights: Path of a local state-dict file instead. Defaults to ``None``.
        aggregation: ``"published"`` or ``"average"``, see :mod:`.aggregation`. Defaults to ``"published"``.
        feature_dim: Number D of features of a patch in the published aggregation. Defaults to ``1536``.
        hidden_units: Width of the discriminator's hidden layer. Defaults to ``1024``.
        noise_std: Standard deviation of the noise, in units of the adapted features. Defaults to ``0.015``.
        feature_scaling: ``"none"`` as published, ``"standardize"`` or ``"whiten"`` (ours), see
            :class:`anomalib_comet.backbones.FeatureScaling`. Defaults to ``"none"``.
        sigma: Standard deviation of the map's Gaussian blur in pixels. Defaults to ``4.0``.
        seed: Seed of the initial weights. Defaults to ``0``.

    Raises:
        ValueError: If an argument is out of range or a name unknown.
    """

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        aggregation: str = "published",
        feature_dim: int = 1536,
        hidden_units: int = 1024,
        noise_std: float = 0.015,
        feature_scaling: str = "none",
        sigma: float = 4.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hidden_units < 1 or sigma <= 0:
            msg = f"hidden_units must be at least 1 and sigma above zero, got {hidden_units} and {sigma}."
            raise ValueError(msg)
        self.network = FrozenBackbone(backbone, layers, pre_trained, backbone_weights)
        self.aggregation = make_aggregation(aggregation, self.network.out_channels, feature_dim)
        n_features = self.aggregation.n_features
        self.scaling = FeatureScaling(n_features, check_scaling(feature_scaling))
        generator = torch.Generator().manual_seed(seed)
        self.adaptor = _linear(n_features, n_features, generator)
        self.discriminator = nn.Sequential(
            _linear(n_features, hidden_units, generator),
            nn.BatchNorm1d(hidden_units),
            nn.LeakyReLU(0.2),
            _linear(hidden_units, 1, generator),
        )
        self.anomaly_map = AnomalyMapGenerator(sigma=sigma)
        # Buffers, because both may be measured on the training set (see fit_statistics) and belong to the model then.
        self.noise_std: torch.Tensor
        self.is_fitted: torch.Tensor
        self.register_buffer("noise_std", torch.tensor(float(noise_std)))
        self.register_buffer("is_fitted", torch.tensor(data=False))

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the frozen features of every patch.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Shape ``(B, h, w, D)`` on the grid of the first layer.
        """
        return self.aggregation(self.network(images)).permute(0, 2, 3, 1)

    @torch.no_grad()
    def fit_statistics(self, vectors: torch.Tensor, weights: torch.Tensor, noise_scale: float | None) -> None:
        """Fit the scaling of features, and set the noise relative to the features' spread.

        The adaptor starts with independent weights of variance 1 / D. The variance of an adapted feature is therefore,
        on average, the mean variance of a feature, whatever their correlations; the noise is set relative to its root.

        Args:
            vectors: Features of some patches of every training image, shape ``(N, D)``.
            weights: Confidence weight of every vector, shape ``(N,)``.
            noise_scale: Standard deviation of the noise in units of the features' spread, or ``None`` to leave it.
        """
        self.scaling.fit(vectors, weights)
        if noise_scale is not None:
            _, std = weighted_moments(self.scaling(vectors.to(self.noise_std)).cpu(), weights.cpu())
            self.noise_std.fill_(noise_scale * float(std.square().mean().sqrt()))
        self.is_fitted.fill_(value=True)

    def adapt(self, features: torch.Tensor) -> torch.Tensor:
        """Return the adapted features of patches, same shape ``(..., D)``."""
        return self.adaptor(self.scaling(features))

    def discriminate(self, adapted: torch.Tensor) -> torch.Tensor:
        """Return the discriminator's output D for adapted patches.

        Args:
            adapted: Shape ``(B, ..., D)``.

        Returns:
            Shape ``(B, ...)``, larger for patches that look like the training set's.
        """
        return self.discriminator(adapted.flatten(0, -2)).reshape(-1, *adapted.shape[1:-1])

    def patch_scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return the anomaly score -D of every patch.

        Args:
            features: Shape ``(B, ..., D)``.

        Returns:
            Scores of shape ``(B, ...)``, unbounded, larger for more anomalous.
        """
        return -self.discriminate(self.adapt(features))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images; the same function at the end of training, in a checkpoint and exported.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``pred_score`` of shape ``(B,)``, the score of the most anomalous patch, and ``anomaly_map`` of shape
            ``(B, 1, H, W)``.
        """
        scores = self.patch_scores(self.features(images))
        height, width = images.shape[-2:]
        return InferenceBatch(
            pred_score=scores.amax(dim=(1, 2)),
            anomaly_map=self.anomaly_map(scores, (height, width)),
        )


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with Xavier weights, drawn from ``generator``, and no bias at the start.

    Between as many inputs as outputs it keeps the scale of what goes through, which the noise is relative to.
    """
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    nn.init.normal_(layer.weight, std=math.sqrt(2.0 / (n_in + n_out)), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
