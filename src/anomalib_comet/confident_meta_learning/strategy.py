# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Confident Meta-Learning as a mixin around any detector with a loss and a score per sample.

Example:
    A detector under CoMet is a class of one line::

        class CoMetDifferNet(ConfidentMetaLearning, DifferNet, AnomalibModule):
            ...

    ``AnomalibModule`` is named again because anomalib lists direct subclasses only.

Paper:
    Towards Real Unsupervised Anomaly Detection Via Confident Meta-Learning, ICCV 2025,
    https://arxiv.org/abs/2508.02293
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anomalib_comet.checkpoints import CheckpointWriter
from anomalib_comet.distributed import InStep, Ranks
from anomalib_comet.files import may_fail
from anomalib_comet.guard import with_guard
from anomalib_comet.training_set import TrainingSet, ends_training

from .confidence import anchored_scores
from .cross_fit import cross_fitted_scores
from .functional import functional_losses, trained_batch_norms
from .history import QUANTILES, TrainingHistory
from .meta import SMALLEST_TASK, is_regularised, meta_gradient, split_tasks, squared_norm, surrogate
from .patch_table import PatchConfidenceTable
from .table import ConfidenceTable
from .uncertainty import LossPairWindow, adaptive_l2, check_scale, model_uncertainty

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from lightning.pytorch import Callback, LightningModule
    from lightning.pytorch.utilities.types import STEP_OUTPUT

    class _Detector(LightningModule):
        """What the mixin finds in the classes behind it."""

        def training_inputs(self, batch: Any) -> Any: ...
        def sample_losses(self, inputs: Any) -> torch.Tensor: ...
        def sample_scores(self, batch: Any) -> torch.Tensor: ...
        def fit_statistics(self, training_set: TrainingSet, weights: Mapping[str, float] | None = None) -> None: ...
        def patch_losses(self, inputs: Any) -> torch.Tensor: ...
        def select_patches(self, values: torch.Tensor, inputs: Any) -> torch.Tensor: ...

else:
    _Detector = object

logger = logging.getLogger(__name__)

CHECKPOINT_KEY = "confident_meta_learning"
WEIGHTS_FILE = "confidence_weights.csv"
HISTORY_FILE = "comet_history.csv"
HISTORY_PICTURE = "comet_history.png"
WEIGHT_LEVELS = ("image", "patch")
PATCH_METHODS = ("patch_losses", "patch_scores", "select_patches")


