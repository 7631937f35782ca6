# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetSimpleNet: SimpleNet trained on uncurated images by Confident Meta-Learning.

Example:
    >>> from anomalib_comet.models import CoMetSimpleNet
    >>> model = CoMetSimpleNet(backbone="gabor", image_size=(256, 256), aggregation="average", weight_level="patch")

Paper:
    Towards Real Unsupervised Anomaly Detection Via Confident Meta-Learning, ICCV 2025,
    https://arxiv.org/abs/2508.02293
"""

from .lightning_model import CoMetSimpleNet

__all__ = ["CoMetSimpleNet"]
