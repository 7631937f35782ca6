# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What a trained model gives for images, un-normalised: its predictions for the test set, and a threshold."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from anomalib_comet.training_set import evaluating

from .configuration import SweepError
from .metrics import label_free_threshold

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anomalib.models import AnomalibModule

    from anomalib_comet.data import ContaminatedDataModule


def predictions_of_test_set(
    model: AnomalibModule, data: ContaminatedDataModule, device: torch.device
) -> dict[str, Any]:
    """Return what a model in evaluation mode gives for the test set, un-normalised: a normalised score saturates.

    Args:
        model: A trained model.
        data: Its data, set up.
        device: Where to run it.

    Returns:
        ``score`` of shape (N,) and ``label`` of shape (N,) as arrays, ``map`` and ``mask`` as lists of arrays of shape
        (H, W), empty where the model gives no maps or the images have no masks.

    Raises:
        SweepError: If the model gives neither scores nor maps, or one that is not finite.
    """
    return _predictions(model, data.test_dataloader(), device, "test", maps=True)


def threshold_without_labels(model: AnomalibModule, data: ContaminatedDataModule, device: torch.device) -> float:
    """Return the threshold that a model gets where no label is known: a fence over scores of what it trained on.

    The scores are those of the images that ``val_split_ratio`` holds out of the contaminated training set; where it
    holds out none, of the training images themselves, without augmentation.

    Args:
        model: A trained model.
        data: Its data, set up.
        device: Where to run it.

    Raises:
        SweepError: If a score is not finite.
    """
    if data.hold_out:
        return label_free_threshold(_predictions(model, data.val_dataloader(), device, "validation")["score"])
    images = copy.copy(data.train_data)
    images.augmentations = data.test_data.augmentations  # the model's Resize, and nothing random
    loader = DataLoader(
        images,
        batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
        collate_fn=data.external_collate_fn or images.collate_fn,
    )
    return label_free_threshold(_predictions(model, loader, device, "training")["score"])


@torch.no_grad()
def _predictions(
    model: AnomalibModule, loader: Iterable[Any], device: torch.device, kind: str, *, maps: bool = False
) -> dict[str, Any]:
    model.to(device)
    transform = getattr(model.pre_processor, "transform", None)
    parts: dict[str, list[Any]] = {"score": [], "label": [], "map": [], "mask": []}
    with evaluating(model):
        for loaded in loader:
            batch = model.transfer_batch_to_device(loaded, device, 0)
            if transform is not None:
                batch.image, batch.gt_mask = transform(batch.image, batch.gt_mask)
            labels, masks = batch.gt_label.cpu().numpy(), batch.gt_mask
            predicted: Any = model.validation_step(batch, 0)
            found, scores = predicted.anomaly_map, predicted.pred_score
            if found is not None:
                found = found.reshape(len(labels), 1, *found.shape[-2:]).float()
                scores = found.amax(dim=(1, 2, 3)) if scores is None else scores  # as anomalib's post-processor
            if scores is None:
                msg = f"{type(model).__name__} gives neither an anomaly score nor an anomaly map."
                raise SweepError(msg)
            parts["score"].append(scores.reshape(len(labels)).double().cpu().numpy())
            parts["label"].append(labels.astype(bool))
            if maps and found is not None and masks is not None:
                if found.shape[-2:] != masks.shape[-2:]:
                    found = torch.nn.functional.interpolate(found, masks.shape[-2:], mode="bilinear")
                parts["map"] += list(found[:, 0].cpu().numpy())
                parts["mask"] += list(masks.reshape(len(labels), *masks.shape[-2:]).cpu().numpy().astype(bool))
    score, label = np.concatenate(parts["score"]), np.concatenate(parts["label"])
    if not np.isfinite(score).all():
        bad = int((~np.isfinite(score)).sum())
        msg = (
            f"{type(model).__name__} gives {bad} of {len(score)} {kind} images no finite score: its training diverged."
        )
        raise SweepError(msg)
    return {"score": score, "label": label, "map": parts["map"], "mask": parts["mask"]}
