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

from anomalib_comet.confident_meta_learning.confidence import iqr_threshold

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
        ``image_auroc``, ``image_ap``, and ``f1_max`` with ``precision_at_f1_max`` and ``recall_at_f1_max``. Their
        threshold is the best one for the test set, which nobody has: no chosen threshold reaches a larger F1. Empty if
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
        "precision_at_f1_max": float(precision[best]),
        "recall_at_f1_max": float(recall[best]),
    }


def label_free_threshold(scores: np.ndarray) -> float:
    """Return the threshold ``Q3 + 1.5 (Q3 - Q1)`` over scores of images whose labels are not known.

    It is the rule of :class:`.LabelFreePostProcessor` and of CoMet's confidence weights, for every model the same.

    Args:
        scores: Anomaly scores of training or validation images, shape (N,), finite, not empty.
    """
    return float(iqr_threshold(torch.from_numpy(np.asarray(scores, dtype=float))))


def metrics_at(threshold: float, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return how well images above a threshold are the anomalous ones.

    Args:
        threshold: Images with a larger score are called anomalous.
        scores: Anomaly scores, shape (N,), finite.
        labels: Whether an image is anomalous, shape (N,).

    Returns:
        ``f1``, ``precision`` and ``recall``; all 0 if no anomalous image is above the threshold. Empty if all images
        are of one kind.
    """
    labels, called = np.asarray(labels, dtype=bool), np.asarray(scores) > threshold
    if labels.all() or not labels.any():
        return {}
    hits = int((called & labels).sum())
    return {
        "f1": 2 * hits / int(called.sum() + labels.sum()),
        "precision": hits / max(int(called.sum()), 1),
        "recall": hits / int(labels.sum()),
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
