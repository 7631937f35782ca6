# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Random rotations of training images, drawn from a generator of their own."""

import math

import torch
from torch.nn import functional as F  # noqa: N812

ROTATIONS = ("random", "quarter")


def check_rotations(train_rotations: str) -> None:
    """Raise a ValueError unless ``train_rotations`` is a known mode."""
    if train_rotations not in ROTATIONS:
        msg = f"train_rotations must be one of {ROTATIONS}, got '{train_rotations}'."
        raise ValueError(msg)


def random_rotations(images: torch.Tensor, n_rotations: int, generator: torch.Generator) -> torch.Tensor:
    """Rotate every image by several angles drawn uniformly from -180 to 180 degrees.

    What lies outside the image is filled by reflection: black corners would be seen in training only, since scores are
    taken over quarter turns, which have none.

    Args:
        images: Shape ``(B, C, H, W)``.
        n_rotations: Number of angles an image, R.
        generator: Generator on the CPU.

    Returns:
        Tensor of shape ``(B, R, C, H, W)``.
    """
    n_images, _, height, width = images.shape
    angles = (torch.rand(n_images * n_rotations, generator=generator) * 2 - 1) * math.pi
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid works in coordinates of -1 to 1 along each side, hence the ratios of sides.
    matrices = torch.stack(
        [cos, -sin * height / width, zero, sin * width / height, cos, zero],
        dim=1,
    ).reshape(-1, 2, 3)
    repeated = images.repeat_interleave(n_rotations, dim=0)
    grid = F.affine_grid(matrices.to(images), list(repeated.shape), align_corners=False)
    rotated = F.grid_sample(repeated, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return rotated.unflatten(0, (n_images, n_rotations))