class ConfidentMetaLearning(CheckpointWriter, InStep, _Detector):  # type: ignore[misc]  # as AnomalibModule's own bases
    """The CoMet training strategy: confidence weights, meta-learning, adaptive regulariser.

    A mixin, placed before the detector's Lightning module. The detector gives three methods, each over a
    pre-processed batch: ``training_inputs(batch)`` (what a step needs beside the trainable parameters: frozen
    features, noise; a tensor or a tuple, list or dict of tensors with the batch as first dimension),
    ``sample_losses(inputs) -> (B,)`` and ``sample_scores(batch) -> (B,)`` (larger for more anomalous). Scores are to
    start at zero; a detector whose scores do not says so by the class attribute ``scores_start_at_zero = False``, and
    they are anchored at a low quantile of the training set. A detector with parts that are fitted in closed form may
    have them fitted with the confidence weights, by a method ``fit_statistics(training_set, weights, indices)``; if
    they alone give useful scores, it sets ``scores_before_training = True``. With all three switches off, training is
    the detector's own, bit for bit.

    Args:
        use_weights (bool): Whether confidence weights scale the losses of training images. Defaults to ``True``.
        use_meta (bool): Whether parameters are trained by meta-learning over tasks of a batch. Defaults to ``True``.
        use_adaptive_l2 (bool): Whether the L2 regulariser that follows the model uncertainty is added, in place of
            the optimizer's weight decay. Defaults to ``True``.
        kappa (float): Width of the fence of the confidence threshold ``t = Q3 + kappa (Q3 - Q1)``. Defaults to
            ``1.5``.
        weight_power (float): Exponent p of the weights ``min(1, (t / a)^p)``; 1 is the paper's form. Defaults to
            ``1.0``.
        weight_level (str): ``"image"`` for one weight an image; ``"patch"`` for one a patch, by the same rule over all
            patches of the training set (ours), for detectors of patches. The list stays one of images. Defaults to
            ``"image"``.
        warmup_epochs (int): Epochs before the first weights; until then every weight is 1. Defaults to ``2``.
        refresh_epochs (int): Epochs from one refresh of the weights to the next. Defaults to ``1``.
        weight_momentum (float): Share of the earlier weights at a refresh, in [0, 1). Defaults to ``0.5``.
        cross_fit_folds (int): If 2 or more, the first weights are cross-fitted before training: the detector is
            trained briefly without a fold of the images and scores that fold. 0 turns it off. Defaults to ``0``.
        cross_fit_epochs (int): Epochs of each of these brief trainings. 0 fits only what the detector fits in closed
            form, as DifferNet its feature scaling. Defaults to ``5``.
        cross_fit_rounds (int): Number of times that this is repeated, with the weights of the round before. Defaults to
            ``1``.
        task_size (int): Wished number of images in a task. Small tasks cost more time: a step makes four passes a task.
            Defaults to ``32``.
        train_share (float): Share of a task in its training part, in (0, 1). Defaults to ``0.7``.
        inner_lr (float): Learning rate alpha of the inner steps. Defaults to ``0.01``.
        inner_steps (int): Number of inner steps. Defaults to ``1``.
        inner_clip (float): Largest norm of an inner gradient; 0 for no bound. Ours: gradients of a likelihood have
            heavy tails, and without a bound a plain inner step can throw the adapted parameters away. Defaults to
            ``1.0``.
        second_order (bool): Whether the outer gradient goes through the inner steps. Defaults to ``False``.
        lambda0 (float): Base strength of the adaptive regulariser. Defaults to ``1e-6``.
        gamma (float): Gain of the regulariser on the model uncertainty. Defaults to ``0.5``.
        uncertainty_scale (str): Scale of the model uncertainty det(Sigma): ``"correlation"`` (1 - rho^2, in [0, 1]),
            ``"relative"`` (losses divided by their mean) or ``"raw"`` (as published, where it hardly moves). Defaults
            to ``"correlation"``.
        uncertainty_window (int): Number of task pairs (L_train, L_val) from which Sigma is taken, at least 3. Defaults
            to ``32``.
        audit (bool): Whether the page and list of training images and the picture of the history are written beside
            the run when training ends. Defaults to ``True``.
        **kwargs: Arguments of the detector.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If the detector lacks one of the three methods.
    """

    scores_start_at_zero: bool = True
    scores_before_training: bool = False

    def __init__(
        self,
        *,
        use_weights: bool = True,
        use_meta: bool = True,
        use_adaptive_l2: bool = True,
        kappa: float = 1.5,
        weight_power: float = 1.0,
        weight_level: str = "image",
        warmup_epochs: int = 2,
        refresh_epochs: int = 1,
        weight_momentum: float = 0.5,
        cross_fit_folds: int = 0,
        cross_fit_epochs: int = 5,
        cross_fit_rounds: int = 1,
        task_size: int = 32,
        train_share: float = 0.7,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        inner_clip: float = 1.0,
        second_order: bool = False,
        lambda0: float = 1e-6,
        gamma: float = 0.5,
        uncertainty_scale: str = "correlation",
        uncertainty_window: int = 32,
        audit: bool = True,
        **kwargs: Any,
    ) -> None:
        _check_ranges(
            at_least_zero={
                "kappa": kappa,
                "warmup_epochs": warmup_epochs,
                "inner_lr": inner_lr,
                "inner_clip": inner_clip,
                "lambda0": lambda0,
                "gamma": gamma,
                "cross_fit_epochs": cross_fit_epochs,
            },
            above_zero={
                "weight_power": weight_power,
                "refresh_epochs": refresh_epochs,
                "inner_steps": inner_steps,
                "cross_fit_rounds": cross_fit_rounds,
            },
        )
        _require(0.0 <= weight_momentum < 1.0, f"weight_momentum must be in [0, 1), got {weight_momentum}.")
        _require(0.0 < train_share < 1.0, f"train_share must be in (0, 1), got {train_share}.")
        _require(task_size >= SMALLEST_TASK, f"task_size must be at least {SMALLEST_TASK}, got {task_size}.")
        _require(cross_fit_folds == 0 or cross_fit_folds > 1, f"cross_fit_folds must be 0 or >= 2: {cross_fit_folds}.")
        if cross_fit_folds and not cross_fit_epochs and not self.scores_before_training:
            msg = f"{type(self).__name__} cannot score untrained: cross_fit_epochs must be at least 1, got 0."
            raise ValueError(msg)
        missing = [m for m in ("training_inputs", "sample_losses", "sample_scores") if not hasattr(self, m)]
        if missing:
            msg = f"{type(self).__name__} cannot be trained by CoMet: its detector lacks the methods {missing}."
            raise TypeError(msg)
        _check_weight_level(self, weight_level, cross_fit_folds)
        super().__init__(**kwargs)
        self.use_weights = use_weights
        self.use_meta = use_meta
        self.use_adaptive_l2 = use_adaptive_l2
        self.by_patch = use_weights and weight_level == "patch"
        self.warmup_epochs = warmup_epochs
        self.refresh_epochs = refresh_epochs
        self.cross_fit_folds = cross_fit_folds
        self.cross_fit_epochs = cross_fit_epochs
        self.cross_fit_rounds = cross_fit_rounds
        self.task_size = task_size
        self.train_share = train_share
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.inner_clip = inner_clip
        self.second_order = second_order
        self.lambda0 = lambda0
        self.gamma = gamma
        self.uncertainty_scale = check_scale(uncertainty_scale)
        self.audit = audit
        self.confidence = ConfidenceTable(kappa, weight_power, weight_momentum)
        self.patch_confidence = PatchConfidenceTable(kappa, weight_power, weight_momentum)
        self.loss_pairs = LossPairWindow(uncertainty_window)
        self.history = TrainingHistory()
        self._refreshed_at = -1

    # ------------------------------------------------------------------------------------------------- the audit
    def configure_callbacks(self) -> list[Callback]:
        """Return the detector's callbacks, the one that sees faults early, and the one that writes the audit."""
        callbacks = with_guard(super().configure_callbacks(), self._trainer)
        if self.audit:
            from anomalib_comet.audit import AuditReport  # noqa: PLC0415  # it imports this package

            # One that the user configured stays: a callback of the model would replace it.
            if not any(isinstance(callback, AuditReport) for callback in getattr(self._trainer, "callbacks", [])):
                callbacks.append(AuditReport())
        return callbacks

    def training_frame(self) -> pd.DataFrame | None:
        """Return what training learnt about its images, or ``None`` before the first scores.

        Returns:
            pd.DataFrame | None: Columns ``image_path``, ``anomaly_score`` and ``confidence_weight``; the threshold t of
                the run stands in ``attrs["threshold"]``.
        """
        if not self.confidence.scores:
            return None
        frame = self.confidence.frame()
        frame.attrs["threshold"] = self.confidence.threshold
        return frame

    # ----------------------------------------------------------------------------------------------- training
    def on_train_start(self) -> None:
        """Turn off the optimizer's weight decay where ours replaces it, and cross-fit the first weights."""
        if self.use_meta and self.trainer.precision == "16-mixed":
            msg = (
                "CoMet's inner steps take gradients outside the loss scaling of precision 16-mixed, where they vanish: "
                "use --trainer.precision bf16-mixed or 32-true."
            )
            raise ValueError(msg)
        if (
            self.by_patch
            and getattr(getattr(self.trainer, "datamodule", None), "train_augmentations", None) is not None
        ):
            msg = (
                "A patch's confidence weight belongs to a place in the image, which training augmentations may move: "
                "leave them out or use weight_level='image'."
            )
            raise ValueError(msg)
        super().on_train_start()
        if self.confidence.weights:
            self._forget_other_images()
        if self.use_adaptive_l2:
            for optimizer in self.trainer.optimizers:
                for group in optimizer.param_groups:
                    group["weight_decay"] = 0.0
        if self.use_weights and self.cross_fit_folds and not self.confidence.weights:
            self._cross_fit()
        elif self.use_weights and not self.cross_fit_folds and getattr(self, "feature_scaling", "") == "whiten":
            logger.warning(
                "feature_scaling=whiten without cross-fitting: the scaling does not know the confidence weights, which "
                "then hardly act. Set cross_fit_folds, for DifferNet with cross_fit_epochs=0."
            )

    def _cross_fit(self) -> None:
        """Cross-fit the first weights, and fit the detector's closed-form parts with them."""
        training_set = TrainingSet(self)
        for number in range(self.cross_fit_rounds):
            logger.info(
                "Cross-fitting the first confidence weights, round %d of %d.", number + 1, self.cross_fit_rounds
            )
            paths, scores = cross_fitted_scores(
                self,
                training_set,
                folds=self.cross_fit_folds,
                epochs=self.cross_fit_epochs,
                seed=int(getattr(self, "seed", 0)),
                weights=self.confidence.weights or None,
                start_at_zero=self.scores_start_at_zero,
            )
            self.confidence.replace(paths, self.anchor(scores))
        if hasattr(self, "fit_statistics"):
            self.fit_statistics(training_set, self.confidence.weights)

    def _forget_other_images(self) -> None:
        """Start anew where a fit or a checkpoint before has weighted other images than these."""
        samples = getattr(getattr(self.trainer.train_dataloader, "dataset", None), "samples", None)
        if samples is None or any(str(path) in self.confidence.weights for path in samples.image_path):
            return
        logger.warning(
            "None of the %d images with a confidence weight is in this training set; weights start at 1. "
            "They are kept by image path: resume with the images in the same place to keep them.",
            len(self.confidence.weights),
        )
        self.confidence.forget()
        self.patch_confidence.forget()
        self.loss_pairs.restore([])
        self.history.forget()
        if hasattr(self, "fit_statistics"):
            self.fit_statistics(TrainingSet(self))

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Return the soft confident loss of a batch, or the detector's own with all switches off.

        Args:
            batch (ImageBatch): Training batch, pre-processed.
            *args: Passed to the detector.
            **kwargs: Passed to the detector.

        Returns:
            STEP_OUTPUT: The loss; its gradients are the meta-gradients where ``use_meta`` is on.
        """
        if not (self.use_weights or self.use_meta or self.use_adaptive_l2):
            return super().training_step(batch, *args, **kwargs)
        inputs = self.training_inputs(batch)
        weights = self._batch_weights(batch, inputs)
        strength = self._regulariser_strength()
        loss = self._meta_loss(inputs, weights, strength) if self.use_meta else self._loss(inputs, weights, strength)
        self.log("train_loss", loss.detach(), on_epoch=True, prog_bar=True, batch_size=len(weights))
        return {"loss": loss}

    def _batch_weights(self, batch: Any, inputs: Any) -> torch.Tensor:
        """Weights of what has a loss of its own: shape ``(B,)``, or ``(B, P)`` by patch (``(B, 1)`` at first)."""
        if not self.use_weights:
            return torch.ones(len(batch.image_path), device=self.device)
        if self.by_patch:
            weights = self.patch_confidence.lookup(batch.image_path).to(self.device)
            return weights if weights.shape[1] == 1 else self.select_patches(weights, inputs)
        return self.confidence.lookup(batch.image_path).to(self.device)

    def _loss(self, inputs: Any, weights: torch.Tensor, strength: float) -> torch.Tensor:
        """Soft confident loss without meta-learning: mean_i w_i L_AD(x_i | theta) + lambda ||theta||^2."""
        sample_losses = self.weighted_losses(inputs)
        loss = (weights * sample_losses).mean()
        self._log_losses(sample_losses.detach().mean(), loss.detach())
        if not self.use_adaptive_l2:
            return loss
        detached = sample_losses.detach()
        # Without an inner step theta' is theta, and a task's parts need no pass of their own.
        self._note_pairs(
            [
                (float(detached[train].mean()), float(detached[val].mean()))
                for train, val in split_tasks(len(detached), self.task_size, self.train_share)
            ]
        )
        penalty = strength * squared_norm([p for p in self._trainable().values() if is_regularised(p)])
        self._log_number("loss_l2", penalty.detach())
        return loss + penalty

    def _meta_loss(self, inputs: Any, weights: torch.Tensor, strength: float) -> torch.Tensor:
        """Outer loss L_meta, carrying the outer gradient."""
        if len(weights) < SMALLEST_TASK:  # a last batch of a few images makes no task
            return self._loss(inputs, weights, strength)
        parameters = self._trainable()
        outcome = meta_gradient(
            functional_losses(self),
            parameters,
            inputs,
            weights,
            task_size=self.task_size,
            step_size=self.inner_lr,
            steps=self.inner_steps,
            train_share=self.train_share,
            first_order=not self.second_order,
            l2_strength=strength,
            max_norm=self.inner_clip,
        )
        self._update_running_statistics(inputs)
        self._note_pairs([(float(a), float(b)) for a, b in outcome.pairs])
        self._log_number("inner_improvement", outcome.inner_improvement)
        self._log_number("inner_distance", outcome.inner_distance)
        self._log_losses(outcome.pairs[:, 1].mean(), outcome.weighted_loss)
        if self.use_adaptive_l2:
            self._log_number("loss_l2", outcome.loss.detach() - outcome.weighted_loss)
        if outcome.gradients is None:
            return outcome.loss
        return surrogate(outcome.loss, parameters, outcome.gradients)

    def _note_pairs(self, pairs: list[tuple[float, float]]) -> None:
        """Add the task losses of a step, of all processes where lambda comes from them."""
        self.loss_pairs.extend(Ranks.of(self).gather(pairs) if self.use_adaptive_l2 else pairs)

    # ------------------------------------------------------------------------------------- parameters and losses
    def _trainable(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def weighted_losses(self, inputs: Any) -> torch.Tensor:
        """Return the un-weighted losses of what is going to be weighted, shape ``(B,)``, or ``(B, P)`` by patch."""
        return self.patch_losses(inputs) if self.by_patch else self.sample_losses(inputs)

    @torch.no_grad()
    def _update_running_statistics(self, inputs: Any) -> None:
        if trained_batch_norms(self):
            self.sample_losses(inputs)

    def _regulariser_strength(self) -> float:
        if not self.use_adaptive_l2:
            return 0.0
        uncertainty = model_uncertainty(self.loss_pairs.tensor(), self.uncertainty_scale)
        strength = adaptive_l2(uncertainty, self.lambda0, self.gamma)
        self._log_number("model_uncertainty", uncertainty)
        self._log_number("l2_strength", strength)
        return strength

    def _log_losses(self, detector: torch.Tensor, weighted: torch.Tensor) -> None:
        """Log the detector's own loss, and the same with confidence weights."""
        self._log_number("loss_detector", detector)
        self._log_number("loss_weighted", weighted)

    def _log_number(self, name: str, value: torch.Tensor | float) -> None:
        """Log a mean over the epoch to Lightning's loggers and to the history."""
        number = float(value)
        self.log(name, number, on_step=False, on_epoch=True, batch_size=1, sync_dist=Ranks.of(self).count > 1)
        self.history.add({name: number})

    # -------------------------------------------------------------------------------------- confidence weights
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Refresh the confidence weights after the last batch of an epoch.

        It comes before anomalib's checkpoint of that epoch, so that a resumed run has the weights of an
        uninterrupted one.

        Args:
            *args: Unused.
            **kwargs: Unused.
        """
        super().on_train_batch_end(*args, **kwargs)
        last = ends_training(self.trainer)
        if not (self.trainer.is_last_batch or last):
            return
        ranks = Ranks.of(self)
        ranks.copy_state(self, parameters=False)  # running statistics of batch norm are every process's own
        done = self.current_epoch + 1
        due = done >= self.warmup_epochs and (done - self.warmup_epochs) % self.refresh_epochs == 0
        if last or (due and self.use_weights):
            self.refresh_confidence()
        self.history.close_epoch(self.current_epoch, ranks.mean)
        self._write_history(with_picture=False)  # it is drawn once, at the end

    def on_train_end(self) -> None:
        """Bring list and history up to the finished model where training ended before ``max_epochs``."""
        super().on_train_end()
        if self._refreshed_at != self.global_step:
            self.refresh_confidence(log=False)
        self.history.close_epoch(self.current_epoch, Ranks.of(self).mean)
        self._write_history(with_picture=True)

    def _write_history(self, with_picture: bool) -> None:
        if self.trainer.is_global_zero:
            run = Path(self.trainer.default_root_dir)
            picture = run / HISTORY_PICTURE if with_picture and self.audit else None
            with may_fail(HISTORY_FILE):
                self.history.write(run / HISTORY_FILE, picture)

    def refresh_confidence(self, log: bool = True) -> None:
        """Score the training images in evaluation mode, without augmentation, and renew their weights.

        Args:
            log (bool): Whether threshold and quantiles go to the loggers, which Lightning allows within its loop only.
                Defaults to ``True``.
        """
        paths, scores = TrainingSet(self).scores(self, per_patch=self.by_patch)
        if self.by_patch:
            self.patch_confidence.refresh(paths, scores, self.scores_start_at_zero)
            scores = scores.amax(dim=1)
        self.confidence.refresh(paths, self.anchor(scores))
        self._refreshed_at = self.global_step
        if self.trainer.is_global_zero:
            with may_fail(WEIGHTS_FILE):
                self.confidence.write_csv(Path(self.trainer.default_root_dir) / WEIGHTS_FILE, self._truth())
        weights = self.confidence.lookup(paths)
        anchored = torch.tensor(list(self.confidence.scores.values()))
        numbers = {"confidence_threshold": self.confidence.threshold or 0.0, "weight_mean": float(weights.mean())}
        for name, level in QUANTILES.items():
            numbers[f"weight_{name}"] = float(torch.quantile(weights, level))
            numbers[f"score_{name}"] = float(torch.quantile(anchored, level))
        if not log:
            self.history.amend(numbers)
            return
        for name, number in numbers.items():
            self._log_number(name, number)

    def anchor(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores of a whole training set so that they start at zero.

        Args:
            scores (torch.Tensor): What ``sample_scores`` gave for all training images, shape ``(N,)``.

        Returns:
            torch.Tensor: Scores of shape ``(N,)``, not negative.
        """
        return scores if self.scores_start_at_zero else anchored_scores(scores)

    def _truth(self) -> pd.DataFrame | None:
        """What the datamodule knows of injected images; written beside the weights, seen by nothing else."""
        truth = getattr(getattr(self.trainer, "datamodule", None), "contamination", None)
        return None if truth is None else truth[["image_path", "injected", "defect_type"]]

    # --------------------------------------------------------------------------------------------- checkpoint
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the confidence table and the window of task losses to a checkpoint.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {
            "confidence": self.confidence.state(),
            "loss_pairs": self.loss_pairs.state(),
            "history": self.history.state(),
        }
        if self.by_patch:
            checkpoint[CHECKPOINT_KEY]["patch_confidence"] = self.patch_confidence.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the confidence table and the window of task losses from a checkpoint.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(CHECKPOINT_KEY)
        if state is not None:
            self.confidence.restore(state["confidence"])
            self.loss_pairs.restore(state["loss_pairs"])
            self.history.restore(state.get("history", []))
            if self.by_patch and "patch_confidence" in state:
                self.patch_confidence.restore(state["patch_confidence"])


def _require(condition: bool, msg: str) -> None:
    if not condition:
        raise ValueError(msg)


def _check_weight_level(detector: Any, weight_level: str, cross_fit_folds: int) -> None:
    _require(weight_level in WEIGHT_LEVELS, f"weight_level must be one of {WEIGHT_LEVELS}, got '{weight_level}'.")
    if weight_level == "patch":
        missing = [m for m in PATCH_METHODS if not hasattr(detector, m)]
        name = type(detector).__name__
        _require(not missing, f"{name} has no losses and scores of patches: weight_level must be 'image'.")
        _require(
            not cross_fit_folds,
            "cross_fit_folds gives weights to images, not patches: use weight_level='image' or cross_fit_folds=0.",
        )


def _check_ranges(at_least_zero: dict[str, float], above_zero: dict[str, float]) -> None:
    for name, value in at_least_zero.items():
        _require(value >= 0, f"{name} must not be negative, got {value}.")
    for name, value in above_zero.items():
        _require(value > 0, f"{name} must be above zero, got {value}.")
