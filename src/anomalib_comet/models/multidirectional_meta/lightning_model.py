# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Multidirectional meta-learning: plenty of normal images, a few labelled anomalies, unseen defect types.

Example:
    >>> from anomalib.engine import Engine
    >>> from anomalib_comet.data import FewShotDataModule, ProceduralSurfaces
    >>> from anomalib_comet.models import MultidirectionalMeta

    >>> data = FewShotDataModule(ProceduralSurfaces(), shots=5, held_out=["scratch"])
    >>> model = MultidirectionalMeta(backbone="gabor", image_size=(256, 256))
    >>> Engine(max_epochs=20).fit(model, datamodule=data)  # doctest: +SKIP

Paper:
    Title: A Multi-directional Meta-Learning Framework for Class-Generalizable Anomaly Detection
    URL: https://arxiv.org/abs/2601.19833

See Also:
    :class:`anomalib_comet.multidirectional_meta.MultidirectionalDetector`: The same on arrays of features.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from anomalib.metrics import Evaluator  # noqa: TC002  # the command line reads the types of arguments
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor  # noqa: TC002  # the command line reads the types of arguments
from anomalib.pre_processing import PreProcessor  # noqa: TC002  # the command line reads the types of arguments
from anomalib.visualization import Visualizer  # noqa: TC002  # the command line reads the types of arguments
from sklearn.metrics import roc_auc_score

from anomalib_comet.arguments import is_number, is_whole
from anomalib_comet.models.frozen_features import (
    FrozenFeatures,
    refuse_augmentations,
    refuse_half_precision,
    resizing_pre_processor,
)
from anomalib_comet.multidirectional_meta import (
    EpisodeSettings,
    Record,
    Stepper,
    make_optimizers,
    run_episode,
)
from anomalib_comet.multidirectional_meta.direction import too_little
from anomalib_comet.training_set import TrainingSet, evaluating

from .labelled_samples import Samples, collect, defect_types
from .torch_model import MultidirectionalMetaModel

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import STEP_OUTPUT

logger = logging.getLogger(__name__)


