# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""How well a ranking finds the injected images, where it is known which they are: pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike


def precision_recall_curve(scores: ArrayLike, injected: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall at every distinct threshold, from the highest score downwards.

    Images of equal score cannot be told apart and share one point: the order in which they happen to stand changes
    nothing.

    Args:
        scores: Anomaly scores, larger for more anomalous, shape ``(N,)``, finite.
        injected: Which images were injected, shape ``(N,)``.

    Returns:
        Precision and recall, each of shape ``(M,)`` for M distinct scores. Recall rises to 1.

    Raises:
        ValueError: If the shapes differ, a score is not finite, or no image was injected.

    Example:
        >>> precision_recall_curve([4.0, 3.0, 2.0, 1.0], [True, False, True, False])
        (array([1.        , 0.5       , 0.66666667, 0.5       ]), array([0.5, 0.5, 1. , 1. ]))
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(injected, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape:
        msg = f"Scores and truth must be vectors of one length, got shapes {values.shape} and {truth.shape}."
        raise ValueError(msg)
    if not np.isfinite(values).all():
        msg = "A ranking cannot be evaluated with anomaly scores that are not finite."
        raise ValueError(msg)
    if not truth.any():
        msg = "Precision and recall need at least one injected image."
        raise ValueError(msg)
    order = np.argsort(-values, kind="stable")
    last_of_value = np.append(np.diff(values[order]) != 0, True)
    found = np.cumsum(truth[order])[last_of_value]
    above = np.flatnonzero(last_of_value) + 1
    return found / above, found / truth.sum()


def average_precision(scores: ArrayLike, injected: ArrayLike) -> float:
    """Return the average precision ``sum_n (R_n - R_(n-1)) P_n`` over the points of the precision-recall curve.

    Args:
        scores: See :func:`precision_recall_curve`.
        injected: See there.

    Returns:
        Average precision in (0, 1]; the share of injected images is what a ranking by chance reaches.

    Raises:
        ValueError: See there.

    Example:
        >>> average_precision([4.0, 3.0, 2.0, 1.0], [True, False, True, False])
        0.8333333333333333
    """
    precision, recall = precision_recall_curve(scores, injected)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def recall_among_first(scores: ArrayLike, injected: ArrayLike, count: int) -> float:
    """Return the share of the injected images that stand among the first ``count`` of the ranking.

    Where the cut falls among images of equal score, the expectation over their order counts.

    Args:
        scores: See :func:`precision_recall_curve`.
        injected: See there.
        count: Number of images that somebody looks at, 0 or more.

    Returns:
        Recall in [0, 1].

    Raises:
        ValueError: See there.

    Example:
        >>> recall_among_first([4.0, 3.0, 2.0, 1.0], [True, False, True, False], count=2)
        0.5
    """
    _, recall = precision_recall_curve(scores, injected)
    values = np.asarray(scores, dtype=np.float64)
    above = np.cumsum(np.unique(-values, return_counts=True)[1])
    return float(np.interp(count, np.append(0, above), np.append(0.0, recall)))


@dataclass(frozen=True)
class Evaluation:
    """How well a ranking finds the injected images.

    Attributes:
        images: Number of images whose truth is known and that have a score.
        injected: Number k of injected images among them.
        average_precision: See :func:`average_precision`.
        recall_k: Recall among the first k images.
        recall_2k: Recall among the first 2k images.
        precision: Precision at every distinct threshold, from the highest score downwards.
        recall: Recall there.
    """

    images: int
    injected: int
    average_precision: float
    recall_k: float
    recall_2k: float
    precision: np.ndarray
    recall: np.ndarray

    @property
    def chance(self) -> float:
        """Average precision of a ranking by chance: the share of injected images."""
        return self.injected / self.images

    def summary(self) -> str:
        """Return the numbers in one sentence."""
        k = self.injected
        return (
            f"{k} of {self.images} images are known to be anomalous: average precision {self.average_precision:.3f} "
            f"(chance {self.chance:.3f}), recall {self.recall_k:.3f} among the first {k} images and "
            f"{self.recall_2k:.3f} among the first {2 * k}."
        )


def evaluate(table: pd.DataFrame) -> Evaluation | None:
    """Return how well a table finds the injected images, or ``None`` where the truth is unknown or none was injected.

    Args:
        table: Result of :func:`.ranking.suspicion_table`.
    """
    if "injected" not in table:
        return None
    known = table[table["injected"].notna() & table["anomaly_score"].notna()]
    injected = known["injected"].to_numpy(dtype=bool)
    if not injected.any():
        return None
    scores, k = known["anomaly_score"].to_numpy(), int(injected.sum())
    precision, recall = precision_recall_curve(scores, injected)
    return Evaluation(
        images=len(known),
        injected=k,
        average_precision=average_precision(scores, injected),
        recall_k=recall_among_first(scores, injected, k),
        recall_2k=recall_among_first(scores, injected, 2 * k),
        precision=precision,
        recall=recall,
    )
