# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Confidence weights of the patches of the training images, by image path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .confidence import anchored_scores, smoothed, training_set_weights

if TYPE_CHECKING:
    from collections.abc import Sequence


class PatchConfidenceTable:
    """A confidence weight for every patch of every training image.

    The same rule as for images, over patches: one threshold from the scores of all patches of the training set. An
    image with a small defect then keeps the weight of its sound part. Weights are kept in half precision, in memory as
    in a checkpoint, so that a resumed run has exactly those of an uninterrupted one.

    Args:
        kappa: See :func:`.confidence.iqr_threshold`. Defaults to ``1.5``.
        power: See :func:`.confidence.confidence_weights`. Defaults to ``1.0``.
        momentum: Share of the earlier weights at a refresh, in ``[0, 1)``. Defaults to ``0.0``.

    Attributes:
        weights: Weights of shape ``(P,)`` in ``[0, 1]`` by image path.
        threshold: Latest threshold ``t``, or ``None`` before the first refresh.
    """

    def __init__(self, kappa: float = 1.5, power: float = 1.0, momentum: float = 0.0) -> None:
        self.kappa = kappa
        self.power = power
        self.momentum = momentum
        self.weights: dict[str, torch.Tensor] = {}
        self.threshold: float | None = None

    def refresh(self, image_paths: Sequence[str], scores: torch.Tensor, starts_at_zero: bool = True) -> None:
        """Move the weights towards those that the scores give.

        Args:
            image_paths: Path of every training image.
            scores: Their patches' anomaly scores, shape ``(N, P)``.
            starts_at_zero: Whether scores start at zero; where not, they are anchored at a low quantile of all patches
                of the training set. Defaults to ``True``.
        """
        flat = scores.flatten()
        flat = flat if starts_at_zero else anchored_scores(flat)
        current, threshold = training_set_weights(flat, self.kappa, self.power)
        current = current.reshape(scores.shape)
        if self.weights:
            current = smoothed(self.lookup(image_paths, scores.shape[1]), current, self.momentum)
        self.weights = dict(zip(image_paths, current.half(), strict=True))
        self.threshold = float(threshold)

    def lookup(self, image_paths: Sequence[str], n_patches: int = 1) -> torch.Tensor:
        """Return the weights of images' patches in single precision; 1 for an image that was never scored.

        Args:
            image_paths: Paths of the images.
            n_patches: Number of patches where none of the images was ever scored. Defaults to ``1``, which broadcasts.

        Returns:
            Tensor of shape ``(N, P)``.
        """
        n_patches = next((len(self.weights[path]) for path in image_paths if path in self.weights), n_patches)
        unknown = torch.ones(n_patches)
        return torch.stack([self.weights[path].float() if path in self.weights else unknown for path in image_paths])

    def forget(self) -> None:
        """Forget all images."""
        self.weights, self.threshold = {}, None

    def state(self) -> dict[str, Any]:
        """Return the table as plain data for a checkpoint."""
        rows = list(self.weights.values())
        return {
            "image_path": list(self.weights),
            "confidence_weight": torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.half),
            "threshold": self.threshold,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the table of a checkpoint."""
        self.weights = dict(zip(state["image_path"], state["confidence_weight"], strict=True))
        self.threshold = state["threshold"]
