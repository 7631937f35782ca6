# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Multidirectional meta-learning on vectors of features (arXiv 2601.19833), for the detector and for scikit-learn.

Example:
    >>> import numpy as np
    >>> from anomalib_comet.multidirectional_meta import MultidirectionalDetector
    >>> rng = np.random.default_rng(0)
    >>> features = np.concatenate([rng.normal(size=(200, 8)), rng.normal(4.0, 1.0, size=(5, 8))])
    >>> labels = ["good"] * 200 + ["scratch"] * 5
    >>> detector = MultidirectionalDetector(normal_label="good", episodes=2).fit(features, labels)
    >>> detector.predict([[0.0] * 8, [6.0] * 8]).tolist()
    [1, -1]
"""

from .direction import Direction, fit_direction
from .episodes import EpisodeSettings, Record, Stepper, inner_phase, make_optimizers, outer_phase, run_episode
from .estimator import MultidirectionalDetector
from .network import MultidirectionalNetwork

__all__ = [
    "Direction",
    "EpisodeSettings",
    "MultidirectionalDetector",
    "MultidirectionalNetwork",
    "Record",
    "Stepper",
    "fit_direction",
    "inner_phase",
    "make_optimizers",
    "outer_phase",
    "run_episode",
]
