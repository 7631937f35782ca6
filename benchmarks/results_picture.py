# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What contamination costs our models and stock ones: the curves of README and docs, from the committed tables.

    python benchmarks/results_picture.py

It prints the values that it draws. The cells were measured by ``benchmarks/contamination.py``, by the protocol of
``anomalib-comet sweep``: one test set for all ratios of a seed, last epoch, the same frozen network in a panel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from anomalib_comet.sweep.plots import draw_curves, svg_of
from anomalib_comet.sweep.statistics import curves

RESULTS = Path(__file__).parent.parent / "docs" / "results"
PANELS = {
    "magnetic tiles, MobileNetV2": ("tiles", "mobilenetv2_100", 150),
    "brushed, Gabor": ("brushed", "gabor", 0),
    "woven, Gabor": ("woven", "gabor", 0),
    "brushed, MobileNetV2": ("brushed", "mobilenetv2_100", 0),
    "woven, MobileNetV2": ("woven", "mobilenetv2_100", 0),
}
"""Data, frozen network and normal training images (0: all) by title."""
MODELS = {
    ("FunAd", "base"): "FunAd",
    ("DifferNet, both score", "all"): "CoMetDifferNet",
    ("SimpleNet", "all"): "CoMetSimpleNet",
    ("DifferNet, both score", "base"): "DifferNet",
    ("SimpleNet", "base"): "SimpleNet",
    ("PatchCore", "base"): "PatchCore (anomalib)",
    ("PaDiM", "base"): "PaDiM (anomalib)",
    ("Stfpm", "base"): "STFPM (anomalib)",
}


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, nargs="+", default=[RESULTS / "contamination.csv", RESULTS / "fun_ad.csv"])
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "images" / "contamination.svg", help="picture")
    arguments = parser.parse_args()
    cells = pd.concat([pd.read_csv(file) for file in arguments.csv], ignore_index=True)
    cells["model"] = [MODELS.get(key) for key in zip(cells["detector"], cells["variant"], strict=True)]
    cells = cells.dropna(subset=["model"])
    cells = cells[~cells["overlap"]]
    figure = Figure(figsize=(10.5, 6.6), layout="constrained")
    panels = figure.subplots(2, 3).flat
    seen: dict[str, object] = {}
    for axes, (title, place) in zip(panels, PANELS.items(), strict=False):
        part = cells[(cells[["data", "backbone", "images"]] == place).all(axis=1)]
        # Of a cell that stands in both tables, the later one's.
        part = part.drop_duplicates(["model", "ratio", "seed"], keep="last").sort_values(["model", "ratio", "seed"])
        drawn = curves(part, 1, ["image_auroc"])
        drawn = drawn[drawn["seeds"] > 1]
        draw_curves(axes, drawn, "image_auroc", list(MODELS.values()))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("contamination ratio r")
        seen |= {line.get_label(): line for line in axes.get_lines()}
        columns = ["model", "ratio", "seeds", "mean", "low", "high", "drop"]
        print(title, drawn[columns].round(3).to_string(index=False), sep="\n", end="\n\n")
    names = [name for name in MODELS.values() if name in seen]
    last = figure.axes[-1]
    last.set_axis_off()
    last.legend([seen[name] for name in names], names, loc="center", frameon=False, fontsize=9)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(svg_of(figure))


if __name__ == "__main__":
    main()
