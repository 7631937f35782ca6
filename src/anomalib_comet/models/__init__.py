# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Detectors for uncurated training data, native to anomalib."""

from .comet_differnet import CoMetDifferNet
from .comet_fastflow import CoMetFastflow
from .comet_simplenet import CoMetSimpleNet
from .comet_stfpm import CoMetStfpm
from .comet_supersimplenet import CoMetSupersimplenet
from .differnet import DifferNet
from .fun_ad import FunAd
from .multidirectional_meta import MultidirectionalMeta
from .simplenet import SimpleNet

__all__ = [
    "CoMetDifferNet",
    "CoMetFastflow",
    "CoMetSimpleNet",
    "CoMetStfpm",
    "CoMetSupersimplenet",
    "DifferNet",
    "FunAd",
    "MultidirectionalMeta",
    "SimpleNet",
]
