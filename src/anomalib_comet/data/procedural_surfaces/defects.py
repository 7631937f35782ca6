# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Defects of surfaces, painted at full strength.

Defects of one type recur with nearly the same look, as those of one cause on one production line do: that is what
lets a detector learn to overlook them when they are in its training images. Place and details of the shape vary.

Lengths are fractions of the short side of the image; directions are in radians.
"""

from collections.abc import Callable

import numpy as np

from .arrays import FloatArray
from .canvas import Canvas
from .noise import smoothstep
from .random_stream import RandomStream

# Direction towards the lamp: relief is bright on the side that faces it.
_LAMP = (-0.6, -0.8)


def scratch(canvas: Canvas, stream: RandomStream) -> None:
    """One or two nearly straight, nearly parallel scratches: a bright furrow with a dark flank.

    They come from transport, so their direction to the grain recurs.
    """
    direction = canvas.grain + 1.05 + stream.uniform(-0.15, 0.15)
    length = stream.uniform(0.16, 0.26)
    x, y = canvas.place(stream, 0.5 * length * 0.8)
    step = np.array([np.cos(direction), np.sin(direction)])
    normal = np.array([-step[1], step[0]])
    if normal @ _LAMP < 0:
        normal = -normal
    t = np.linspace(-0.5, 0.5, 9)
    for line in range(stream.integer(1, 2)):
        share = 1.0 if line == 0 else stream.uniform(0.35, 0.8)
        bow = stream.uniform(-0.04, 0.04) * length
        points = np.array([x, y]) + np.outer(t * length * share, step) + np.outer(bow * (1.0 - 4.0 * t * t), normal)
        points = points + (0.0 if line == 0 else 0.02 * line * stream.sign()) * normal
        widths = stream.uniform(0.005, 0.0075) * np.sqrt(1.0 - (1.8 * t) ** 2)
        canvas.tint(canvas.stroke(points - 0.0045 * normal, widths), np.array([0.55, 0.55, 0.56]))
        canvas.paint(0.8 * canvas.stroke(points, widths), np.array([0.90, 0.90, 0.88]))


def stain(canvas: Canvas, stream: RandomStream) -> None:
    """An oily stain: darker and warmer than the surface, darkest along its rim."""
    radius = stream.uniform(0.04, 0.065)
    x, y = canvas.place(stream, radius)
    distance, _, window = canvas.blob(stream, x, y, radius, 0.28)
    body = smoothstep((1.0 - distance) / 0.18)
    rim = smoothstep((1.0 - distance) / 0.12) * smoothstep((distance - 0.72) / 0.2)
    canvas.tint(np.clip(0.75 * body + 0.35 * rim, 0.0, 1.0), np.array([0.66, 0.56, 0.38]), window)


def hole(canvas: Canvas, stream: RandomStream) -> None:
    """A small hole or pit: dark inside, its edge bright where it faces the lamp."""
    radius = stream.uniform(0.021, 0.028)
    x, y = canvas.place(stream, 2.0 * radius)
    distance, angle, window = canvas.blob(stream, x, y, radius, 0.14)
    softness = canvas.pixel / radius
    edge = smoothstep((1.35 - distance) / 0.2) * smoothstep((distance - 0.75) / 0.2)
    facing = -(np.cos(angle) * _LAMP[0] + np.sin(angle) * _LAMP[1])
    canvas.paint(0.6 * edge * np.clip(facing, 0.0, 1.0), np.array([0.92, 0.91, 0.89]), window)
    canvas.tint(0.6 * edge * np.clip(-facing, 0.0, 1.0), np.array([0.5, 0.5, 0.5]), window)
    canvas.paint(np.clip((1.0 - distance) / softness + 0.5, 0.0, 1.0), np.array([0.07, 0.065, 0.06]), window)


def crack(canvas: Canvas, stream: RandomStream) -> None:
    """A jagged dark crack that follows the grain roughly, tapers and branches."""
    direction = canvas.grain + stream.uniform(-0.25, 0.25)
    length = stream.uniform(0.12, 0.22)
    x, y = canvas.place(stream, 0.5 * length * 0.8)
    start = np.array([x, y]) - 0.5 * length * np.array([np.cos(direction), np.sin(direction)])
    coverage = _jagged(canvas, stream, start, direction, length, 0.0075)
    if stream.uniform() < 0.7:  # noqa: PLR2004
        fork = direction + stream.sign() * stream.uniform(0.4, 0.8)
        middle = np.array([x, y])
        coverage = np.maximum(coverage, _jagged(canvas, stream, middle, fork, 0.35 * length, 0.005))
    canvas.tint(coverage, np.array([0.28, 0.27, 0.26]))


def _jagged(
    canvas: Canvas, stream: RandomStream, start: FloatArray, direction: float, length: float, width: float
) -> FloatArray:
    """Coverage of a tapering random walk that keeps its direction."""
    steps = max(4, round(length / 0.022))
    angles = direction + stream.uniforms(-0.75, 0.75, steps)
    moves = length / steps * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    return canvas.stroke(points, width * np.linspace(1.0, 0.3, steps + 1))


def fibre(canvas: Canvas, stream: RandomStream) -> None:
    """A foreign textile fibre that lies on the surface, with the shadow it casts."""
    x, y = canvas.place(stream, 0.12)
    angle = stream.uniform(0.0, 2.0 * np.pi)
    turn = stream.sign() * stream.uniform(0.8, 2.6)
    length = stream.uniform(0.16, 0.24)
    t = np.linspace(0.0, 1.0, 22)
    heading = angle + turn * t + 0.5 * np.sin(2.0 * np.pi * (t * stream.uniform(0.8, 1.6) + stream.uniform()))
    points = np.cumsum(length / len(t) * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    points += np.array([x, y]) - points.mean(axis=0)
    widths = np.full(len(t), stream.uniform(0.0055, 0.0075))
    canvas.tint(canvas.stroke(points - 0.005 * np.array(_LAMP), widths), np.array([0.66, 0.66, 0.68]))
    canvas.paint(0.92 * canvas.stroke(points, widths), np.array([0.17, 0.23, 0.42]))


def missing_print(canvas: Canvas, stream: RandomStream) -> None:
    """A region in which the ink did not reach the paper.

    Raises:
        ValueError: If the surface has no print.
    """
    ink, bare = canvas.surface.ink, canvas.surface.bare
    if ink is None or bare is None:
        msg = "The defect missing_print needs a printed surface; use it with the category 'print'."
        raise ValueError(msg)
    radius = stream.uniform(0.06, 0.075)
    # Ink can only be missed where there should be some: of many places take the one with the most.
    places = [canvas.place(stream, radius) for _ in range(24)]
    amounts = [float(ink[canvas.window(x, y, radius)].mean()) for x, y in places]
    x, y = places[int(np.argmax(amounts))]
    distance, _, window = canvas.blob(stream, x, y, radius, 0.15)
    gone = smoothstep((1.0 - distance) / 0.1) * (ink[window] > 0.0)
    canvas.paint(gone, bare[:, window[0], window[1]], window)


DEFECTS: dict[str, Callable[[Canvas, RandomStream], None]] = {
    "crack": crack,
    "fibre": fibre,
    "hole": hole,
    "missing_print": missing_print,
    "scratch": scratch,
    "stain": stain,
}
"""Every defect by the name of its type."""

DEFECT_OPACITY: dict[str, dict[str, float]] = {
    "woven": {"fibre": 1.0, "hole": 1.0, "scratch": 1.0, "stain": 1.0},
    "brushed": {"crack": 0.8, "fibre": 0.6, "hole": 0.8, "scratch": 0.5, "stain": 0.7},
    "granular": {"crack": 1.0, "fibre": 1.0, "hole": 1.0, "scratch": 1.0, "stain": 1.0},
    "wood": {"crack": 1.0, "fibre": 0.8, "hole": 1.0, "scratch": 0.6, "stain": 1.0},
    "print": {"fibre": 1.0, "hole": 1.0, "missing_print": 1.0, "scratch": 1.0, "stain": 1.0},
}
"""The defect types of each category (cloth does not crack, and only a print can miss ink), and how opaque each is at
severity 1. A calm material shows weak defects that a busy one hides; the opacities even that out."""

DEFECT_TYPES: dict[str, tuple[str, ...]] = {
    category: tuple(sorted(types)) for category, types in DEFECT_OPACITY.items()
}
"""The defect types of each category, in alphabetical order."""
