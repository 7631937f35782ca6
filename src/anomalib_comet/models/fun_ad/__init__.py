# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""FUN-AD: pseudo-labels from an iteratively rebuilt memory bank, learnt by a small head.

Example:
    >>> from anomalib_comet.models import FunAd
    >>> model = FunAd(backbone="gabor", layers=["scale3", "scale4"], image_size=(256, 256))

Paper:
    FUN-AD: Fully Unsupervised Learning for Anomaly Detection with Noisy Training Data, WACV 2025,
    https://arxiv.org/abs/2411.16110
"""

from .lightning_model import FunAd
from .loss import FunAdLoss
from .torch_model import FunAdModel

__all__ = ["FunAd", "FunAdLoss", "FunAdModel"]
