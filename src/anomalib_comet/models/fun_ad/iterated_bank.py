# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The iteratively reconstructed memory bank: made anew now and then, it gives every training patch its distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from anomalib_comet.arguments import is_whole
from anomalib_comet.confident_meta_learning.confidence import anchored_scores, training_set_weights

from .memory_bank import RULES, bounded, candidates, draw_bank, draw_vectors, pooled_score
from .neighbours import kth_nearest_image, nearest
from .pseudo_labels import centred_log, scale_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .torch_model import FunAdModel
    from .training_features import TrainingFeatures

EXCLUSIONS = ("patch", "image")
SPACES = ("adapted", "descriptors")


@dataclass(frozen=True)
class BankRules:
    """What may enter the bank, and how far a patch is from it; arguments of :class:`.lightning_model.FunAd`.

    Attributes:
        bank_rule: Which images may enter, one of :data:`.memory_bank.RULES`.
        bank_share: Share of images that may under ``"quantile"``, in (0, 1].
        bank_half: Whether a random half of these makes the bank.
        bank_vectors: Largest number of vectors; ``None`` for no bound.
        space: Where distances are measured, one of :data:`SPACES`.
        exclude: What a patch is not compared with, one of :data:`EXCLUSIONS`.
        neighbour_share: Share of the bank's other images whose nearest one counts, in [0, 1]; 0 for the nearest vector.

    Raises:
        ValueError: If a value is out of range or values contradict each other.
    """

    bank_rule: str
    bank_share: float
    bank_half: bool
    bank_vectors: int | None
    space: str
    exclude: str
    neighbour_share: float

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        for name, known in (("bank_rule", RULES), ("space", SPACES), ("exclude", EXCLUSIONS)):
            if getattr(self, name) not in known:
                msg = f"{name} must be one of {known}, got '{getattr(self, name)}'."
                raise ValueError(msg)
        if self.bank_vectors is not None and not is_whole(self.bank_vectors, 1):
            msg = f"bank_vectors must be at least 1, a whole number, got {self.bank_vectors}."
            raise ValueError(msg)
        if not 0.0 < self.bank_share <= 1.0:
            msg = f"bank_share must be in (0, 1], got {self.bank_share}."
            raise ValueError(msg)
        if not 0.0 <= self.neighbour_share <= 1.0:
            msg = (
                f"neighbour_share must be in [0, 1], got {self.neighbour_share}; 0 takes the nearest vector of the "
                "bank."
            )
            raise ValueError(msg)
        if self.neighbour_share and self.exclude != "image":
            msg = "neighbour_share counts other images: use exclude=image with it, or neighbour_share=0."
            raise ValueError(msg)

    @property
    def is_static(self) -> bool:
        """Whether bank and distances stay as they are: Local-Net has no part in them, and nothing is drawn twice."""
        return self.space == "descriptors" and self.bank_rule == "all" and not self.bank_half


