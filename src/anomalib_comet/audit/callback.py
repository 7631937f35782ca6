# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Callback that audits the training set when training has ended."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from torch.utils.data import Subset

from .report import Audit, audit_model, check_settings, training_frame

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger(__name__)


class AuditReport(Callback):
    """Write ``audit.csv`` and ``audit.html`` beside the run when training has ended.

    Works with any anomalib model. A model that keeps a table of its training images (CoMet's do) is asked for it; any
    other scores the images itself. Trouble with the report never loses the training: it is a warning.

    Args:
        output (str | Path | None): Folder of the report; ``None`` for that of the run. Defaults to ``None``.
        limit (int | None): Number of most suspicious images in the page; the table has all. ``None`` for all. Defaults
            to ``None``.
        thumbnail_size (int): Longest side of a thumbnail in pixels, 32 to 512. Defaults to ``144``.
        batch_size (int): Images in one pass through the model. Defaults to ``16``.
        maps (int): Number of most suspicious images with a heat map where the scores are known from training: maps take
            a pass through the model, which may be long. Images that the model scores itself all have one. 0 for no
            heat maps at all. Defaults to ``300``.

    Attributes:
        result: The latest :class:`.report.Audit`, or ``None``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_comet.audit import AuditReport
        >>> engine = Engine(callbacks=[AuditReport()])
    """

    def __init__(
        self,
        output: str | Path | None = None,
        limit: int | None = None,
        thumbnail_size: int = 144,
        batch_size: int = 16,
        maps: int = 300,
    ) -> None:
        check_settings(limit, thumbnail_size, maps)
        if batch_size < 1:
            msg = f"batch_size must be at least 1, got {batch_size}."
            raise ValueError(msg)
        super().__init__()
        self.output = None if output is None else Path(output)
        self.limit = limit
        self.thumbnail_size = thumbnail_size
        self.batch_size = batch_size
        self.maps = maps
        self.result: Audit | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, after everything that a model does when training ends.

        Args:
            trainer (Trainer): The trainer.
            pl_module (LightningModule): The trained model.
        """
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False) or trainer.interrupted:
            return
        try:
            self.result = self._audit(trainer, pl_module)
        # Training is done, and whatever stops the report must not take it away.
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("The audit of the training set was not written: %s", reason)
            return
        logger.info("The audit of the training set: %s", self.result.page_path)
        for path, problem in self.result.unreadable.items():
            logger.warning("Unreadable: %s (%s)", path, problem)
        if self.result.evaluation is not None:
            logger.info(self.result.evaluation.summary())

    def _audit(self, trainer: Trainer, model: Any) -> Audit:
        root = Path(trainer.default_root_dir)
        images = _training_images(trainer, model)
        logger.info("Auditing %d training images.", len(images))
        with trainer.precision_plugin.forward_context():
            return audit_model(
                model,
                images,
                self.output or root,
                truth=getattr(getattr(trainer, "datamodule", None), "contamination", None),
                title=run_title(root),
                limit=self.limit,
                thumbnail_size=self.thumbnail_size,
                batch_size=self.batch_size,
                maps=self.maps,
            )


def run_title(folder: Path) -> str:
    """Return the name of a run from its folder ``results/<Model>/<data>/<category>/vN``; not all data have categories.

    Args:
        folder: Folder of the run.
    """
    return " / ".join(folder.parts[-4:])


def _training_images(trainer: Trainer, model: Any) -> list[str]:
    """Return the paths of the images that the model was trained on."""
    frame = training_frame(model)
    if frame is not None:
        return frame["image_path"].tolist()
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    indices = None
    if isinstance(dataset, Subset):
        dataset, indices = dataset.dataset, [int(k) for k in dataset.indices]
    samples = getattr(dataset, "samples", None)
    if samples is None:
        msg = "the training data is no data set of anomalib, and the paths of its images are unknown."
        raise TypeError(msg)
    paths = samples["image_path"]
    return [str(path) for path in (paths if indices is None else paths.iloc[indices])]
