# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The array types of the renderer.

All rendering is done in float64: two platforms whose elementary functions differ in the last bits then round to the
same 8-bit grey level.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
BoolArray: TypeAlias = NDArray[np.bool_]
ByteArray: TypeAlias = NDArray[np.uint8]
IndexArray: TypeAlias = NDArray[np.signedinteger[Any]]
