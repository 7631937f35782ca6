# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Tools to paint lines and spots on a surface.

Everything is painted with a coverage of compact support, exactly zero away from the mark, so the pixels that a mark
changes are known exactly. Lengths are fractions of the short side of the image; directions are in radians.
"""

import numpy as np

from .arrays import FloatArray
from .materials import Surface
from .random_stream import RandomStream

# No mark has its middle nearer to the border: a centre crop of 7/8, as PatchCore does it, must not lose it.
_BORDER = 0.11

Window = tuple[slice, slice]
"""Rows and columns of a part of the image."""
_WHOLE: Window = (slice(None), slice(None))


class Canvas:
    """A copy of a surface to paint on.

    Args:
        surface (Surface): The surface; it is left as it is.
        x (FloatArray): Horizontal place of every column, shape (W,), 0 in the middle of the image.
        y (FloatArray): Vertical place of every row, shape (H,), 0 in the middle of the image.
        grain (float): Direction of the grain in the image, in radians.
    """

    def __init__(self, surface: Surface, x: FloatArray, y: FloatArray, grain: float) -> None:
        self.surface = surface
        self.albedo = surface.albedo.copy()
        self.x = x
        self.y = y
        self.grain = grain
        self.pixel = float(x[1] - x[0])

    def place(self, stream: RandomStream, margin: float) -> tuple[float, float]:
        """Draw a place that is at least ``margin`` (and not less than 0.11) away from the border of the image."""
        margin = max(margin, _BORDER)
        right, bottom = float(self.x[-1]) - margin, float(self.y[-1]) - margin
        return stream.uniform(-right, right), stream.uniform(-bottom, bottom)

    def window(self, x: float, y: float, reach: float) -> Window:
        """The rows and columns within ``reach`` of a place (at least one of each)."""
        rows = np.searchsorted(self.y, (y - reach, y + reach))
        columns = np.searchsorted(self.x, (x - reach, x + reach))
        top, left = min(int(rows[0]), len(self.y) - 1), min(int(columns[0]), len(self.x) - 1)
        return slice(top, max(int(rows[1]), top + 1)), slice(left, max(int(columns[1]), left + 1))

    def paint(self, coverage: FloatArray, colour: FloatArray, window: Window = _WHOLE) -> None:
        """Cover the surface with a colour, shape (3,) or (3, h, w), where ``coverage`` (h, w) says."""
        part = self.albedo[:, window[0], window[1]]
        part += coverage * (colour.reshape(3, *(colour.shape[1:] or (1, 1))) - part)

    def tint(self, coverage: FloatArray, factor: FloatArray, window: Window = _WHOLE) -> None:
        """Multiply the surface by a factor, shape (3,), where ``coverage`` (h, w) says."""
        part = self.albedo[:, window[0], window[1]]
        part *= 1.0 + coverage * (factor.reshape(3, 1, 1) - 1.0)

    def stroke(self, points: FloatArray, widths: FloatArray) -> FloatArray:
        """Coverage of a line through points, with an edge of one pixel.

        Args:
            points (FloatArray): The points (x, y), shape (K, 2).
            widths (FloatArray): Width of the line at every point, shape (K,).

        Returns:
            FloatArray: Coverage of every pixel, shape (H, W), [0, 1].
        """
        coverage = np.zeros((len(self.y), len(self.x)))
        for k in range(len(points) - 1):
            (x0, y0), (x1, y1) = points[k], points[k + 1]
            reach = 0.5 * max(abs(x1 - x0), abs(y1 - y0)) + 0.5 * max(widths[k], widths[k + 1]) + self.pixel
            window = self.window(0.5 * (x0 + x1), 0.5 * (y0 + y1), reach)
            dx, dy = self.x[None, window[1]] - x0, self.y[window[0], None] - y0
            length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
            t = np.clip((dx * (x1 - x0) + dy * (y1 - y0)) / length, 0.0, 1.0)
            distance = np.hypot(dx - t * (x1 - x0), dy - t * (y1 - y0))
            half = 0.5 * (widths[k] + t * (widths[k + 1] - widths[k]))
            part = np.clip((half - distance) / self.pixel + 0.5, 0.0, 1.0)
            # A line thinner than a pixel covers only a part of it.
            part *= np.minimum(2.0 * half / self.pixel, 1.0)
            np.maximum(coverage[window], part, out=coverage[window])
        return coverage

    def blob(
        self, stream: RandomStream, x: float, y: float, radius: float, wobble: float
    ) -> tuple[FloatArray, FloatArray, Window]:
        """An irregular round region.

        Args:
            stream (RandomStream): Source of the outline.
            x (float): Horizontal place of the middle.
            y (float): Vertical place of the middle.
            radius (float): Mean radius.
            wobble (float): How much the radius varies around the outline, relative to it; at most 0.3.

        Returns:
            tuple[FloatArray, FloatArray, Window]: Distance from the middle in units of the radius in that
            direction (1 at the outline), shape (h, w); the direction, shape (h, w); the window of the image that holds
            the region and its surroundings up to 1.5 radii.
        """
        window = self.window(x, y, 2.0 * radius)
        dx, dy = self.x[None, window[1]] - x, self.y[window[0], None] - y
        angle = np.arctan2(dy, dx)
        outline = np.ones_like(angle)
        for order in range(2, 6):
            outline += (
                wobble / (order - 1) * np.cos(order * angle + stream.uniform(0.0, 2.0 * np.pi)) * stream.uniform()
            )
        return np.hypot(dx, dy) / (radius * outline), angle, window
