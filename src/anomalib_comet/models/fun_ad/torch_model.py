# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of FUN-AD: frozen descriptors and Local-Net in one graph; no memory bank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_comet.arguments import is_number
from anomalib_comet.backbones import (
    FeatureScaling,
    PatchDescriptors,
    average_neighbours,
    check_scaling,
)
from anomalib_comet.models.differnet.anomaly_map import AnomalyMapGenerator

from .memory_bank import pooled_score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SLOPE = 0.2
"""Negative slope of every LeakyReLU."""

NORM_SCALE = 3.0
"""One number beside hundreds: this much larger, it has about the say of ten of them at the start."""

NORM_FLOOR = 1e-3
"""Added to a mean square before its logarithm is taken."""


WINDOWS = 9
"""There are about so many windows in each direction over which an image is averaged."""

WINDOW_SHARE = 0.2
"""The share of windows, the farthest, by which an image is judged."""


def window_side(side: int) -> int:
    """Return three quarters of a side of the grid as an odd number of places.

    Example:
        >>> [window_side(side) for side in (1, 2, 8, 28)]
        [1, 1, 5, 21]
    """
    return max(1, (3 * side // 4 - 1) // 2 * 2 + 1)


class LocalNet(nn.Module):
    """Local-Net: an adaptor ``d -> d`` and a discriminator ``d -> 1024 -> 128 -> 1``, LeakyReLU 0.2 between.

    The published input of a patch is ``x = [t ; p]``, the image's token and its own. The adaptor is computed as
    ``W x + b = W_t t + (W_p p + b)``, the first part once an image: ``x`` is never stored.

    Args:
        n_token: Number of values of an image's token t, 0 for none.
        n_patch: Number of values of a patch p.
        hidden_units: Widths of the discriminator's two hidden layers. Defaults to ``(1024, 128)``.
        seed: Seed of the initial weights. Defaults to ``0``.
        norm_input: Whether the discriminator is also told the logarithm of the patch's mean square (ours). Of
            whitened features that is the Mahalanobis distance to all patches, which layers of this kind do not form
            by themselves and, unlike what they form, goes on growing away from the training set. Defaults to
            ``False``.
    """

    def __init__(
        self,
        n_token: int,
        n_patch: int,
        hidden_units: Sequence[int] = (1024, 128),
        seed: int = 0,
        norm_input: bool = False,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.n_features = n_token + n_patch
        self.norm_input = norm_input
        whole = _linear(self.n_features, self.n_features, generator)
        self.adaptor = nn.utils.skip_init(nn.Linear, n_patch, self.n_features)
        self.token_adaptor = nn.utils.skip_init(nn.Linear, n_token, self.n_features, bias=False) if n_token else None
        with torch.no_grad():
            self.adaptor.weight.copy_(whole.weight[:, n_token:])
            self.adaptor.bias.copy_(whole.bias)
            if self.token_adaptor is not None:
                self.token_adaptor.weight.copy_(whole.weight[:, :n_token])
        first, second = hidden_units
        self.discriminator = nn.Sequential(
            _linear(self.n_features + int(norm_input), first, generator),
            nn.LeakyReLU(SLOPE),
            _linear(first, second, generator),
            nn.LeakyReLU(SLOPE),
            _linear(second, 1, generator),
        )

    def adapt(self, token: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Return the adapted features of patches.

        Args:
            token: Shape ``(B, n_token)``.
            patches: Shape ``(B, P, n_patch)``.

        Returns:
            Shape ``(B, P, d)``.
        """
        adapted = self.adaptor(patches)
        if self.token_adaptor is not None:
            adapted = adapted + self.token_adaptor(token)[:, None]
        return F.leaky_relu(adapted, SLOPE)

    def forward(self, token: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return adapted features of shape ``(B, P, d)`` and scores before the sigmoid of shape ``(B, P)``."""
        adapted = self.adapt(token, patches)
        known = adapted
        if self.norm_input:
            norm = NORM_SCALE * (patches.square().mean(dim=-1, keepdim=True) + NORM_FLOOR).log()
            known = torch.cat([adapted, norm], dim=-1)
        return adapted, self.discriminator(known).squeeze(-1)


class FunAdModel(nn.Module):
    """FUN-AD (Im, Son, Hong, WACV 2025) at inference: is this patch a pseudo-anomaly?

    The published score of a patch is the sigmoid. We return what goes into it: saturated scores tie, in bf16 well
    before in single precision, and a maximum of equal numbers says nothing.

    Args:
        backbone: Name of the frozen network, see :class:`anomalib_comet.backbones.PatchDescriptors`. Defaults to
            ``"vit_base_patch8_224.dino"``.
        layers: Names of the layers of a CNN, ``None`` for its defaults. Defaults to ``None``.
        pre_trained: Whether to load published weights. Defaults to ``True``.
        backbone_weights: Path of a local state-dict file instead. Defaults to ``None``.
        image_size: Height and width in pixels of the images to come. Defaults to ``(224, 224)``.
        image_descriptor: See :class:`anomalib_comet.backbones.PatchDescriptors`. Defaults to ``"auto"``.
        patch_pool: Side in cells of the neighbourhood over which patches' descriptors are averaged. Defaults to ``1``.
        feature_scaling: ``"none"`` as published, ``"standardize"`` or ``"whiten"`` (ours), of tokens and of patches,
            see :class:`anomalib_comet.backbones.FeatureScaling`. Defaults to ``"none"``.
        hidden_units: Widths of the discriminator's two hidden layers. Defaults to ``(1024, 128)``.
        top_share: Share of an image's patches whose mean score is the image's, 0 for the largest score alone, as
            published. Defaults to ``0.0``.
        norm_input: See :class:`LocalNet`. Defaults to ``False``.
        image_weight: Weight in the image's score of :meth:`image_distance` (ours), 0 for none. Defaults to ``0.0``.
        sigma: Standard deviation of the map's Gaussian blur in pixels. Defaults to ``4.0``.
        seed: Seed of the initial weights. Defaults to ``0``.

    Raises:
        ValueError: If an argument is out of range or a name unknown.
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch8_224.dino",
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        image_size: tuple[int, int] = (224, 224),
        image_descriptor: str = "auto",
        patch_pool: int = 1,
        feature_scaling: str = "none",
        hidden_units: Sequence[int] = (1024, 128),
        top_share: float = 0.0,
        norm_input: bool = False,
        image_weight: float = 0.0,
        sigma: float = 4.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(hidden_units) != 2 or min(hidden_units) < 1:  # noqa: PLR2004
            msg = f"hidden_units must be two numbers above zero, got {hidden_units}."
            raise ValueError(msg)
        if not is_number(sigma) or sigma == 0:
            msg = f"sigma must be above zero, got {sigma}."
            raise ValueError(msg)
        if not 0.0 <= top_share <= 1.0:
            msg = f"top_share must be in [0, 1], got {top_share}."
            raise ValueError(msg)
        if patch_pool < 1 or patch_pool % 2 != 1:
            msg = f"patch_pool must be odd and at least 1, got {patch_pool}."
            raise ValueError(msg)
        self.descriptors = PatchDescriptors(
            backbone, layers, pre_trained, backbone_weights, image_size, image_descriptor
        )
        self.patch_pool = patch_pool
        self.image_weight = image_weight
        n_token, n_patch = self.descriptors.n_token, self.descriptors.n_patch
        scaling = check_scaling(feature_scaling)
        self.patch_scaling = FeatureScaling(n_patch, scaling)
        self.token_scaling = FeatureScaling(n_token, scaling if n_token else "none")
        self.image_scaling = FeatureScaling(n_patch, "whiten" if image_weight else "none")
        self.local_net = LocalNet(n_token, n_patch, hidden_units, seed, norm_input)
        self.top_share = top_share
        self.n_patches = math.prod(self.descriptors.grid)
        self.window = tuple(window_side(side) for side in self.descriptors.grid)
        self.anomaly_map = AnomalyMapGenerator(sigma=sigma)

    def scale(self, token: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Average neighbours and scale: from what the network gives to what Local-Net sees.

        Args:
            token: Shape ``(B, n_token)``.
            patches: Shape ``(B, P, n_patch)``.

        Returns:
            The same shapes.
        """
        pooled = average_neighbours(patches, self.descriptors.grid, self.patch_pool)
        return self.token_scaling(token), self.patch_scaling(pooled)

    @torch.no_grad()
    def fit_scaling(self, token: torch.Tensor, patches: torch.Tensor, windows: torch.Tensor) -> None:
        """Fit the scaling of features to the training set.

        Args:
            token: Tokens of the training images, shape ``(N, n_token)``.
            patches: Some patches of every training image, neighbours averaged, shape ``(M, n_patch)``.
            windows: Some :meth:`windows` of every training image, shape ``(W, n_patch)``.
        """
        self.patch_scaling.fit(patches, torch.ones(len(patches)))
        if self.descriptors.n_token:
            self.token_scaling.fit(token, torch.ones(len(token)))
        if self.image_weight:
            self.image_scaling.fit(windows, torch.ones(len(windows)))

    def windows(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the means of large windows around places of a coarse grid (ours).

        A window's sides are three quarters of the image's, less what lies outside of it; their centres are a ninth of
        the image's side apart, or one place where that is more.

        Args:
            patches: As the network gives them, shape ``(B, P, n_patch)``.

        Returns:
            Shape ``(B, W, n_patch)``.
        """
        maps = patches.unflatten(1, self.descriptors.grid).permute(0, 3, 1, 2)
        stride = [max(1, side // WINDOWS) for side in self.descriptors.grid]
        padding = [side // 2 for side in self.window]
        means = F.avg_pool2d(maps, self.window, stride, padding, count_include_pad=False)
        return means.flatten(2).permute(0, 2, 1)

    def image_distance(self, patches: torch.Tensor) -> torch.Tensor:
        """Return how far an image is from the training set as a whole, shape ``(B,)`` (ours).

        It is the logarithm of the mean square Mahalanobis distance of its fifth of :meth:`windows` that are farthest
        from the distribution of all windows of the training set. Means over windows change by an anomaly that no
        single patch shows, and their distribution, unlike that of whole images, is known well from some hundred
        images and hardly moved by a few anomalous ones.

        Args:
            patches: As the network gives them, shape ``(B, P, n_patch)``.
        """
        squares = self.image_scaling(self.windows(patches)).square().mean(dim=2)
        count = math.prod(-(-side // max(1, side // WINDOWS)) for side in self.descriptors.grid)
        return (pooled_score(squares, WINDOW_SHARE, count) + NORM_FLOOR).log()

    def image_scores(self, patch_scores: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Return image scores of shape ``(B,)``.

        Args:
            patch_scores: Local-Net's, shape ``(B, P)``.
            patches: As the network gives them, shape ``(B, P, n_patch)``.
        """
        scores = pooled_score(patch_scores, self.top_share, self.n_patches)
        return scores + self.image_weight * self.image_distance(patches) if self.image_weight else scores

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images; the same function at the end of training, in a checkpoint and exported.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``pred_score`` of shape ``(B,)`` and ``anomaly_map`` of shape ``(B, 1, H, W)``, before the sigmoid.
        """
        token, maps = self.descriptors(images)
        raw = maps.flatten(1, 2)
        token, patches = self.scale(token, raw)
        scores = self.local_net(token, patches)[1]
        height, width = images.shape[-2:]
        grid = scores.unflatten(1, self.descriptors.grid)
        return InferenceBatch(
            pred_score=self.image_scores(scores, raw),
            anomaly_map=self.anomaly_map(grid, (height, width)),
        )


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with Xavier weights, drawn from ``generator``, and no bias at the start."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    nn.init.normal_(layer.weight, std=math.sqrt(2.0 / (n_in + n_out)), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
