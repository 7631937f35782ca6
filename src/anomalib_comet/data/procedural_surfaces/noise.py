# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Building blocks of textures: value noise and smooth steps.

Noise is given in surface coordinates, not in pixels: the same surface at another image size is the same surface.
"""

import numpy as np

from .arrays import FloatArray, IndexArray
from .random_stream import RandomStream


def smoothstep(value: FloatArray) -> FloatArray:
    """Rise smoothly from 0 at ``value <= 0`` to 1 at ``value >= 1`` (cubic)."""
    t = np.clip(value, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _cells(coordinate: FloatArray) -> tuple[IndexArray, FloatArray, int]:
    """Split a coordinate into its cell (counted from 0), its smoothed place inside the cell, and the cell count."""
    first = np.floor(coordinate.min())
    fraction = coordinate - first
    # Nothing is below 0 here, so that cutting off the fraction is rounding down, at a fraction of its cost.
    cell = fraction.astype(np.intp)
    fraction -= cell
    smooth = fraction * -2.0
    smooth += 3.0
    smooth *= fraction
    smooth *= fraction
    return cell, smooth, int(cell.max()) + 2


def value_noise(stream: RandomStream, first: FloatArray, second: FloatArray) -> FloatArray:
    """Noise that varies smoothly over unit cells of two coordinates.

    Args:
        stream (RandomStream): Source of the values at the corners of the cells.
        first (FloatArray): First coordinate of every pixel, shape (H, W), in cells.
        second (FloatArray): Second coordinate of every pixel, shape (H, W), in cells.

    Returns:
        FloatArray: Values in [-1, 1], shape (H, W).
    """
    row, row_fraction, rows = _cells(first)
    column, column_fraction, columns = _cells(second)
    corners = stream.uniforms(-1.0, 1.0, rows * columns)
    index = row * columns + column
    # From every corner: the step to its right neighbour, so that two look-ups serve a row.
    steps = np.diff(corners, append=0.0)
    upper = steps.take(index)
    upper *= column_fraction
    upper += corners.take(index)
    index += columns
    lower = steps.take(index)
    lower *= column_fraction
    lower += corners.take(index)
    lower -= upper
    lower *= row_fraction
    upper += lower
    return upper


def line_noise(stream: RandomStream, coordinate: FloatArray) -> FloatArray:
    """Noise that varies smoothly over unit cells of one coordinate: values in [-1, 1], the shape of the coordinate."""
    cell, fraction, count = _cells(coordinate)
    corners = stream.uniforms(-1.0, 1.0, count)
    start = corners.take(cell)
    return start + fraction * (corners.take(cell + 1) - start)


def cell_tones(stream: RandomStream, cell: IndexArray) -> FloatArray:
    """One value in [-1, 1] for each cell, given the integer cell of every pixel."""
    offset = cell - cell.min()
    return stream.uniforms(-1.0, 1.0, int(offset.max()) + 1).take(offset)


def smooth_field(stream: RandomStream, shape: tuple[int, int], cells: int) -> FloatArray:
    """A slowly varying field over the whole image, by cubic B-splines on a coarse grid.

    Args:
        stream (RandomStream): Source of the control values.
        shape (tuple[int, int]): Height and width of the image in pixels.
        cells (int): Number of spline cells along each side, at least 1.

    Returns:
        FloatArray: Values in [-1, 1], shape (H, W).
    """
    control = stream.uniforms(-1.0, 1.0, (cells + 3, cells + 3))
    return _spline_basis(shape[0], cells) @ control @ _spline_basis(shape[1], cells).T


def _spline_basis(length: int, cells: int) -> FloatArray:
    """Weights of ``cells + 3`` cubic B-spline control values at ``length`` pixels, shape (length, cells + 3)."""
    position = (np.arange(length) + 0.5) / length * cells
    start = np.minimum(position.astype(np.intp), cells - 1)
    t = position - start
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6.0
    basis = np.zeros((length, cells + 3))
    np.put_along_axis(basis, start[:, None] + np.arange(4), weights, axis=1)
    return basis
