# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Surfaces without defects: woven, brushed, granular, wood and print.

A material is a function of the surface coordinates of every pixel. It returns what the surface reflects, before
illumination, optics and the sensor. Every image is another piece of material from another lot: colour, coarseness and
contrast vary, and so do the irregularities that a good surface may have (slubs, fine hairlines, dark pores, a
register that is slightly off). This natural variation is wide on purpose: it hides weak defects.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import FloatArray
from .noise import cell_tones, line_noise, smoothstep, value_noise
from .random_stream import RandomStream

# How many threads of the other system a thread passes over before it dives under as many.
_FLOAT = 2.0


@dataclass(frozen=True)
class SurfaceGrid:
    """Where the pixels of one image lie on the surface.

    Attributes:
        along (FloatArray): Coordinate along the grain (or the first thread system), shape (H, W). The short side of
            the image is about 1.
        across (FloatArray): Coordinate across the grain, shape (H, W), same unit.
        pixel (float): Side of a pixel in the same unit.
    """

    along: FloatArray
    across: FloatArray
    pixel: float


@dataclass(frozen=True)
class Surface:
    """What a piece of material reflects.

    Attributes:
        albedo (FloatArray): Reflectance, shape (3, H, W), about [0, 1], RGB.
        bare (FloatArray | None): Reflectance with the print left out, shape (3, H, W); ``None`` without a print.
        ink (FloatArray | None): Share of each pixel that is printed, shape (H, W), [0, 1]; ``None`` without a print.
    """

    albedo: FloatArray
    bare: FloatArray | None = None
    ink: FloatArray | None = None


def _colour(stream: RandomStream, red: float, green: float, blue: float, lot: float) -> FloatArray:
    """A colour of one lot: brightness varies by ``lot``, hue by a quarter of it; shape (3, 1, 1)."""
    brightness = 1.0 + stream.uniform(-lot, lot)
    hue = stream.uniforms(1.0 - lot / 4, 1.0 + lot / 4, 3)
    return (np.array([red, green, blue]) * brightness * hue)[:, None, None]


def _ramp(tone: FloatArray, dark: FloatArray, light: FloatArray) -> FloatArray:
    """Colours between ``dark`` (tone 0) and ``light`` (tone 1), shape (3, H, W)."""
    return dark + tone * (light - dark)


def woven(grid: SurfaceGrid, stream: RandomStream) -> Surface:
    """Twill weave (two over, two under), with uneven threads and slubs."""
    count = 32.0 * stream.uniform(0.92, 1.08)
    sway = 0.35 * stream.uniform(0.3, 1.0)
    warp = count * grid.along + sway * line_noise(stream, 3.0 * grid.across)
    weft = count * grid.across + sway * line_noise(stream, 3.0 * grid.along)
    warp_cell, weft_cell = np.floor(warp), np.floor(weft)
    warp_place, weft_place = warp - warp_cell, weft - weft_cell
    order = np.mod(warp_cell + weft_cell, 2.0 * _FLOAT)
    warp_over = order < _FLOAT
    # Across a thread it is round; along it rises between the two places where it dives under others.
    across = np.where(warp_over, warp_place, weft_place)
    along = np.where(warp_over, order + weft_place, order - _FLOAT + warp_place) / _FLOAT
    height = np.sqrt(4.0 * across * (1.0 - across)) * (0.35 + 2.6 * along * (1.0 - along))
    warp_index, weft_index = warp_cell.astype(np.intp), weft_cell.astype(np.intp)
    slub = value_noise(stream, np.where(warp_over, warp_cell, weft_cell), 4.0 * np.where(warp_over, weft, warp) / count)
    thread = np.where(warp_over, cell_tones(stream, warp_index), cell_tones(stream, weft_index))
    contrast = stream.uniform(0.85, 1.15)
    tone = contrast * (0.75 * height - 0.40) + 0.52 + 0.06 * thread + 0.10 * slub
    # The two systems are dyed apart.
    tone += np.where(warp_over, 0.05, -0.05) * stream.sign()
    dark = _colour(stream, 0.25, 0.22, 0.17, 0.12)
    light = _colour(stream, 0.80, 0.74, 0.62, 0.12)
    return Surface(_ramp(tone, dark, light))


def brushed(grid: SurfaceGrid, stream: RandomStream) -> Surface:
    """Brushed metal: fine streaks along the grain, hairlines and a broad anisotropic highlight."""
    fine = value_noise(stream, 3.0 * grid.along, 190.0 * grid.across)
    medium = value_noise(stream, 6.0 * grid.along, 80.0 * grid.across)
    coarse = value_noise(stream, 1.5 * grid.along, 22.0 * grid.across)
    hairline = value_noise(stream, 2.0 * grid.along, 130.0 * grid.across)
    contrast = stream.uniform(0.75, 1.25)
    # The third power keeps most of the surface calm and gives a few distinct hairlines.
    tone = 0.5 + contrast * (0.14 * fine + 0.10 * medium + 0.07 * coarse + 0.28 * hairline**3)
    centre, width = stream.uniform(-0.7, 0.7), stream.uniform(0.25, 0.5)
    tone += stream.uniform(0.05, 0.18) * np.exp(-(((grid.along - centre) / width) ** 2))
    dark = _colour(stream, 0.26, 0.27, 0.29, 0.08)
    light = _colour(stream, 0.80, 0.81, 0.82, 0.08)
    return Surface(_ramp(tone, dark, light))


