# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetDifferNet: DifferNet under the strategy of Confident Meta-Learning."""

from typing import Any

from anomalib.models.components import AnomalibModule

from anomalib_comet.confident_meta_learning import ConfidentMetaLearning
from anomalib_comet.models.differnet import DifferNet


# AnomalibModule is named again because anomalib's list_models() and get_model() see direct subclasses only.
class CoMetDifferNet(ConfidentMetaLearning, DifferNet, AnomalibModule):  # type: ignore[misc]
    """DifferNet trained by Confident Meta-Learning, for training sets that hold some unlabelled defects.

    See :class:`anomalib_comet.confident_meta_learning.ConfidentMetaLearning` and
    :class:`anomalib_comet.models.differnet.DifferNet`, whose arguments it takes.

    Args:
        **kwargs: Arguments of the strategy and of the detector.
    """

    scores_before_training = True  # distances in scaled features

    # Of its own also because the command line reads a parent's explanations of arguments only through the signature of
    # a child.
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.use_weights and self.cross_fit_folds and not self.cross_fit_epochs and self.feature_scaling == "none":
            msg = "cross_fit_epochs=0 scores by scaled features: use feature_scaling=whiten, or at least 1 epoch."
            raise ValueError(msg)
