# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Contaminated training data: any anomalib image data module, with anomalies among its training images.

Example:
    >>> from anomalib.data import MVTecAD
    >>> from anomalib_comet.data.contamination import ContaminatedDataModule
    >>> datamodule = ContaminatedDataModule(MVTecAD(category="bottle"), ratio=0.1)
    >>> datamodule.setup()  # doctest: +SKIP
    >>> datamodule.contamination["injected"].sum()  # doctest: +SKIP
    20
"""

from .datamodule import ContaminatedDataModule
from .protocol import NotEnoughAnomaliesError

__all__ = ["ContaminatedDataModule", "NotEnoughAnomaliesError"]
