# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""One pass over image files: thumbnails, and what a model says of the images."""

from __future__ import annotations

import contextlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as geometry

from anomalib_comet.training_set import evaluating

from .tiles import Extent, aligned_map, grid_shape, model_view, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

_READERS = 4


@dataclass
class Look:
    """What was seen of one image.

    Attributes:
        picture: Thumbnail as WebP; empty if the image could not be read.
        heat: Heat map on a grid that covers the image, or ``None``.
        score: The model's un-normalised anomaly score; NaN without a model.
        problem: Why the image could not be read; empty if it could.
    """

    picture: bytes = b""
    heat: np.ndarray | None = None
    score: float = math.nan
    problem: str = ""


@dataclass
class _Opened:
    look: Look
    tensor: torch.Tensor | None = None
    grid: tuple[int, int] = (1, 1)
    view: Extent = (0.0, 0.0, 1.0, 1.0)


def look_at(
    image_paths: Sequence[str],
    model: Any = None,
    *,
    thumbnail_size: int = 144,
    batch_size: int = 16,
    advance: Callable[[int], Any] | None = None,
) -> list[Look]:
    """Read images, make thumbnails, and take scores and heat maps from a model in evaluation mode.

    Scores and maps are those of ``model.model``, before any post-processor: a normalised score saturates at 1.

    Args:
        image_paths: Files to read. One that cannot be read is no error; its ``problem`` says why.
        model: An anomalib model; ``None`` makes thumbnails only. Defaults to ``None``.
        thumbnail_size: Longest side of a thumbnail in pixels. Defaults to ``144``.
        batch_size: Images in one pass through the model. Defaults to ``16``.
        advance: Called with the number of images done since the last call. Defaults to ``None``.

    Returns:
        One entry an image, in order.

    Raises:
        TypeError: If the model does not give anomaly scores or maps.
    """
    transform = getattr(getattr(model, "pre_processor", None), "transform", None)

    def opened(path: str) -> _Opened:
        return _open(path, transform, thumbnail_size, tensor=model is not None)

    looks: list[Look] = []
    modes = contextlib.nullcontext() if model is None else evaluating(model)
    with torch.no_grad(), modes, ThreadPoolExecutor(_READERS) as readers:
        # The next batch is read while the model looks at this one.
        starts = range(0, len(image_paths), batch_size)
        pending = [readers.submit(opened, path) for path in image_paths[:batch_size]]
        try:
            for start in starts:
                batch = [future.result() for future in pending]
                following = image_paths[start + batch_size : start + 2 * batch_size]
                pending = [readers.submit(opened, path) for path in following]
                if model is not None:
                    for group in _groups_of_one_shape(batch):
                        _predict(model, group)
                looks += [entry.look for entry in batch]
                if advance is not None:
                    advance(len(batch))
        finally:
            for future in pending:
                future.cancel()
    return looks


def _open(path: str, transform: Any, thumbnail_size: int, *, tensor: bool) -> _Opened:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
        picture = thumbnail(image, thumbnail_size)
    except Exception as error:  # noqa: BLE001  # whatever a broken file makes its decoder raise
        return _Opened(Look(problem=" ".join(str(error).split()) or type(error).__name__))
    opened = _Opened(Look(picture))
    if tensor:
        # As anomalib reads images: scaled to [0, 1], then pre-processed.
        pixels = geometry.to_dtype(geometry.to_image(image), torch.float32, scale=True)
        opened.tensor = (pixels if transform is None else transform(pixels[None])[0]).as_subclass(torch.Tensor)
        opened.grid = grid_shape(image.height, image.width, thumbnail_size)
        opened.view = model_view(transform, image.height, image.width)
    return opened


def _groups_of_one_shape(batch: Sequence[_Opened]) -> Iterator[list[_Opened]]:
    groups: dict[torch.Size, list[_Opened]] = {}
    for entry in batch:
        if entry.tensor is not None:
            groups.setdefault(entry.tensor.shape, []).append(entry)
    yield from groups.values()


def _predict(model: Any, group: list[_Opened]) -> None:
    images = torch.stack([entry.tensor for entry in group if entry.tensor is not None])
    predictions = model.model(images.to(model.device))
    scores, maps = getattr(predictions, "pred_score", None), getattr(predictions, "anomaly_map", None)
    if maps is not None:
        maps = maps.reshape(len(group), *maps.shape[-2:])
        scores = maps.amax(dim=(-2, -1)) if scores is None else scores  # what anomalib's post-processor does
    if scores is None:
        msg = f"{type(model).__name__} gives neither an anomaly score nor an anomaly map in evaluation mode."
        raise TypeError(msg)
    for k, (entry, score) in enumerate(zip(group, scores.reshape(len(group)).double().tolist(), strict=True)):
        entry.tensor = None
        entry.look.score = score
        if maps is not None:
            entry.look.heat = aligned_map(maps[k], entry.view, entry.grid)
