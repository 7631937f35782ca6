# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""A post-processor whose thresholds are fences over validation scores, not fits to validation labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.post_processing import PostProcessor

from anomalib_comet.distributed import Ranks

if TYPE_CHECKING:
    from anomalib.data import Batch
    from lightning.pytorch import LightningModule, Trainer


class LabelFreePostProcessor(PostProcessor):
    """Thresholds from the scores of uncurated validation images, no labels.

    anomalib's default takes the thresholds with the best F1 on the validation set, which needs labelled anomalies and,
    with ``val_split_mode="from_test"``, sees test labels. Here the image threshold is Tukey's fence
    ``Q3 + kappa (Q3 - Q1)`` over the validation scores, the one of the confidence weights; quartiles do not move much
    while fewer than a quarter of the images are anomalous. The pixel threshold is the median over images of the
    largest value in their anomaly map plus ``kappa`` interquartile ranges of these. Use it with a validation set taken
    from the training images (``val_split_mode="from_train"``).

    Args:
        kappa (float): Width of the fences in interquartile ranges, not negative. Defaults to ``1.5``.
        enable_normalization (bool): Whether scores and maps are normalised to [0, 1]. Defaults to ``True``.
        enable_thresholding (bool): Whether labels and masks are predicted. Defaults to ``True``.
        enable_threshold_matching (bool): Whether a missing threshold is taken from the other level. Defaults to
            ``True``.
        image_sensitivity (float): Sensitivity of image labels, in [0, 1]. Defaults to ``0.5``.
        pixel_sensitivity (float): Sensitivity of pixel masks, in [0, 1]. Defaults to ``0.5``.

    Raises:
        ValueError: If ``kappa`` is negative.
    """

    def __init__(
        self,
        kappa: float = 1.5,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
    ) -> None:
        if kappa < 0:
            msg = f"kappa must not be negative, got {kappa}."
            raise ValueError(msg)
        super().__init__(
            enable_normalization=enable_normalization,
            enable_thresholding=enable_thresholding,
            enable_threshold_matching=enable_threshold_matching,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
        )
        self.kappa = kappa
        self._image_scores: list[torch.Tensor] = []
        self._map_peaks: list[torch.Tensor] = []

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "kappa")

    def on_validation_batch_end(  # type: ignore[override]  # anomalib's own signature
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Batch,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Collect scores; labels and masks of the batch are not looked at.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
            outputs (Batch): Batch with predictions.
            *args: Unused.
            **kwargs: Unused.
        """
        del trainer, pl_module, args, kwargs
        if self.enable_thresholding:
            if outputs.pred_score is not None:
                self._image_scores.append(outputs.pred_score.detach().float().flatten().cpu())
            if outputs.anomaly_map is not None:
                self._map_peaks.append(outputs.anomaly_map.detach().float().flatten(1).amax(1).cpu())
        if self.enable_normalization:
            self._image_min_max_metric.update(outputs)
            self._pixel_min_max_metric.update(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
        """
        ranks = Ranks.of_trainer(trainer)
        scores, peaks = ranks.gather(self._image_scores), ranks.gather(self._map_peaks)
        if scores:
            self._image_threshold.copy_(fence(torch.cat(scores), 0.75, self.kappa))
        if peaks:
            self._pixel_threshold.copy_(fence(torch.cat(peaks), 0.5, self.kappa))
        self._image_scores.clear()
        self._map_peaks.clear()
        super().on_validation_epoch_end(trainer, pl_module)  # normalisation; no labels were collected for an F1


def fence(values: torch.Tensor, quantile: float, kappa: float) -> torch.Tensor:
    """Return a quantile plus ``kappa`` interquartile ranges.

    Args:
        values: Shape ``(N,)``, not empty.
        quantile: The quantile from which the fence stands off, in [0, 1].
        kappa: Width in interquartile ranges.

    Returns:
        A scalar tensor.

    Example:
        >>> fence(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), 0.75, kappa=1.5)
        tensor(7.)
    """
    q1, base, q3 = torch.quantile(values, torch.tensor([0.25, quantile, 0.75], dtype=values.dtype))
    return base + kappa * (q3 - q1)
