# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""FUN-AD: fully unsupervised detection with an iteratively rebuilt memory bank.

Example:
    >>> from anomalib.engine import Engine
    >>> from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
    >>> from anomalib_comet.models import FunAd

    >>> model = FunAd(backbone="gabor", layers=["scale3", "scale4"], image_size=(256, 256))
    >>> datamodule = ContaminatedDataModule(ProceduralSurfaces(), ratio=0.1)
    >>> Engine(max_epochs=30).fit(model, datamodule=datamodule)  # doctest: +SKIP

Paper:
    Title: FUN-AD: Fully Unsupervised Learning for Anomaly Detection with Noisy Training Data
    URL: https://arxiv.org/abs/2411.16110

See Also:
    :class:`anomalib_comet.models.fun_ad.torch_model.FunAdModel`: The PyTorch model.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import torch
from anomalib.metrics import Evaluator  # noqa: TC002  # the command line reads the types of arguments
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor  # noqa: TC002  # the command line reads the types of arguments
from anomalib.visualization import Visualizer  # noqa: TC002  # the command line reads the types of arguments

from anomalib_comet.arguments import is_number, is_whole
from anomalib_comet.backbones import FeatureScaling
from anomalib_comet.distributed import Ranks
from anomalib_comet.models.frozen_features import (
    FrozenFeatures,
    check_image_size,
    parts_of,
    refuse_augmentations,
    refuse_half_precision,
    resizing_pre_processor,
)
from anomalib_comet.training_set import TrainingSet, ends_training, evaluating

from .collecting import collected
from .feature_store import fingerprint
from .iterated_bank import BankRules, IteratedBank
from .loss import FunAdLoss, distance_loss
from .neighbours import mutual_pairs, nearest
from .pseudo_labels import SCOPES, TAU_C, TAU_N, perturb, pseudo_labels, uncertain
from .torch_model import FunAdModel
from .training_features import TrainingFeatures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from lightning.pytorch.utilities.types import STEP_OUTPUT

    from .feature_store import FeatureStore

logger = logging.getLogger(__name__)

STATE_KEY = "fun_ad"
TARGETS = ("labels", "distances")


