# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Curves of metrics against the contamination ratio, with confidence bands."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

NAMES = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image average precision",
    "pixel_auroc": "Pixel AUROC",
    "aupro": "AUPRO (up to 30 % false positives)",
    "f1": "F1 at the threshold without labels",
    "precision": "Precision at the threshold without labels",
    "recall": "Recall at the threshold without labels",
    "f1_max": "F1 at the best threshold for the test set",
    "audit_ap": "Average precision of finding injected images",
}
MANY_MODELS = 5
"""Models that a legend inside the axes has room for."""

MIN_SEEDS = 3
"""Seeds that a band needs."""

# Okabe and Ito's colours, which colour-blind readers can tell apart, and two more; markers for print without colour.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#000000", "#999999", "#7B3F00", "#5E3C99"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")  # not as many as colours: the pairs differ


def curve_figure(curves: pd.DataFrame, metric: str, overlap: bool) -> Figure | None:
    """Draw one metric against the ratio, a line a model, with the confidence band of its mean over seeds.

    Args:
        curves: Result of :func:`.statistics.curves`.
        metric: One of its metrics.
        overlap: Which protocol.

    Returns:
        The figure, or ``None`` if there is nothing to draw.
    """
    part = curves[(curves["metric"] == metric) & (curves["overlap"] == overlap)]
    if part.empty:
        return None
    # Of all metrics, so that a model without this one does not change the colours of the others.
    models = list(curves["model"].unique())
    many = len(models) > MANY_MODELS
    figure = Figure(figsize=(5.2, 4.4 if many else 3.6), layout="constrained")
    axes = figure.add_subplot()
    draw_curves(axes, part, metric, models)
    if many:  # a legend inside would hide curves
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_curves(axes: Axes, part: pd.DataFrame, metric: str, order: Sequence[str] | None = None) -> None:
    """Draw one metric against the ratio into axes, a line a model, with the confidence band of its mean over seeds.

    Args:
        axes: Where to draw.
        part: Rows of :func:`.statistics.curves` of one metric and protocol.
        metric: The metric.
        order: Models in the order of colours and markers, for several axes beside each other. Defaults to ``None``,
            the order of the table.
    """
    models = list(part["model"].unique()) if order is None else list(order)
    for k, model in enumerate(models):
        line = part[part["model"] == model]
        if line.empty:
            continue
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        axes.plot(line["ratio"], line["mean"], color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=model)
        enough = line[line["seeds"] >= MIN_SEEDS]  # of two seeds, the interval is as wide as everything
        axes.fill_between(enough["ratio"], enough["low"], enough["high"], color=colour, alpha=0.1, linewidth=0)
    # The bands of few seeds are wide: they are cut where the scale ends, so that the lines can be told apart.
    low, high = part["mean"].min(), part["mean"].max()
    margin = max(0.02, 0.35 * (high - low))
    axes.set_ylim(max(0.0, low - margin), min(1.005, high + margin))
    axes.set_xlabel("injected anomalies per normal training image, r")
    axes.set_ylabel(NAMES.get(metric, metric))
    axes.set_xticks(sorted(part["ratio"].unique()))
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def svg_of(figure: Figure) -> bytes:
    """Return a figure as SVG, the same bytes for the same numbers.

    Args:
        figure: The figure.
    """
    from matplotlib import rc_context  # noqa: PLC0415  # keeps the import of pyplot's settings out of commands

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "anomalib_comet", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()
