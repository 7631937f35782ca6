# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The audit of a training set: table and page, from scores or from a model."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anomalib_comet.confident_meta_learning.confidence import iqr_threshold

from .evaluation import Evaluation, evaluate
from .looking import Look, look_at
from .page import Facts, Pictures, write_page
from .ranking import suspicion_table
from .tiles import aligned_map, colour_limits, grid_shape, map_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import ArrayLike

logger = logging.getLogger(__name__)

CSV_NAME = "audit.csv"
PAGE_NAME = "audit.html"

FROM_TRAINING = "Scores and weights are what training learnt about its images."
FROM_PREDICTIONS = (
    "Scores are the model's own predictions, un-normalised; weights follow from them: min(1, t / a), "
    "t = Q3 + 1.5 (Q3 - Q1), a the scores shifted to start at zero."
)
FROM_CALLER = "Scores were given."


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        table: Images by suspicion: ``rank``, ``image_path``, ``anomaly_score``, ``confidence_weight``, ``injected`` and
            ``defect_type`` where they are known, and ``status`` (``ok`` or ``unreadable``).
        evaluation: How well the ranking finds injected images, or ``None`` where that is not known.
        unreadable: Why an image could not be read, by its path.
        source: Sentence that says where scores and weights come from.
        csv_path: The table as a file.
        page_path: The page.
    """

    table: pd.DataFrame
    evaluation: Evaluation | None
    unreadable: dict[str, str]
    source: str
    csv_path: Path
    page_path: Path


def audit(
    image_paths: Sequence[str | Path],
    scores: ArrayLike,
    output: str | Path,
    *,
    weights: ArrayLike | None = None,
    maps: Sequence[np.ndarray | torch.Tensor | None] | None = None,
    truth: pd.DataFrame | None = None,
    title: str = "Training set",
    limit: int | None = None,
    thumbnail_size: int = 144,
) -> Audit:
    """Write table and page of images whose anomaly scores are known, from whatever detector.

    Args:
        image_paths (Sequence[str | Path]): Image files, none of them twice.
        scores (ArrayLike): Their anomaly scores, larger for more anomalous, shape ``(N,)``. Best are scores of a model
            that did not train on the image; saturated ones cannot be ranked.
        output (str | Path): Folder for ``audit.csv`` and ``audit.html``, made if missing.
        weights (ArrayLike | None): Confidence weights in [0, 1], shape ``(N,)``. ``None`` derives them from the scores.
            Defaults to ``None``.
        maps (Sequence[np.ndarray | torch.Tensor | None] | None): Anomaly map of each image, shape ``(H, W)``, each
            covering the whole image; ``None`` for an image without one. Defaults to ``None``.
        truth (pd.DataFrame | None): Columns ``image_path``, ``injected`` and ``defect_type``, for the evaluation only.
            Defaults to ``None``.
        title (str): Title of the page. Defaults to ``"Training set"``.
        limit (int | None): Number of most suspicious images in the page; the table has all. ``None`` for all. Defaults
            to ``None``.
        thumbnail_size (int): Longest side of a thumbnail in pixels. Defaults to ``144``.

    Returns:
        Audit: Table, evaluation and files.

    Raises:
        ValueError: If lengths differ, a path occurs twice, or a number is out of range.

    Example:
        >>> audit(paths, scores, output="audit").table.head()  # doctest: +SKIP
    """
    check_settings(limit, thumbnail_size)
    paths = [str(path) for path in image_paths]
    if maps is not None and len(maps) != len(paths):
        msg = f"There must be one anomaly map an image: {len(paths)} images, {len(maps)} maps."
        raise ValueError(msg)
    table = suspicion_table(paths, scores, weights, truth)
    looks = dict(zip(paths, look_at(paths, thumbnail_size=thumbnail_size), strict=True))
    for path, anomaly_map in zip(paths, maps or [], strict=False):
        if anomaly_map is not None:
            values = torch.as_tensor(np.asarray(anomaly_map))
            grid = grid_shape(values.shape[0], values.shape[1], thumbnail_size)
            looks[path].heat = aligned_map(values, (0.0, 0.0, 1.0, 1.0), grid)
    return _write(table, looks, Path(output), FROM_CALLER, title, limit, thumbnail_size)


def audit_model(
    model: Any,
    image_paths: Sequence[str | Path],
    output: str | Path,
    *,
    truth: pd.DataFrame | None = None,
    title: str = "Training set",
    limit: int | None = None,
    thumbnail_size: int = 144,
    batch_size: int = 16,
    maps: int = 300,
    advance: Callable[[int], Any] | None = None,
) -> Audit:
    """Write table and page of the images that a model was trained on.

    Where the model offers ``training_frame()`` (columns ``image_path``, ``anomaly_score``, ``confidence_weight``) and
    that table holds all images, scores and weights are taken from there, and the page's threshold from its
    ``attrs["threshold"]`` if there is one. Its other columns are added to ``audit.csv``. Otherwise the model scores the
    images itself.

    Args:
        model (AnomalibModule): The model, on the device on which it shall run.
        image_paths (Sequence[str | Path]): Image files. One that cannot be read is listed as unreadable.
        output (str | Path): Folder for ``audit.csv`` and ``audit.html``, made if missing.
        truth (pd.DataFrame | None): Columns ``image_path``, ``injected`` and ``defect_type``, for the evaluation only.
            Defaults to ``None``.
        title (str): Title of the page. Defaults to ``"Training set"``.
        limit (int | None): Number of most suspicious images in the page; the table has all. ``None`` for all. Defaults
            to ``None``.
        thumbnail_size (int): Longest side of a thumbnail in pixels. Defaults to ``144``.
        batch_size (int): Images in one pass through the model. Defaults to ``16``.
        maps (int): Number of most suspicious images with a heat map where the scores are known from training: maps take
            a pass through the model, which may be long. Images that the model scores itself all have one. 0 for no
            heat maps at all. Defaults to ``300``.
        advance (Callable[[int], Any] | None): Called with the number of images done since the last call, for a progress
            bar. Defaults to ``None``.

    Returns:
        Audit: Table, evaluation and files.

    Raises:
        ValueError: If there is no image that can be read, or a number is out of range.
        TypeError: If the model gives no anomaly scores.
    """
    check_settings(limit, thumbnail_size, maps)
    paths = list(dict.fromkeys(str(path) for path in image_paths))
    if not paths:
        msg = "There are no images to audit."
        raise ValueError(msg)
    known = _learnt(model, paths)[0]
    judged = set(paths)
    if known is not None:
        scored = known.loc[[_key(path) for path in paths], "anomaly_score"].to_numpy()
        judged = {paths[k] for k in np.argsort(-scored, kind="stable")[:maps]}
    looks: dict[str, Look] = {}
    for judge, wanted in ((model, [p for p in paths if p in judged]), (None, [p for p in paths if p not in judged])):
        seen = look_at(wanted, judge, thumbnail_size=thumbnail_size, batch_size=batch_size, advance=advance)
        looks.update(zip(wanted, seen, strict=True))
    if maps == 0:
        for look in looks.values():
            look.heat = None
    readable = [path for path in paths if not looks[path].problem]
    if not readable:
        path = paths[0]
        msg = f"None of the {len(paths)} images can be read; {path}: {looks[path].problem}"
        raise ValueError(msg)
    learnt, threshold, reason = _learnt(model, readable)
    if learnt is not None:
        found = learnt.reindex([_key(path) for path in paths])
        scores, weights = found["anomaly_score"].to_numpy(), found["confidence_weight"].to_numpy()
        source = _said_of_training(model, threshold)
    else:
        found = None
        scores, weights = np.array([looks[path].score for path in paths]), None
        _check_finite(scores[[not looks[path].problem for path in paths]])
        source = f"{FROM_PREDICTIONS} {reason}"
    table = suspicion_table(paths, scores, weights, truth)
    if found is not None:
        for name in [column for column in found.columns if column not in table]:
            table[name] = table["image_path"].map(dict(zip(paths, found[name], strict=True)))
    return _write(table, looks, Path(output), source, title, limit, thumbnail_size, threshold)


def check_settings(limit: int | None, thumbnail_size: int, maps: int = 0) -> None:
    """Refuse numbers that are out of range.

    Args:
        limit: Number of images in the page.
        thumbnail_size: Longest side of a thumbnail in pixels.
        maps: Number of images with a heat map.

    Raises:
        ValueError: If one of them is out of range.
    """
    if limit is not None and limit < 1:
        msg = f"limit must be at least 1, got {limit}."
        raise ValueError(msg)
    if maps < 0:
        msg = f"maps must not be negative, got {maps}."
        raise ValueError(msg)
    if not 32 <= thumbnail_size <= 512:  # noqa: PLR2004
        msg = f"thumbnail_size must be between 32 and 512 pixels, got {thumbnail_size}."
        raise ValueError(msg)


def training_frame(model: Any) -> pd.DataFrame | None:
    """Return what training learnt about its images, if the model keeps it.

    Args:
        model: Any Lightning module.

    Returns:
        Columns ``image_path``, ``anomaly_score`` and ``confidence_weight``, maybe others, or ``None``.
        ``attrs["threshold"]`` may hold the run's own threshold t, above which its weights fall below 1, and
        ``attrs["weights_counted"]`` may say that none counted.
    """
    offered = getattr(model, "training_frame", None)
    frame = offered() if callable(offered) else None
    return None if frame is None or frame.empty else frame


def _learnt(model: Any, readable: Sequence[str]) -> tuple[pd.DataFrame | None, float | None, str]:
    """Return the table of training by key and its threshold, or why it cannot be used."""
    frame = training_frame(model)
    if frame is None:
        return None, None, "The model keeps no table of its training images."
    threshold = frame.attrs.get("threshold")  # at once: hardly an operation of pandas promises to keep it
    if threshold is not None:
        threshold = float(threshold) if math.isfinite(threshold) else None
    learnt = frame.set_index(frame["image_path"].map(_key))
    learnt = learnt[~learnt.index.duplicated()]
    missing = sum(_key(path) not in learnt.index for path in readable)
    if missing:
        reason = f"{missing} of {len(readable)} images are not in the table that training left in the checkpoint."
        return None, None, reason
    return learnt, threshold, ""


def _said_of_training(model: Any, threshold: float | None) -> str:
    said = [FROM_TRAINING]
    if threshold is not None:
        said.append(f"The run's own threshold is t = {threshold:.6g}.")
    if getattr(model, "use_weights", True) is False:
        said.append("None counted in this training (use_weights: false): they are what the rule would give.")
    elif training_frame(model).attrs.get("weights_counted", True) is False:  # type: ignore[union-attr]
        said.append("Weights follow from the scores; none counted in this training.")
    return " ".join(said)


def _key(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # resolving links would merge two names of one file


def _check_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        msg = f"The model gives {bad} of {len(scores)} images a score that is not finite; its training has diverged."
        raise ValueError(msg)


def _write(
    table: pd.DataFrame,
    looks: dict[str, Look],
    output: Path,
    source: str,
    title: str,
    limit: int | None,
    thumbnail_size: int,
    threshold: float | None = None,
) -> Audit:
    table["status"] = ["unreadable" if looks[path].problem else "ok" for path in table["image_path"]]
    shown = table if limit is None else table.head(limit)
    limits = colour_limits(look.heat for look in looks.values() if look.heat is not None)
    pictures = {
        path: Pictures(
            looks[path].picture,
            b"" if (heat := looks[path].heat) is None or limits is None else map_picture(heat, limits),
        )
        for path in shown["image_path"]
    }
    evaluation = evaluate(table)
    fence = _fence(table) if threshold is None else threshold
    facts = Facts(title, source, fence, thumbnail_size, limits, left_out=len(table) - len(shown))
    output.mkdir(parents=True, exist_ok=True)
    result = Audit(
        table=table,
        evaluation=evaluation,
        unreadable={path: looks[path].problem for path in table["image_path"] if looks[path].problem},
        source=source,
        csv_path=output / CSV_NAME,
        page_path=output / PAGE_NAME,
    )
    _write_csv(table, result.csv_path)
    problems = [result.unreadable.get(path, "") for path in shown["image_path"]]
    write_page(result.page_path, shown.assign(status=_page_status(shown, problems)), pictures, facts, evaluation)
    return result


def _page_status(shown: pd.DataFrame, problems: Sequence[str]) -> list[str]:
    return [
        status if status == "ok" else f"{status}: {problem}"
        for status, problem in zip(shown["status"], problems, strict=True)
    ]


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        # A name of a file need not be valid UTF-8; surrogates give back its bytes.
        table.to_csv(partial, index=False, encoding="utf-8", errors="surrogateescape")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fence(table: pd.DataFrame) -> float | None:
    """Return the fence t = Q3 + 1.5 (Q3 - Q1) of scores that come without a threshold of their own."""
    scores = torch.from_numpy(table["anomaly_score"].dropna().to_numpy(dtype=np.float64).copy())
    if not len(scores):
        return None
    return float(iqr_threshold(scores))