class IteratedBank:
    """What the latest rebuild found about the training images, by path.

    No buffers of a module: their size belongs to the data, not to the model. :meth:`state` is what a checkpoint keeps.

    Args:
        rules: Rules of the bank.

    Attributes:
        paths: Paths of the images, ascending; empty before the first rebuild.
        distances: Squared distance of every patch, shape ``(N, P)``.
        image_scores: Local-Net's scores of the images at that time, before the sigmoid, shape ``(N,)``.
        in_bank: Which images were in the bank, shape ``(N,)``.
        rebuilt_at: Epoch of the latest rebuild, -1 before the first.
        features_key: Digest of what the features depended on.
        settings: What else the distances depended on, as text.
    """

    def __init__(self, rules: BankRules) -> None:
        self.rules = rules
        self.paths: list[str] = []
        self.features_key = ""
        self.settings = ""
        self._forget()

    def _forget(self) -> None:
        self.distances = torch.zeros(0, 0)
        self.image_scores = torch.zeros(0)
        self.in_bank = torch.zeros(0, dtype=torch.bool)
        self.rebuilt_at = -1
        self._scaled: dict[tuple[str, float], torch.Tensor] = {}

    def start(self, features: TrainingFeatures, settings: str = "", goes_on: bool = True) -> None:
        """Forget what is known of other images, or by other rules, than these.

        Args:
            features: Features of the training images.
            settings: What distances depend on beside features and rules, as text. Defaults to ``""``.
            goes_on: Whether a training goes on; otherwise the next epoch is to rebuild. Defaults to ``True``.
        """
        settings = f"{self.rules} {settings}"
        if (self.features_key, self.settings) != (features.key, settings):
            self.paths, self.features_key, self.settings = list(features.paths), features.key, settings
            self._forget()
        elif not goes_on:
            self.rebuilt_at = -1

    def is_due(self, epoch: int, rebuild_epochs: int) -> bool:
        """Return whether it is time to rebuild.

        Args:
            epoch: Number of the epoch; below :attr:`rebuilt_at` where another fit went before.
            rebuild_epochs: Epochs from one rebuild to the next.
        """
        return self.rebuilt_at < 0 or not 0 <= epoch - self.rebuilt_at < rebuild_epochs

    @torch.no_grad()
    def rebuild(self, features: TrainingFeatures, model: FunAdModel, seed: int, epoch: int) -> None:
        """Rebuild the bank from the images that the rules let in, and every patch's distance to it.

        Args:
            features: Features of the training images.
            model: The network as it is, in evaluation mode.
            seed: Seed of all draws.
            epoch: Number of the epoch. The draw depends on it and the seed only, not on how many there were before:
                a resumed run draws the same, and so do all processes.
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)

        def vectors(rows: Sequence[int]) -> torch.Tensor:
            if self.rules.space == "adapted":
                return model.local_net.adapt(*features.scaled(rows))
            return features.scaled(rows)[1]

        self.score(features, model)
        if not (self.rules.is_static and len(self.distances) == len(features)):
            images = self._images(model.n_patches, generator)
            bank, owners = draw_vectors(images, vectors, model.n_patches, self.rules.bank_vectors, generator)
            self.distances = features.of_all(lambda chunk: self._distances(chunk, vectors(chunk), bank, owners).cpu())
            self.in_bank = torch.zeros(len(features), dtype=torch.bool)
            self.in_bank[images] = True
            self._scaled = {}
        self.rebuilt_at = epoch

    @torch.no_grad()
    def score(self, features: TrainingFeatures, model: FunAdModel) -> None:
        """Bring :attr:`image_scores` up to Local-Net as it is.

        Args:
            features: Features of the training images.
            model: The network, in evaluation mode.
        """

        def head_scores(chunk: range) -> torch.Tensor:
            token, raw = features.raw(chunk)
            return model.image_scores(model.local_net(*model.scale(token, raw))[1], raw).cpu()

        self.image_scores = features.of_all(head_scores)

    def _images(self, n_patches: int, generator: torch.Generator) -> torch.Tensor:
        """Return the positions of the bank's images, ascending."""
        rules = self.rules
        # The published rule scales probabilities; the order is the same.
        scores = self.image_scores.sigmoid() if rules.bank_rule == "min_max" else self.image_scores
        images = candidates(scores, rules.bank_rule, rules.bank_share)
        if rules.bank_half:
            images = draw_bank(images, generator)
        if rules.neighbour_share:
            images = bounded(images, n_patches, rules.bank_vectors, generator)
        return images

    def _distances(self, chunk: range, vectors: torch.Tensor, bank: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Return the squared distances of the patches of some images to the bank, shape ``(B, P)``."""
        n_images, n_patches = vectors.shape[:2]
        query = vectors.flatten(0, 1)
        if self.rules.neighbour_share:
            return self._rank_distances(chunk, query, bank, owners // n_patches).view(n_images, n_patches)
        own = torch.arange(chunk.start * n_patches, chunk.stop * n_patches)
        # An only image has no other to be compared with.
        if self.rules.exclude == "image" and len(self.paths) > 1:
            own, owners = own // n_patches, owners // n_patches
        distances = nearest(query, bank, exclude=(own, owners))[0]
        # Infinite for an only patch: there is nothing to be far from.
        return torch.nan_to_num(distances, posinf=0.0).view(n_images, n_patches)

    def _rank_distances(
        self, chunk: range, query: torch.Tensor, bank: torch.Tensor, bank_images: torch.Tensor
    ) -> torch.Tensor:
        """Return the squared distances to the share of the bank's images, for an equal number of vectors of each."""
        images = bank_images.unique_consecutive()
        rank = max(1, round(self.rules.neighbour_share * len(images)))
        position = torch.full((len(self.paths),), -1)
        position[images] = torch.arange(len(images))
        own = position[chunk.start : chunk.stop].repeat_interleave(len(query) // len(chunk))
        return kth_nearest_image(query, bank.view(len(images), -1, bank.shape[1]), rank, own)

    def scaled_distances(self, scope: str, kappa: float, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Return distances scaled for pseudo-labels, shape ``(B, P)``.

        Args:
            scope: Over what they are scaled, one of :data:`.pseudo_labels.SCOPES`.
            kappa: Width of the fence under ``"robust"``.
            rows: Positions of a batch of images; ``None`` for all. Defaults to ``None``.
        """
        if scope == "batch" and rows is not None:
            return scale_distances(self.distances[list(rows)], scope)
        if (scope, kappa) not in self._scaled:
            self._scaled[scope, kappa] = scale_distances(self.distances, scope, kappa)
        scaled = self._scaled[scope, kappa]
        return scaled if rows is None else scaled[list(rows)]

    def log_distances(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the logarithms of a batch's distances less their mean over the training set, shape ``(B, P)``.

        Args:
            rows: Positions of the images.
        """
        if ("log", 0.0) not in self._scaled:
            self._scaled["log", 0.0] = centred_log(self.distances)
        return self._scaled["log", 0.0][list(rows)]

    def frame(self, top_share: float) -> pd.DataFrame | None:
        """Return a row for every training image, or ``None`` before the first rebuild.

        Args:
            top_share: Share of an image's patches, the farthest ones, whose distances are averaged.

        Returns:
            Columns ``image_path``, ``anomaly_score`` (the mean distance of the farthest patches to the bank),
            ``confidence_weight``, ``pseudo_distance`` (the same number, under the method's name), ``head_score``
            (Local-Net's, before the sigmoid) and ``in_bank``.
        """
        if not self.paths or not self.distances.numel():
            return None
        distance = pooled_score(self.distances, top_share)
        weights = training_set_weights(anchored_scores(distance.double()))[0]
        frame = pd.DataFrame(
            {
                "image_path": self.paths,
                "anomaly_score": distance.numpy().astype(float),
                "confidence_weight": weights.numpy(),
                "pseudo_distance": distance.numpy().astype(float),
                "head_score": self.image_scores.numpy().astype(float),
                "in_bank": self.in_bank.numpy(),
            }
        )
        frame.attrs["weights_counted"] = False
        return frame

    def state(self) -> dict[str, Any]:
        """Return all of it as plain tensors, lists and numbers, for a checkpoint."""
        return {
            "image_path": list(self.paths),
            "distances": self.distances,
            "image_scores": self.image_scores,
            "in_bank": self.in_bank,
            "features_key": self.features_key,
            "settings": self.settings,
            "rebuilt_at": self.rebuilt_at,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` has returned.

        Args:
            state: Of a checkpoint.
        """
        self.paths = list(state["image_path"])
        self.distances = state["distances"]
        self.image_scores = state["image_scores"]
        self.in_bank = state["in_bank"]
        self.features_key = state["features_key"]
        self.settings = str(state.get("settings", ""))
        self.rebuilt_at = int(state["rebuilt_at"])
        self._scaled = {}
