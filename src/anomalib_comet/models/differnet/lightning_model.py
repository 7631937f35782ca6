# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""DifferNet: image-level anomaly detection with a normalizing flow on multi-scale features.

Example:
    >>> from anomalib.engine import Engine
    >>> from anomalib_comet.data import ProceduralSurfaces
    >>> from anomalib_comet.models import DifferNet

    >>> model = DifferNet(backbone="gabor", image_size=(256, 256), hidden_units=256)
    >>> Engine(max_epochs=30).fit(model, datamodule=ProceduralSurfaces())  # doctest: +SKIP

Paper:
    Title: Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows
    URL: https://arxiv.org/abs/2008.12577

See Also:
    :class:`anomalib_comet.models.differnet.torch_model.DifferNetModel`: The PyTorch model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.metrics import Evaluator  # noqa: TC002  # the command line reads the types of arguments
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor  # noqa: TC002  # the command line reads the types of arguments
from anomalib.visualization import Visualizer  # noqa: TC002  # the command line reads the types of arguments

from anomalib_comet.distributed import Ranks
from anomalib_comet.models.frozen_features import (
    SCORE_BATCH,
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

from .augmentation import check_rotations, random_rotations
from .loss import DifferNetLoss
from .torch_model import DifferNetModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning.pytorch.utilities.types import STEP_OUTPUT


class DifferNet(FrozenFeatures, AnomalibModule):  # type: ignore[misc]  # as AnomalibModule's own bases
    """Lightning module of DifferNet.

    The image score is the original's (Rudolph, Wandt, Rosenhahn, WACV 2021): ``mean z^2`` of a normalizing flow on
    globally pooled features of three scales, over fixed quarter turns of the image. The anomaly map is ours: a second,
    small flow on the same features of local windows, trained beside the first and sharing no parameter with it.

    Args:
        backbone (str): Frozen network: a timm or torchvision name, or ``"gabor"`` for the built-in Gabor bank, which
            needs no download. Defaults to ``"alexnet"``, the original's.
        layers (list[str] | None): Names of the network's modules whose outputs are the features; ``None`` takes the
            defaults of the backbone. Defaults to ``None``.
        pre_trained (bool): Whether to load the published weights of the backbone. Defaults to ``True``.
        backbone_weights (str | None): Path of a local state-dict file of the backbone, loaded strictly, for machines
            without a network. Defaults to ``None``.
        image_size (tuple[int, int]): Height and width in pixels to which the default pre-processor resizes images.
            Defaults to ``(448, 448)``.
        n_scales (int): Number of image scales, each half the one before. Defaults to ``3``.
        n_transforms (int): Number of quarter turns over which a score is averaged: 1, 2 or 4. Defaults to ``4``.
        coupling_blocks (int): Number of coupling blocks of the flow. Defaults to ``8``.
        hidden_units (int): Width of the hidden layers of the flow's subnets. Defaults to ``2048``.
        clamp (float): Bound of the soft-clamped log-scale of a coupling. Defaults to ``3.0``.
        n_windows (int): Number of local windows along the shorter side of the anomaly map; 0 gives image scores only.
            Defaults to ``14``.
        local_coupling_blocks (int): Number of coupling blocks of the map's flow. Defaults to ``4``.
        local_hidden_units (int): Width of the hidden layers of the map's flow. Defaults to ``256``.
        image_score (str): ``"global"`` for the original's image score; ``"local"`` for the mean of the largest
            scores of local windows (ours), which sees defects that are too small to show in globally pooled features;
            ``"both"`` for the geometric mean of the two (ours). Defaults to ``"global"``.
        local_share (float): Share of an image's windows, the most anomalous ones, whose mean is the local score; 0
            takes the single largest. Defaults to ``0.0``.
        pooling (str): ``"mean"`` as published, or ``"mean_std"`` (ours): the standard deviation over an image's places
            shows a small defect that their mean does not. Defaults to ``"mean"``.
        train_windows (int): Number of local windows an image, turn and step on which the map's flow is trained, drawn
            at random. Defaults to ``16``.
        feature_scaling (str): How features are scaled over the training set before they enter the flows (ours):
            ``"standardize"`` each to zero mean and unit variance, ``"whiten"`` to unit variance in every direction,
            ``"none"`` as published. Under CoMet with ``cross_fit_folds`` it is fitted with the confidence
            weights. Defaults to ``"standardize"``.
        identity_start (bool): Whether the flows start as the identity, so that the first scores are Mahalanobis
            distances with ``feature_scaling="whiten"`` (ours). Defaults to ``False``.
        train_rotations (str): Poses of training images: ``"random"`` draws four random angles an image and step, as
            published; ``"quarter"`` takes the quarter turns of the score, whose features are computed once and
            remembered. Defaults to ``"random"``.
        cache_gib (float): Memory for remembered features in GiB, used with ``train_rotations="quarter"`` where no
            training augmentation forbids it; images beyond it are computed anew. Defaults to ``2.0``.
        lr (float): Learning rate of Adam. Defaults to ``2e-4``.
        seed (int): Seed of initial weights, permutations and random rotations. Defaults to ``0``.
        pre_processor (PreProcessor | bool): Pre-processor, or whether to use the default one. Defaults to ``True``.
        post_processor (PostProcessor | bool): Post-processor, or whether to use the default one, anomalib's. Without
            masks, that takes the image's threshold for the map if ``image_score`` is local, else the middle of the
            map's range. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator, or whether to use the default one. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer, or whether to use the default one. Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of range, the backbone or a layer is unknown, or the pre-processor has no
            fixed output size; when training starts, if images of that size are too small at the coarsest scale.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """

    model: DifferNetModel
    loss: DifferNetLoss

    def __init__(
        self,
        backbone: str = "alexnet",
        layers: list[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | None = None,
        image_size: tuple[int, int] = (448, 448),
        n_scales: int = 3,
        n_transforms: int = 4,
        coupling_blocks: int = 8,
        hidden_units: int = 2048,
        clamp: float = 3.0,
        n_windows: int = 14,
        local_coupling_blocks: int = 4,
        local_hidden_units: int = 256,
        image_score: str = "global",
        local_share: float = 0.0,
        pooling: str = "mean",
        train_windows: int = 16,
        feature_scaling: str = "standardize",
        identity_start: bool = False,
        train_rotations: str = "random",
        cache_gib: float = 2.0,
        lr: float = 2e-4,
        seed: int = 0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_rotations(train_rotations)
        if train_windows < 1:
            msg = f"train_windows must be at least 1, got {train_windows}; n_windows=0 turns the anomaly map off."
            raise ValueError(msg)
        super().__init__(
            pre_processor=self.configure_pre_processor(check_image_size(image_size))
            if pre_processor is True
            else pre_processor,
            # The map is that of the local flow. A global score's threshold says nothing about it.
            post_processor=PostProcessor(enable_threshold_matching=image_score == "local")
            if post_processor is True
            else post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size is None:
            msg = "DifferNet needs a pre-processor with a Resize to a fixed height and width, e.g. Resize((448, 448))."
            raise ValueError(msg)
        self.model = DifferNetModel(
            backbone=backbone,
            layers=layers,
            pre_trained=pre_trained,
            backbone_weights=backbone_weights,
            image_size=self.input_size,
            n_scales=n_scales,
            n_transforms=n_transforms,
            coupling_blocks=coupling_blocks,
            hidden_units=hidden_units,
            clamp=clamp,
            n_windows=n_windows,
            local_coupling_blocks=local_coupling_blocks,
            local_hidden_units=local_hidden_units,
            image_score=image_score,
            local_share=local_share,
            pooling=pooling,
            feature_scaling=feature_scaling,
            identity_start=identity_start,
            seed=seed,
        )
        self.loss = DifferNetLoss()
        self.train_windows = train_windows
        self.train_rotations = train_rotations
        self.feature_scaling = feature_scaling
        self.lr = lr
        self.remember_features(cache_gib, seed)

    def training_inputs(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """Return what a step needs of a batch beside the trainable parameters: the frozen features.

        Args:
            batch (ImageBatch): Training batch, pre-processed.

        Returns:
            Pooled features of shape ``(B, T, D)`` and, with an anomaly map, windows of shape ``(B, T, D, h, w)``.
        """
        generator = self.next_generator()
        if self.train_rotations == "random":
            features = self._rotated_features(batch.image, generator)
        else:
            features = self.batch_features(batch)
        return self._sample_windows(features, generator)

    def sample_losses(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the loss of every image: negative log-likelihood per dimension, of both flows.

        Args:
            inputs (tuple[torch.Tensor, ...]): What :meth:`training_inputs` returned.

        Returns:
            Losses of shape ``(B,)``.
        """
        losses = self.loss(*self.model.latents(inputs[0]))
        if len(inputs) > 1:
            losses = losses + self.loss(*self.model.local_latents(inputs[1]))
        return losses

    def sample_scores(self, batch: Any) -> torch.Tensor:
        """Return the anomaly score ``mean z^2`` of every image of a pre-processed batch, shape ``(B,)``."""
        if self.may_remember:
            return self.model.score(self.batch_features(batch))
        with_windows = self.model.image_score != "global"
        return self.model.score(self.model.turned_features(batch.image, with_windows=with_windows))

    @torch.no_grad()
    def remembered_scores(self, image_paths: list[str]) -> torch.Tensor | None:
        """Return the anomaly scores of images whose features are remembered, without looking at the images again.

        Args:
            image_paths (list[str]): Paths of training images.

        Returns:
            torch.Tensor | None: Scores of shape ``(N,)`` on the CPU, or ``None`` if an image is not remembered.
        """
        if not image_paths or not self.may_remember or not self._cache.holds(image_paths):
            return None
        parts = [image_paths[k : k + SCORE_BATCH] for k in range(0, len(image_paths), SCORE_BATCH)]
        scores = [self.model.score(self._cache.stacked(part, self.device)) for part in parts]
        return torch.cat(scores).float().cpu()

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
        """Return Adam with the published settings, over the flows."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=self.lr, betas=(0.8, 0.8), eps=1e-4)

    def setup(self, stage: str) -> None:
        """Refuse images that are too small before training starts.

        Args:
            stage (str): Lightning's stage.

        Raises:
            ValueError: If images are too small for the backbone at the coarsest scale, or the trainer's precision keeps
                the parameters themselves in half precision.
        """
        super().setup(stage)
        if stage == "fit":
            refuse_half_precision(self.trainer, "DifferNet's likelihood needs")
        # Not at construction: anomalib's tiled ensemble builds models with images of 10 x 10 that never see one.
        if stage == "fit" and self.input_size is not None:
            self.model.features.check_image_size(self.input_size)

    def on_train_start(self) -> None:
        """Scale the features over the training set, unless a checkpoint has brought the numbers."""
        super().on_train_start()
        if not bool(self.model.scaling.is_fitted):
            self.fit_statistics(TrainingSet(self))

    @torch.no_grad()
    def fit_statistics(
        self,
        training_set: TrainingSet,
        weights: Mapping[str, float] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Fit what is fitted in closed form: the scaling of features, with confidence weights.

        Args:
            training_set (TrainingSet): The training images.
            weights (Mapping[str, float] | None): Confidence weight by image path, 1 for an image without; ``None`` for
                all 1. Defaults to ``None``.
            indices (Sequence[int] | None): Positions of the images to use; ``None`` for all. Defaults to ``None``.
        """
        if self.model.scaling.scaling == "none":
            return
        count = vectors_per_image(len(training_set))
        pooled, windows, image_weights = [], [], []
        for paths, features in self.features_of(training_set, indices):
            image_weights.append(weights_of(paths, weights))
            pooled.append(features[0].cpu())
            if len(features) > 1:
                windows.append(some_vectors(features[1].movedim(2, -1).flatten(1, 3), count, paths).cpu())
        ranks = Ranks.of(self)
        pooled, windows, image_weights = (ranks.gather(part) for part in (pooled, windows, image_weights))
        self.model.fit_scaling(
            torch.cat(pooled),
            torch.cat(windows) if windows else None,
            torch.cat(image_weights),
        )
        ranks.copy_state(self, parameters=False)

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the default pre-processor: resize without antialiasing, then ImageNet normalisation.

        anomalib exports a Resize without antialiasing whatever was used in training. We train without it too, so that
        an exported model gives the scores that it was evaluated with.

        Args:
            image_size (tuple[int, int] | None): Height and width in pixels. Defaults to ``None``, (448, 448).

        Returns:
            PreProcessor: The pre-processor.
        """
        return resizing_pre_processor(image_size or (448, 448))

    @property
    def may_remember(self) -> bool:
        """Whether an image always gives the same features: with quarter turns and without training augmentations."""
        return self.train_rotations == "quarter" and super().may_remember

    def batch_features(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """Return features over the quarter turns of the score, remembered where an image always gives the same.

        Args:
            batch (ImageBatch): Batch, pre-processed.

        Returns:
            tuple[torch.Tensor, ...]: Pooled features of shape ``(B, T, D)`` and, with an anomaly map, windows of shape
                ``(B, T, D', h, w)``.
        """
        return self._cache.get(
            batch.image_path if self.may_remember else None,
            batch.image,
            self._turned_features,
        )

    def _turned_features(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(images.device.type, enabled=False):  # the same in every precision, and after a resume
            features = [self._with_windows(*self.model.turned_features(part)) for part in parts_of(images)]
        return tuple(torch.cat(column) for column in zip(*features, strict=True))

    def _rotated_features(self, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Features over four random rotations of each image."""
        rotated = random_rotations(images, n_rotations=4, generator=generator)
        with torch.autocast(images.device.type, enabled=False):
            features = self._with_windows(*self.model.features(rotated.flatten(0, 1)))
        return tuple(tensor.unflatten(0, rotated.shape[:2]) for tensor in features)

    def _sample_windows(
        self,
        features: tuple[torch.Tensor, ...],
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, ...]:
        """Keep ``train_windows`` random windows of each image: shape ``(B, T, D, train_windows, 1)``."""
        if len(features) == 1:
            return features
        windows = features[1].flatten(3)
        order = torch.randperm(windows.shape[-1], generator=generator)[: self.train_windows]
        return features[0], windows[..., order.to(windows.device), None]

    def _with_windows(self, pooled: torch.Tensor, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (pooled, windows) if self.model.local_flow is not None else (pooled,)
