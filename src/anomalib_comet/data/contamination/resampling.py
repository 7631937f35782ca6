# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Slightly rotated and shifted copies of anomalies, for ratios that a data set has too few anomalies for.

SoftPatch+ reaches higher contamination in the same way. The copies are written as files, so that every anomalib data
set can read them and every training image keeps a path of its own.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from pathlib import Path

import torch
from anomalib.data.utils import read_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import save_image

MAX_ROTATION = 10.0
"""Largest rotation, in degrees."""
MAX_SHIFT = 0.05
"""Largest shift, as a fraction of the image's height or width."""


def small_change(seed: int, key: str, copy: int) -> tuple[float, float, float]:
    """Rotation and shift of one copy, drawn from its name.

    Args:
        seed (int): Seed of the draw.
        key (str): Path of the image relative to the data set's folder.
        copy (int): Number of the copy, from 1.

    Returns:
        tuple[float, float, float]: Rotation in degrees in [-10, 10] and shifts in x and y as fractions of width and
            height in [-0.05, 0.05]; never all close to zero, so that no copy equals its source.
    """
    generator = random.Random(f"{seed}\0{key}\0{copy}")
    sign = generator.choice((-1, 1))
    rotation = sign * generator.uniform(MAX_ROTATION / 4, MAX_ROTATION)
    return rotation, generator.uniform(-MAX_SHIFT, MAX_SHIFT), generator.uniform(-MAX_SHIFT, MAX_SHIFT)


def rotated_and_shifted(image: torch.Tensor, rotation: float, shift_x: float, shift_y: float) -> torch.Tensor:
    """Rotate and shift an image, with the border mirrored outwards.

    Black corners would set a copy apart from every other training image.

    Args:
        image (torch.Tensor): Image of shape (C, H, W).
        rotation (float): Rotation in degrees, counter-clockwise, at most 10 either way.
        shift_x (float): Shift to the right as a fraction of the width, at most 0.05 either way.
        shift_y (float): Shift downwards as a fraction of the height, at most 0.05 either way.

    Returns:
        torch.Tensor: Image of shape (C, H, W).
    """
    height, width = image.shape[-2:]
    # A quarter of the longer side covers a rotation by 10 degrees and the shift up to an aspect ratio of about 2:1;
    # mirroring needs margins smaller than the image itself.
    margin = max(height, width) // 4 + 1
    margin_x, margin_y = min(margin, width - 1), min(margin, height - 1)
    padded = transforms.pad(image, [margin_x, margin_y, margin_x, margin_y], padding_mode="reflect")
    changed = transforms.affine(
        padded,
        angle=-rotation,
        translate=[shift_x * width, shift_y * height],
        scale=1.0,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    return transforms.center_crop(changed, [height, width])


def resampled_copy(source: str, folder: Path, *, seed: int, key: str, copy: int) -> str:
    """Write a slightly rotated and shifted copy of an image, unless it is there already.

    Args:
        source (str): Path of the image.
        folder (Path): Folder that the copies are kept in; made if missing.
        seed (int): Seed of the draw.
        key (str): Path of the image relative to the data set's folder.
        copy (int): Number of the copy, from 1.

    Returns:
        str: Path of the copy, a PNG file. The same image, seed and number give the same path.
    """
    state = Path(source).stat()
    identity = f"{os.path.abspath(source)}\0{state.st_size}\0{state.st_mtime_ns}\0{seed}\0{key}\0{copy}"  # noqa: PTH100
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.abspath(folder)) / f"{Path(source).stem}_{digest}_copy{copy}.png"  # noqa: PTH100
    if not target.exists():
        image = torch.as_tensor(read_image(source, as_tensor=True))
        image = rotated_and_shifted(image, *small_change(seed, key, copy))
        # Another process may draw the same copy at the same time, so the file appears at once or not at all.
        handle, unfinished = tempfile.mkstemp(suffix=".png", dir=folder)
        os.close(handle)
        save_image(image.clamp(0, 1), unfinished)
        Path(unfinished).replace(target)
    return str(target)
