# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of DifferNet: normalizing flow on pooled multi-scale features, with a local flow for the map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_comet.backbones import FrozenBackbone

from .anomaly_map import AnomalyMapGenerator, turn, turn_back
from .flow import NormalizingFlow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

TURNS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3)}
"""Quarter turns of an image by number of transforms."""


class DifferNetFeatures(nn.Module):
    """Frozen features of an image at several scales: pooled over the image, and over local windows of it.

    Args:
        backbone: See :class:`anomalib_comet.backbones.FrozenBackbone`.
        layers: See there.
        pre_trained: See there.
        backbone_weights: See there.
        n_scales: Number of scales; every scale halves the image once more.
        n_windows: Number of windows along the shorter side of the image, 0 for none.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None,
        pre_trained: bool,
        backbone_weights: str | Path | None,
        n_scales: int,
        n_windows: int,
    ) -> None:
        super().__init__()
        self.network = FrozenBackbone(backbone, layers, pre_trained, backbone_weights)
        self.n_scales = n_scales
        self.n_windows = n_windows
        self.n_features = n_scales * sum(self.network.out_channels)

    def check_image_size(self, image_size: tuple[int, int]) -> None:
        """Make sure that images of a size leave something of themselves at the coarsest scale.

        Args:
            image_size: Height and width in pixels.

        Raises:
            ValueError: If they do not, or if there would be more windows than pixels.
        """
        if self.n_windows > min(image_size):
            msg = f"n_windows={self.n_windows} is more than an image of {image_size} pixels has; give at most its side."
            raise ValueError(msg)
        for scale in range(self.n_scales):
            self.network.map_sizes((image_size[0] >> scale, image_size[1] >> scale))

    @torch.no_grad()
    def forward(self, images: torch.Tensor, with_windows: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of images.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.
            with_windows: Whether windows are wished, if the model has any. Defaults to ``True``.

        Returns:
            Pooled features of shape ``(B, D)``, and the same features of every window, shape ``(B, D, h, w)`` (with
            ``h = w = 0`` where no windows are wished). ``D`` runs over scales, then layers, then channels.
        """
        height, width = images.shape[-2:]
        cell = max(1, min(height, width) // self.n_windows) if self.n_windows and with_windows else 0
        grid = (height // cell, width // cell) if cell else (0, 0)
        pooled, windows = [], []
        for scale in range(self.n_scales):
            for feature_map in self.network(images):
                pooled.append(feature_map.mean(dim=(2, 3)))
                if cell:
                    windows.append(window_means(feature_map, grid))
            if scale + 1 < self.n_scales:
                images = F.avg_pool2d(images, 2)
        local = torch.cat(windows, dim=1) if cell else images.new_zeros(images.shape[0], self.n_features, 0, 0)
        return torch.cat(pooled, dim=1), local


def window_means(feature_map: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Average a feature map over a grid of windows, and interpolate where it is coarser than the grid.

    Args:
        feature_map: Shape ``(B, C, h, w)``.
        grid: Number of windows down and across.

    Returns:
        Tensor of shape ``(B, C, *grid)``.
    """
    factor = min(feature_map.shape[-2] // grid[0], feature_map.shape[-1] // grid[1])
    if factor > 1:
        feature_map = F.avg_pool2d(feature_map, factor)
    if tuple(feature_map.shape[-2:]) == grid:
        return feature_map
    return F.interpolate(feature_map, size=grid, mode="bilinear", align_corners=False, antialias=False)


class Standardize(nn.Module):
    """Shift and scale features to zero mean and unit variance over the training set; the identity until fitted.

    Args:
        n_features: Number of features D.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.register_buffer("is_fitted", torch.tensor(data=False))
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.is_fitted: torch.Tensor

    def fit(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Take mean and standard deviation, shape ``(D,)``; a feature that hardly varies is only shifted."""
        floor = 1e-3 * std.mean()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > floor, std, torch.ones_like(std)))
        self.is_fitted.fill_(value=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return standardised features of the same shape ``(..., D)``."""
        return (x - self.mean) / self.std


class DifferNetModel(nn.Module):
    """DifferNet: the likelihood of an image's pooled features under a normalizing flow.

    The original (Rudolph, Wandt, Rosenhahn, WACV 2021): frozen features at three scales, global average pooling, a
    flow of eight affine coupling blocks, the anomaly score ``mean z^2`` over dimensions and transforms of the image.
    Ours: a second, small flow that sees the same features of every local window, for an anomaly map that can be
    exported. The two flows share no parameter, and the image score is the original's. Also ours: features may be
    standardised over the training set before they enter the flows (see :class:`Standardize`).

    Args:
        backbone: Name of the frozen network, see :class:`anomalib_comet.backbones.FrozenBackbone`. Defaults to
            ``"alexnet"``.
        layers: Names of its layers, or ``None`` for its defaults. Defaults to ``None``.
        pre_trained: Whether to load published weights. Defaults to ``True``.
        backbone_weights: Path of a local state-dict file instead. Defaults to ``None``.
        image_size: Height and width of the images in pixels. Defaults to ``(448, 448)``.
        n_scales: Number of scales. Defaults to ``3``.
        n_transforms: Number of fixed quarter turns over which the score is averaged: 1, 2 or 4. Defaults to ``4``.
        coupling_blocks: Number of coupling blocks of the flow. Defaults to ``8``.
        hidden_units: Width of the two hidden layers of its subnets. Defaults to ``2048``.
        clamp: Bound alpha of the soft-clamped log-scale. Defaults to ``3.0``.
        n_windows: Number of windows along the shorter side for the anomaly map; 0 leaves the map out. Defaults to
            ``14``.
        local_coupling_blocks: Number of coupling blocks of the local flow. Defaults to ``4``.
        local_hidden_units: Width of the hidden layer of its subnets. Defaults to ``256``.
        image_score: ``"global"`` for the original's score, ``"local"`` for the largest window score (ours, for defects
            that are too small to show in pooled features). Defaults to ``"global"``.
        seed: Seed of the flows' permutations and initial weights. Defaults to ``0``.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(
        self,
        backbone: str = "alexnet",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        image_size: tuple[int, int] = (448, 448),
        n_scales: int = 3,
        n_transforms: int = 4,
        coupling_blocks: int = 8,
        hidden_units: int = 2048,
        clamp: float = 3.0,
        n_windows: int = 14,
        local_coupling_blocks: int = 4,
        local_hidden_units: int = 256,
        image_score: str = "global",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if image_score not in {"global", "local"} or (image_score == "local" and not n_windows):
            msg = f"image_score must be 'global', or 'local' with n_windows > 0, got '{image_score}' and {n_windows}."
            raise ValueError(msg)
        self.image_score = image_score
        if n_transforms not in TURNS:
            msg = f"n_transforms must be 1, 2 or 4 (quarter turns), got {n_transforms}."
            raise ValueError(msg)
        if n_scales < 1 or n_windows < 0:
            msg = f"n_scales must be at least 1 and n_windows at least 0, got {n_scales} and {n_windows}."
            raise ValueError(msg)
        self.turns = TURNS[n_transforms]
        self.features = DifferNetFeatures(
            backbone,
            layers,
            pre_trained,
            backbone_weights,
            n_scales,
            n_windows,
        )
        n_features = self.features.n_features
        self.standardize = Standardize(n_features)
        self.flow = NormalizingFlow(n_features, coupling_blocks, hidden_units, n_hidden=2, clamp=clamp, seed=seed)
        self.local_flow: NormalizingFlow | None = None
        if n_windows:
            self.local_standardize = Standardize(n_features)
            self.local_flow = NormalizingFlow(
                n_features,
                local_coupling_blocks,
                local_hidden_units,
                n_hidden=1,
                clamp=clamp,
                seed=seed + 1,
            )
            self.anomaly_map = AnomalyMapGenerator(sigma=max(1.0, min(image_size) / n_windows / 4))

    def turned_features(self, images: torch.Tensor, with_windows: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of every quarter turn of images.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.
            with_windows: Whether windows are wished, if the model has any. Defaults to ``True``.

        Returns:
            Pooled features of shape ``(B, T, D)`` and windows of shape ``(B, T, D, h, w)``, those of turned images
            turned back to the image's own pose.
        """
        if images.shape[-1] == images.shape[-2]:  # one pass: the turns are folded into the batch
            pooled, windows = self.features(torch.cat([turn(images, k) for k in self.turns]), with_windows)
            # Not chunk(), which fixes the batch size of an exported graph to the one that it was traced with.
            pooled_turns = pooled.unflatten(0, (len(self.turns), -1)).unbind()
            window_turns = windows.unflatten(0, (len(self.turns), -1)).unbind()
        else:
            both = [self.features(turn(images, k), with_windows) for k in self.turns]
            pooled_turns = tuple(pooled for pooled, _ in both)
            window_turns = tuple(windows for _, windows in both)
        upright = [turn_back(windows, k) for windows, k in zip(window_turns, self.turns, strict=True)]
        return torch.stack(pooled_turns, dim=1), torch.stack(upright, dim=1)

    @torch.no_grad()
    def fit_standardization(self, batches: Iterable[tuple[torch.Tensor, ...]]) -> None:
        """Set the features' means and standard deviations from batches of the training set.

        Args:
            batches: Pooled features of shape ``(B, T, D)`` and, with a local flow, windows of shape
                ``(B, T, D, h, w)``.
        """
        sums = [torch.zeros(3, self.features.n_features, dtype=torch.float64) for _ in range(2)]
        for batch in batches:
            for total, features in zip(sums, batch, strict=False):
                vectors = features.movedim(2, -1).flatten(0, -2).float().cpu().double()
                total.add_(torch.stack([torch.ones_like(vectors), vectors, vectors.square()]).sum(1))
        targets = [self.standardize] + ([self.local_standardize] if self.local_flow is not None else [])
        for target, (count, total, squares) in zip(targets, sums, strict=False):
            mean = total / count
            target.fit(mean.to(target.mean), (squares / count - mean**2).clamp(min=0.0).sqrt().to(target.std))

    def latents(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map pooled features through the flow.

        Args:
            pooled: Shape ``(B, T, D)``.

        Returns:
            Latents ``z`` of shape ``(B, T, D)`` and log-determinants of shape ``(B, T)``.
        """
        z, log_det = self.flow(self.standardize(pooled.flatten(0, 1)))
        return z.reshape(pooled.shape), log_det.reshape(pooled.shape[:2])

    def local_latents(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map the features of windows through the local flow.

        Args:
            windows: Shape ``(B, T, D, h, w)``.

        Returns:
            Latents of shape ``(B, T, h, w, D)`` and log-determinants of shape ``(B, T, h, w)``.

        Raises:
            RuntimeError: If the model was built without windows.
        """
        if self.local_flow is None:
            msg = "This model was built with n_windows=0 and has no local flow."
            raise RuntimeError(msg)
        vectors = windows.permute(0, 1, 3, 4, 2)
        z, log_det = self.local_flow(self.local_standardize(vectors.flatten(0, 3)))
        return z.reshape(vectors.shape), log_det.reshape(vectors.shape[:-1])

    def window_scores(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the anomaly score of every window, ``mean z^2`` over dimensions and transforms.

        Args:
            windows: Shape ``(B, T, D, h, w)``.

        Returns:
            Scores of shape ``(B, h, w)``.
        """
        return self.local_latents(windows)[0].square().mean(dim=(1, 4))

    def score(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the anomaly score of every image, ``mean z^2`` over dimensions and transforms.

        Args:
            features: Pooled features of shape ``(B, T, D)`` and, for the local score, windows of shape
                ``(B, T, D, h, w)``.

        Returns:
            Scores of shape ``(B,)``, positive and unbounded: of the pooled features (global; about 1 for images like
            the training set's), or of the most anomalous window (local).
        """
        if self.image_score == "local":
            return self.window_scores(features[1]).amax(dim=(1, 2))
        return self.latents(features[0])[0].square().mean(dim=(1, 2))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images; the same function at the end of training, in a checkpoint and exported.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``pred_score`` of shape ``(B,)`` and, unless ``n_windows`` is 0, ``anomaly_map`` of shape
            ``(B, 1, H, W)``.
        """
        pooled, windows = self.turned_features(images)
        if self.local_flow is None:
            return InferenceBatch(pred_score=self.score((pooled,)))
        window_scores = self.window_scores(windows)
        pred_score = window_scores.amax(dim=(1, 2)) if self.image_score == "local" else self.score((pooled,))
        height, width = images.shape[-2:]
        return InferenceBatch(pred_score=pred_score, anomaly_map=self.anomaly_map(window_scores, (height, width)))
