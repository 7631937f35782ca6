# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Frozen features: timm and torchvision networks, local weight files and the built-in Gabor bank.

Every model of this package builds its features here, with arguments of the same names:
``backbone``, ``layers``, ``pre_trained`` and ``backbone_weights``.
"""

from .extractor import DEFAULT_LAYERS, FrozenBackbone, keep_checkpoint_weights
from .feature_cache import FeatureCache
from .gabor import GaborBank
from .patches import PatchDescriptors, TokenBackbone, average_neighbours, mean_and_deviation
from .scaling import FeatureScaling, check_scaling, weighted_moments, whitening_matrix
from .timm_names import timm_name_without_download

__all__ = [
    "DEFAULT_LAYERS",
    "FeatureCache",
    "FeatureScaling",
    "FrozenBackbone",
    "GaborBank",
    "PatchDescriptors",
    "TokenBackbone",
    "average_neighbours",
    "check_scaling",
    "keep_checkpoint_weights",
    "mean_and_deviation",
    "timm_name_without_download",
    "weighted_moments",
    "whitening_matrix",
]
