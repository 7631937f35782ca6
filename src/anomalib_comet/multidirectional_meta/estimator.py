# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Multidirectional meta-learning in the style of scikit-learn: arrays of features and labels in, scores out."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from anomalib_comet.arguments import is_number, is_whole

from .episodes import EpisodeSettings, Stepper, make_optimizers, run_episode
from .network import MultidirectionalNetwork


class MultidirectionalDetector(OutlierMixin, BaseEstimator):
    """Detector of anomalies on vectors of features: plenty of normal samples and a few labelled anomalies.

    It trains the same network in the same episodes as the image detector ``MultidirectionalMeta``. As everywhere in
    scikit-learn's outlier detection, larger scores are more *normal*.

    Args:
        encoder: ``"none"`` (ours) or ``"mlp"``, see :class:`MultidirectionalNetwork`. Defaults to ``"none"``.
        head: ``"radial"`` (ours) or ``"linear"``. Defaults to ``"radial"``.
        hidden: Widths of the perceptron's hidden layer and of its output. Defaults to ``(256, 128)``.
        dropout: Dropout of the perceptron, in [0, 1). Defaults to ``0.1``.
        supervised: Whether a supervised direction is added to a radial head's score without encoder, weighted by
            how well it finds held-out classes (ours), see :mod:`.direction`. Defaults to ``True``.
        odin: Step of the input perturbation in units of scaled features, 0 for none. Defaults to ``0.0``.
        episodes: Number of episodes. Defaults to ``20``.
        inner_epochs: Passes over the normal samples in the inner phase of an episode. Defaults to ``1``.
        outer_epochs: Passes over them in its outer phase. Defaults to ``15``.
        batch_size: Normal samples in a step. Defaults to ``256``.
        lr: Learning rate; the perceptron wants ``1e-3``. Defaults to ``1e-2``.
        alpha: Weight of the hinge on the gap. Defaults to ``0.1``.
        margin: Gap beyond which the hinge is 0. Defaults to ``0.5``.
        reconstruction: Weight of the decoder's error. Defaults to ``0.1``.
        temperature_penalty: Weight of ``(log T)^2``. Defaults to ``0.01``.
        head_penalty: Weight of the radial head's penalty. Defaults to ``0.01``.
        pcgrad: Whether terms of the outer loss are kept from working against each other. Defaults to ``False``.
        normal_label: Label of normal samples; every other label is a class of anomalies. Defaults to ``0``.
        contamination: Share of the normal training samples that ``predict`` calls anomalous, in (0, 0.5]. Defaults to
            ``0.01``.
        random_state: Seed of everything: a whole number, a :class:`numpy.random.RandomState` to draw it from, or
            ``None`` for another one in each ``fit``. Defaults to ``0``.

    Attributes:
        network_: The trained :class:`MultidirectionalNetwork`.
        direction_: The supervised part, ``None`` without one.
        records_: What each episode was like.
        offset_: Score below which ``predict`` calls a sample anomalous.
        anomaly_classes_: Labels of the classes of anomalies seen in training.

    Raises:
        ValueError: In ``fit``, if an argument is out of range, a feature is not finite, or there are fewer than two
            normal samples.
        NonFiniteTrainingError: In ``fit``, if a learning rate is so large that a loss is no longer finite.
    """

    def __init__(
        self,
        encoder: str = "none",
        head: str = "radial",
        hidden: tuple[int, int] = (256, 128),
        dropout: float = 0.1,
        supervised: bool = True,
        odin: float = 0.0,
        episodes: int = 20,
        inner_epochs: int = 1,
        outer_epochs: int = 15,
        batch_size: int = 256,
        lr: float = 1e-2,
        alpha: float = 0.1,
        margin: float = 0.5,
        reconstruction: float = 0.1,
        temperature_penalty: float = 0.01,
        head_penalty: float = 0.01,
        pcgrad: bool = False,
        normal_label: Any = 0,
        contamination: float = 0.01,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.encoder = encoder
        self.head = head
        self.hidden = hidden
        self.dropout = dropout
        self.supervised = supervised
        self.odin = odin
        self.episodes = episodes
        self.inner_epochs = inner_epochs
        self.outer_epochs = outer_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.alpha = alpha
        self.margin = margin
        self.reconstruction = reconstruction
        self.temperature_penalty = temperature_penalty
        self.head_penalty = head_penalty
        self.pcgrad = pcgrad
        self.normal_label = normal_label
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> MultidirectionalDetector:  # noqa: N803
        """Train.

        Args:
            X: Features of shape ``(N, D)``.
            y: Labels of shape ``(N,)``: ``normal_label``, or the class of a labelled anomaly. ``None`` says that all
                samples are normal. Defaults to ``None``.

        Returns:
            Itself.

        Raises:
            ValueError: See the class.
        """
        X = validate_data(self, X, dtype=np.float32, ensure_min_samples=2)  # noqa: N806
        if not 0 < self.contamination <= 0.5:  # noqa: PLR2004
            msg = f"contamination must lie in (0, 0.5], got {self.contamination}."
            raise ValueError(msg)
        if not is_whole(self.episodes, 1) or not is_number(self.lr) or self.lr == 0:
            msg = (
                "episodes must be a whole number of at least 1 and lr a number above zero, "
                f"got {self.episodes!r} and {self.lr!r}."
            )
            raise ValueError(msg)
        # As they came: an array of another kind would make the texts "1" and "nan" of the label 1 and a missing one.
        labels = np.asarray([self.normal_label] * len(X) if y is None else y, dtype=object).ravel()
        if len(labels) != len(X):
            msg = f"There are {len(X)} samples and {len(labels)} labels; each sample needs one."
            raise ValueError(msg)
        if pd.isna(labels).any():
            msg = (
                "A label is missing (NaN or None); give samples that nobody labelled the label "
                f"{self.normal_label!r} (normal_label)."
            )
            raise ValueError(msg)
        normal = labels == self.normal_label
        if normal.sum() < 2:  # noqa: PLR2004
            msg = (
                f"At least 2 samples with the label {self.normal_label!r} (normal_label) are needed to learn what is "
                f"normal, got {int(normal.sum())}."
            )
            raise ValueError(msg)
        self.anomaly_classes_ = list(dict.fromkeys(labels[~normal].tolist()))
        if not self.anomaly_classes_:
            warnings.warn(
                "There are no labelled anomalies: the outer phase is left out, and what remains is trained on normal "
                "samples alone.",
                UserWarning,
                stacklevel=2,
            )
        features = torch.from_numpy(np.ascontiguousarray(X))
        normals = features[torch.from_numpy(normal)]
        names = [str(label) for label in self.anomaly_classes_]
        if len(set(names)) < len(names):  # the label 1 and the label "1"
            names = [f"{k}: {label!r}" for k, label in enumerate(self.anomaly_classes_)]
        anomalies = {
            name: features[torch.from_numpy(labels == label)]
            for name, label in zip(names, self.anomaly_classes_, strict=True)
        }
        settings = EpisodeSettings(
            inner_epochs=self.inner_epochs,
            outer_epochs=self.outer_epochs,
            batch_size=self.batch_size,
            alpha=self.alpha,
            margin=self.margin,
            reconstruction=self.reconstruction,
            temperature_penalty=self.temperature_penalty,
            head_penalty=self.head_penalty,
            pcgrad=self.pcgrad,
        )
        seed = _seed_from(self.random_state)
        self.network_ = MultidirectionalNetwork(
            X.shape[1],
            self.encoder,
            self.head,
            self.hidden,
            self.dropout,
            self.odin,
            seed,
        )
        stepper = Stepper(*make_optimizers(self.network_, self.lr))
        generator = torch.Generator().manual_seed(seed)
        self.direction_ = self.network_.fit(normals, anomalies, self.supervised, generator)
        self.records_ = [
            run_episode(self.network_, normals, anomalies, settings, stepper, generator) for _ in range(self.episodes)
        ]
        # In double precision, a sample's score does not depend on what else is in the array.
        self.network_.double()
        self.offset_ = float(np.quantile(self._scores(X[normal]), self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return ``s / T``, the log-odds of "normal", unbounded and larger for more normal.

        Args:
            X: Features of shape ``(N, D)``.

        Returns:
            Scores of shape ``(N,)``.
        """
        check_is_fitted(self, "network_")
        return self._scores(validate_data(self, X, dtype=np.float32, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return :meth:`score_samples` minus ``offset_``: below zero is anomalous.

        Args:
            X: Features of shape ``(N, D)``.

        Returns:
            Scores of shape ``(N,)``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return 1 for normal samples and -1 for anomalous ones, shape ``(N,)``.

        Args:
            X: Features of shape ``(N, D)``.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    @torch.no_grad()
    def _scores(self, X: np.ndarray) -> np.ndarray:  # noqa: N803

        return -self.network_(torch.from_numpy(np.ascontiguousarray(X)).double()).numpy()


def _seed_from(random_state: int | np.random.RandomState | None) -> int:
    """Return a seed from what scikit-learn's users call a random state."""
    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        return int(random_state)
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31 - 1))
    msg = f"random_state must be a whole number, a numpy.random.RandomState or None, got {random_state!r}."
    raise ValueError(msg)
