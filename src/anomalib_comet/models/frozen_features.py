# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What our detectors on frozen features have in common beside anomalib's own base class."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib import LearningType
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_comet.backbones import FeatureCache
from anomalib_comet.checkpoints import CheckpointWriter
from anomalib_comet.distributed import InStep, Ranks
from anomalib_comet.guard import with_guard

from .local_backbone import LocalBackbone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.utilities.types import STEP_OUTPUT

    from anomalib_comet.training_set import TrainingSet

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
DRAWS_KEY = "frozen_features_draws"

SCORE_BATCH = 32
"""Images whose remembered features are taken at a time: maps of features take memory."""

STATISTICS_VECTORS = 10_000
"""About as many local features of the whole training set are used to fit statistics over them."""


class FrozenFeatures(CheckpointWriter, InStep, LocalBackbone):  # type: ignore[misc]  # as AnomalibModule's own bases
    """A mixin for Lightning modules that train a head on a frozen backbone.

    It validates by the model's forward pass, restores checkpoints without weights of the backbone, remembers features
    of training images, and draws random numbers that a resumed run continues. Place it before ``AnomalibModule``.
    """

    seed: int
    _cache: FeatureCache
    _draws: int

    def remember_features(self, cache_gib: float, seed: int) -> None:
        """Set up the memory of features and the seed of random draws; call it in the constructor.

        Args:
            cache_gib (float): Bound of memory in GiB; 0 remembers nothing.
            seed (int): Seed of all random draws.
        """
        if cache_gib < 0:
            msg = f"cache_gib must not be negative, got {cache_gib}; 0 remembers nothing."
            raise ValueError(msg)
        self._cache = FeatureCache(cache_gib)
        self._draws = 0
        self.seed = seed

    @property
    def may_remember(self) -> bool:
        """Whether an image always gives the same features: not with training augmentations."""
        trainer = self._trainer
        datamodule = getattr(trainer, "datamodule", None) if trainer is not None else None
        return datamodule is not None and getattr(datamodule, "train_augmentations", None) is None

    @property
    def fits_afresh(self) -> bool:
        """Whether the fit that runs resumes nothing: neither a checkpoint nor a fit of the same trainer before."""
        return self._trainer is not None and self.current_epoch == 0 and not self.trainer.ckpt_path

    def next_generator(self) -> torch.Generator:
        """Return a generator on the CPU, seeded by the number of draws so far, which is part of a checkpoint."""
        self._draws += 1
        seed = (self.seed * 1_000_003 + self._draws) * 1_009 + self.global_rank
        return torch.Generator().manual_seed(seed % 2**63)

    def batch_features(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """Return the frozen features of a pre-processed batch, remembered where :attr:`may_remember` allows it.

        Args:
            batch (ImageBatch): Batch, pre-processed.
        """
        raise NotImplementedError

    def features_of(
        self,
        training_set: TrainingSet,
        indices: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[str], tuple[torch.Tensor, ...]]]:
        """Yield paths and features of training images; images are not decoded where all features are remembered.

        Of several processes every one yields a share of the images.

        Args:
            training_set (TrainingSet): The training images.
            indices (Sequence[int] | None): Their positions; ``None`` for all. Defaults to ``None``.
        """
        ranks = Ranks.of(self)
        if ranks.count > 1:
            indices = ranks.share(range(len(training_set)) if indices is None else indices)
        known = training_set.paths(indices) if self.may_remember else None
        if known and self._cache.holds(known):
            for start in range(0, len(known), SCORE_BATCH):
                part = known[start : start + SCORE_BATCH]
                yield part, self._cache.stacked(part, self.device)
            return
        for batch in training_set.batches(indices):
            yield [str(path) for path in batch.image_path], self.batch_features(batch)

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Return predictions for a batch.

        Args:
            batch (ImageBatch): Validation batch, pre-processed.
            *args: Unused.
            **kwargs: Unused.

        Returns:
            STEP_OUTPUT: The batch with predictions.
        """
        del args, kwargs
        return batch.update(**self.model(batch.image)._asdict())

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks of anomalib's base class, and the one that sees faults before they cost a training."""
        return with_guard(super().configure_callbacks(), self._trainer)

    def on_fit_end(self) -> None:
        """Forget the features of the training set."""
        super().on_fit_end()
        self._cache.clear()

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Return the trainer arguments: no validation before training."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """Return the learning type: one class."""
        return LearningType.ONE_CLASS

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the number of random draws to a checkpoint.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[DRAWS_KEY] = self._draws

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the number of random draws from a checkpoint.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
        """
        super().on_load_checkpoint(checkpoint)
        self._draws = int(checkpoint.get(DRAWS_KEY, 0))