class MultidirectionalMeta(FrozenFeatures, AnomalibModule):  # type: ignore[misc]  # as AnomalibModule's own bases
    """Lightning module of multidirectional meta-learning (Roy, Mili, Boker, arXiv 2601.19833).

    The features of the training images are computed once. An epoch is an episode: an inner phase on normal samples,
    then an outer one that tunes the decision surface by labelled anomalies. Labelled anomalies are the training images
    whose label says so, see :class:`anomalib_comet.data.FewShotDataModule`.

    Args:
        backbone (str): Frozen network: a timm or torchvision name, or ``"gabor"`` for the built-in Gabor bank, which
            needs no download. Defaults to ``"wide_resnet50_2.tv_in1k"``.
        layers (list[str] | None): Names of the network's modules whose outputs are the features; ``None`` takes the
            defaults of the backbone. Defaults to ``None``.
        pre_trained (bool): Whether to load the published weights of the backbone. Defaults to ``True``.
        backbone_weights (str | None): Path of a local state-dict file of the backbone, loaded strictly, for machines
            without a network. Defaults to ``None``.
        image_size (tuple[int, int]): Height and width in pixels to which the default pre-processor resizes images.
            Defaults to ``(224, 224)``.
        level (str): ``"image"`` for pooled features of an image, as published, or ``"patch"`` (ours) for features of
            patches, which gives a map; labelled anomalies then need masks. Defaults to ``"image"``.
        pooling (str): How patches become an image: ``"mean"``, ``"mean_std"``, or ``"windows"`` (ours) for these and
            the deviation between windows of two sizes. Defaults to ``"windows"``.
        patch_pool (int): Side of the neighbourhoods over which patches are averaged at patch level, odd. Defaults to
            ``3``.
        train_patches (int): Patches of a normal image that are trained on at patch level. Defaults to ``64``.
        top_share (float): Share of an image's patches, the most anomalous ones, whose mean score is the image's, in
            (0, 1]. Defaults to ``0.02``.
        encoder (str): ``"mlp"`` for a residual perceptron, or ``"none"`` (ours) for the whitened features themselves.
            Defaults to ``"none"``.
        head (str): ``"linear"`` for two logits, or ``"radial"`` (ours) for a weighted distance to a learned centre
            that starts as the Mahalanobis distance. Defaults to ``"radial"``.
        hidden (tuple[int, int]): Widths of the perceptron's hidden layer and of its output. Defaults to
            ``(256, 128)``.
        dropout (float): Dropout of the perceptron, in [0, 1). Defaults to ``0.1``.
        supervised (bool): Whether a supervised direction is added to a radial head's score where there is no
            encoder, weighted by how well it
            finds classes of labelled anomalies that are held out in turn (ours). Defaults to ``True``.
        odin (float): Step of the input perturbation in units of scaled features, 0 for none. Defaults to ``0.0``.
        inner_epochs (int): Passes over the normal samples in the inner phase of an episode. Defaults to ``1``.
        outer_epochs (int): Passes over them in its outer phase. Defaults to ``15``.
        batch_size (int): Normal samples in a step. Defaults to ``256``.
        lr (float): Learning rate of both phases; the perceptron wants ``1e-3``. Defaults to ``1e-2``.
        alpha (float): Weight of the hinge on the gap of confidences. Defaults to ``0.1``.
        margin (float): Gap beyond which the hinge is 0. Defaults to ``0.5``.
        reconstruction (float): Weight of the decoder's error in the inner phase. Defaults to ``0.1``.
        temperature_penalty (float): Weight of ``(log T)^2`` in the outer phase. Defaults to ``0.01``.
        head_penalty (float): Weight of the penalty that holds a radial head near the Mahalanobis distance. Defaults to
            ``0.01``.
        pcgrad (bool): Whether the terms of the outer loss are kept from working against each other. Defaults to
            ``False``.
        sigma (float): Standard deviation of the anomaly map's Gaussian blur in pixels. Defaults to ``4.0``.
        seed (int): Seed of initial weights, batches and classes. Defaults to ``0``.
        pre_processor (PreProcessor | bool): Pre-processor, or whether to use the default one. Defaults to ``True``.
        post_processor (PostProcessor | bool): Post-processor, or whether to use the default one. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator, or whether to use the default one. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer, or whether to use the default one. Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of range, the backbone or a layer is unknown, the pre-processor has no fixed
            output size, or images of that size do not fit the backbone.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """

    model: MultidirectionalMetaModel

    def __init__(
        self,
        backbone: str = "wide_resnet50_2.tv_in1k",
        layers: list[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | None = None,
        image_size: tuple[int, int] = (224, 224),
        level: str = "image",
        pooling: str = "windows",
        patch_pool: int = 3,
        train_patches: int = 64,
        top_share: float = 0.02,
        encoder: str = "none",
        head: str = "radial",
        hidden: tuple[int, int] = (256, 128),
        dropout: float = 0.1,
        supervised: bool = True,
        odin: float = 0.0,
        inner_epochs: int = 1,
        outer_epochs: int = 15,
        batch_size: int = 256,
        lr: float = 1e-2,
        alpha: float = 0.1,
        margin: float = 0.5,
        reconstruction: float = 0.1,
        temperature_penalty: float = 0.01,
        head_penalty: float = 0.01,
        pcgrad: bool = False,
        sigma: float = 4.0,
        seed: int = 0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if not is_number(lr) or lr == 0 or not is_whole(train_patches, 1):
            msg = (
                "lr must be a number above zero and train_patches a whole number of at least 1, "
                f"got {lr!r} and {train_patches!r}."
            )
            raise ValueError(msg)
        settings = EpisodeSettings(
            inner_epochs=inner_epochs,
            outer_epochs=outer_epochs,
            batch_size=batch_size,
            alpha=alpha,
            margin=margin,
            reconstruction=reconstruction,
            temperature_penalty=temperature_penalty,
            head_penalty=head_penalty,
            pcgrad=pcgrad,
        )
        super().__init__(
            pre_processor=self.configure_pre_processor(image_size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size is None:
            msg = "MultidirectionalMeta needs a pre-processor with a Resize to a fixed size, e.g. Resize((224, 224))."
            raise ValueError(msg)
        self.model = MultidirectionalMetaModel(
            backbone=backbone,
            layers=layers,
            pre_trained=pre_trained,
            backbone_weights=backbone_weights,
            image_size=self.input_size,
            level=level,
            pooling=pooling,
            patch_pool=patch_pool,
            top_share=top_share,
            encoder=encoder,
            head=head,
            hidden=hidden,
            dropout=dropout,
            odin=odin,
            sigma=sigma,
            seed=seed,
        )
        self.settings = settings
        self.supervised = supervised
        self.train_patches = train_patches
        self.lr = lr
        self.automatic_optimization = False
        self.remember_features(0.0, seed)
        self._samples: Samples | None = None
        self.records: list[Record] = []
        # Labels and scores of the validation images so far, by batch.
        self._validated: list[tuple[torch.Tensor, ...]] = []

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Return the trainer arguments: an epoch is an episode, whose first batch only says that it begins."""
        return {**super().trainer_arguments, "limit_train_batches": 1}

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the default pre-processor: resize without antialiasing, ImageNet normalisation.

        anomalib exports a Resize without antialiasing whatever was used in training. We train without it too, so that
        an exported model gives the scores that it was evaluated with.

        Args:
            image_size (tuple[int, int] | None): Height and width in pixels. Defaults to ``None``, (224, 224).

        Returns:
            PreProcessor: The pre-processor.
        """
        return resizing_pre_processor(image_size or (224, 224))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return AdamW of the inner phase and Adam of the outer one."""
        return list(make_optimizers(self.model.network, self.lr))

    def setup(self, stage: str) -> None:
        """Refuse what would train on other features than those that are kept.

        Args:
            stage (str): Lightning's stage.

        Raises:
            ValueError: If there are training augmentations, or the trainer keeps parameters in half precision.
        """
        super().setup(stage)
        if stage != "fit":
            return
        refuse_half_precision(self.trainer, "MultidirectionalMeta's small steps need")
        if self.settings.pcgrad and self.trainer.precision == "16-mixed":
            msg = "pcgrad sets gradients itself, past the loss scaling of 16-mixed: use 32-true or bf16-mixed."
            raise ValueError(msg)
        if self.trainer.world_size > 1:
            msg = "MultidirectionalMeta trains on one device; its episodes take seconds. Use devices=1."
            raise ValueError(msg)
        refuse_augmentations(self.trainer, "MultidirectionalMeta")

    def on_train_start(self) -> None:
        """Compute the features of all training images, and fit the scaling to normal ones.

        A fit that resumes nothing begins where a new model does, whatever this one was trained on before.
        """
        super().on_train_start()
        if self.fits_afresh:
            self.model.network.reset()
            self.records = []
            self._draws = 0
        training_set = TrainingSet(self)
        generator = torch.Generator().manual_seed(self.seed)  # the same patches after a resume
        with evaluating(self):  # and without autocast
            self._samples = collect(
                self.model, training_set.batches(), defect_types(training_set.table), self.train_patches, generator
            )
        self._warn_about(self._samples)
        network = self.model.network
        if self.fits_afresh or not bool(network.scaling.is_fitted):  # else a checkpoint has brought it
            generator = torch.Generator().manual_seed(self.seed)
            logger.info(
                "%d normal samples of %d features are whitened; with many features that takes a while, the supervised "
                "part's folds included.",
                *self._samples.normals.shape,
            )
            direction = network.fit(
                self._samples.normals, self._samples.anomalies, self.supervised, generator, self._samples.images
            )
            if direction is not None:
                shown = ", ".join(f"{share:g}: {value:.3f}" for share, value in direction.auroc.items())
                logger.info(
                    "Supervised part: share %g; AUROC on held-out classes by share: %s.", direction.share, shown
                )

    def training_step(self, batch: Any, batch_idx: int = 0, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Run an episode at the first batch of an epoch.

        Args:
            batch (ImageBatch): Unused: the features of all images are known.
            batch_idx (int): Number of the batch. Defaults to ``0``.
            *args: Unused.
            **kwargs: Unused.

        Returns:
            STEP_OUTPUT: ``None``, the steps are done.
        """
        del batch, args, kwargs
        if batch_idx > 0 or self._samples is None:
            return None
        inner, outer = self.optimizers()  # type: ignore[attr-defined]  # the two of configure_optimizers
        samples = self._samples
        network = self.model.network
        device = self.device
        with torch.autocast(device.type, enabled=False):
            record = run_episode(
                network,
                samples.normals.to(device),
                {name: part.to(device) for name, part in samples.anomalies.items()},
                self.settings,
                Stepper(inner, outer, self.manual_backward),
                self.next_generator(),
            )
        self.records.append(record)
        values = {"inner_loss": record.inner_loss, "temperature": record.temperature, "latent_spread": record.spread}
        if record.outer_loss is not None:
            values["outer_loss"] = record.outer_loss
        values |= {f"labelled_auroc_{name}": value for name, value in record.auroc.items()}
        for name, value in values.items():
            self.log(name, value, on_step=False, on_epoch=True, prog_bar=name.endswith("loss"), batch_size=1)
        return None

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Return predictions for a batch, and keep the scores to compare with.

        Args:
            batch (ImageBatch): Validation batch, pre-processed.
            *args: Unused.
            **kwargs: Unused.

        Returns:
            STEP_OUTPUT: The batch with predictions.
        """
        del args, kwargs
        features = self.model.features(batch.image)
        predictions = self.model.predictions(features, (batch.image.shape[-2], batch.image.shape[-1]))
        score = predictions.pred_score
        if batch.gt_label is not None and score is not None:
            with torch.autocast(features.device.type, enabled=False):
                others = list(self.model.network.compared_scores(features.float()).values())
            if self.model.level == "patch":
                others = [self.model.image_scores(scores) for scores in others]
            self._validated.append((batch.gt_label.cpu(), score.cpu(), *(other.cpu() for other in others)))
        return batch.update(**predictions._asdict())

    def on_validation_epoch_start(self) -> None:
        """Forget what a validation that was broken off has left."""
        super().on_validation_epoch_start()
        self._validated = []

    def on_validation_epoch_end(self) -> None:
        """Log how well validation images are told apart by three scores, where there are images of both kinds.

        ``val_auroc_model``, ``val_auroc_inner`` (before the episode's outer phase) and ``val_auroc_mahalanobis``.
        """
        super().on_validation_epoch_end()
        parts, self._validated = self._validated, []
        if not parts:
            return
        labels, *scores = (torch.cat(column) for column in zip(*parts, strict=True))
        if labels.bool().any() and not labels.bool().all():
            for name, values in zip(("model", "inner", "mahalanobis"), scores, strict=True):
                self.log(f"val_auroc_{name}", float(roc_auc_score(labels.bool(), values.float())))

    def on_fit_end(self) -> None:
        """Forget the features of the training set."""
        super().on_fit_end()
        self._samples = None

    def _warn_about(self, samples: Samples) -> None:
        """Say where the method is at less than its best."""
        counts = samples.labelled
        logger.info("%d normal samples; labelled anomalies: %s.", len(samples.normals), counts or "none")
        if not counts:
            logger.warning(
                "There are no labelled anomalies in the training set: the outer phase is left out, and what remains "
                "learns normal images alone. FewShotDataModule brings labelled anomalies into training."
            )
        elif len(counts) == 1:
            logger.warning(
                "All labelled anomalies are of one type, '%s': episodes cannot vary what they are told, and other "
                "types profit less.",
                next(iter(counts)),
            )
        few = sorted(name for name, count in counts.items() if count == 1)
        if few:
            logger.warning("One labelled anomaly says little of its type: %s.", ", ".join(few))
        missing = too_little(samples.anomalies, len(samples.images.unique()))
        if counts and missing and self.supervised and self.model.network.takes_direction:
            logger.warning("The supervised part of the score is left out: %s.", missing)
