# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""SimpleNet: a discriminator between adapted patch features and the same features with noise.

Example:
    >>> from anomalib_comet.models import SimpleNet
    >>> model = SimpleNet(backbone="gabor", layers=["scale3", "scale4"], image_size=(256, 256), aggregation="average")

Paper:
    SimpleNet: A Simple Network for Image Anomaly Detection and Localization, CVPR 2023,
    https://arxiv.org/abs/2303.15140
"""

from .lightning_model import SimpleNet
from .loss import SimpleNetLoss
from .torch_model import SimpleNetModel

__all__ = ["SimpleNet", "SimpleNetLoss", "SimpleNetModel"]
