# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Anomaly scores and confidence weights of the training images, by image path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from anomalib_comet.files import whole_file

from .confidence import smoothed, training_set_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class ConfidenceTable:
    """What training learns about its images.

    Keyed by image path, because the train loader shuffles and anomalib re-sorts samples: positions mean nothing.

    Args:
        kappa: See :func:`.confidence.iqr_threshold`. Defaults to ``1.5``.
        power: See :func:`.confidence.confidence_weights`. Defaults to ``1.0``.
        momentum: Share of the earlier weights at a refresh, in ``[0, 1)``. Defaults to ``0.0``.

    Attributes:
        scores: Latest anomaly score by image path.
        weights: Confidence weight by image path, in ``[0, 1]``.
        threshold: Latest threshold ``t``, or ``None`` before the first refresh.
    """

    def __init__(self, kappa: float = 1.5, power: float = 1.0, momentum: float = 0.0) -> None:
        self.kappa = kappa
        self.power = power
        self.momentum = momentum
        self.scores: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        self.threshold: float | None = None

    def refresh(self, image_paths: Sequence[str], scores: torch.Tensor) -> None:
        """Replace the scores, and move the weights towards those that the scores give.

        Args:
            image_paths: Path of every training image.
            scores: Their anomaly scores, shape ``(N,)``, not negative.
        """
        self._take(image_paths, scores, self.momentum if self.weights else 0.0)

    def replace(self, image_paths: Sequence[str], scores: torch.Tensor) -> None:
        """Replace scores and weights, without a memory of earlier weights.

        Args:
            image_paths: Path of every training image.
            scores: Their anomaly scores, shape ``(N,)``, not negative.
        """
        self._take(image_paths, scores, 0.0)

    def _take(self, image_paths: Sequence[str], scores: torch.Tensor, momentum: float) -> None:
        current, threshold = training_set_weights(scores.double(), self.kappa, self.power)
        if momentum:
            previous = torch.tensor([self.weights.get(path, 1.0) for path in image_paths], dtype=current.dtype)
            current = smoothed(previous, current, momentum)
        self.scores = dict(zip(image_paths, scores.double().tolist(), strict=True))
        self.weights = dict(zip(image_paths, current.tolist(), strict=True))
        self.threshold = float(threshold)

    def forget(self) -> None:
        """Forget all images."""
        self.scores, self.weights, self.threshold = {}, {}, None

    def lookup(self, image_paths: Sequence[str]) -> torch.Tensor:
        """Return the weights of images, shape ``(N,)``; 1 for an image that was never scored."""
        return torch.tensor([self.weights.get(path, 1.0) for path in image_paths])

    def frame(self, truth: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return the table, most suspicious image first.

        Args:
            truth: What is known of the images for evaluation only: ``image_path`` and further columns, which are
                appended. Defaults to ``None``.

        Returns:
            Columns ``rank`` (1 is the most suspicious), ``image_path``, ``anomaly_score``, ``confidence_weight``, and
            those of ``truth``.
        """
        table = pd.DataFrame(
            {
                "image_path": list(self.scores),
                "anomaly_score": list(self.scores.values()),
                "confidence_weight": [self.weights[path] for path in self.scores],
            }
        )
        table = table.sort_values(["anomaly_score", "image_path"], ascending=[False, True], ignore_index=True)
        table.insert(0, "rank", range(1, len(table) + 1))
        return table if truth is None else table.merge(truth, on="image_path", how="left")

    def write_csv(self, path: Path, truth: pd.DataFrame | None = None) -> None:
        """Write :meth:`frame` as CSV, whole or not at all."""
        # A file name need not be valid Unicode; it is written as the bytes that it has.
        content = self.frame(truth).to_csv(index=False).encode("utf-8", "surrogateescape")
        with whole_file(path) as file:
            file.write(content)

    def state(self) -> dict[str, Any]:
        """Return the table as plain data for a checkpoint."""
        return {
            "image_path": list(self.scores),
            "anomaly_score": torch.tensor(list(self.scores.values()), dtype=torch.float64),
            "confidence_weight": torch.tensor([self.weights[path] for path in self.scores], dtype=torch.float64),
            "threshold": self.threshold,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the table of a checkpoint."""
        paths = state["image_path"]
        self.scores = dict(zip(paths, state["anomaly_score"].tolist(), strict=True))
        self.weights = dict(zip(paths, state["confidence_weight"].tolist(), strict=True))
        self.threshold = state["threshold"]
