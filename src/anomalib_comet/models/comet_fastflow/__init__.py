# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetFastflow: anomalib's FastFlow trained on uncurated images by Confident Meta-Learning.

Example:
    >>> from anomalib_comet.models import CoMetFastflow
    >>> model = CoMetFastflow(pre_trained=False, flow_steps=4)

Paper:
    Towards Real Unsupervised Anomaly Detection Via Confident Meta-Learning, ICCV 2025,
    https://arxiv.org/abs/2508.02293;
    FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows, https://arxiv.org/abs/2111.07677
"""

from .lightning_model import CoMetFastflow

__all__ = ["CoMetFastflow"]
