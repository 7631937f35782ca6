# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Passes over the un-augmented training images, outside Lightning's loop."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2 import Compose, Resize

from anomalib_comet.data.images import UnreadableImagesError, problems_in, sentence

from .distributed import Ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning.pytorch import Trainer


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back into its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def ends_training(trainer: Trainer) -> bool:
    """Return whether the batch that has just ended is the last of the training, by epochs or by steps.

    Args:
        trainer: The trainer, in a hook at the end of a batch.
    """
    by_epochs = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
    return by_epochs or 0 < trainer.max_steps <= trainer.global_step


class TrainingSet:
    """The training images of a running fit, in a fixed order and without augmentation.

    Batches are brought to the model's device and pre-processed: Lightning does neither outside its own loop.

    Args:
        module: The Lightning module that is being trained.

    Raises:
        TypeError: If the training data is not one dataloader over a dataset of known length.
    """

    def __init__(self, module: Any) -> None:
        loader = module.trainer.train_dataloader
        if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
            msg = "Scoring the training images needs one train dataloader with a dataset of known length."
            raise TypeError(msg)
        self._module = module
        self._dataset = loader.dataset
        self._indices: list[int] | None = None
        if isinstance(self._dataset, Subset):
            self._indices = list(self._dataset.indices)
            self._dataset = self._dataset.dataset
        self._dataset = copy.copy(self._dataset)
        self._transform = module.pre_processor.transform if module.pre_processor else None
        if hasattr(self._dataset, "augmentations"):
            # Only Resizes stay, without which images of several sizes make no batch: the data set's own (a tiled
            # ensemble has one there), then the model's, whose size is fixed.
            resizes = [
                resize
                for transform in (self._dataset.augmentations, self._transform)
                if transform is not None
                for resize in extract_transforms_by_type(transform, Resize)
            ]
            self._dataset.augmentations = Compose(resizes) if resizes else None
        self._collate = loader.collate_fn
        self._batch_size = loader.batch_size or 32
        self._num_workers = loader.num_workers

    def __len__(self) -> int:
        return len(self._dataset if self._indices is None else self._indices)

    @property
    def table(self) -> Any:
        """The data set's table of images (a data frame), or ``None`` where it has none."""
        return getattr(self._dataset, "samples", None)

    def paths(self, indices: Sequence[int] | None = None) -> list[str] | None:
        """Return the paths of images without decoding them, or ``None`` where the data set has no list of samples.

        Args:
            indices: Positions in the training set and their order; ``None`` for all in order. Defaults to ``None``.
        """
        samples = self.table
        if samples is None:
            return None
        rows = range(len(self)) if indices is None else indices
        known = samples.image_path.tolist()
        return [str(known[k if self._indices is None else self._indices[k]]) for k in rows]

    def batches(self, indices: Sequence[int] | None = None) -> Iterator[Any]:
        """Yield pre-processed batches on the model's device.

        Args:
            indices: Positions in the training set and their order; ``None`` for all in order. Defaults to ``None``.
        """
        if self._indices is not None:
            indices = self._indices if indices is None else [self._indices[k] for k in indices]
        dataset = self._dataset if indices is None else Subset(self._dataset, list(indices))
        loader = DataLoader(
            dataset,
            batch_size=self._batch_size,
            shuffle=False,
            num_workers=self._num_workers,
            collate_fn=self._collate,
            generator=torch.Generator().manual_seed(0),  # a loader without one draws from the global generator
        )
        module = self._module
        for raw in self._read(loader):
            batch = module.transfer_batch_to_device(raw, module.device, 0)
            if self._transform is not None:
                batch.image, batch.gt_mask = self._transform(batch.image, batch.gt_mask)
            yield batch

    def _read(self, loader: DataLoader) -> Iterator[Any]:
        """Yield what a loader reads; where an image is broken, name it and all others that are."""
        try:
            yield from loader
        except Exception as error:
            problems = problems_in([self._dataset], decode=True)
            if not problems:
                raise
            raise UnreadableImagesError(sentence(problems, len(self), "training images"), problems) from error

    @torch.no_grad()
    def scores(
        self,
        module: Any,
        indices: Sequence[int] | None = None,
        per_patch: bool = False,
    ) -> tuple[list[str], torch.Tensor]:
        """Return the paths of the images and their anomaly scores in evaluation mode, shape ``(N,)``, on the CPU.

        Of several processes every one scores a share of the images, and all of them get all scores: call it in all.
        Images are not decoded where the detector gives all scores from what it remembers of them
        (``remembered_scores(image_paths)``, ``None`` if it does not).

        Args:
            module: The detector.
            indices: See :meth:`batches`. Defaults to ``None``.
            per_patch: Whether scores of patches are wished, shape ``(N, P)``, by the detector's ``patch_scores`` and
                ``remembered_patch_scores``. Defaults to ``False``.
        """
        kind = "patch_scores" if per_patch else "sample_scores"
        remembered_kind = "remembered_patch_scores" if per_patch else "remembered_scores"
        ranks = Ranks.of(module)
        if ranks.count > 1:
            indices = ranks.share(range(len(self)) if indices is None else indices)
        paths: list[str] = []
        scores: list[torch.Tensor] = []
        with evaluating(module), module.trainer.precision_plugin.forward_context():
            known = self.paths(indices) if hasattr(module, remembered_kind) else None
            remembered = getattr(module, remembered_kind)(known) if known else None
            if known is not None and remembered is not None:
                paths, scores = known, [remembered]
            else:
                for batch in self.batches(indices):
                    paths += [str(path) for path in batch.image_path]
                    scores.append(getattr(module, kind)(batch).float().cpu())
        return ranks.gather(paths), torch.cat(ranks.gather(scores))
