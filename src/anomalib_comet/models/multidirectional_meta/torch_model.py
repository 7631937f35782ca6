# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""PyTorch model of multidirectional meta-learning: frozen features of an image or of its patches, and the network."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_comet.arguments import is_number, is_whole
from anomalib_comet.backbones import PatchDescriptors, average_neighbours, mean_and_deviation
from anomalib_comet.models.differnet.anomaly_map import AnomalyMapGenerator
from anomalib_comet.models.fun_ad.memory_bank import pooled_score
from anomalib_comet.multidirectional_meta import MultidirectionalNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LEVELS = ("image", "patch")
POOLINGS = {"mean": 1, "mean_std": 2, "windows": 4}
"""How patches become an image, and how many values it has for each value of a patch."""


class MultidirectionalMetaModel(nn.Module):
    """Anomaly score of images, from pooled features, or of their patches.

    Args:
        backbone: Name of the frozen network, see :class:`anomalib_comet.backbones.PatchDescriptors`.
        layers: Names of its layers, or ``None`` for its defaults. Defaults to ``None``.
        pre_trained: Whether to load published weights. Defaults to ``True``.
        backbone_weights: Path of a local state-dict file instead. Defaults to ``None``.
        image_size: Height and width in pixels of the images to come. Defaults to ``(224, 224)``.
        level: ``"image"`` or ``"patch"``. Defaults to ``"image"``.
        pooling: See :func:`pooled`. Defaults to ``"windows"``.
        patch_pool: Side of the neighbourhoods over which patches are averaged, odd. Defaults to ``3``.
        top_share: Share of an image's patches whose mean is the image's score, in (0, 1]. Defaults to ``0.02``.
        encoder: See :class:`anomalib_comet.multidirectional_meta.MultidirectionalNetwork`. Defaults to ``"none"``.
        head: See there. Defaults to ``"radial"``.
        hidden: See there. Defaults to ``(256, 128)``.
        dropout: See there. Defaults to ``0.1``.
        odin: See there. Defaults to ``0.0``.
        sigma: Standard deviation of the map's Gaussian blur in pixels. Defaults to ``4.0``.
        seed: Seed of initial weights. Defaults to ``0``.

    Raises:
        ValueError: If an argument is out of range or a name unknown.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        image_size: tuple[int, int] = (224, 224),
        level: str = "image",
        pooling: str = "windows",
        patch_pool: int = 3,
        top_share: float = 0.02,
        encoder: str = "none",
        head: str = "radial",
        hidden: tuple[int, int] = (256, 128),
        dropout: float = 0.1,
        odin: float = 0.0,
        sigma: float = 4.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if level not in LEVELS or pooling not in POOLINGS:
            msg = f"level must be one of {LEVELS} and pooling one of {tuple(POOLINGS)}, got '{level}' and '{pooling}'."
            raise ValueError(msg)
        odd = is_whole(patch_pool, 1) and patch_pool % 2 == 1
        if not odd or not is_number(top_share) or not 0 < top_share <= 1 or not is_number(sigma) or sigma == 0:
            msg = (
                "patch_pool must be odd and above zero, top_share lie in (0, 1] and sigma be a number above zero, "
                f"got {patch_pool!r}, {top_share!r} and {sigma!r}."
            )
            raise ValueError(msg)
        self.descriptors = PatchDescriptors(
            backbone, layers, pre_trained, backbone_weights, image_size, image_descriptor="none"
        )
        self.level = level
        self.pooling = pooling
        self.patch_pool = patch_pool
        self.top_share = top_share
        n_features = self.descriptors.n_patch * (POOLINGS[pooling] if level == "image" else 1)
        self.network = MultidirectionalNetwork(n_features, encoder, head, hidden, dropout, odin, seed)
        self.anomaly_map = AnomalyMapGenerator(sigma=sigma) if level == "patch" else None

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the frozen features that are scored.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Shape ``(B, D)`` at image level, ``(B, h, w, D)`` at patch level.
        """
        _, patches = self.descriptors(images)
        if self.level == "image":
            return pooled(patches, self.pooling)
        grid = self.descriptors.grid
        return average_neighbours(patches.flatten(1, 2), grid, self.patch_pool).unflatten(1, grid)

    def image_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores of images, shape ``(B,)``, from scores of their patches, shape ``(B, h, w)``."""
        return pooled_score(scores.flatten(1), self.top_share, math.prod(self.descriptors.grid))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images; the same function at the end of training, in a checkpoint and exported.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            ``pred_score`` of shape ``(B,)``, unbounded, larger for more anomalous, on the scale of
            :meth:`.MultidirectionalNetwork.logarithmic`, and at patch level ``anomaly_map`` of shape ``(B, 1, H, W)``.
        """
        return self.predictions(self.features(images), (images.shape[-2], images.shape[-1]))

    def predictions(self, features: torch.Tensor, size: tuple[int, int]) -> InferenceBatch:
        """Return what :meth:`forward` does, from the features of images.

        Args:
            features: What :meth:`features` returns.
            size: Height and width of the map in pixels.
        """
        # Squared distances in half precision lose what tells images apart; an export has no autocast to switch off.
        kind = features.device.type
        full = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
        with full:
            scores = self.network.logarithmic(self.network(features.float()))
        if self.anomaly_map is None:
            return InferenceBatch(pred_score=scores)
        return InferenceBatch(pred_score=self.image_scores(scores), anomaly_map=self.anomaly_map(scores, size))


def pooled(patches: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return features of images from those of their patches.

    Args:
        patches: Shape ``(B, h, w, D)``.
        pooling: ``"mean"`` over places; ``"mean_std"`` for mean and standard deviation over places; ``"windows"``
            (ours) for these and the standard deviations of the means over windows of a quarter and of an eighth of the
            grid's sides, in which a defect of that size stands out.

    Returns:
        Shape ``(B, D)``, ``(B, 2 D)`` or ``(B, 4 D)``.

    Example:
        >>> pooled(torch.tensor([[[[0.0], [2.0]]]]), "mean_std")
        tensor([[1., 1.]])
    """
    flat, places = patches.flatten(1, 2), patches.shape[1:3]
    if pooling == "mean":
        return flat.mean(dim=1)
    parts = [mean_and_deviation(flat)]
    if pooling == "windows":
        for share in (8, 4):
            window = tuple(max(1, round(side / share)) for side in places)
            means = F.avg_pool2d(patches.permute(0, 3, 1, 2), window, stride=window)
            parts.append(mean_and_deviation(means.flatten(2).transpose(1, 2)).chunk(2, dim=1)[1])
    return torch.cat(parts, dim=1)
