# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Irregularities that a good surface may have: slubs, glints, inclusions, knots, flecks.

They are no defects. About half of all images, training and test, normal and defective, show some, hardly two the
same, so a detector has to accept what is rare but natural. It is their variety that sets the difficulty: the odd
normal image scores as high as a weak defect.
"""

from collections.abc import Callable

import numpy as np

from .arrays import FloatArray
from .canvas import Canvas
from .noise import smoothstep
from .random_stream import RandomStream


def _count(stream: RandomStream) -> int:
    """How many: none in half of the images, then ever rarer, at most 6."""
    count = 0
    while count < 6 and stream.uniform() < 0.5:  # noqa: PLR2004
        count += 1
    return count


def slubs(canvas: Canvas, stream: RandomStream) -> None:
    """Cloth: pieces of thread that are thicker or finer, or took up more or less dye, or another one."""
    for _ in range(_count(stream)):
        direction = canvas.grain + (0.5 * np.pi if stream.uniform() < 0.5 else 0.0)  # noqa: PLR2004
        points = _line(canvas, stream, direction, stream.uniform(0.03, 0.3))
        widths = stream.uniform(0.008, 0.045) * _taper(0.95)
        canvas.tint(canvas.stroke(points, widths), stream.uniform(0.5, 1.5) * stream.uniforms(0.8, 1.2, 3))


def glints(canvas: Canvas, stream: RandomStream) -> None:
    """Metal: bright or dark strokes of the brush along the grain, some with the colours of heat."""
    for _ in range(_count(stream)):
        points = _line(canvas, stream, canvas.grain + stream.uniform(-0.06, 0.06), stream.uniform(0.03, 0.4))
        widths = stream.uniform(0.004, 0.035) * _taper(0.97)
        heat = stream.uniforms(-1.0, 1.0, 3) * (0.25 if stream.uniform() < 0.4 else 0.04)  # noqa: PLR2004
        canvas.tint(canvas.stroke(points, widths), stream.uniform(0.45, 1.55) * (1.0 + heat))


def inclusions(canvas: Canvas, stream: RandomStream) -> None:
    """Stone: large grains of other minerals."""
    for _ in range(_count(stream)):
        x, y = canvas.place(stream, 0.0)
        distance, _, window = canvas.blob(stream, x, y, stream.uniform(0.010, 0.05), 0.3)
        colour = stream.uniform(0.15, 0.95) * stream.uniforms(0.75, 1.1, 3)
        canvas.paint(stream.uniform(0.4, 0.95) * smoothstep((1.0 - distance) / 0.2), colour, window)


def knots(canvas: Canvas, stream: RandomStream) -> None:
    """Wood: ringed knots, pitch pockets and mineral spots."""
    for _ in range(_count(stream)):
        x, y = canvas.place(stream, 0.0)
        distance, _, window = canvas.blob(stream, x, y, stream.uniform(0.010, 0.065), 0.28)
        rings = 0.7 + 0.3 * np.cos(stream.uniform(4.0, 16.0) * distance)
        body = smoothstep((1.0 - distance) / stream.uniform(0.12, 0.7))
        colour = np.array([0.45, 0.38, 0.30]) * stream.uniform(0.4, 2.6) * stream.uniforms(0.8, 1.2, 3)
        canvas.tint(stream.uniform(0.35, 1.0) * body * rings, colour, window)


def flecks(canvas: Canvas, stream: RandomStream) -> None:
    """Paper: coloured flecks and shives of recycled stock."""
    for _ in range(2 * _count(stream)):
        x, y = canvas.place(stream, 0.0)
        distance, _, window = canvas.blob(stream, x, y, stream.uniform(0.004, 0.026), 0.3)
        colour = stream.uniforms(0.1, 0.95, 3)
        canvas.paint(stream.uniform(0.2, 0.9) * smoothstep((1.0 - distance) / 0.4), colour, window)


def _line(canvas: Canvas, stream: RandomStream, direction: float, length: float) -> FloatArray:
    """Seven points of a straight line at a random place, shape (7, 2)."""
    step = 0.5 * length * np.array([np.cos(direction), np.sin(direction)])
    return np.array(canvas.place(stream, 0.0)) + np.outer(np.linspace(-1.0, 1.0, 7), step)


def _taper(end: float) -> FloatArray:
    """Relative width of a stroke of seven points that narrows towards its ends, shape (7,)."""
    return np.sqrt(1.0 - (end * np.linspace(-1.0, 1.0, 7)) ** 2)


IRREGULARITIES: dict[str, Callable[[Canvas, RandomStream], None]] = {
    "woven": slubs,
    "brushed": glints,
    "granular": inclusions,
    "wood": knots,
    "print": flecks,
}
"""The irregularities of every material, by the name of its category."""
