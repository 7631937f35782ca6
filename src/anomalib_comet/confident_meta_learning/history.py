# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What the strategy did in every epoch, as a table and a picture beside the run."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anomalib_comet.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
"""Names and levels of the quantiles that are recorded of scores and weights."""

PANELS: dict[str, tuple[str, ...]] = {
    "loss per part": ("loss_detector", "loss_weighted", "loss_l2"),
    "anomaly scores, threshold t": (
        "score_q25",
        "score_median",
        "score_q75",
        "score_max",
        "confidence_threshold",
    ),
    "confidence weights": ("weight_min", "weight_q05", "weight_q25", "weight_median", "weight_mean"),
    "inner improvement: L(theta) - L(theta')": ("inner_improvement",),
    "inner distance: |theta' - theta| / |theta|": ("inner_distance",),
    "model uncertainty det(Sigma)": ("model_uncertainty",),
    "L2 strength lambda": ("l2_strength",),
}
"""Panels of the picture and the columns that each shows."""

FEW_EPOCHS = 40
"""Below this number the picture marks every epoch."""

LINEAR = ("confidence weights", "model uncertainty det(Sigma)", "inner improvement: L(theta) - L(theta')")
"""Panels that are never drawn on a logarithmic scale."""


class TrainingHistory:
    """One row an epoch: means of what was added during the epoch.

    Attributes:
        rows: Finished epochs, ``{"epoch": k, column: value, ...}``.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._current: dict[str, list[float]] = defaultdict(list)

    def add(self, values: Mapping[str, float]) -> None:
        """Note values of a step, or of an epoch; several of one name are averaged."""
        for name, value in values.items():
            self._current[name].append(float(value))

    def amend(self, values: Mapping[str, float]) -> None:
        """Note values that belong to the epoch before where that is finished and no other has begun."""
        if self.rows and not self._current:
            self.rows[-1].update(values)
        else:
            self.add(values)

    def close_epoch(
        self, epoch: int, over_ranks: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    ) -> None:
        """Make a row of what was noted, replacing one of the same epoch; without notes there is no row.

        Args:
            epoch: Number of the epoch, from 0.
            over_ranks: Makes one row of those of several processes. Defaults to ``None``, this process's row.
        """
        if not self._current:
            return
        means = {name: math.fsum(values) / len(values) for name, values in self._current.items()}
        means = over_ranks(means) if over_ranks is not None else means
        self._current.clear()
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        self.rows.append({"epoch": epoch, **means})

    def forget(self) -> None:
        """Start anew."""
        self.rows.clear()
        self._current.clear()

    def frame(self) -> pd.DataFrame:
        """Return the history, a row an epoch; a column is empty where a value was not measured."""
        frame = pd.DataFrame(self.rows)
        known = ["epoch", *(column for columns in PANELS.values() for column in columns)]
        return frame[[c for c in known if c in frame] + [c for c in frame if c not in known]]

    def write(self, csv: Path, picture: Path | None = None) -> None:
        """Write the table, and the picture where a path is given; nothing where there are no rows.

        Args:
            csv: Path of the table.
            picture: Path of the picture (PNG). Defaults to ``None``.
        """
        if not self.rows:
            return
        frame = self.frame()
        with whole_file(csv) as file:
            file.write(frame.to_csv(index=False).encode())
        if picture is not None:
            with whole_file(picture) as file:
                figure_of(frame).savefig(file, format="png")

    def state(self) -> list[dict[str, float]]:
        """Return the rows as plain data for a checkpoint."""
        return [dict(row) for row in self.rows]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take the rows of a checkpoint."""
        self.forget()
        self.rows = [dict(row) for row in state]


def figure_of(frame: pd.DataFrame) -> Figure:
    """Draw a history.

    Args:
        frame: See :meth:`TrainingHistory.frame`.

    Returns:
        One panel a subject (see :data:`PANELS`) over epochs; panels without a value are left out.
    """
    panels = {title: [c for c in columns if c in frame] for title, columns in PANELS.items()}
    panels = {title: columns for title, columns in panels.items() if columns}
    n_columns = 2
    n_rows = max(1, math.ceil(len(panels) / n_columns))
    figure = Figure(figsize=(11, 2.6 * n_rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for ax, (title, columns) in zip(axes, panels.items(), strict=False):
        _draw(ax, title, frame, columns)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def _draw(ax: Axes, title: str, frame: pd.DataFrame, columns: list[str]) -> None:
    epochs = frame["epoch"] + 1
    for column in columns:
        values = frame[column]
        style: dict[str, Any] = {"marker": "." if len(frame) < FEW_EPOCHS else None}
        if column == "confidence_threshold":  # with kappa 0 it lies on the third quartile
            style = {"linestyle": "--", "color": "black", "zorder": 3}
        ax.plot(epochs, values, label=column, **style)
    if title == "confidence weights":
        ax.set_ylim(-0.02, 1.02)
    numbers = frame[columns].to_numpy(dtype=float)
    finite = numbers[np.isfinite(numbers)]
    # Scores and losses of a flow fall by orders of magnitude in the first epochs.
    if title not in LINEAR and finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
        ax.set_yscale("log")
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("epoch", fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    if len(columns) > 1:
        ax.legend(fontsize=7, loc="best")
