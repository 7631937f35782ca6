# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Which images make the memory bank: the iteratively reconstructed memory bank, IRMB (Im, Son, Hong, WACV 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .pseudo_labels import TAU_N, min_max

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RULES = ("min_max", "quantile", "all")

SMALLEST_BANK = 2
"""With two images every image has another one to be compared with."""

PATCHES_PER_IMAGE = 100
"""Where images are counted, every image of the bank has at least so many patches in it, if it has as many."""

DRAWN_AT_ONCE = 32
"""Images of the bank whose vectors are in memory at a time, all of them."""


def pooled_score(patch_scores: torch.Tensor, share: float = 0.0, n_patches: int | None = None) -> torch.Tensor:
    """Return an image's score: the mean of the top share of its patches' scores.

    Args:
        patch_scores: Shape ``(B, P)``.
        share: In [0, 1]; the mean is over ``max(1, round(share * P))`` patches. 0 takes the largest score alone, as
            published. Defaults to ``0.0``.
        n_patches: P, where an export must not take it for a number that varies. Defaults to ``None``.

    Returns:
        Shape ``(B,)``.

    Example:
        >>> pooled_score(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), share=0.5)
        tensor([3.5000])
    """
    count = max(1, round(share * (n_patches or patch_scores.shape[1])))
    if count == 1:
        return patch_scores.amax(dim=1)
    return patch_scores.topk(count, dim=1).values.mean(dim=1)


def candidates(image_scores: torch.Tensor, rule: str = "min_max", share: float = 0.75) -> torch.Tensor:
    """Return the positions of the images that may enter the bank.

    Args:
        image_scores: Score of every training image, shape ``(N,)``, larger for more anomalous.
        rule: ``"min_max"`` takes the images whose score, scaled to [0, 1] over all images, is below 0.5, as published.
            ``"quantile"`` takes the lowest ``share`` of them (ours): the published rule takes one image alone where
            one scores far below the rest, and nearly all where one scores far above. ``"all"`` takes all (ours).
        share: Share of images under ``"quantile"``, in (0, 1]. Defaults to ``0.75``.

    Returns:
        Ascending positions, at least ``min(N, 2)`` of them: the lowest scores where the rule finds fewer.

    Raises:
        ValueError: If the rule is unknown or a score is NaN.

    Example:
        >>> candidates(torch.tensor([0.1, 0.9, 0.2, 0.3]))
        tensor([0, 2, 3])
    """
    if rule not in RULES:
        msg = f"rule must be one of {RULES}, got '{rule}'."
        raise ValueError(msg)
    if bool(torch.isnan(image_scores).any()):
        msg = f"{int(torch.isnan(image_scores).sum())} of {len(image_scores)} image scores are NaN."
        raise ValueError(msg)
    if rule == "all":
        return torch.arange(len(image_scores), device=image_scores.device)
    order = image_scores.argsort(stable=True)
    least = min(SMALLEST_BANK, len(order))
    count = int((min_max(image_scores) < TAU_N).sum()) if rule == "min_max" else round(share * len(order))
    return order[: max(count, least)].sort().values


def draw_bank(candidate_images: torch.Tensor, generator: torch.Generator, share: float = 0.5) -> torch.Tensor:
    """Return a random share of the candidates, ascending, at least two where there are two.

    Args:
        candidate_images: Positions of the candidates, shape ``(N_c,)``.
        generator: Source of the draw.
        share: Share to keep, published one half. Defaults to ``0.5``.
    """
    count = min(max(SMALLEST_BANK, int(share * len(candidate_images))), len(candidate_images))
    order = torch.randperm(len(candidate_images), generator=generator)
    return candidate_images[order[:count].to(candidate_images.device)].sort().values


def bounded(images: torch.Tensor, n_patches: int, bank_vectors: int | None, generator: torch.Generator) -> torch.Tensor:
    """Return as many images of the bank as may have :data:`PATCHES_PER_IMAGE` patches in it, drawn at random (ours).

    Args:
        images: Positions of the images, shape ``(N_b,)``.
        n_patches: Patches of an image.
        bank_vectors: Largest number of vectors in the bank; ``None`` for no bound.
        generator: Source of the draw.

    Returns:
        Ascending positions, at least two where there are two.
    """
    if bank_vectors is None:
        return images
    count = max(SMALLEST_BANK, bank_vectors // min(PATCHES_PER_IMAGE, n_patches))
    return images[torch.randperm(len(images), generator=generator)[:count]].sort()[0]


def draw_vectors(
    images: torch.Tensor,
    vectors: Callable[[Sequence[int]], torch.Tensor],
    n_patches: int,
    bank_vectors: int | None,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bank: patches of its images, an equal number of each, drawn at random where not all fit.

    Args:
        images: Positions of the bank's images, shape ``(N_b,)``.
        vectors: Returns the vectors of the images at some positions, shape ``(B, P, D)``.
        n_patches: P.
        bank_vectors: Largest number of vectors; ``None`` for no bound. One of each image there is at least.
        generator: Source of the draw.

    Returns:
        Vectors, shape ``(M, D)``, and the number of each one's patch over the training set, shape ``(M,)``: that of its
        image times P, plus its place.
    """
    wanted = n_patches if bank_vectors is None else max(1, min(n_patches, bank_vectors // len(images)))
    drawn_vectors, owners = [], []
    for part in images.split(DRAWN_AT_ONCE):
        found = vectors(part.tolist())
        drawn = torch.rand(found.shape[:2], generator=generator).argsort(dim=1)[:, :wanted].sort(dim=1)[0]
        drawn_vectors.append(found.gather(1, drawn.to(found.device)[..., None].expand(-1, -1, found.shape[2])))
        owners.append(part[:, None] * n_patches + drawn)
    return torch.cat(drawn_vectors).flatten(0, 1).float(), torch.cat(owners).flatten()
