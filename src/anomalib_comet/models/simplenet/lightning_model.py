# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""SimpleNet: patch features, told apart from the same features with noise.

Example:
    >>> from anomalib.engine import Engine
    >>> from anomalib_comet.data import ProceduralSurfaces
    >>> from anomalib_comet.models import SimpleNet

    >>> model = SimpleNet(backbone="gabor", layers=["scale3", "scale4"], image_size=(256, 256), aggregation="average")
    >>> Engine(max_epochs=30).fit(model, datamodule=ProceduralSurfaces())  # doctest: +SKIP

Paper:
    Title: SimpleNet: A Simple Network for Image Anomaly Detection and Localization
    URL: https://arxiv.org/abs/2303.15140

See Also:
    :class:`anomalib_comet.models.simplenet.torch_model.SimpleNetModel`: The PyTorch model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.metrics import Evaluator  # noqa: TC002  # the command line reads the types of arguments
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor  # noqa: TC002  # the command line reads the types of arguments
from anomalib.pre_processing import PreProcessor  # noqa: TC002  # the command line reads the types of arguments
from anomalib.visualization import Visualizer  # noqa: TC002  # the command line reads the types of arguments

from anomalib_comet.distributed import Ranks
from anomalib_comet.models.frozen_features import (
    FrozenFeatures,
    check_image_size,
    parts_of,
    refuse_half_precision,
    resizing_pre_processor,
    some_vectors,
    vectors_per_image,
    weights_of,
)
from anomalib_comet.training_set import TrainingSet

from .loss import SimpleNetLoss
from .torch_model import SimpleNetModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning.pytorch.utilities.types import STEP_OUTPUT

PUBLISHED_NOISE_STD = 0.015
"""Belongs to WideResNet-50 features as they are, whose spread it is relative to."""