def check_image_size(image_size: Sequence[int]) -> tuple[int, int]:
    """Return height and width in pixels, plain and above zero.

    Raises:
        ValueError: If ``image_size`` is anything else than two whole numbers above zero.
    """
    if len(image_size) != 2 or any(int(side) != side or side < 1 for side in image_size):  # noqa: PLR2004
        msg = f"image_size must be a height and a width in pixels, e.g. (256, 256), got {tuple(image_size)}."
        raise ValueError(msg)
    return int(image_size[0]), int(image_size[1])


def refuse_half_precision(trainer: Trainer, why: str) -> None:
    """Refuse a trainer that keeps the parameters themselves in half precision.

    Args:
        trainer: The trainer of a fit that is about to start.
        why: What of the detector is lost in it, the subject of the message.

    Raises:
        ValueError: If the trainer's precision is ``bf16-true`` or ``16-true``.
    """
    if trainer.precision in {"bf16-true", "16-true"}:
        msg = f"{why} parameters in full precision, not {trainer.precision}: use 32-true or bf16-mixed."
        raise ValueError(msg)


def refuse_augmentations(trainer: Trainer, detector: str) -> None:
    """Refuse training augmentations where the features of an image are computed once.

    Args:
        trainer: The trainer of a fit that is about to start.
        detector: Name of the detector, the subject of the message.

    Raises:
        ValueError: If the trainer's data module augments training images.
    """
    if getattr(getattr(trainer, "datamodule", None), "train_augmentations", None) is not None:
        msg = f"{detector} trains on features that are computed once an image: leave train_augmentations out."
        raise ValueError(msg)


def parts_of(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return images in the parts in which a frozen network is asked about them.

    On a CPU one image at a time is 2.4 times as fast as 32 (activations stay in the cache), and an image's features do
    not depend on its neighbours in a batch, so that a resumed run sees the same numbers.
    """
    return images.split(1 if images.device.type == "cpu" else len(images))


def weights_of(image_paths: Sequence[str], weights: Mapping[str, float] | None) -> torch.Tensor:
    """Return the confidence weights of images, shape ``(N,)``: 1 for an image without one, and for all without weights.

    Args:
        image_paths: Paths of the images.
        weights: Confidence weight by image path, or ``None``.
    """
    return torch.tensor([1.0 if weights is None else weights.get(path, 1.0) for path in image_paths])


def vectors_per_image(n_images: int) -> int:
    """Return how many local features of each image to use for statistics over :data:`STATISTICS_VECTORS` of them."""
    return max(1, STATISTICS_VECTORS // max(1, n_images))


def some_vectors(vectors: torch.Tensor, count: int, names: Sequence[str]) -> torch.Tensor:
    """Return ``count`` of the P vectors of every image, from places that differ from image to image.

    A step from place to place that shares a factor with the width of the grid would see a few columns of it only, and
    the same places of every image would miss what the others hold. Here the first place of an image comes from its
    name, and the step is near the golden section of P and has no factor in common with it: the places are spread over
    rows and columns, none twice, and do not depend on how images are divided into batches or among processes.

    Args:
        vectors: Shape ``(B, P, D)``.
        count: Number of vectors of an image; all where there are no more.
        names: Paths of the images; only their last part counts.

    Returns:
        Shape ``(B, min(count, P), D)``.
    """
    n_places = vectors.shape[1]
    if count >= n_places:
        return vectors
    step = next(s for s in range(round(0.618 * n_places), 0, -1) if math.gcd(s, n_places) == 1)
    first = torch.tensor([zlib.crc32(Path(name).name.encode("utf-8", "surrogateescape")) for name in names])
    places = (first[:, None] + step * torch.arange(count)) % n_places
    return vectors.gather(1, places.to(vectors.device)[..., None].expand(-1, -1, vectors.shape[2]))


def resizing_pre_processor(image_size: tuple[int, int], center_crop: tuple[int, int] | None = None) -> PreProcessor:
    """Return a pre-processor: resize without antialiasing, crop if wished, then ImageNet normalisation.

    anomalib exports a Resize without antialiasing whatever was used in training. We train without it too, so that an
    exported model gives the scores that it was evaluated with.

    Args:
        image_size: Height and width in pixels.
        center_crop: Height and width in pixels of the part that is cut out of the middle. Defaults to ``None``, no
            crop.

    Returns:
        The pre-processor.
    """
    crop = [] if center_crop is None else [CenterCrop(center_crop)]
    normalize = Normalize(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return PreProcessor(transform=Compose([Resize(image_size, antialias=False), *crop, normalize]))
