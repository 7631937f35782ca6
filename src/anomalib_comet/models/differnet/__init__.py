# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""DifferNet: a normalizing flow on multi-scale features.

Example:
    >>> from anomalib_comet.models import DifferNet
    >>> model = DifferNet(backbone="gabor", image_size=(256, 256), hidden_units=256)

Paper:
    Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows, WACV 2021,
    https://arxiv.org/abs/2008.12577
"""

from .lightning_model import DifferNet
from .loss import DifferNetLoss
from .torch_model import DifferNetModel

__all__ = ["DifferNet", "DifferNetLoss", "DifferNetModel"]
