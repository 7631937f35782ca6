# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetSupersimplenet: anomalib's SuperSimpleNet trained on uncurated images by Confident Meta-Learning.

Example:
    >>> from anomalib_comet.models import CoMetSupersimplenet
    >>> model = CoMetSupersimplenet(backbone="resnet18", pre_trained=False)

Paper:
    Towards Real Unsupervised Anomaly Detection Via Confident Meta-Learning, ICCV 2025,
    https://arxiv.org/abs/2508.02293;
    SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast and Reliable Surface Defect Detection,
    https://arxiv.org/abs/2408.03143
"""

from .lightning_model import CoMetSupersimplenet

__all__ = ["CoMetSupersimplenet"]
