# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Random numbers that are the same in every process and on every platform.

NumPy guarantees the output of its bit generators for ever, but not that of ``Generator.uniform`` and the like
(NEP 19). The streams here take only raw bits from NumPy and turn them into numbers with exact integer arithmetic.
Every stream is named by a key, never by a position in a sequence of calls, so neither the order of rendering nor the
number of workers can change an image.
"""

import hashlib
import math

import numpy as np

from .arrays import FloatArray

_UNIT = 2.0**-53
# Four uniform bytes have this mean and this standard deviation when they are added.
_OCTET_SUM_MEAN = 2.0 * 255.0
_OCTET_SUM_STD = math.sqrt((256.0**2 - 1.0) / 3.0)


class RandomStream:
    """A stream of random numbers that is named by a key.

    Args:
        *key (str | int): What the stream is for. Equal keys give equal streams; different keys independent ones.

    Example:
        >>> RandomStream("woven", 3).uniform() == RandomStream("woven", 3).uniform()
        True
    """

    def __init__(self, *key: str | int) -> None:
        text = "\x1f".join(str(part) for part in key)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "little"))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw one number that is uniform on ``[low, high)``."""
        return low + (high - low) * float(int(self._bits.random_raw()) >> 11) * _UNIT

    def uniforms(self, low: float, high: float, shape: int | tuple[int, ...]) -> FloatArray:
        """Draw an array of the given shape, uniform on ``[low, high)``, float64."""
        return low + (high - low) * ((self._bits.random_raw(shape) >> np.uint64(11)) * _UNIT)

    def integer(self, low: int, high: int) -> int:
        """Draw one integer from ``low`` to ``high``, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def sign(self) -> float:
        """Draw -1.0 or 1.0."""
        return 1.0 if self.uniform() < 0.5 else -1.0  # noqa: PLR2004

    def gaussians(self, shape: tuple[int, ...]) -> FloatArray:
        """Draw an array of nearly normal numbers (sums of four random bytes; mean 0, variance 1, at most 3.5)."""
        count = math.prod(shape)
        words = self._bits.random_raw((count + 1) // 2).astype("<u8", copy=False)
        octets = words.view(np.uint8)[: 4 * count].reshape(4, count)
        total = octets.sum(axis=0, dtype=np.int64)
        return ((total - _OCTET_SUM_MEAN) / _OCTET_SUM_STD).reshape(shape)
