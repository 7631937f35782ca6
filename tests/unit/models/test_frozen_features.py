# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Which local features statistics over the training set are fitted to."""

import pytest
import torch

from anomalib_comet.models.frozen_features import some_vectors, vectors_per_image


@pytest.mark.parametrize("n_images", [60, 150, 180, 352, 700, 5200, 10_000])
@pytest.mark.parametrize("side", [14, 16, 28])
def test_statistics_see_every_row_and_column(n_images, side):
    places = torch.arange(side * side)[None, :, None].expand(n_images, -1, -1)
    names = [f"folder/{k:04}.png" for k in range(n_images)]
    count = vectors_per_image(n_images)
    seen = some_vectors(places, count, names)[..., 0]
    assert seen.shape == (n_images, min(count, side * side))
    assert all(len(row.unique()) == len(row) for row in seen)
    for position in (seen // side, seen % side):
        share = position.flatten().bincount(minlength=side) / seen.numel()
        assert share.min() > 0.7 / side
        assert share.max() < 1.3 / side


def test_places_do_not_depend_on_the_batch_or_the_folder():
    vectors = torch.randn(4, 100, 3, generator=torch.Generator().manual_seed(0))
    names = ["a/1.png", "a/2.png", "b/3.png", "4.png"]
    together = some_vectors(vectors, 7, names)
    alone = [some_vectors(vectors[k : k + 1], 7, [f"elsewhere/{names[k].rpartition('/')[2]}"]) for k in range(4)]
    assert torch.equal(together, torch.cat(alone))
