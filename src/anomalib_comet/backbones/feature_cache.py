# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Features of training images, computed once and remembered by image path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FeatureCache:
    """Remembers the features of images up to a bound of memory; never part of a checkpoint.

    Args:
        gib: Bound in GiB; 0 remembers nothing.
    """

    def __init__(self, gib: float) -> None:
        self._free_bytes = self._capacity = int(gib * 1024**3)
        self._features: dict[str, tuple[torch.Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._features)

    def get(
        self,
        image_paths: Sequence[str] | None,
        images: torch.Tensor,
        compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        """Return the features of images, computing those that are not remembered.

        Args:
            image_paths: Paths of the images, the keys; ``None`` computes all of them and remembers none.
            images: Shape ``(B, 3, H, W)``.
            compute: Gives tensors with first dimension ``B`` for images.

        Returns:
            A tuple of tensors with first dimension ``B``, on the device of ``images``.
        """
        if image_paths is None:
            return compute(images)
        missing = [i for i, path in enumerate(image_paths) if path not in self._features]
        fresh: dict[int, tuple[torch.Tensor, ...]] = {}
        if missing:
            computed = compute(images[missing])
            for row, i in enumerate(missing):
                fresh[i] = tuple(tensor[row] for tensor in computed)
                self._remember(image_paths[i], fresh[i])
        rows = [fresh[i] if i in fresh else self._features[path] for i, path in enumerate(image_paths)]
        return tuple(torch.stack([t.to(images.device) for t in column]) for column in zip(*rows, strict=True))

    def holds(self, image_paths: Sequence[str]) -> bool:
        """Tell whether the features of all these images are remembered."""
        return all(path in self._features for path in image_paths)

    def stacked(self, image_paths: Sequence[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the remembered tensors of images, stacked, on a device.

        Raises:
            KeyError: If an image is not remembered.
        """
        rows = [self._features[path] for path in image_paths]
        return tuple(torch.stack(column).to(device) for column in zip(*rows, strict=True))

    def clear(self) -> None:
        """Forget everything."""
        self._features.clear()
        self._free_bytes = self._capacity

    def _remember(self, path: str, features: tuple[torch.Tensor, ...]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in features)
        if size <= self._free_bytes and path not in self._features:
            self._features[path] = tuple(tensor.detach().cpu().clone() for tensor in features)
            self._free_bytes -= size
