# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Draw the contact sheet of the procedural surfaces.

python benchmarks/procedural_surfaces_sheet.py --out docs/images/procedural_surfaces.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from anomalib_comet.data.procedural_surfaces import DEFECT_TYPES, MATERIALS, SurfaceSpec, render

TILE = 124
GAP = 3
CAPTION = 12
SEVERITIES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)


def tile(spec: SurfaceSpec) -> Image.Image:
    """Render an image at twice the size of a tile and reduce it; the defect is framed."""
    image, mask = render(replace(spec, image_size=(2 * TILE, 2 * TILE)))
    picture = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BOX)
    if mask.any():
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) // 2 for axis in (1, 0))
        frame = (columns[0] - 4, rows[0] - 4, columns[-1] + 4, rows[-1] + 4)
        ImageDraw.Draw(picture).rectangle(frame, outline=(255, 40, 40))
    return picture


def mask_tile(spec: SurfaceSpec) -> Image.Image:
    """Draw the mask of an image."""
    _, mask = render(replace(spec, image_size=(2 * TILE, 2 * TILE)))
    return Image.fromarray(mask.astype(np.uint8) * 255).resize((TILE, TILE), Image.Resampling.BOX).convert("RGB")


def rows_of_tiles(severity: float, index: int) -> list[list[tuple[str, Image.Image]]]:
    """Return every row of the sheet as captions and tiles."""
    rows = []
    for category in MATERIALS:
        row = [(f"{category}, good", tile(SurfaceSpec(category, "test", index=index + k))) for k in range(2)]
        row += [(name, tile(SurfaceSpec(category, "test", name, index, severity))) for name in DEFECT_TYPES[category]]
        rows.append(row)
    spec = SurfaceSpec("wood", "test", "stain", index)
    fading = [(f"severity {value:g}", tile(replace(spec, severity=value))) for value in SEVERITIES]
    rows.append([*fading, ("mask", mask_tile(spec))])
    return rows


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/procedural_surfaces.png"), help="PNG to write")
    parser.add_argument("--severity", type=float, default=0.7, help="contrast of the defects, (0, 1]")
    parser.add_argument("--index", type=int, default=8, help="number of the first image")
    arguments = parser.parse_args()

    rows = rows_of_tiles(arguments.severity, arguments.index)
    width = GAP + max(map(len, rows)) * (TILE + GAP)
    sheet = Image.new("RGB", (width, GAP + len(rows) * (TILE + CAPTION + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for k, (caption, picture) in enumerate(row):
            left, top = GAP + k * (TILE + GAP), GAP + i * (TILE + CAPTION + GAP)
            sheet.paste(picture, (left, top))
            draw.text((left, top + TILE), caption, fill="black")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(240, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
