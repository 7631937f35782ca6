# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Passes over the un-augmented training images, outside Lightning's loop."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2 import Resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class TrainingSet:
    """The training images of a running fit, in a fixed order and without augmentation.

    Batches are brought to the model's device and pre-processed: Lightning does neither outside its own loop.

    Args:
        module: The Lightning module that is being trained.
    """

    def __init__(self, module: Any) -> None:
        loader = module.trainer.train_dataloader
        self._module = module
        self._dataset = copy.copy(loader.dataset)
        self._transform = module.pre_processor.transform if module.pre_processor else None
        # Only Resizes stay, the data set's (a tiled ensemble has its own there) before the model's: without them images
        # of several sizes make no batch.
        resizes = [
            resize
            for transform in (self._dataset.augmentations, self._transform)
            if transform is not None
            for resize in extract_transforms_by_type(transform, Resize)
        ]
        self._dataset.augmentations = resizes[0] if resizes else None
        self._collate = loader.collate_fn
        self._batch_size = loader.batch_size or 32
        self._num_workers = loader.num_workers

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, indices: Sequence[int] | None = None) -> Iterator[Any]:
        """Yield pre-processed batches on the model's device.

        Args:
            indices: Positions in the training set and their order; ``None`` for all in order. Defaults to ``None``.
        """
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
        for raw in loader:
            batch = module.transfer_batch_to_device(raw, module.device, 0)
            if self._transform is not None:
                batch.image, batch.gt_mask = self._transform(batch.image, batch.gt_mask)
            yield batch

    @torch.no_grad()
    def scores(self, module: Any, indices: Sequence[int] | None = None) -> tuple[list[str], torch.Tensor]:
        """Return the paths of the images and their anomaly scores in evaluation mode, shape ``(N,)``, on the CPU.

        Images are not decoded where the detector gives all scores from what it remembers of them
        (``remembered_scores(image_paths)``, ``None`` if it does not).

        Args:
            module: The detector.
            indices: See :meth:`batches`. Defaults to ``None``.
        """
        was_training = module.training
        module.eval()
        if indices is None and hasattr(module, "remembered_scores"):
            known = (
                [str(path) for path in self._dataset.samples.image_path] if hasattr(self._dataset, "samples") else []
            )
            remembered = module.remembered_scores(known)
            if remembered is not None:
                module.train(was_training)
                return known, remembered
        paths: list[str] = []
        scores: list[torch.Tensor] = []
        try:
            for batch in self.batches(indices):
                paths += [str(path) for path in batch.image_path]
                scores.append(module.sample_scores(batch).float().cpu())
        finally:
            module.train(was_training)
        return paths, torch.cat(scores)
