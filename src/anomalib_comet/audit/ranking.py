# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Which training images are suspicious: a table from paths and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from anomalib_comet.confident_meta_learning.confidence import anchored_scores, training_set_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

TRUTH_COLUMNS = ["injected", "defect_type"]


def weights_from_scores(scores: ArrayLike) -> np.ndarray:
    """Return confidence weights ``min(1, t / a)`` of scores of any sign: anchored at a low quantile, then weighted.

    Args:
        scores: Anomaly scores of the whole training set, shape ``(N,)``. NaN stands for an image without a score.

    Returns:
        Weights of shape ``(N,)`` in [0, 1], NaN where the score is.

    Raises:
        ValueError: If a score is infinite.
    """
    values = np.asarray(scores, dtype=np.float64)
    weights = np.full(values.shape, np.nan)
    known = ~np.isnan(values)
    if known.any():
        weights[known] = training_set_weights(anchored_scores(torch.from_numpy(values[known])))[0].numpy()
    return weights


def suspicion_table(
    image_paths: Sequence[str],
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    truth: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the images by suspicion, the most suspicious first.

    Args:
        image_paths: Path of every image, no path twice.
        scores: Their anomaly scores, larger for more anomalous, shape ``(N,)``. NaN stands for an image that could not
            be scored: it gets no rank and comes last.
        weights: Their confidence weights in [0, 1], shape ``(N,)``. ``None`` derives them from the scores. Defaults to
            ``None``.
        truth: What is known of the images: ``image_path``, ``injected`` and, if there is one, ``defect_type``. Images
            that it lacks get missing values. Defaults to ``None``.

    Returns:
        Columns ``rank`` (1 is the most suspicious), ``image_path``, ``anomaly_score``, ``confidence_weight`` and those
        of ``truth``. Images of equal score are ordered by path.

    Raises:
        ValueError: If the lengths differ, a path occurs twice, or a score is infinite.
    """
    paths = [str(path) for path in image_paths]
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(paths),):
        msg = f"There must be one anomaly score an image: {len(paths)} images, scores of shape {values.shape}."
        raise ValueError(msg)
    if np.isinf(values).any():
        msg = f"{int(np.isinf(values).sum())} of {len(values)} anomaly scores are infinite."
        raise ValueError(msg)
    if len(set(paths)) != len(paths):
        msg = "An image path occurs twice; the table has one row an image."
        raise ValueError(msg)
    confidence = weights_from_scores(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if confidence.shape != values.shape:
        msg = f"There must be one confidence weight an image: {len(paths)} images, weights of shape {confidence.shape}."
        raise ValueError(msg)
    table = pd.DataFrame({"image_path": paths, "anomaly_score": values, "confidence_weight": confidence})
    table = table.sort_values(
        ["anomaly_score", "image_path"],
        ascending=[False, True],
        na_position="last",
        ignore_index=True,
    )
    scored = table["anomaly_score"].notna()
    ranks = pd.Series(range(1, len(table) + 1), dtype="Int64")
    table.insert(0, "rank", ranks.where(scored))
    if truth is None:
        return table
    columns = ["image_path", *[name for name in TRUTH_COLUMNS if name in truth]]
    known = truth[columns].drop_duplicates("image_path")
    return table.merge(known.astype({"image_path": str}), on="image_path", how="left")
