# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Data modules: controlled contamination of any image data set, and a built-in data set that needs no download.

Example:
    >>> from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
    >>> datamodule = ContaminatedDataModule(ProceduralSurfaces(category="wood"), ratio=0.1)
"""

from .contamination import ContaminatedDataModule, NotEnoughAnomaliesError
from .few_shot import FewShotDataModule
from .procedural_surfaces import ProceduralSurfaces

__all__ = ["ContaminatedDataModule", "FewShotDataModule", "NotEnoughAnomaliesError", "ProceduralSurfaces"]
