# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The curves of README and docs: what contamination costs our models and stock ones, by ``anomalib-comet sweep``.

    python benchmarks/results_sweep.py                                      # table and picture of the committed cells
    python benchmarks/results_sweep.py --root DIR --backbone-weights FILE   # measure them again
    python benchmarks/results_sweep.py --root DIR --backbone-weights FILE --sweeps results_surfaces --models STFPM

``DIR`` are the magnetic tiles in MVTec-style folders; 150 of its normal training images, drawn at random, are used.
The sweeps are ``configs/sweeps/results_tiles.yaml`` and ``results_surfaces.yaml``; without ``--backbone-weights`` the
network's weights are downloaded. Cells that are done are not repeated, and a part of a sweep replaces its own rows of
the committed table only. Last epoch, nothing chosen by test labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from anomalib_comet.sweep.command import main as sweep
from anomalib_comet.sweep.plots import NAMES, draw_curves, svg_of
from anomalib_comet.sweep.statistics import curves

CONFIGS = Path(__file__).parent.parent / "configs" / "sweeps"
DOCS = Path(__file__).parent.parent / "docs"
SWEEPS = ("results_tiles", "results_surfaces")
PANELS = {
    "magnetic tiles": ("results_tiles", None),
    "surfaces, woven": ("results_surfaces", "woven"),
    "surfaces, brushed": ("results_surfaces", "brushed"),
}
"""Sweep and category by title."""
METRICS = ("image_auroc", "aupro")
CELL = ("model", "category", "overlap", "ratio", "seed")
"""Columns that say which cell a row is."""
LEFT_OUT = ("python", "device", "peak_memory_mib")
"""Columns of the sweep that say more about the machine than about the models."""


def configuration(name: str) -> dict[str, Any]:
    """Return what a sweep's file says."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def measure(arguments: argparse.Namespace) -> None:
    """Run the sweeps, or the parts of them that were asked for, and take their tables into the documentation."""
    from contamination import subset_of_tiles

    for name in arguments.sweeps:
        content = configuration(name)
        content["models"] = {label: content["models"][label] for label in arguments.models or content["models"]}
        if arguments.backbone_weights is not None:
            for entry in content["models"].values():
                entry["backbone_weights"] = str(arguments.backbone_weights.resolve())
        if name == "results_tiles":
            root = subset_of_tiles(arguments.root, 150, 0, arguments.work)
        else:
            root = arguments.work / "surfaces"
            content["categories"] = arguments.categories or content["categories"]
        content["data"]["init_args"]["root"] = str(root.resolve())
        arguments.work.mkdir(parents=True, exist_ok=True)
        part = arguments.work / f"{name}.yaml"
        part.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        output = arguments.work / name
        status = sweep(["--config", str(part), "--output", str(output), "--in_process"])
        if status:
            raise SystemExit(status)
        take(output / "results.csv", name)


def kept(name: str) -> Path:
    """Return the file of a sweep's table in the documentation."""
    return DOCS / "results" / f"{name.replace('results', 'sweep')}.csv"


def take(table: Path, name: str) -> None:
    """Put the rows of a sweep's table, in the columns that others can compare with, in place of the committed ones."""
    measured = pd.read_csv(table).drop(columns=list(LEFT_OUT), errors="ignore").round(4)
    rows = [pd.read_csv(kept(name)), measured] if kept(name).exists() else [measured]
    frame = pd.concat(rows, ignore_index=True).drop_duplicates(list(CELL), keep="last")
    tests = frame.groupby(["category", "overlap", "seed"], dropna=False)["test_set"].nunique()
    if (tests > 1).any():
        msg = f"{table}: measured on other test images than {kept(name)}, so the two cannot be one table."
        raise SystemExit(msg)
    order = list(configuration(name)["models"])
    frame = frame.sort_values(list(CELL), key=lambda c: c.map(order.index) if c.name == "model" else c)
    frame.to_csv(kept(name), index=False)


def main() -> None:
    """Measure if asked, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="measure again; folder of the magnetic tiles")
    parser.add_argument("--backbone-weights", type=Path, help="state dict of mobilenetv2_100")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=SWEEPS, help="measure these (default: both)")
    parser.add_argument("--models", nargs="+", help="measure these only, by their names in the configuration")
    parser.add_argument("--categories", nargs="+", help="measure these surfaces only")
    parser.add_argument("--work", type=Path, default=Path("results/sweeps"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    known = configuration("results_surfaces")  # with the models of both
    for option, names in (("models", list(known["models"])), ("categories", known["categories"])):
        if unknown := set(getattr(arguments, option) or []) - set(names):
            parser.error(f"--{option} {' '.join(sorted(unknown))}: the configuration has {', '.join(names)}")
    if arguments.root is not None:
        measure(arguments)
    elif arguments.models or arguments.categories:
        parser.error("measuring asks for --root, the folder of the magnetic tiles")
    tables = {name: pd.read_csv(kept(name)) for name in SWEEPS}
    order = list(known["models"])
    figure = Figure(figsize=(12.0, 7.2), layout="constrained")
    axes = figure.subplots(len(METRICS), len(PANELS))
    seen = {}
    for column, (title, (name, category)) in enumerate(PANELS.items()):
        part = tables[name] if category is None else tables[name].query("category == @category")
        for row, metric in enumerate(METRICS):
            drawn = curves(part, 1, [metric])
            draw_curves(axes[row, column], drawn, metric, order)
            axes[row, column].set_xlabel("contamination ratio r" if row else "")
            axes[row, column].set_ylabel("" if column else NAMES[metric])
            seen |= {line.get_label(): line for line in axes[row, column].get_lines()}
            print(f"{title}, {metric}", as_text(drawn), sep="\n", end="\n\n")
        axes[0, column].set_title(title, fontsize=10)
    names = [name for name in order if name in seen]
    figure.legend([seen[n] for n in names], names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    (DOCS / "images" / "contamination.svg").write_bytes(svg_of(figure))


def as_text(drawn: pd.DataFrame) -> str:
    """Return a row a model: mean and half the 95 % interval at each ratio, and the fall to the largest one."""
    rows = {}
    for model, part in drawn.groupby("model", sort=False):
        cells = {f"r = {p.ratio:g}": f"{p['mean']:.3f} ± {p['high'] - p['mean']:.3f}" for _, p in part.iterrows()}
        last = part.iloc[-1]
        fall = f"{100 * last['drop']:.1f} ± {100 * (last['drop_high'] - last['drop']):.1f}"
        rows[model] = {**cells, "fall, points": fall, "seeds": int(part["seeds"].min())}
    return pd.DataFrame.from_dict(rows, orient="index").to_string()


if __name__ == "__main__":
    main()
