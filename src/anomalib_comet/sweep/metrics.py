# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics of a test set, from un-normalised scores: arrays in, numbers out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.metrics import AUPRO
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

if TYPE_CHECKING:
    from collections.abc import Sequence

FPR_LIMIT = 0.3
"""Largest false positive rate that the area under the per-region overlap goes to, as in the MVTec AD paper."""


def image_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return how well scores tell anomalous images from normal ones.

    Args:
        scores: Anomaly scores, shape (N,), finite.
        labels: Whether an image is anomalous, shape (N,).

    Returns:
        ``image_auroc``, ``image_ap``, and ``f1_max`` with the ``precision`` and ``recall`` at its threshold. That
        threshold is the best one for the test set, so the three are bounds that no chosen threshold exceeds. Empty if
        all images are of one kind.
    """
    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        return {}
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(f1.argmax())
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "f1_max": float(f1[best]),
        "precision": float(precision[best]),
        "recall": float(recall[best]),
    }


def pixel_metrics(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, float]:
    """Return how well maps tell anomalous pixels from normal ones.

    Args:
        maps: Anomaly maps, each of shape (H, W); all sizes equal.
        masks: True masks, of the same shapes.

    Returns:
        ``pixel_auroc`` and ``aupro`` (area under the per-region overlap up to a false positive rate of 0.3, as a share
        of that). Empty if there are no maps or all pixels are of one kind.
    """
    if not maps:
        return {}
    values, truth = np.stack(maps), np.stack(masks).astype(bool)
    if truth.all() or not truth.any() or not np.isfinite(values).all():
        return {}
    aupro = AUPRO(fields=["values", "truth"], fpr_limit=FPR_LIMIT)
    batch: Any = SimpleNamespace(values=torch.from_numpy(values), truth=torch.from_numpy(truth).int())
    aupro.update(batch)
    return {"pixel_auroc": float(roc_auc_score(truth.ravel(), values.ravel())), "aupro": float(aupro.compute())}
