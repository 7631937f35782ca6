# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Small pictures for the page: thumbnails, and heat maps on one common scale of colours."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data.transforms.square_pad import SquarePad
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import CenterCrop, Compose, Resize
from torchvision.transforms.v2 import functional as geometry

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

LOWER_QUANTILE, UPPER_QUANTILE = 0.5, 0.999
"""Limits of the colours: half of all map values have no colour, and one in a thousand is as red as it gets."""

MAP_DIVISOR = 4
"""Pixels of a thumbnail to one of its heat map. Maps are smooth; the page draws them enlarged."""

Extent = tuple[float, float, float, float]
"""Top, left, bottom and right edge of what a model sees, in heights and widths of the image: (0, 0, 1, 1) for all."""


def thumbnail(image: Image.Image, size: int) -> bytes:
    """Return an image as a small WebP picture.

    Args:
        image: The image.
        size: Longest side of the picture in pixels.

    Returns:
        The encoded picture.
    """
    small = image.convert("RGB")
    small.thumbnail((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return _webp(small, quality=75)


def grid_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width of the heat map that belongs to the thumbnail of an image.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        size: Longest side of the thumbnail in pixels.
    """
    scale = size / MAP_DIVISOR / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def model_view(transform: Any, height: int, width: int) -> Extent:
    """Return which part of an image a pre-processing transform shows to the model.

    Resizing keeps the view, cropping narrows it, and padding widens it beyond the image.

    Args:
        transform: Transform of the model's pre-processor, or ``None``.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        Edges of the view as shares of the image's height and width.
    """
    top, left, bottom, right = 0.0, 0.0, 1.0, 1.0
    rows, columns = float(height), float(width)
    for step in _steps(transform):
        if isinstance(step, Resize):
            blank = torch.empty(1, round(rows), round(columns), device="meta")
            rows, columns = (float(side) for side in geometry.get_size(_resized(step, blank)))
            continue
        if isinstance(step, CenterCrop):
            new_rows, new_columns = (float(side) for side in step.size)
        elif isinstance(step, SquarePad):
            new_rows = new_columns = max(rows, columns)
        else:
            continue
        # Both keep the centre, so that the edges move by the same share on both sides.
        middle, half = (top + bottom) / 2, (bottom - top) / 2 * new_rows / rows
        top, bottom = middle - half, middle + half
        middle, half = (left + right) / 2, (right - left) / 2 * new_columns / columns
        left, right = middle - half, middle + half
        rows, columns = new_rows, new_columns
    return top, left, bottom, right


def aligned_map(anomaly_map: torch.Tensor, view: Extent, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return an anomaly map on a small grid that covers the whole image.

    A cell holds the largest value in it: an average would hide defects of a few pixels.

    Args:
        anomaly_map: Map of what the model saw, shape ``(H, W)``.
        view: Which part of the image that is; see :func:`model_view`.
        shape: Height and width of the grid.

    Returns:
        Array of ``shape``, NaN where the model saw nothing.
    """
    rows, columns = shape
    top, left, bottom, right = view
    inner = (max(1, round((bottom - top) * rows)), max(1, round((right - left) * columns)))
    values = anomaly_map.detach().float().cpu()[None, None]
    if inner[0] > values.shape[-2] or inner[1] > values.shape[-1]:
        values = functional.interpolate(values, size=inner, mode="bilinear", align_corners=False)
    cells = functional.adaptive_max_pool2d(values, inner)[0, 0].numpy()
    grid = np.full(shape, np.nan, dtype=np.float32)
    first_row, first_column = round(top * rows), round(left * columns)
    target = (
        slice(max(0, first_row), min(rows, first_row + inner[0])),
        slice(max(0, first_column), min(columns, first_column + inner[1])),
    )
    source = tuple(
        slice(cut.start - first, cut.stop - first) for cut, first in zip(target, (first_row, first_column), strict=True)
    )
    grid[target] = cells[source]
    return grid


def colour_limits(maps: Iterable[npt.NDArray[np.float32]]) -> tuple[float, float] | None:
    """Return the common limits of the colours: quantiles over all maps, so that a single outlier does not set them.

    Args:
        maps: Aligned maps; NaN is left out.

    Returns:
        The values that get no colour and full colour, or ``None`` if there is no finite value.
    """
    parts: list[np.ndarray] = [values[np.isfinite(values)] for values in maps]
    everything: np.ndarray = np.concatenate(parts) if parts else np.empty(0)
    if not everything.size:
        return None
    low, high = np.quantile(everything, [LOWER_QUANTILE, UPPER_QUANTILE])
    return float(low), float(high)


def map_picture(values: np.ndarray, limits: tuple[float, float]) -> bytes:
    """Return an aligned map as a small grey WebP picture, which the page colours.

    Args:
        values: Aligned map.
        limits: Values that become 0 and 255. NaN becomes 0 too.

    Returns:
        The encoded picture.
    """
    low, high = limits
    span = high - low
    shares: np.ndarray = np.clip((values - low) / span, 0.0, 1.0) if span > 0 else np.greater(values, high)
    grey = np.round(np.nan_to_num(shares.astype(np.float32), nan=0.0) * 255).astype(np.uint8)
    return _webp(Image.fromarray(grey), quality=80)


def _webp(image: Image.Image, quality: int) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=quality, method=4)
    return encoded.getvalue()


def _steps(transform: Any) -> Iterable[Any]:
    if isinstance(transform, Compose):
        for step in transform.transforms:
            yield from _steps(step)
    elif transform is not None:
        yield transform


def _resized(step: Resize, blank: torch.Tensor) -> torch.Tensor:
    return geometry.resize(blank, step.size, max_size=step.max_size, antialias=False)
