# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Multidirectional meta-learning: plenty of normal images, a few labelled anomalies, unseen defect types.

Example:
    >>> from anomalib_comet.models import MultidirectionalMeta
    >>> model = MultidirectionalMeta(backbone="gabor")

Paper:
    A Multi-directional Meta-Learning Framework for Class-Generalizable Anomaly Detection,
    https://arxiv.org/abs/2601.19833
"""

from .lightning_model import MultidirectionalMeta
from .torch_model import MultidirectionalMetaModel

__all__ = ["MultidirectionalMeta", "MultidirectionalMetaModel"]
