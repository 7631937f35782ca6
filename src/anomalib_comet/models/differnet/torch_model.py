# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of DifferNet: normalizing flow on pooled multi-scale features, with a local flow for the map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_comet.backbones import FeatureScaling, FrozenBackbone, check_scaling

from .anomaly_map import AnomalyMapGenerator, turn, turn_back
from .flow import NormalizingFlow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TURNS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3)}
"""Quarter turns of an image by number of transforms."""

POOLINGS = {"mean": ("mean",), "mean_std": ("mean", "std")}
"""Statistics over an image's places by name of the pooling."""

IMAGE_SCORES = ("global", "local", "both")


def spatial_mean(feature_map: torch.Tensor) -> torch.Tensor:
    """Average a map of shape ``(B, C, h, w)`` over places: shape ``(B, C)``."""
    return feature_map.mean(dim=(2, 3))


def spatial_std(feature_map: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of a map of shape ``(B, C, h, w)`` over places: shape ``(B, C)``."""
    centred = feature_map - feature_map.mean(dim=(2, 3), keepdim=True)
    return (centred.square().mean(dim=(2, 3)) + 1e-12).sqrt()


POOL = {"mean": spatial_mean, "std": spatial_std}


class DifferNetFeatures(nn.Module):
    """Frozen features of an image at several scales: pooled over the image, and over local windows of it.

    Args:
        backbone: See :class:`anomalib_comet.backbones.FrozenBackbone`.
        layers: See there.
        pre_trained: See there.
        backbone_weights: See there.
        n_scales: Number of scales; every scale halves the image once more.
        n_windows: Number of windows along the shorter side of the image, 0 for none.
        pooling: ``"mean"``, or ``"mean_std"`` for the standard deviation over the image beside the mean. Defaults to
            ``"mean"``.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None,
        pre_trained: bool,
        backbone_weights: str | Path | None,
        n_scales: int,
        n_windows: int,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.network = FrozenBackbone(backbone, layers, pre_trained, backbone_weights)
        self.n_scales = n_scales
        self.n_windows = n_windows
        self.pooling = pooling
        self.n_window_features = n_scales * sum(self.network.out_channels)
        self.n_features = self.n_window_features * len(POOLINGS[pooling])

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
            Pooled features of shape ``(B, D)``, and the mean features of every window, shape ``(B, D', h, w)`` (with
            ``h = w = 0`` where no windows are wished). Both run over scales, then layers, then channels, the pooled
            ones with the statistics of a layer one after the other.
        """
        height, width = images.shape[-2:]
        cell = max(1, min(height, width) // self.n_windows) if self.n_windows and with_windows else 0
        grid = (height // cell, width // cell) if cell else (0, 0)
        pooled, windows = [], []
        for scale in range(self.n_scales):
            for feature_map in self.network(images):
                pooled += [POOL[statistic](feature_map) for statistic in POOLINGS[self.pooling]]
                if cell:
                    windows.append(window_means(feature_map, grid))
            if scale + 1 < self.n_scales:
                images = F.avg_pool2d(images, 2)
        local = torch.cat(windows, dim=1) if cell else images.new_zeros(images.shape[0], self.n_window_features, 0, 0)
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


class DifferNetModel(nn.Module):
    """DifferNet: the likelihood of an image's pooled features under a normalizing flow.

    The original (Rudolph, Wandt, Rosenhahn, WACV 2021): frozen features at three scales, global average pooling, a
    flow of eight affine coupling blocks, the anomaly score ``mean z^2`` over dimensions and transforms of the image.
    Ours: a second, small flow that sees the same features of every local window, for an anomaly map that can be
    exported. The two flows share no parameter, and the image score is the original's unless ``image_score`` says
    otherwise. Also ours: pooling by standard deviation beside the mean, and features scaled over the training set
    before they enter the flows (see :class:`anomalib_comet.backbones.FeatureScaling`).

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
        image_score: ``"global"`` for the original's score; ``"local"`` for the mean of the largest window scores (ours,
            for defects that are too small to show in pooled features); ``"both"`` for the geometric mean of the two,
            which is free of their scales (ours). Defaults to ``"global"``.
        local_share: Share of an image's windows, the most anomalous ones, whose mean is the local score; 0
            takes the single largest. Defaults to ``0.0``.
        pooling: ``"mean"`` as published, or ``"mean_std"`` (ours): the standard deviation over an image's places shows
            a small defect that their mean does not. Defaults to ``"mean"``.
        feature_scaling: ``"none"`` as published, ``"standardize"`` or ``"whiten"``, see
            :class:`anomalib_comet.backbones.FeatureScaling`. Defaults to ``"standardize"``.
        identity_start: Whether the flows start as the identity. Defaults to ``False``.
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
        local_share: float = 0.0,
        pooling: str = "mean",
        feature_scaling: str = "standardize",
        identity_start: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if image_score not in IMAGE_SCORES or (image_score != "global" and not n_windows):
            msg = (
                f"image_score must be one of {IMAGE_SCORES}, got '{image_score}' with n_windows={n_windows}; "
                "'local' and 'both' need windows."
            )
            raise ValueError(msg)
        if not 0.0 <= local_share <= 1.0:
            msg = f"local_share must be in [0, 1], got {local_share}."
            raise ValueError(msg)
        if pooling not in POOLINGS:
            msg = f"pooling must be one of {tuple(POOLINGS)}, got '{pooling}'."
            raise ValueError(msg)
        scaling = check_scaling(feature_scaling)
        self.image_score = image_score
        self.local_share = local_share
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
            pooling,
        )
        n_features = self.features.n_features
        self.scaling = FeatureScaling(n_features, scaling)
        self.flow = NormalizingFlow(
            n_features,
            coupling_blocks,
            hidden_units,
            n_hidden=2,
            clamp=clamp,
            identity_start=identity_start,
            seed=seed,
        )
        self.local_flow: NormalizingFlow | None = None
        if n_windows:
            self.local_scaling = FeatureScaling(self.features.n_window_features, scaling)
            self.local_flow = NormalizingFlow(
                self.features.n_window_features,
                local_coupling_blocks,
                local_hidden_units,
                n_hidden=1,
                clamp=clamp,
                identity_start=identity_start,
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

    def fit_scaling(self, pooled: torch.Tensor, windows: torch.Tensor | None, weights: torch.Tensor) -> None:
        """Fit the scaling of features over the training set.

        Args:
            pooled: Pooled features of shape ``(N, T, D)``.
            windows: Features of some windows of every image, shape ``(N, V, D')``; ``None`` without a local flow.
            weights: Confidence weight of every image, shape ``(N,)``.
        """
        self.scaling.fit(pooled.flatten(0, 1), weights.repeat_interleave(pooled.shape[1]))
        if windows is not None:
            self.local_scaling.fit(windows.flatten(0, 1), weights.repeat_interleave(windows.shape[1]))

    def latents(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map pooled features through the flow.

        Args:
            pooled: Shape ``(B, T, D)``.

        Returns:
            Latents ``z`` of shape ``(B, T, D)`` and log-determinants of shape ``(B, T)``.
        """
        z, log_det = self.flow(self.scaling(pooled.flatten(0, 1)))
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
        z, log_det = self.local_flow(self.local_scaling(vectors.flatten(0, 3)))
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
        """Return the anomaly score of every image.

        Args:
            features: Pooled features of shape ``(B, T, D)`` and, where the score looks at windows, these, of shape
                ``(B, T, D', h, w)``.

        Returns:
            Scores of shape ``(B,)``, positive and unbounded; about 1 for images like the training set's (global).
        """
        return self._image_score(features[0], None if self.image_score == "global" else self.window_scores(features[1]))

    def _image_score(self, pooled: torch.Tensor, window_scores: torch.Tensor | None) -> torch.Tensor:
        if self.image_score == "global" or window_scores is None:
            return self.latents(pooled)[0].square().mean(dim=(1, 2))
        local = mean_of_largest(window_scores.flatten(1), self.local_share)
        if self.image_score == "local":
            return local
        return (self.latents(pooled)[0].square().mean(dim=(1, 2)) * local).sqrt()

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
        pred_score = self._image_score(pooled, window_scores)
        height, width = images.shape[-2:]
        return InferenceBatch(pred_score=pred_score, anomaly_map=self.anomaly_map(window_scores, (height, width)))


def mean_of_largest(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return the mean of the largest values of each row.

    Args:
        values: Shape ``(B, P)``.
        share: Share of a row's values, in [0, 1]; at least one value is taken.

    Returns:
        Tensor of shape ``(B,)``.

    Example:
        >>> mean_of_largest(torch.tensor([[1.0, 5.0, 3.0, 2.0]]), share=0.5)
        tensor([4.])
    """
    count = max(1, round(share * values.shape[1]))
    return values.amax(1) if count == 1 else values.topk(count, dim=1).values.mean(1)
