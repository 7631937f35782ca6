# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""A built-in benchmark: five materials, six defect types, exact masks, nothing to download.

Example:
    >>> from anomalib_comet.data.procedural_surfaces import ProceduralSurfaces
    >>> datamodule = ProceduralSurfaces(category="wood")

From the command line: ``anomalib train --model Patchcore --data ProceduralSurfaces --data.category wood``.
"""

from .datamodule import ProceduralSurfaces
from .dataset import ProceduralSurfacesDataset
from .defects import DEFECT_TYPES
from .materials import MATERIALS
from .rendering import SurfaceSpec, render

__all__ = ["DEFECT_TYPES", "MATERIALS", "ProceduralSurfaces", "ProceduralSurfacesDataset", "SurfaceSpec", "render"]
