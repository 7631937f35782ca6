# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Confident Meta-Learning (CoMet): a training strategy that knows no detector.

Paper:
    Towards Real Unsupervised Anomaly Detection Via Confident Meta-Learning, ICCV 2025,
    https://arxiv.org/abs/2508.02293
"""

from .adapters import given_outputs, recorded_outputs, sample_by_sample, standing_in
from .confidence import anchored_scores, confidence_weights, iqr_threshold, training_set_weights
from .strategy import ConfidentMetaLearning
from .table import ConfidenceTable
from .uncertainty import adaptive_l2, loss_covariance, model_uncertainty

__all__ = [
    "ConfidenceTable",
    "ConfidentMetaLearning",
    "adaptive_l2",
    "anchored_scores",
    "confidence_weights",
    "given_outputs",
    "iqr_threshold",
    "loss_covariance",
    "model_uncertainty",
    "recorded_outputs",
    "sample_by_sample",
    "standing_in",
    "training_set_weights",
]