def granular(grid: SurfaceGrid, stream: RandomStream) -> Surface:
    """Granite-like mixture of grey, dark and light grains of varying size."""
    scale = stream.uniform(0.9, 1.12)
    # Each kind of grain has axes of its own, lest the cells of the noise show as a raster.
    first, second = scale * (0.8 * grid.along + 0.6 * grid.across), scale * (0.8 * grid.across - 0.6 * grid.along)
    grain = value_noise(stream, 75.0 * scale * grid.along, 75.0 * scale * grid.across)
    patch = value_noise(stream, 28.0 * (first + 0.3 * second), 28.0 * (second - 0.3 * first))
    speck = value_noise(stream, 48.0 * first, 48.0 * second)
    cloud = value_noise(stream, 6.0 * grid.along, 6.0 * grid.across)
    contrast = stream.uniform(0.45, 0.75)
    tone = 0.55 + contrast * (0.16 * grain + 0.14 * patch + 0.07 * cloud)
    share = stream.uniform(0.30, 0.42)
    tone -= 0.38 * contrast * smoothstep((speck + 0.25 * patch - share) / 0.22)
    tone += 0.25 * contrast * smoothstep((-speck + 0.35 * grain - share - 0.08) / 0.2)
    dark = _colour(stream, 0.12, 0.11, 0.12, 0.12)
    light = _colour(stream, 0.80, 0.74, 0.70, 0.12)
    return Surface(_ramp(tone, dark, light))


def wood(grid: SurfaceGrid, stream: RandomStream) -> Surface:
    """Flat-sawn wood: wavy annual rings, fibres and dark pores along the grain."""
    rings = stream.uniform(7.0, 12.0)
    bend = value_noise(stream, 1.1 * grid.along, 2.2 * grid.across)
    ripple = value_noise(stream, 5.0 * grid.along, 9.0 * grid.across)
    ring = rings * grid.across + stream.uniform(0.8, 2.0) * bend + 0.12 * ripple
    cell = np.floor(ring)
    place = ring - cell
    # Early wood darkens slowly towards the late wood, which ends abruptly.
    late = place**3 * (1.0 - smoothstep((place - 0.9) / 0.1))
    fibre = value_noise(stream, 7.0 * grid.along, 150.0 * grid.across)
    pore = value_noise(stream, 14.0 * grid.along, 120.0 * grid.across)
    contrast = stream.uniform(0.75, 1.25)
    tone = 0.66 - contrast * (0.42 * late - 0.09 * fibre)
    tone += 0.06 * cell_tones(stream, cell.astype(np.intp))
    tone -= 0.28 * smoothstep((pore - stream.uniform(0.52, 0.62)) / 0.3)
    dark = _colour(stream, 0.30, 0.17, 0.09, 0.12)
    light = _colour(stream, 0.86, 0.66, 0.44, 0.12)
    return Surface(_ramp(tone, dark, light))


def printed(grid: SurfaceGrid, stream: RandomStream) -> Surface:
    """Two-colour repeat print (rings and lozenges, dots between them) on uncoated paper."""
    fibre = value_noise(stream, 60.0 * grid.along, 60.0 * grid.across)
    cloud = value_noise(stream, 9.0 * grid.along, 9.0 * grid.across)
    paper = _colour(stream, 0.90, 0.87, 0.80, 0.05)
    bare = paper * (1.0 + 0.05 * fibre + 0.03 * cloud)

    repeat = 5.0
    first, second = repeat * grid.along, repeat * grid.across
    first_cell, second_cell = np.floor(first), np.floor(second)
    dx, dy = first - first_cell - 0.5, second - second_cell - 0.5
    # Distances are in repeats; the print gains or loses a little width from lot to lot.
    gain = stream.uniform(-0.012, 0.012)
    softness = repeat * max(grid.pixel, 0.004)
    radius = np.sqrt(dx * dx + dy * dy)
    ring = np.abs(radius - 0.27) - 0.07
    lozenge = np.abs(np.abs(dx) + np.abs(dy) - 0.36) - 0.055
    even = np.mod(first_cell + second_cell, 2.0) == 0.0
    motif = np.where(even, ring, lozenge)
    motif = np.minimum(motif, np.where(even, radius - 0.08, np.maximum(np.abs(dx), np.abs(dy)) - 0.10))
    screen = 0.85 + 0.15 * value_noise(stream, 45.0 * grid.along, 45.0 * grid.across)
    blue = smoothstep(0.5 + (gain - motif) / softness) * screen

    shift_along, shift_across = stream.uniform(-0.05, 0.05), stream.uniform(-0.05, 0.05)
    dx, dy = first + shift_along, second + shift_across
    dx -= np.floor(dx + 0.5)
    dy -= np.floor(dy + 0.5)
    dot = np.sqrt(dx * dx + dy * dy) - 0.13
    orange = smoothstep(0.5 + (gain - dot) / softness) * screen

    density = stream.uniform(0.62, 0.80)
    blue *= density
    orange *= density
    blue_ink = _colour(stream, 0.27, 0.36, 0.54, 0.10)
    orange_ink = _colour(stream, 0.82, 0.42, 0.18, 0.08)
    albedo = bare + blue * (blue_ink - bare)
    albedo += orange * (orange_ink - albedo)
    return Surface(albedo, bare=bare, ink=np.maximum(blue, orange))


MATERIALS: dict[str, Callable[[SurfaceGrid, RandomStream], Surface]] = {
    "woven": woven,
    "brushed": brushed,
    "granular": granular,
    "wood": wood,
    "print": printed,
}
"""Every material by the name of its category."""

POSE_FREEDOM: dict[str, float] = {"woven": 1.0, "brushed": 1.0, "granular": 1.0, "wood": 1.0, "print": 0.35}
"""How freely each material lies under the camera: printed sheets are guided, so they turn and tilt less."""
