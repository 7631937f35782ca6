# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""From a description of an image to its pixels and its mask.

The order is that of a camera: material, defect, optics of the material side, illumination, sensor. The defect is
composited after the blur and before the illumination, and the sensor noise does not depend on the signal. Hence the
image with the defect and the one without it are equal outside the mask, bit for bit.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import BoolArray, ByteArray, FloatArray
from .canvas import Canvas
from .defects import DEFECT_OPACITY, DEFECT_TYPES, DEFECTS
from .irregularities import IRREGULARITIES
from .materials import MATERIALS, POSE_FREEDOM, Surface, SurfaceGrid
from .noise import smooth_field
from .random_stream import RandomStream

RENDERING_VERSION = 1
"""Increased with every change of the renderer that changes a pixel: it is a part of every path."""

NORMAL = "good"
"""The name of the defect type of images without a defect, as in MVTec AD."""

_SMALLEST_CHANGE = 2.0 / 255.0
_MINIMUM_SIDE = 32


@dataclass(frozen=True)
class SurfaceSpec:
    """Everything that determines one image.

    Args:
        category (str): Material, one of ``MATERIALS``.
        split (str): ``train``, ``val`` or ``test``. The same index in another split is another image.
        defect (str): Defect type, one of ``DEFECT_TYPES[category]``, or ``good``.
        index (int): Number of the image within its split and defect type, at least 0.
        severity (float): Contrast of the defect against the surface, in (0, 1]. It changes neither the shape of the
            defect nor its mask, and nothing in images without a defect.
        image_size (tuple[int, int]): Height and width in pixels, each at least 32.
        seed (int): Seed of the whole data set.

    Raises:
        ValueError: If one of the values is out of its range.
    """

    category: str
    split: str = "train"
    defect: str = NORMAL
    index: int = 0
    severity: float = 1.0
    image_size: tuple[int, int] = (256, 256)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.category not in MATERIALS:
            msg = f"Unknown category {self.category!r}; choose one of {', '.join(MATERIALS)}."
            raise ValueError(msg)
        if self.split not in {"train", "val", "test"}:
            msg = f"Unknown split {self.split!r}; choose one of train, val, test."
            raise ValueError(msg)
        if self.defect != NORMAL and self.defect not in DEFECT_TYPES[self.category]:
            msg = (
                f"The category {self.category!r} has no defect type {self.defect!r}; "
                f"choose among {', '.join(DEFECT_TYPES[self.category])} (or {NORMAL!r})."
            )
            raise ValueError(msg)
        if not 0.0 < self.severity <= 1.0:
            msg = f"severity must be greater than 0 and at most 1, not {self.severity}."
            raise ValueError(msg)
        if min(self.image_size) < _MINIMUM_SIDE:
            msg = f"image_size must be at least {_MINIMUM_SIDE} pixels on each side, not {self.image_size}."
            raise ValueError(msg)

    def stream(self, purpose: str) -> RandomStream:
        """The random numbers of this image for one purpose; size and severity do not change them."""
        return RandomStream(
            "ProceduralSurfaces", self.seed, self.category, self.split, self.defect, self.index, purpose
        )


