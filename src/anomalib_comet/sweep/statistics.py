# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Curves, degradation and comparison with published values: pure functions of the table of a sweep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import t as student

from .configuration import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from .configuration import Published

LEVEL = 0.95
"""Confidence level of all bands and intervals."""


def mean_interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float, float]:
    """Return mean and confidence interval of the mean by Student's t: ``mean -+ t_(n-1) s / sqrt(n)``.

    Args:
        values: Shape (n,), independent.
        level: Confidence level in (0, 1).

    Returns:
        Mean, lower and upper end; the ends are NaN for a single value.

    Example:
        >>> mean_interval([0.8, 0.9])[0]
        0.8500000000000001
    """
    v = np.asarray(values, dtype=float)
    mean = float(v.mean())
    if len(v) < 2:  # noqa: PLR2004
        return mean, math.nan, math.nan
    half = float(student.ppf((1 + level) / 2, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v)))
    return mean, mean - half, mean + half


def seed_means(frame: pd.DataFrame, metric: str, categories: int) -> pd.DataFrame:
    """Return the mean over categories for each seed; seeds without all categories are left out.

    Args:
        frame: Table of a sweep.
        metric: Its column.
        categories: Number of categories of the sweep, 1 for a single data set.

    Returns:
        Columns ``model``, ``overlap``, ``ratio``, ``seed`` and ``value``.
    """
    keys = ["model", "overlap", "ratio", "seed"]
    if metric not in frame or frame.empty:
        return pd.DataFrame(columns=[*keys, "value"])
    known = frame.dropna(subset=[metric])
    groups = known.groupby(keys, sort=False)[metric].agg(["mean", "count"]).reset_index()
    whole = groups[groups["count"] == categories]
    return whole.rename(columns={"mean": "value"})[[*keys, "value"]].reset_index(drop=True)


def curves(frame: pd.DataFrame, categories: int, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Return mean, interval and degradation of each metric against the ratio.

    The mean over categories of one seed is one value; the interval is over seeds. Degradation is the fall from the
    smallest ratio of the model, paired by seed: test set, initial weights and normal images are the same.

    Args:
        frame: Table of a sweep.
        categories: Number of categories of the sweep, 1 for a single data set.
        metrics: Columns of the table.

    Returns:
        A row a metric, model, protocol and ratio with ``seeds`` (number), ``mean``, ``low``, ``high``, ``drop``,
        ``drop_low`` and ``drop_high``.
    """
    rows = []
    for metric in metrics:
        values = seed_means(frame, metric, categories)
        for (model, overlap), group in values.groupby(["model", "overlap"], sort=False):
            table = group.pivot_table(index="seed", columns="ratio", values="value")
            for ratio in map(float, table.columns):
                column = table[ratio].dropna()
                mean, low, high = mean_interval(column)
                fall = (table[table.columns[0]] - table[ratio]).dropna()
                nothing = (math.nan,) * 3 if fall.empty else mean_interval(fall)
                drop, drop_low, drop_high = (0.0,) * 3 if ratio == table.columns[0] else nothing
                rows.append(
                    {
                        "metric": metric,
                        "model": model,
                        "overlap": overlap,
                        "ratio": ratio,
                        "share": ratio / (1 + ratio),
                        "seeds": len(column),
                        "mean": mean,
                        "low": low,
                        "high": high,
                        "drop": drop,
                        "drop_low": drop_low,
                        "drop_high": drop_high,
                    }
                )
    columns = ["metric", "model", "overlap", "ratio", "share", "seeds", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "drop", "drop_low", "drop_high"])


def beside_published(frame: pd.DataFrame, published: Sequence[Published], categories: int) -> pd.DataFrame:
    """Return published values beside the measured ones.

    Args:
        frame: Table of a sweep.
        published: The values.
        categories: Number of categories of the sweep, 1 for a single data set.

    Returns:
        Columns ``model``, ``metric``, ``category``, ``ratio``, ``overlap``, ``published``, ``measured`` (mean over
        seeds; NaN where cells are missing), ``sd`` over seeds, ``low`` and ``high`` of the interval, ``difference``,
        ``seeds`` and ``source``.
    """
    rows = []
    for entry in published:
        part, whole = frame, categories
        if entry.category is not None and len(frame):
            part, whole = frame[frame["category"] == entry.category], 1
        values = seed_means(part, entry.metric, whole)
        keep = values["model"] == entry.model
        for name in ("ratio", "overlap"):
            wanted = getattr(entry, name)
            keep &= True if wanted is None else values[name] == wanted
        values = values[keep]
        mean, low, high = mean_interval(values["value"]) if len(values) else (math.nan,) * 3
        rows.append(
            {
                "model": entry.model,
                "metric": entry.metric,
                "category": entry.category or "mean" if categories > 1 else entry.category or "",
                "ratio": entry.ratio,
                "overlap": entry.overlap,
                "published": entry.value,
                "measured": mean,
                "sd": float(values["value"].std(ddof=1)) if len(values) > 1 else math.nan,
                "low": low,
                "high": high,
                "difference": mean - entry.value,
                "seeds": len(values),
                "source": entry.source,
            }
        )
    return pd.DataFrame(rows)


def differing_test_sets(frame: pd.DataFrame) -> list[str]:
    """Return where test sets differ though they must not: over models and ratios of one category, protocol and seed.

    Args:
        frame: Table of a sweep.

    Returns:
        One description each, such as ``bottle, seed 0``. Empty if all is well.
    """
    if frame.empty:
        return []
    sets = frame.groupby(["category", "overlap", "seed"], sort=False)["test_set"].nunique()
    return [f"{key[0] or 'data'}, seed {key[2]}" for key in sets.index[sets > 1]]
