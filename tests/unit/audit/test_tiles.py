# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Thumbnails and heat maps: proportions, place on the image, common colours."""

import io

import numpy as np
import pytest
import torch
from anomalib.data.transforms.square_pad import SquarePad
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_comet.audit.tiles import aligned_map, colour_limits, grid_shape, map_picture, model_view, thumbnail

ALL = (0.0, 0.0, 1.0, 1.0)


def pixels(encoded):
    with Image.open(io.BytesIO(encoded)) as picture:
        assert picture.format == "WEBP"
        return np.asarray(picture.convert("RGB"))


def test_thumbnail_keeps_proportions_and_does_not_enlarge():
    assert pixels(thumbnail(Image.new("RGB", (400, 200)), 100)).shape == (50, 100, 3)
    assert pixels(thumbnail(Image.new("L", (20, 30)), 100)).shape == (30, 20, 3)
    assert grid_shape(200, 400, 100) == (12, 25)
    assert grid_shape(1, 4000, 100) == (1, 25)


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        (None, (100, 200), ALL),
        (Compose([Resize((64, 64)), Normalize([0.5], [0.5])]), (100, 200), ALL),
        # A crop of 128 out of 256 shows the middle half of both sides.
        (Compose([Resize((256, 256)), CenterCrop(128)]), (100, 200), (0.25, 0.25, 0.75, 0.75)),
        # The short side becomes 100, the long one 200: the crop cuts a quarter off both ends.
        (Compose([Resize(100), CenterCrop(100)]), (50, 100), (0.0, 0.25, 1.0, 0.75)),
        # Padded to a square, the image is the middle half of the view's height.
        (Compose([SquarePad(), Compose([Resize((64, 64))])]), (100, 200), (-0.5, 0.0, 1.5, 1.0)),
        (CenterCrop(40), (20, 80), (-0.5, 0.25, 1.5, 0.75)),
    ],
)
def test_what_the_model_sees(transform, size, expected):
    assert model_view(transform, *size) == pytest.approx(expected)


def test_the_view_is_where_the_transform_looks():
    """A bright spot of the image lands in the cell of the grid where it is, whatever the transform does."""
    image = torch.zeros(1, 1, 120, 240)
    image[..., 66:72, 150:156] = 1.0  # in the middle of row 5 and column 12 of cells of 12 x 12 pixels
    for transform in (
        Compose([Resize((120, 240)), CenterCrop((96, 96))]),
        Compose([SquarePad(), Resize((120, 120))]),
        Compose([Resize((64, 64))]),
        Compose([Resize(60), CenterCrop(60)]),
    ):
        seen = transform(image)[0, 0]
        grid = aligned_map(seen, model_view(transform, 120, 240), (10, 20))
        row, column = np.unravel_index(np.nanargmax(grid), grid.shape)
        assert (row, column) == (5, 12), transform


def test_cells_hold_maxima_and_nothing_is_made_up_outside():
    values = torch.zeros(8, 8)
    values[1, 6] = 5.0
    grid = aligned_map(values, ALL, (2, 2))
    assert grid.tolist() == [[0.0, 5.0], [0.0, 0.0]]
    grid = aligned_map(torch.ones(4, 4), (0.25, 0.25, 0.75, 0.75), (4, 4))
    assert np.isnan(grid).sum() == 12
    assert (grid[1:3, 1:3] == 1).all()
    assert aligned_map(torch.tensor([[1.0, 3.0]]), ALL, (4, 8)).shape == (4, 8)  # a coarse map is enlarged


def test_limits_are_common_and_robust():
    maps = [np.linspace(0, 1, 1000, dtype=np.float32).reshape(20, 50) for _ in range(10)]
    low, high = colour_limits(maps)
    assert low == pytest.approx(0.5, abs=1e-3)
    assert high == pytest.approx(0.999, abs=1e-3)
    maps[0] = maps[0].copy()
    maps[0][0, 0], maps[0][0, 1] = 1e6, np.nan
    assert colour_limits(maps)[1] == pytest.approx(high, abs=1e-2)
    assert colour_limits([]) is None
    assert colour_limits([np.full((2, 2), np.nan, dtype=np.float32)]) is None


def test_pictures_of_maps_are_clipped_at_the_limits():
    values = np.repeat(np.array([[-5.0, 1.0, 2.0, 3.0, 99.0, np.nan]], dtype=np.float32), 16, axis=0).repeat(16, axis=1)
    grey = pixels(map_picture(values, (1.0, 3.0)))[8, 8::16, 0].astype(int)
    assert np.abs(grey - [0, 0, 128, 255, 255, 0]).max() <= 6  # WebP is lossy
    assert pixels(map_picture(np.ones((4, 4), dtype=np.float32), (1.0, 1.0))).max() == 0