class FunAd(FrozenFeatures, AnomalibModule):  # type: ignore[misc]  # as AnomalibModule's own bases
    """Lightning module of FUN-AD (Im, Son, Hong, WACV 2025).

    Every rule of the paper is there under a name of its own, and ``configs/fun_ad.yaml`` puts them together. Defaults
    are partly ours: see the model card.

    Args:
        backbone (str): Frozen network: a vision transformer of timm, whose tokens are used, any other timm or
            torchvision name, whose maps are, or ``"gabor"`` for the built-in Gabor bank, which needs no download.
            Defaults to ``"vit_base_patch8_224.dino"``, the original's.
        layers (list[str] | None): Names of a CNN's modules whose outputs are the features; patches lie on the grid of
            the first. ``None`` takes the defaults of the backbone. Defaults to ``None``.
        pre_trained (bool): Whether to load the published weights of the backbone. Defaults to ``True``.
        backbone_weights (str | None): Path of a local state-dict file of the backbone, loaded strictly, for machines
            without a network. Defaults to ``None``.
        image_size (tuple[int, int]): Height and width in pixels to which the default pre-processor resizes images.
            Defaults to ``(224, 224)``.
        image_descriptor (str): What every patch is told of its image: ``"class"`` for the class token, as published,
            ``"pooled"`` for mean and standard deviation of the image's patches (ours), ``"none"``, or ``"auto"`` for
            the class token where the network has one and none elsewhere. Defaults to ``"none"``.
        patch_pool (int): Side in cells of the neighbourhood over which descriptors of patches are averaged, odd
            (ours); 1 for no average, as published. Defaults to ``7``.
        feature_scaling (str): How features are scaled over the training set (ours): ``"standardize"`` each to zero
            mean and unit variance, ``"whiten"`` to unit variance in every direction, ``"none"`` as published. Defaults
            to ``"whiten"``.
        hidden_units (list[int] | None): Widths of the discriminator's two hidden layers. ``None`` takes the published
            1024 and 128. Defaults to ``None``.
        top_share (float): An image's score is the mean of this share of its patches' scores, the highest ones (ours);
            0 takes the largest alone, as published. Defaults to ``0.05``.
        scope (str): How distances become pseudo-labels, under ``target="labels"``: ``"batch"`` by minimum and maximum
            of the batch, as published, ``"epoch"`` by those of the training set, ``"robust"`` by a fence
            ``Q3 + label_kappa (Q3 - Q1)`` over the training set (ours), which need not call anything anomalous.
            Defaults to ``"robust"``.
        label_kappa (float): Width of that fence in interquartile ranges. Defaults to ``3.0``.
        target (str): What Local-Net learns: ``"labels"``, the pseudo-labels, as published, or ``"distances"``, the
            logarithm of the distance to the bank (ours), which orders normal patches too. Defaults to ``"distances"``.
        space (str): Where distances are measured: ``"adapted"`` between Local-Net's adapted features, as published, or
            ``"descriptors"`` between the scaled descriptors of patches alone (ours), which training does not move.
            Defaults to ``"descriptors"``.
        bank_rule (str): Which images may enter the memory bank: ``"min_max"`` by Local-Net's scores, as published,
            ``"quantile"`` those with the lowest ones (ours), or ``"all"`` (ours). Defaults to ``"all"``.
        bank_share (float): Share of images that may under ``"quantile"``. Defaults to ``0.75``.
        bank_half (bool): Whether a random half of these makes the bank, as published, or all. Defaults to ``False``.
        neighbour_share (float): A patch is as anomalous as its distance to this share of the bank's other images, i.e.
            to the k-th nearest of B with k = ``neighbour_share`` B (ours): a defect that occurs in fewer images than
            that does not vouch for itself. 0 for the nearest vector, as published. Defaults to ``0.25``.
        bank_vectors (int | None): Largest number of vectors in the bank (ours): beyond it, some patches of every image
            of the bank are drawn at random, one at least, and with ``neighbour_share`` above 0 some of the images,
            where there are too many for 100 patches each. ``None`` for no bound,
            as published. Defaults to ``100000``.
        exclude (str): What a patch is not compared with: ``"patch"`` itself, as published, or ``"image"`` all patches
            of its own image (ours), where the nearest relatives of a defect lie. Defaults to ``"image"``.
        rebuild_epochs (int): Bank, distances and pseudo-labels are made anew once in so many epochs (ours); the
            authors do it at every step. Defaults to ``1``.
        smoothness (float): Weight of the mutual smoothness beside the loss of pseudo-labels, under
            ``target="labels"``. Defaults to ``2.5``.
        pair_patches (int | None): Number of patches of a batch among which mutually nearest pairs are sought, drawn at
            random (ours); ``None`` for all, as published. Defaults to ``2048``.
        norm_input (bool): Whether Local-Net's discriminator is also told the logarithm of a patch's mean square, of
            whitened features its Mahalanobis distance (ours). Defaults to ``True``.
        train_patches (int | None): Number of patches an image and step on which is trained, drawn at random (ours);
            ``None`` for all, as published. Defaults to ``None``.
        noise_scale (float): Standard deviation of the perturbation of uncertain pseudo-anomalies in units of every
            channel's over the training set, under ``target="labels"``. Defaults to ``1.0``.
        synthetic_noise (float): Standard deviation, in the same units, of noise on all patches of a batch, which are
            then trained on as anomalies beside the pseudo-anomalies (ours; ``target="labels"`` only): without them,
            nothing says what an anomaly is where the training set has none. 0 for none, as published. Defaults to
            ``0.0``.
        image_weight (float): Weight in the image's score of how far the image as a whole lies from the training set:
            the logarithm of the Mahalanobis distance of means over large windows (ours). 0 for none, as published.
            Defaults to ``2.0``.
        sigma (float): Standard deviation of the anomaly map's Gaussian blur in pixels. Defaults to ``4.0``.
        lr (float): Learning rate of RMSprop. Defaults to ``2e-5``.
        lr_decay (bool): Whether it falls to zero over the training along a cosine (ours). Defaults to ``False``.
        momentum (float): Momentum of RMSprop. Defaults to ``0.2``.
        feature_store (str): Where features of training images are kept, in half precision: ``"memory"``,
            ``"temporary"`` for a file that is deleted after training, a folder for a file that the next training on
            the same images uses again, or ``"auto"`` for memory up to ``cache_gib`` and a temporary file beyond.
            Defaults to ``"auto"``.
        cache_gib (float): Bound of ``"auto"`` in GiB. Defaults to ``2.0``.
        seed (int): Seed of all random draws: initial weights, bank, patches, noise. Defaults to ``0``.
        pre_processor (PreProcessor | bool): Pre-processor, or whether to use the default one. Defaults to ``True``.
        post_processor (PostProcessor | bool): Post-processor, or whether to use the default one, anomalib's. Without
            masks, that takes the image's threshold for the map if ``image_weight`` is 0, else the middle of the
            map's range. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator, or whether to use the default one. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer, or whether to use the default one. Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of range, the backbone or a layer is unknown, the pre-processor has no fixed
            output size, or images of that size do not fit the backbone.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """

    model: FunAdModel
    loss: FunAdLoss

    def __init__(
        self,
        backbone: str = "vit_base_patch8_224.dino",
        layers: list[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | None = None,
        image_size: tuple[int, int] = (224, 224),
        image_descriptor: str = "none",
        patch_pool: int = 7,
        feature_scaling: str = "whiten",
        hidden_units: list[int] | None = None,
        top_share: float = 0.05,
        scope: str = "robust",
        label_kappa: float = 3.0,
        target: str = "distances",
        space: str = "descriptors",
        bank_rule: str = "all",
        bank_share: float = 0.75,
        bank_half: bool = False,
        neighbour_share: float = 0.25,
        bank_vectors: int | None = 100_000,
        exclude: str = "image",
        rebuild_epochs: int = 1,
        smoothness: float = 2.5,
        pair_patches: int | None = 2048,
        norm_input: bool = True,
        train_patches: int | None = None,
        noise_scale: float = 1.0,
        synthetic_noise: float = 0.0,
        image_weight: float = 2.0,
        sigma: float = 4.0,
        lr: float = 2e-5,
        lr_decay: bool = False,
        momentum: float = 0.2,
        feature_store: str = "auto",
        cache_gib: float = 2.0,
        seed: int = 0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        rules = BankRules(bank_rule, bank_share, bank_half, bank_vectors, space, exclude, neighbour_share)
        for name, value, known in (("scope", scope, SCOPES), ("target", target, TARGETS)):
            if value not in known:
                msg = f"{name} must be one of {known}, got '{value}'."
                raise ValueError(msg)
        _check_at_least(
            zero={
                "label_kappa": label_kappa,
                "smoothness": smoothness,
                "noise_scale": noise_scale,
                "synthetic_noise": synthetic_noise,
                "momentum": momentum,
                "image_weight": image_weight,
                "cache_gib": cache_gib,
            },
            one={"rebuild_epochs": rebuild_epochs, "train_patches": train_patches, "pair_patches": pair_patches},
        )
        if not is_number(lr) or lr == 0:
            msg = f"lr must be above zero, got {lr}."
            raise ValueError(msg)
        if synthetic_noise and target != "labels":
            msg = "synthetic_noise makes anomalies for pseudo-labels: use it with target=labels, or leave it 0."
            raise ValueError(msg)
        super().__init__(
            pre_processor=self.configure_pre_processor(check_image_size(image_size))
            if pre_processor is True
            else pre_processor,
            # Beside the distance of the image as a whole, its score is on another scale than the map.
            post_processor=PostProcessor(enable_threshold_matching=not image_weight)
            if post_processor is True
            else post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size is None:
            msg = "FunAd needs a pre-processor with a Resize to a fixed height and width, e.g. Resize((224, 224))."
            raise ValueError(msg)
        self.model = FunAdModel(
            backbone=backbone,
            layers=layers,
            pre_trained=pre_trained,
            backbone_weights=backbone_weights,
            image_size=self.input_size,
            image_descriptor=image_descriptor,
            patch_pool=patch_pool,
            feature_scaling=feature_scaling,
            hidden_units=(1024, 128) if hidden_units is None else hidden_units,
            top_share=top_share,
            norm_input=norm_input,
            image_weight=image_weight,
            sigma=sigma,
            seed=seed,
        )
        self.loss = FunAdLoss(smoothness)
        self.scope = scope
        self.label_kappa = label_kappa
        self.target = target
        self.rebuild_epochs = rebuild_epochs
        self.pair_patches = pair_patches
        self.train_patches = train_patches
        self.noise_scale = noise_scale
        self.synthetic_noise = synthetic_noise
        self.lr = lr
        self.lr_decay = lr_decay
        self.momentum = momentum
        self.feature_store = feature_store
        self.cache_gib = cache_gib
        self.remember_features(0.0, seed)
        self.bank = IteratedBank(rules)
        self._training_features: TrainingFeatures | None = None
        self._spread = torch.zeros(0)

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

    def configure_optimizers(self) -> Any:
        """Return the published optimizer of Local-Net, RMSprop, and the decay of its learning rate if wished."""
        optimizer = torch.optim.RMSprop(self.model.local_net.parameters(), lr=self.lr, momentum=self.momentum)
        steps = self.trainer.estimated_stepping_batches if self.lr_decay else 0
        if not 0 < steps < float("inf"):  # no decay, or a training without an end
            return optimizer
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ------------------------------------------------------------------------------------------------------- features
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
        refuse_half_precision(self.trainer, "FunAd's small steps need")
        refuse_augmentations(self.trainer, "FunAd")

    def on_train_start(self) -> None:
        """Collect the features of all training images and fit what is fitted in closed form."""
        super().on_train_start()
        self._close_features()  # of a fit that an exception has ended
        self.use_features(self._collect(TrainingSet(self)))

    def use_features(self, store: FeatureStore) -> None:
        """Train on the features of a complete store: take over its images and fit what is fitted in closed form.

        Args:
            store (FeatureStore): Features of the training images.
        """
        ranks = Ranks.of(self)
        self._training_features = TrainingFeatures(self.model, store, ranks)
        self._forget_other_images(store.key)
        settings = f"{self.model.patch_pool} {self.model.patch_scaling.scaling}"
        self.bank.start(self._training_features, settings, goes_on=not self.fits_afresh)
        spread = self._training_features.fit_scaling()
        ranks.copy_state(self, parameters=False)
        self._spread = ranks.first(spread.cpu()).to(spread)

    @property
    def training_features(self) -> TrainingFeatures:
        """Features of the training images.

        Raises:
            RuntimeError: Before and after training.
        """
        if self._training_features is None:
            msg = "Features of training images are there during training only."
            raise RuntimeError(msg)
        return self._training_features

    def _collect(self, training_set: TrainingSet) -> FeatureStore:
        """Return the complete store of features: an earlier run's, or a new one from one pass over the images."""
        known = training_set.paths()
        if not known:
            msg = "FunAd needs a training set of anomalib, whose images have paths, and at least one image."
            raise TypeError(msg)
        if len(set(known)) == 1:
            logger.warning(
                "FunAd compares images with each other, and there is one training image: scores mean nothing. "
                "Add images, or take a model that does not, such as DifferNet."
            )
        settings = {
            **self.model.descriptors.identity,
            "pre_processing": self._pre_processing_digest(),
            "precision": str(self.trainer.precision),
        }
        n_values = self.model.descriptors.n_token + self.model.n_patches * self.model.descriptors.n_patch
        ranks = Ranks.of(self)
        key = ranks.first(fingerprint(sorted(set(known)), settings))

        def compute(indices: list[int] | None) -> Iterator[tuple[list[str], torch.Tensor]]:
            for batch in training_set.batches(indices):
                yield [str(path) for path in batch.image_path], self._records(batch.image)

        with evaluating(self), self.trainer.precision_plugin.forward_context():
            return collected(known, n_values, key, compute, ranks, place=self.feature_store, memory_gib=self.cache_gib)

    def _pre_processing_digest(self) -> str:
        """Return a digest of what pre-processing makes of a pattern.

        Not of its representation: that of a Resize from a checkpoint names its interpolation in another way.
        """
        pattern = torch.linspace(0.0, 1.0, 3 * 97 * 113).reshape(1, 3, 97, 113).mul(50.0).sin()
        processor: Any = self.pre_processor
        transform = processor.transform if processor else None
        made = pattern if transform is None else transform(pattern)
        return hashlib.sha256(made.float().contiguous().numpy().tobytes()).hexdigest()

    @torch.no_grad()
    def _records(self, images: torch.Tensor) -> torch.Tensor:
        rows = []
        for part in parts_of(images):
            token, patches = self.model.descriptors(part)
            rows.append(torch.cat([token.flatten(1), patches.flatten(1)], dim=1).float().cpu())
        return torch.cat(rows)

    # ------------------------------------------------------------------------------------------ bank and pseudo-labels
    def on_train_epoch_start(self) -> None:
        """Rebuild bank, distances and pseudo-labels where it is time."""
        super().on_train_epoch_start()
        bank = self.bank
        if bank.is_due(self.current_epoch, self.rebuild_epochs):
            self.rebuild(self.current_epoch)
            self.log("bank_images", float(bank.in_bank.sum()), batch_size=len(bank.paths))
            if self.target == "labels" and self.scope != "batch":
                share = pseudo_labels(bank.scaled_distances(self.scope, self.label_kappa)).float().mean()
                self.log("pseudo_anomalies", share, batch_size=len(bank.paths))

    def rebuild(self, epoch: int) -> None:
        """Rebuild the memory bank from the images that ``bank_rule`` lets in, and every patch's distance to it.

        Args:
            epoch (int): Number of the epoch, on which the draw depends.
        """
        with evaluating(self.model):
            self.bank.rebuild(self.training_features, self.model, self.seed, epoch)

    # ------------------------------------------------------------------------------------------------------- training
    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Return the loss of a batch: that of the target, labels or distances.

        Args:
            batch (ImageBatch): Training batch; of its images only the paths are used.
            *args: Unused.
            **kwargs: Unused.

        Returns:
            STEP_OUTPUT: The loss.
        """
        del args, kwargs
        rows = [self.training_features.row[str(path)] for path in batch.image_path]
        loss = self.batch_loss(rows, self.next_generator())
        self.log("train_loss", loss.detach(), on_epoch=True, prog_bar=True, batch_size=len(rows))
        return {"loss": loss}

    def batch_loss(self, rows: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Return the loss of training images.

        Args:
            rows (Sequence[int]): Positions of the images in the store of features.
            generator (torch.Generator): Source of drawn patches and noise, on the CPU.

        Returns:
            torch.Tensor: The loss.
        """
        token, patches = self.training_features.scaled(rows)
        by_distance = self.target == "distances"
        if by_distance:
            scaled = self.bank.log_distances(rows).to(patches.device)
        else:
            scaled = self.bank.scaled_distances(self.scope, self.label_kappa, rows).to(patches.device)
        if self.train_patches is not None and self.train_patches < patches.shape[1]:
            drawn = torch.rand(scaled.shape, generator=generator).argsort(dim=1)[:, : self.train_patches]
            drawn = drawn.to(patches.device)
            scaled = scaled.gather(1, drawn)
            patches = patches.gather(1, drawn[..., None].expand(-1, -1, patches.shape[2]))
        if by_distance:
            return distance_loss(self.model.local_net(token, patches)[1], scaled)
        labels = pseudo_labels(scaled)
        adapted, clean = self.model.local_net(token, patches)
        logits = torch.where(labels, self._perturbed_logits(token, patches, scaled, clean, generator), clean)
        pairs = self._pairs(adapted.detach().flatten(0, 1), generator)
        loss = self.loss(logits.flatten(), labels.flatten(), clean.flatten(), pairs)
        if self.synthetic_noise:
            loss = loss + self._synthetic_loss(token, patches, generator)
        return loss

    def _perturbed_logits(
        self,
        token: torch.Tensor,
        patches: torch.Tensor,
        scaled: torch.Tensor,
        clean: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return the scores of the batch in which pseudo-anomalies that are not certain have noise on them."""
        chosen = uncertain(scaled, TAU_N, TAU_C)
        if not self.noise_scale or not bool(chosen.any()):
            return clean
        image, place = chosen.nonzero(as_tuple=True)
        # Of the chosen patches only, each with the token of its image: [token ; patch] is one raw descriptor.
        descriptors = torch.cat([token[image], patches[image, place]], dim=1)
        noisy = perturb(
            descriptors, torch.ones_like(image, dtype=torch.bool), self._spread * self.noise_scale, generator
        )
        scores = self._single_scores(noisy)
        return clean.masked_scatter(chosen, scores.to(clean.dtype))

    def _single_scores(self, descriptors: torch.Tensor) -> torch.Tensor:
        """Return the scores of patches that have a token each, shape ``(M, n_token + n_patch)`` to ``(M,)``."""
        n_token = self.model.descriptors.n_token
        return self.model.local_net(descriptors[:, :n_token], descriptors[:, None, n_token:])[1][:, 0]

    def _synthetic_loss(self, token: torch.Tensor, patches: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the mean cross-entropy of patches with noise on them as anomalies (ours)."""
        sigma = self._spread * self.synthetic_noise
        n_token = self.model.descriptors.n_token
        everything = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        noisy_patches = perturb(patches, everything, sigma[n_token:], generator)
        noisy_token = perturb(token, everything[:, 0], sigma[:n_token], generator)
        scores = self.model.local_net(noisy_token, noisy_patches)[1]
        return torch.nn.functional.softplus(-scores).mean()

    def _pairs(self, adapted: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return mutually nearest pairs of patches of a batch, as positions in the flattened batch."""
        if not self.loss.smoothness:
            return torch.zeros(0, 2, dtype=torch.long, device=adapted.device)
        among = None
        if self.pair_patches is not None and self.pair_patches < len(adapted):
            among = torch.randperm(len(adapted), generator=generator)[: self.pair_patches].to(adapted.device)
            adapted = adapted[among]
        own = torch.arange(len(adapted))
        pairs = mutual_pairs(nearest(adapted, adapted, exclude=(own, own))[1][:, 0])
        return pairs if among is None else among[pairs]

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Score the training images by the finished head, for the audit; it comes before the last checkpoint.

        Args:
            *args: Unused.
            **kwargs: Unused.
        """
        super().on_train_batch_end(*args, **kwargs)
        if ends_training(self.trainer):
            with evaluating(self.model):
                self.bank.score(self.training_features, self.model)

    def on_fit_end(self) -> None:
        """Let go of the features of the training set."""
        super().on_fit_end()
        self._close_features()

    def teardown(self, stage: str) -> None:
        """Let go of the features of the training set, whatever ended the training.

        Args:
            stage (str): Lightning's stage.
        """
        super().teardown(stage)
        self._close_features()

    def _close_features(self) -> None:
        if self._training_features is not None:
            self._training_features.close()
            self._training_features = None

    # ------------------------------------------------------------------------------------------------------- the audit
    def training_frame(self) -> pd.DataFrame | None:
        """Return what the latest rebuild found about the training images, or ``None`` before the first.

        Returns:
            pd.DataFrame | None: Columns ``image_path``, ``anomaly_score`` (the mean distance of the farthest patches to
            the bank), ``confidence_weight``, ``pseudo_distance`` (the same number, under the method's name),
            ``head_score`` (Local-Net's, before the sigmoid) and ``in_bank``.
        """
        return self.bank.frame(self.model.top_share)

    # ------------------------------------------------------------------------------------------------------ checkpoint
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add distances, scores and bank to a checkpoint, as plain tensors by image path.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE_KEY] = self.bank.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take distances, scores and bank from a checkpoint.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(STATE_KEY)
        if state is not None:
            self.bank.load_state(state)

    def _forget_other_images(self, key: str) -> None:
        """Forget the scaling of a fit before on other images, but not that of a training that goes on with others."""
        if not self.bank.paths or self.bank.features_key == key:
            return
        if self.current_epoch == 0:
            logger.warning("The training images are others than before: scaling and memory bank are made anew.")
            for module in self.model.modules():
                if isinstance(module, FeatureScaling):
                    module.reset()
        else:
            logger.warning(
                "The training images are others than before: the memory bank is built anew, the scaling of features "
                "stays that of the images with which the training began."
            )


def _check_at_least(zero: dict[str, float], one: dict[str, int | None]) -> None:
    for name, value in zero.items():
        if not is_number(value):
            msg = f"{name} must not be negative, got {value}."
            raise ValueError(msg)
    for name, count in one.items():
        if count is not None and not is_whole(count, 1):
            msg = f"{name} must be at least 1, a whole number, got {count}."
            raise ValueError(msg)
