# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Features of the training images while a head is trained on them: read from a store, a chunk of images at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anomalib_comet.models.frozen_features import some_vectors, vectors_per_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anomalib_comet.distributed import Ranks

    from .feature_store import FeatureStore
    from .torch_model import FunAdModel

CHUNK = 32
"""Images whose features are in memory at a time, in single precision, when the whole training set is gone through."""


class TrainingFeatures:
    """The features of all training images, by their position in a store.

    Args:
        model: The network, whose scaling the features go through.
        store: Complete store of features; :meth:`close` closes it.
        ranks: The processes, which share the work on all images.
    """

    def __init__(self, model: FunAdModel, store: FeatureStore, ranks: Ranks) -> None:
        self._model, self._store, self._ranks = model, store, ranks
        self.paths = list(store.paths)
        self.key = store.key
        self.row = {path: k for k, path in enumerate(self.paths)}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def raw(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens ``(B, n_token)`` and patches ``(B, P, n_patch)`` of images, as of the network.

        Args:
            rows: Positions of the images.
        """
        device = next(self._model.local_net.parameters()).device
        records = self._store.read(rows).to(device).float()
        n_token = self._model.descriptors.n_token
        return records[:, :n_token], records[:, n_token:].unflatten(1, (self._model.n_patches, -1))

    def scaled(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what Local-Net sees of images, same shapes as :meth:`raw`.

        Args:
            rows: Positions of the images.
        """
        return self._model.scale(*self.raw(rows))

    def chunks(self) -> Iterator[range]:
        """Yield the positions of all images, :data:`CHUNK` at a time."""
        return (range(k, min(k + CHUNK, len(self))) for k in range(0, len(self), CHUNK))

    def of_all(self, compute: Callable[[range], torch.Tensor]) -> torch.Tensor:
        """Return what is computed of chunks of images, a row an image; every process computes a share of the chunks.

        Args:
            compute: Returns rows, on the CPU, of the images at some positions.
        """
        own = self._ranks.share(list(self.chunks()))
        return torch.cat(self._ranks.gather([_in_one_piece(own, compute)] if own else []))

    @torch.no_grad()
    def fit_scaling(self) -> torch.Tensor:
        """Fit the model's scaling where no checkpoint has brought it.

        Returns:
            Standard deviation of every channel of the scaled features, ``[token ; patch]``, shape
            ``(n_token + n_patch,)``.
        """
        chunks, count = list(self.chunks()), vectors_per_image(len(self))

        def picked(vectors: torch.Tensor, chunk: range) -> torch.Tensor:
            return some_vectors(vectors, count, self.paths[chunk.start : chunk.stop])

        def some() -> tuple[torch.Tensor, torch.Tensor]:
            tokens = _in_one_piece(chunks, lambda chunk: self.scaled(chunk)[0])
            vectors = _in_one_piece(chunks, lambda chunk: picked(self.scaled(chunk)[1], chunk))
            return tokens, vectors.flatten(0, 1)

        if not bool(self._model.patch_scaling.is_fitted) or not bool(self._model.image_scaling.is_fitted):
            windows = _in_one_piece(chunks, lambda chunk: picked(self._model.windows(self.raw(chunk)[1]), chunk))
            # Until it is fitted the scaling is the identity: these are the features as they are.
            self._model.fit_scaling(*some(), windows.flatten(0, 1))
        return torch.cat([(part - part.mean(0)).square().mean(0).sqrt() for part in some()])

    def close(self) -> None:
        """Let go of the features."""
        self._store.close()


def _in_one_piece(chunks: Sequence[range], compute: Callable[[range], torch.Tensor]) -> torch.Tensor:
    """Return what is computed of chunks of images, a row an image, in one piece of memory.

    Pieces of their own, made between much larger ones that come and go, would lie in the gaps of these and let the
    process grow with the training set.
    """
    first = compute(chunks[0])
    kept = first.new_empty(sum(map(len, chunks)), *first.shape[1:])
    kept[: len(first)] = first
    start = len(first)
    for chunk in chunks[1:]:
        kept[start : start + len(chunk)] = compute(chunk)
        start += len(chunk)
    return kept
