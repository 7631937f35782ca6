# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Callback that sees faults before they cost a training, and says in one sentence what they are."""

from __future__ import annotations

import logging
import random
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

from anomalib_comet.data.folders import explanation
from anomalib_comet.data.images import NAMED, UnreadableImagesError, check_images, check_stage, data_sets, problems_in
from anomalib_comet.data.images import sentence as images_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger(__name__)

SCALED_PRECISION = "16-mixed"
"""Where an infinite loss belongs to the search for the loss scale."""


class NonFiniteTrainingError(RuntimeError):
    """A loss or parameters are no longer finite: training is over, what was saved before is whole."""


class TrainingGuard(Callback):
    """Look at the images before a training or test, at the loss in it, and at the disk when a checkpoint is written.

    Our models bring it with them; with any other model of anomalib, give it to the engine. It refuses

    - images and masks that cannot be read, before training: by header and last bytes, or by decoding where these leave
      a doubt; what is broken in the middle of a file is named when the training meets it,
    - a loss or parameters that are not finite, before they reach the parameters or a checkpoint,

    and it lets the last epoch be validated, which is when thresholds are set and the checkpoint is written: where
    ``check_val_every_n_epoch`` does not divide ``max_epochs``, the next smaller number that does takes its place. It
    writes checkpoints so that a full disk leaves the one before, and keeps the state of the random generators in
    them, so that a resumed training shuffles as an uninterrupted one (one process, from the end of an epoch).

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_comet.guard import TrainingGuard
        >>> engine = Engine(callbacks=[TrainingGuard()])
    """

    def __init__(self) -> None:
        super().__init__()
        self._images: list[str] = []
        self._images_before: list[str] = []
        self._random: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------------ the images
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the images of a stage, and see to it that checkpoints are written whole, the last epoch's among them.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
            stage (str): Lightning's stage.

        Raises:
            UnreadableImagesError: If images of the stage cannot be read.
        """
        del pl_module
        _write_whole_checkpoints(trainer)
        if stage == "fit":
            _validate_the_last_epoch(trainer)
        datamodule = _datamodule(trainer)
        if not getattr(datamodule, "checks_images", False):
            check_stage(datamodule, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the training images where they come without a data module.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
        """
        del pl_module
        if _datamodule(trainer) is None:
            check_images(_sets_of_images(trainer.train_dataloader), "training images")

    # ------------------------------------------------------------------------------------------------------- the loss
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the images of the step.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
            batch (Any): The batch.
            batch_idx (int): Its number.
        """
        del trainer, pl_module, batch_idx
        self._images_before, self._images = self._images, [str(path) for path in getattr(batch, "image_path", [])]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Refuse a loss that is not finite, while the parameters are as they were.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
            loss (torch.Tensor): The loss.

        Raises:
            NonFiniteTrainingError: If it is not finite.
        """
        bad = torch.isnan(loss) if trainer.precision == SCALED_PRECISION else ~torch.isfinite(loss)
        if bool(bad.any()):
            raise NonFiniteTrainingError(self._said_of_the_loss(trainer, pl_module, loss))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to write parameters that are not finite over a checkpoint that is good.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
            checkpoint (dict[str, Any]): The checkpoint.

        Raises:
            NonFiniteTrainingError: If a trained parameter is not finite.
        """
        del checkpoint
        bad = not_finite(pl_module)
        if bad:
            msg = (
                f"{len(bad)} parameters ({', '.join(bad[:NAMED])}{', ...' if len(bad) > NAMED else ''}) are not finite "
                f"after step {trainer.global_step}, so no checkpoint of them is written: a lower learning rate helps "
                f"most often. {_last_checkpoint(trainer)}"
            )
            raise NonFiniteTrainingError(msg)

    def _said_of_the_loss(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> str:
        step, epoch = trainer.global_step, trainer.current_epoch
        bad = not_finite(pl_module)
        cause = (
            f"The step before, on {_named(self._images_before)}, has made {len(bad)} parameters not finite."
            if bad
            else f"The images of this step: {_named(self._images)}."
        )
        return (
            f"The loss of step {step} (epoch {epoch}, from 0) is {float(loss.detach().float().mean()):g}, and training "
            f"has stopped before it changed the model. {cause} Look at the images; if they are what they should be, "
            f"lower the learning rate. {_last_checkpoint(trainer)}"
        )

    # ------------------------------------------------------------------------------------------- resuming and failing
    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random generators as plain data."""
        return {"random": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of the random generators from a checkpoint.

        Args:
            state_dict (dict[str, Any]): What :meth:`state_dict` returned.
        """
        self._random = state_dict.get("random")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the random numbers where the checkpoint left them, in one process.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
        """
        del pl_module
        self._images, self._images_before = [], []
        if self._random is not None and trainer.world_size == 1:
            set_random_state(self._random)
        self._random = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say which images could not be decoded, or what the data module's error means.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The model.
            exception (BaseException): What ended the training.
        """
        del pl_module
        if isinstance(exception, (UnreadableImagesError, NonFiniteTrainingError, KeyboardInterrupt)):
            return
        datamodule = _datamodule(trainer)
        said = "".join(traceback.format_exception(exception))
        meant = explanation(exception, datamodule)
        if "read_image" in said or "read_mask" in said:
            datasets = data_sets(datamodule) or _sets_of_images(trainer.train_dataloader)
            logger.error("An image could not be read; all of them are looked at to name it.")
            problems = problems_in(datasets, decode=True)
            if problems:
                meant = images_sentence(problems, sum(map(len, datasets)), "images", _last_checkpoint(trainer))
        if meant:
            logger.error(meant)
            if hasattr(exception, "add_note"):  # from Python 3.11 on: it stands below the traceback
                exception.add_note(meant)


def not_finite(module: torch.nn.Module) -> list[str]:
    """Return the names of trained parameters that are not finite."""
    return [name for name, p in module.named_parameters() if p.requires_grad and not bool(torch.isfinite(p).all())]


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's generators as plain data, those of used GPUs included."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  # transforms draw from the global one
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what :func:`random_state` returned.

    Args:
        state: The state; GPUs that are not there are left out.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, one in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one.cpu(), device)


def with_guard(callbacks: Callback | Sequence[Callback], trainer: Trainer | None) -> list[Callback]:
    """Return callbacks with a guard among them, unless they or the trainer have one.

    Args:
        callbacks: The callbacks of a model.
        trainer: Its trainer.
    """
    found = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    if any(isinstance(callback, TrainingGuard) for callback in [*found, *getattr(trainer, "callbacks", [])]):
        return found
    return [TrainingGuard(), *found]


def _validate_the_last_epoch(trainer: Trainer) -> None:
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every is None:
        return
    if trainer.limit_val_batches == 0:
        # Lightning saves after every epoch then, but only if it is told to validate after every epoch.
        trainer.check_val_every_n_epoch = 1
        return
    if epochs is None or epochs < 1 or epochs % every == 0:
        return
    trainer.check_val_every_n_epoch = max(n for n in range(1, every + 1) if epochs % n == 0)
    logger.warning(
        "check_val_every_n_epoch is %d, not %d: thresholds and checkpoints come with validation, and the last %d of %d "
        "epochs would be in neither. To keep the interval, make max_epochs a multiple of it.",
        *(trainer.check_val_every_n_epoch, every, epochs % every, epochs),
    )


def _write_whole_checkpoints(trainer: Trainer) -> None:
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO  # noqa: PLC0415

    from .checkpoint_io import AnomalibCheckpointIO, WholeCheckpointIO  # noqa: PLC0415  # it imports anomalib's engine

    theirs = trainer.strategy.checkpoint_io
    if type(theirs) in {TorchCheckpointIO, AnomalibCheckpointIO}:  # one of the user's own stays
        trainer.strategy.checkpoint_io = WholeCheckpointIO(getattr(theirs, "extra_safe_globals", None))


def _datamodule(trainer: Any) -> Any:
    return getattr(trainer, "datamodule", None)


def _sets_of_images(loader: Any) -> list[Any]:
    dataset = getattr(loader, "dataset", None)
    dataset = getattr(dataset, "dataset", dataset)  # of a subset
    return [dataset] if hasattr(dataset, "samples") else []


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - 2 * NAMED
    named = ", ".join(paths[: 2 * NAMED])
    return (f"{named} and {more} more" if more > 0 else named) or "images without a path"


def _last_checkpoint(trainer: Trainer) -> str:
    callback = trainer.checkpoint_callback
    path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    return f"The last checkpoint is whole: {path}" if path else "No checkpoint was written yet."