def render(spec: SurfaceSpec, *, with_defect: bool = True) -> tuple[ByteArray, BoolArray]:
    """Render one image and the exact mask of its defect.

    Args:
        spec (SurfaceSpec): The image to render.
        with_defect (bool): Whether to show the defect; without it the very same surface is rendered in a good state.
            Defaults to ``True``.

    Returns:
        tuple[ByteArray, BoolArray]: RGB image, shape (H, W, 3), uint8, and the pixels that the defect changed, shape
        (H, W). The mask is empty where no defect is shown.

    Example:
        >>> image, mask = render(SurfaceSpec("wood", split="test", defect="crack"))
        >>> image.shape, mask.shape
        ((256, 256, 3), (256, 256))
    """
    height, width = spec.image_size
    pixel = 1.0 / min(height, width)
    x = (np.arange(width) + 0.5 - 0.5 * width) * pixel
    y = (np.arange(height) + 0.5 - 0.5 * height) * pixel

    pose = spec.stream("pose")
    freedom = POSE_FREEDOM[spec.category]
    grain = freedom * pose.uniform(-0.10, 0.10)
    grid = _surface_grid(x, y, pose, grain, freedom)
    surface = MATERIALS[spec.category](grid, spec.stream("material"))
    natural = Canvas(surface, x, y, grain)
    IRREGULARITIES[spec.category](natural, spec.stream("irregularities"))
    optics = spec.stream("optics")
    sharpness_loss = optics.uniform(0.02, 0.16)
    albedo = _blur(natural.albedo, sharpness_loss)
    mask = np.zeros((height, width), dtype=np.bool_)

    if with_defect and spec.defect != NORMAL:
        bare = None if surface.bare is None else _blur(surface.bare, sharpness_loss)
        ink = None if surface.ink is None else _blur(surface.ink[None], sharpness_loss)[0]
        canvas = Canvas(Surface(albedo, bare, ink), x, y, grain)
        DEFECTS[spec.defect](canvas, spec.stream("defect"))
        change = (canvas.albedo - albedo) * DEFECT_OPACITY[spec.category][spec.defect]
        mask = np.abs(change).max(axis=0) > _SMALLEST_CHANGE
        change *= mask
        albedo = albedo + spec.severity * change

    light = _illumination(x, y, optics, spec.stream("illumination"))
    noise = spec.stream("noise").gaussians((3, height, width))
    noise *= optics.uniform(0.008, 0.018)
    light *= albedo
    light += noise
    light *= 255.0
    grey_levels = np.rint(light, out=light).clip(0.0, 255.0, out=light).astype(np.uint8)
    return np.ascontiguousarray(grey_levels.transpose(1, 2, 0)), mask


def _surface_grid(x: FloatArray, y: FloatArray, pose: RandomStream, grain: float, freedom: float) -> SurfaceGrid:
    """Place the camera over the surface: rotation by the grain's direction, distance and shift."""
    scale = 1.0 + freedom * pose.uniform(-0.09, 0.09)
    shift_along, shift_across = pose.uniform(0.0, 1.0), pose.uniform(0.0, 1.0)
    cosine, sine = scale * np.cos(grain), scale * np.sin(grain)
    along = (cosine * x + shift_along)[None, :] + (sine * y)[:, None]
    across = (-sine * x + shift_across)[None, :] + (cosine * y)[:, None]
    return SurfaceGrid(along, across, scale * float(x[1] - x[0]))


def _blur(image: FloatArray, weight: float) -> FloatArray:
    """Slight loss of sharpness: each pixel shares ``weight`` with each neighbour along both axes, shape (C, H, W)."""
    shared = weight * image
    rows = (1.0 - 2.0 * weight) * image
    rows[:, 1:] += shared[:, :-1]
    rows[:, :-1] += shared[:, 1:]
    rows[:, 0] += shared[:, 0]
    rows[:, -1] += shared[:, -1]
    np.multiply(rows, weight, out=shared)
    rows *= 1.0 - 2.0 * weight
    rows[:, :, 1:] += shared[:, :, :-1]
    rows[:, :, :-1] += shared[:, :, 1:]
    rows[:, :, 0] += shared[:, :, 0]
    rows[:, :, -1] += shared[:, :, -1]
    return rows


def _illumination(x: FloatArray, y: FloatArray, optics: RandomStream, stream: RandomStream) -> FloatArray:
    """Light on every pixel and channel: level, gradient, fall-off to the corners, unevenness, colour; (3, H, W)."""
    level = stream.uniform(0.82, 1.10)
    slope, direction = stream.uniform(0.0, 0.30), stream.uniform(0.0, 2.0 * np.pi)
    light = 1.0 + slope * (np.cos(direction) * x[None, :] + np.sin(direction) * y[:, None])
    light -= optics.uniform(0.0, 0.25) * (x[None, :] ** 2 + y[:, None] ** 2)
    light += 0.04 * smooth_field(stream, (len(y), len(x)), 3)
    return light * (level * stream.uniforms(0.98, 1.02, (3, 1, 1)))
