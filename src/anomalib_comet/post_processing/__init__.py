# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds that need no labels."""

from .label_free import LabelFreePostProcessor

__all__ = ["LabelFreePostProcessor"]
