# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetStfpm: anomalib's STFPM trained on uncurated images by Confident Meta-Learning.

Example:
    >>> from anomalib_comet.models import CoMetStfpm
    >>> model = CoMetStfpm(pre_trained=False, layers=["layer1", "layer2"])

Paper:
    Towards Real Unsupervised Anomaly Detection Via Confident Meta-Learning, ICCV 2025,
    https://arxiv.org/abs/2508.02293;
    Student-Teacher Feature Pyramid Matching for Anomaly Detection, https://arxiv.org/abs/2103.04257
"""

from .lightning_model import CoMetStfpm

__all__ = ["CoMetStfpm"]