class SimpleNet(FrozenFeatures, AnomalibModule):  # type: ignore[misc]  # as AnomalibModule's own bases
    """Lightning module of SimpleNet (Liu, Zhou, Xu, Wang, CVPR 2023).

    Args:
        backbone (str): Frozen network: a timm or torchvision name, or ``"gabor"`` for the built-in Gabor bank, which
            needs no download. Defaults to ``"wide_resnet50_2.tv_in1k"``, the original's.
        layers (list[str] | None): Names of the network's modules whose outputs are the features; patches lie on the
            grid of the first. ``None`` takes the defaults of the backbone. Defaults to ``None``.
        pre_trained (bool): Whether to load the published weights of the backbone. Defaults to ``True``.
        backbone_weights (str | None): Path of a local state-dict file of the backbone, loaded strictly, for machines
            without a network. Defaults to ``None``.
        image_size (tuple[int, int]): Height and width in pixels to which the default pre-processor resizes images.
            Defaults to ``(288, 288)``.
        center_crop (tuple[int, int] | None): Height and width in pixels of the part that it then cuts out of the
            middle. The original resizes to 329 and cuts out 288; anomalib draws the map of a part over the whole
            image. Defaults to ``None``, no crop.
        aggregation (str): How the maps of the layers become patch features: ``"published"``, or ``"average"`` for the
            mean of each 3 x 3 neighbourhood (ours), with as many features as the layers have channels. Defaults to
            ``"published"``.
        feature_dim (int): Number of features of a patch in the published aggregation. Defaults to ``1536``.
        hidden_units (int): Width of the discriminator's hidden layer. Defaults to ``1024``.
        noise_std (float | None): Standard deviation of the noise, in units of the adapted features. ``None`` takes the
            published 0.015 where the features are the published ones (WideResNet-50-2, published aggregation, not
            scaled) and ``noise_scale`` elsewhere. Defaults to ``None``.
        noise_scale (float): Standard deviation of the noise relative to the spread of the features, which is measured
            on the training set before training. Ours, for features other than the published. Defaults to ``0.5``.
        margin (float): Truncation of the loss. Defaults to ``0.5``.
        train_patches (int | None): Number of patches an image and step on which is trained, drawn at random; ``None``
            for all, as published. Defaults to ``None``.
        feature_scaling (str): How features are scaled over the training set before they enter the adaptor (ours):
            ``"standardize"`` each to zero mean and unit variance, ``"whiten"`` to unit variance in every direction,
            ``"none"`` as published. Under CoMet with ``cross_fit_folds`` it is fitted with the confidence
            weights. Defaults to ``"none"``.
        sigma (float): Standard deviation of the anomaly map's Gaussian blur in pixels. Defaults to ``4.0``.
        cache_gib (float): Memory for remembered features in GiB, used where no training augmentation forbids it;
            images beyond it are computed anew. Defaults to ``2.0``.
        cache_half (bool): Whether features of training images are kept in half precision, twice as many in the same
            memory. Defaults to ``False``.
        lr (float): Learning rate of the discriminator. Defaults to ``2e-4``.
        adaptor_lr (float): Learning rate of the adaptor. Defaults to ``1e-4``.
        adaptor_weight_decay (float): Decoupled weight decay of the adaptor; the discriminator has none. Defaults to
            ``0.01``, that of AdamW.
        seed (int): Seed of initial weights, noise and drawn patches. Defaults to ``0``.
        pre_processor (PreProcessor | bool): Pre-processor, or whether to use the default one. Defaults to ``True``.
        post_processor (PostProcessor | bool): Post-processor, or whether to use the default one. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator, or whether to use the default one. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer, or whether to use the default one. Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of range, the backbone or a layer is unknown, or the pre-processor has no
            fixed output size; when training starts, if images of that size are too small.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """

    model: SimpleNetModel
    loss: SimpleNetLoss

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: list[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | None = None,
        image_size: tuple[int, int] = (288, 288),
        center_crop: tuple[int, int] | None = None,
        aggregation: str = "published",
        feature_dim: int = 1536,
        hidden_units: int = 1024,
        noise_std: float | None = None,
        noise_scale: float = 0.5,
        margin: float = 0.5,
        train_patches: int | None = None,
        feature_scaling: str = "none",
        sigma: float = 4.0,
        cache_gib: float = 2.0,
        cache_half: bool = False,
        lr: float = 2e-4,
        adaptor_lr: float = 1e-4,
        adaptor_weight_decay: float = 0.01,
        seed: int = 0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if (noise_std is not None and noise_std <= 0) or noise_scale <= 0:
            msg = f"noise_std and noise_scale must be above zero, got {noise_std} and {noise_scale}."
            raise ValueError(msg)
        if margin <= 0 or adaptor_weight_decay < 0:
            msg = (
                "margin must be above zero and adaptor_weight_decay not negative, "
                f"got {margin} and {adaptor_weight_decay}."
            )
            raise ValueError(msg)
        if train_patches is not None and train_patches < 1:
            msg = f"train_patches must be at least 1, got {train_patches}; leave it out to train on all patches."
            raise ValueError(msg)
        super().__init__(
            pre_processor=self.configure_pre_processor(check_image_size(image_size), center_crop)
            if pre_processor is True
            else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size is None:
            msg = "SimpleNet needs a pre-processor with a Resize to a fixed height and width, e.g. Resize((288, 288))."
            raise ValueError(msg)
        published = backbone.startswith("wide_resnet50_2") and aggregation == "published" and feature_scaling == "none"
        if noise_std is None and published:
            noise_std = PUBLISHED_NOISE_STD
        # None where the noise is given; elsewhere it is measured when training starts.
        self.noise_scale = noise_scale if noise_std is None else None
        self.model = SimpleNetModel(
            backbone=backbone,
            layers=layers,
            pre_trained=pre_trained,
            backbone_weights=backbone_weights,
            aggregation=aggregation,
            feature_dim=feature_dim,
            hidden_units=hidden_units,
            noise_std=noise_scale if noise_std is None else noise_std,
            feature_scaling=feature_scaling,
            sigma=sigma,
            seed=seed,
        )
        self.loss = SimpleNetLoss(margin)
        self.train_patches = train_patches
        self.feature_scaling = feature_scaling
        self.cache_half = cache_half
        self.lr = lr
        self.adaptor_lr = adaptor_lr
        self.adaptor_weight_decay = adaptor_weight_decay
        self.remember_features(cache_gib, seed)

    def training_inputs(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """Return what a step needs of a batch beside the trainable parameters: frozen features and one noise draw.

        Args:
            batch (ImageBatch): Training batch, pre-processed.

        Returns:
            Features and noise of shape ``(B, P, D)`` and, if a step sees some of the patches only, which ones, of
            shape ``(B, P)``.
        """
        features = self.batch_features(batch)[0].flatten(1, 2)
        generator = self.next_generator()
        drawn: tuple[torch.Tensor, ...] = ()
        if self.train_patches is not None and self.train_patches < features.shape[1]:
            order = torch.rand(features.shape[:2], generator=generator).argsort(dim=1)[:, : self.train_patches]
            drawn = (order.to(features.device),)
            features = features.gather(1, drawn[0][..., None].expand(-1, -1, features.shape[2]))
        if features.device.type != "cpu":  # noise of this size is drawn where it is used
            generator = torch.Generator(features.device).manual_seed(generator.initial_seed())
        noise = torch.randn(features.shape, generator=generator, device=features.device) * self.model.noise_std
        return (features, noise, *drawn)

    def patch_losses(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the loss of every patch.

        Args:
            inputs (tuple[torch.Tensor, ...]): What :meth:`training_inputs` returned.

        Returns:
            Losses of shape ``(B, P)``.
        """
        features, noise = inputs[:2]
        adapted = self.model.adapt(features)
        # One batch for both: batch norm must not be able to tell them apart.
        outputs = self.model.discriminate(torch.cat([adapted, adapted + noise]))
        return self.loss(outputs[: len(features)], outputs[len(features) :])

    def sample_losses(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the loss of every image, the mean over its patches.

        Args:
            inputs (tuple[torch.Tensor, ...]): What :meth:`training_inputs` returned.

        Returns:
            Losses of shape ``(B,)``.
        """
        return self.patch_losses(inputs).mean(dim=1)

    def patch_scores(self, batch: Any) -> torch.Tensor:
        """Return the anomaly score -D of every patch of a pre-processed batch, shape ``(B, P)``."""
        return self.model.patch_scores(self.batch_features(batch)[0]).flatten(1)

    def sample_scores(self, batch: Any) -> torch.Tensor:
        """Return the anomaly score of every image of a pre-processed batch, its largest patch score, shape ``(B,)``."""
        return self.patch_scores(batch).amax(dim=1)

    def select_patches(self, values: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the values of those patches that a step sees.

        Args:
            values (torch.Tensor): A value for every patch of the batch's images, shape ``(B, P)``.
            inputs (tuple[torch.Tensor, ...]): What :meth:`training_inputs` returned.

        Returns:
            torch.Tensor: In the order of :meth:`patch_losses`.
        """
        return values.gather(1, inputs[2]) if len(inputs) > 2 else values  # noqa: PLR2004

    @torch.no_grad()
    def remembered_patch_scores(self, image_paths: list[str]) -> torch.Tensor | None:
        """Return the patch scores of images whose features are remembered, without looking at the images again.

        Args:
            image_paths (list[str]): Paths of training images.

        Returns:
            torch.Tensor | None: Scores of shape ``(N, P)`` on the CPU, or ``None`` if an image is not remembered.
        """
        if not image_paths or not self.may_remember or not self._cache.holds(image_paths):
            return None
        parts = [image_paths[k : k + 16] for k in range(0, len(image_paths), 16)]
        features = (self._cache.stacked(part, self.device)[0].float() for part in parts)
        return torch.cat([self.model.patch_scores(part).flatten(1).float().cpu() for part in features])

    def remembered_scores(self, image_paths: list[str]) -> torch.Tensor | None:
        """Return the anomaly scores of images whose features are remembered, without looking at the images again.

        Args:
            image_paths (list[str]): Paths of training images.

        Returns:
            torch.Tensor | None: Scores of shape ``(N,)`` on the CPU, or ``None`` if an image is not remembered.
        """
        scores = self.remembered_patch_scores(image_paths)
        return None if scores is None else scores.amax(dim=1)

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Return the mean loss of a batch.

        Args:
            batch (ImageBatch): Training batch, pre-processed.
            *args: Unused.
            **kwargs: Unused.

        Returns:
            STEP_OUTPUT: The loss.
        """
        del args, kwargs
        loss = self.sample_losses(self.training_inputs(batch)).mean()
        self.log("train_loss", loss.detach(), on_epoch=True, prog_bar=True, batch_size=len(batch.image))
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the published optimizers as one: AdamW without weight decay, the discriminator's, is Adam."""
        return torch.optim.AdamW(
            [
                {
                    "params": list(self.model.adaptor.parameters()),
                    "lr": self.adaptor_lr,
                    "weight_decay": self.adaptor_weight_decay,
                },
                {"params": list(self.model.discriminator.parameters()), "lr": self.lr, "weight_decay": 0.0},
            ]
        )

    def setup(self, stage: str) -> None:
        """Refuse images that are too small before training starts.

        Args:
            stage (str): Lightning's stage.

        Raises:
            ValueError: If images are too small for the backbone's layers, or the trainer's precision keeps the
                parameters themselves in half precision.
        """
        super().setup(stage)
        if stage == "fit":
            refuse_half_precision(self.trainer, "SimpleNet's small steps need")
        # Not at construction: anomalib's tiled ensemble builds models with images of 10 x 10 that never see one.
        if stage == "fit" and self.input_size is not None:
            self.model.network.map_sizes(self.input_size)

    def on_train_start(self) -> None:
        """Measure the features over the training set where needed, unless a checkpoint has brought the numbers."""
        super().on_train_start()
        if not bool(self.model.is_fitted):
            self.fit_statistics(TrainingSet(self))

    @torch.no_grad()
    def fit_statistics(
        self,
        training_set: TrainingSet,
        weights: Mapping[str, float] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Fit what is fitted in closed form: the scaling of features and the size of the noise.

        Args:
            training_set (TrainingSet): The training images.
            weights (Mapping[str, float] | None): Confidence weight by image path, 1 for an image without; ``None`` for
                all 1. Defaults to ``None``.
            indices (Sequence[int] | None): Positions of the images to use; ``None`` for all. Defaults to ``None``.
        """
        if self.model.scaling.scaling == "none" and self.noise_scale is None:
            return
        count = vectors_per_image(len(training_set))
        vectors, vector_weights = [], []
        for paths, (features,) in self.features_of(training_set, indices):
            some = some_vectors(features.flatten(1, 2), count, paths).float().cpu()
            vectors.append(some.flatten(0, 1))
            vector_weights.append(weights_of(paths, weights).repeat_interleave(some.shape[1]))
        ranks = Ranks.of(self)
        vectors, vector_weights = ranks.gather(vectors), ranks.gather(vector_weights)
        self.model.fit_statistics(torch.cat(vectors), torch.cat(vector_weights), self.noise_scale)
        ranks.copy_state(self, parameters=False)

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        center_crop: tuple[int, int] | None = None,
    ) -> PreProcessor:
        """Return the default pre-processor: resize without antialiasing, crop if wished, ImageNet normalisation.

        anomalib exports a Resize without antialiasing whatever was used in training. We train without it too, so that
        an exported model gives the scores that it was evaluated with.

        Args:
            image_size (tuple[int, int] | None): Height and width in pixels. Defaults to ``None``, (288, 288).
            center_crop (tuple[int, int] | None): Height and width in pixels of the part that is cut out of the middle.
                Defaults to ``None``, no crop.

        Returns:
            PreProcessor: The pre-processor.

        Raises:
            ValueError: If the crop is larger than the image.
        """
        height, width = image_size or (288, 288)
        if center_crop is None:
            return resizing_pre_processor((height, width))
        if center_crop[0] > height or center_crop[1] > width:
            msg = f"center_crop {tuple(center_crop)} must not be larger than image_size {(height, width)}."
            raise ValueError(msg)
        return resizing_pre_processor((height, width), (center_crop[0], center_crop[1]))

    def batch_features(self, batch: Any) -> tuple[torch.Tensor]:
        """Return patch features of shape ``(B, h, w, D)``, remembered where an image always gives the same.

        Args:
            batch (ImageBatch): Batch, pre-processed.
        """
        (features,) = self._cache.get(
            batch.image_path if self.may_remember else None,
            batch.image,
            self._patch_features,
        )
        return (features.float(),)

    def _patch_features(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        with torch.autocast(images.device.type, enabled=False):  # the same in every precision, and after a resume
            features = torch.cat([self.model.features(part) for part in parts_of(images)])
        # Rounded whether it is going to be remembered or not: training must not depend on how much memory there is.
        return (features.half() if self.cache_half else features,)
