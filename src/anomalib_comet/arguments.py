# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of arguments; what they let through is what the rest can work with, NaN is not."""

from __future__ import annotations

import math
from numbers import Integral, Real


def is_whole(value: object, least: int) -> bool:
    """Tell whether a value is a whole number of at least ``least``.

    Args:
        value: Anything.
        least: The smallest number that will do.

    Example:
        >>> [is_whole(value, 1) for value in (1, 0, 2.5, True)]
        [True, False, False, False]
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number of at least zero.

    Args:
        value: Anything.

    Example:
        >>> [is_number(value) for value in (0.5, 0, -1.0, float("nan"), "1")]
        [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf
