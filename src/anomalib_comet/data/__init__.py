# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Data modules: controlled contamination of any image data set, a built-in data set, two that anomalib lacks.

Example:
    >>> from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
    >>> datamodule = ContaminatedDataModule(ProceduralSurfaces(category="wood"), ratio=0.1)
"""

from .contamination import ContaminatedDataModule, NotEnoughAnomaliesError
from .few_shot import FewShotDataModule
from .kolektor_sdd2 import KolektorSDD2
from .procedural_surfaces import ProceduralSurfaces
from .viaduct import VIADUCT

__all__ = [
    "VIADUCT",
    "ContaminatedDataModule",
    "FewShotDataModule",
    "KolektorSDD2",
    "NotEnoughAnomaliesError",
    "ProceduralSurfaces",
]
