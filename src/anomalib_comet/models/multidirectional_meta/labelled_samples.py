# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Features of the training images, sorted into normal ones and classes of labelled anomalies."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_comet.backbones import FeatureScaling
from anomalib_comet.data.contamination import frames
from anomalib_comet.models.frozen_features import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .torch_model import MultidirectionalMetaModel

logger = logging.getLogger(__name__)

COVERED = 0.5
"""A patch is anomalous where the mask covers at least this share of it."""


@dataclass(frozen=True)
class Samples:
    """What an episode trains on.

    Args:
        normals: Features of normal samples, shape ``(N, D)``.
        anomalies: Features of labelled anomalies by class, shapes ``(A_c, D)``.
        images: Number of the image that each normal sample is of, shape ``(N,)``.
        labelled: Number of images labelled anomalous by class.
    """

    normals: torch.Tensor
    anomalies: dict[str, torch.Tensor]
    images: torch.Tensor
    labelled: dict[str, int]


def defect_types(table: Any) -> dict[str, str]:
    """Return the defect type of each image by path, as far as a data set's table tells; labels are not read here.

    Args:
        table (pandas.DataFrame | None): The table of a training set.
    """
    if table is None or "image_path" not in table.columns:
        return {}
    for column in (frames.TRUE_DEFECT_TYPE, "defect_type", "anomaly_class", "label"):
        if column in table.columns:
            names = table[column].fillna("").astype(str)
            return dict(zip(table["image_path"].astype(str), names, strict=True))
    return {}


@torch.no_grad()
def collect(
    model: MultidirectionalMetaModel,
    batches: Iterable[Any],
    types: Mapping[str, str],
    train_patches: int,
    generator: torch.Generator,
) -> Samples:
    """Compute and sort the features of all training images.

    Only what an image's *label* says decides whether it is normal; a hidden anomaly is a normal sample.

    Args:
        model: The model.
        batches: Batches of training images, pre-processed.
        types: Defect type by path, used for images labelled anomalous.
        train_patches: At patch level, patches that are kept of a normal image, drawn at random.
        generator: Draws them.

    Returns:
        The samples, on the CPU.
    """
    normals: list[torch.Tensor] = []
    marked: dict[str, list[torch.Tensor]] = {}
    unmarked: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        with torch.autocast(batch.image.device.type, enabled=False):
            features = torch.cat([model.features(part) for part in parts_of(batch.image)]).float().cpu()
        labels = batch.gt_label.bool().flatten().tolist()
        covered = _covered(batch.gt_mask, model) if model.level == "patch" else None
        for k, path in enumerate(map(str, batch.image_path)):
            own = features[k].reshape(-1, features.shape[-1])
            if not labels[k]:
                if model.level == "patch" and train_patches < len(own):
                    own = own[torch.randperm(len(own), generator=generator)[:train_patches]]
                normals.append(own)
                continue
            name = types.get(path) or "anomaly"
            inside = None if covered is None else covered[k].flatten()
            if model.level == "image":
                marked.setdefault(name, []).append(own)
            elif inside is not None and bool(inside.any()):
                marked.setdefault(name, []).append(own[inside])
            else:
                unmarked.setdefault(name, []).append(own)
    if not normals:
        msg = "MultidirectionalMeta needs normal training images, and the training set has none that is labelled so."
        raise ValueError(msg)
    known = torch.cat(normals)
    if unmarked:
        _take_farthest(model, known, unmarked, marked)
    images = torch.arange(len(normals)).repeat_interleave(torch.tensor([len(own) for own in normals]))
    names = sorted(marked)
    anomalies, labelled = {name: torch.cat(marked[name]) for name in names}, {name: len(marked[name]) for name in names}
    return Samples(known, anomalies, images, labelled)


def _covered(masks: torch.Tensor | None, model: MultidirectionalMetaModel) -> torch.Tensor | None:
    """Return which patches the masks mark, shape ``(B, h, w)``: the best covered one where none is covered enough."""
    if masks is None:
        return None
    shares = F.adaptive_avg_pool2d(masks.float().reshape(len(masks), 1, *masks.shape[-2:]), model.descriptors.grid)
    shares = shares[:, 0].cpu()
    best = shares.amax(dim=(1, 2), keepdim=True)
    return (shares >= torch.minimum(best, torch.tensor(COVERED))) & (shares > 0)


def _take_farthest(
    model: MultidirectionalMetaModel,
    normals: torch.Tensor,
    unmarked: Mapping[str, list[torch.Tensor]],
    marked: dict[str, list[torch.Tensor]],
) -> None:
    """Take, of labelled anomalies without a mask, the share ``top_share`` of patches farthest from normal ones."""
    logger.warning(
        "%d labelled anomalies of %s have no mask: their patches that lie farthest from normal ones are taken for the "
        "defect, which is less certain than a mask.",
        sum(map(len, unmarked.values())),
        ", ".join(sorted(unmarked)),
    )
    scaling = FeatureScaling(normals.shape[1], "pca")
    scaling.fit(normals, torch.ones(len(normals)))
    for name, images in unmarked.items():
        for own in images:
            distances = scaling(own).square().sum(dim=1)
            count = max(1, round(model.top_share * len(own)))
            marked.setdefault(name, []).append(own[distances.topk(count).indices])
