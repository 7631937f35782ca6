# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""From feature maps of several layers to one feature vector a patch.

The published aggregation (Liu, Zhou, Xu, Wang, CVPR 2023, after PatchCore): the 3 x 3 neighbourhood of every place of
every map, deeper layers resized bilinearly to the grid of the first, every neighbourhood (channels times nine values)
adaptively average-pooled to D values, those of all layers put one after another and adaptively average-pooled to D
again. All of these are linear, and pooling runs over channels while resizing runs over places: they commute. We
therefore pool *before* we resize, which touches a fraction of the memory and gives the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Sequence

AGGREGATIONS = ("published", "average")
SIDE = 3
"""Side of a neighbourhood in cells of a feature map."""


def neighbourhoods(feature_map: torch.Tensor) -> torch.Tensor:
    """Return the 3 x 3 neighbourhood of every place, zero outside of the map.

    The same as ``unfold`` with padding 1 and stride 1, whose order it keeps, as slices: those export everywhere.

    Args:
        feature_map: Shape ``(B, C, h, w)``.

    Returns:
        Shape ``(B, C * 9, h, w)``, a channel's nine values together, row by row.
    """
    height, width = feature_map.shape[-2:]
    padded = F.pad(feature_map, (SIDE // 2,) * 4)
    shifted = [padded[..., y : y + height, x : x + width] for y in range(SIDE) for x in range(SIDE)]
    return torch.stack(shifted, dim=2).flatten(1, 2)


class ChannelPool(nn.Module):
    """Adaptive average pooling over channels: output k is the mean of inputs floor(k n / m) to ceil((k + 1) n / m) - 1.

    Args:
        n_in: Number of channels n before.
        n_out: Number of channels m after; where it is larger than ``n_in``, values are repeated.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.bin_size = n_in // n_out if n_in % n_out == 0 else 0
        self.index: torch.Tensor
        self.share: torch.Tensor
        if not self.bin_size:
            starts = [k * n_in // n_out for k in range(n_out)]
            stops = [-(-(k + 1) * n_in // n_out) for k in range(n_out)]
            longest = max(stop - start for start, stop in zip(starts, stops, strict=True))
            index, share = torch.zeros(longest, n_out, dtype=torch.long), torch.zeros(longest, n_out)
            for k, (start, stop) in enumerate(zip(starts, stops, strict=True)):
                index[: stop - start, k] = torch.arange(start, stop)
                share[: stop - start, k] = 1.0 / (stop - start)
            # They follow from the sizes: a checkpoint need not hold them.
            self.register_buffer("index", index, persistent=False)
            self.register_buffer("share", share, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool a map of shape ``(B, n_in, h, w)`` to ``(B, n_out, h, w)``."""
        if self.bin_size:
            return x if self.bin_size == 1 else x.unflatten(1, (-1, self.bin_size)).mean(2)
        # A sum of gathers, not adaptive_avg_pool1d, which wants the channels last and exports less simply.
        parts = [
            x.index_select(1, index) * share.to(x.dtype)[:, None, None]
            for index, share in zip(self.index.unbind(), self.share.unbind(), strict=True)
        ]
        return torch.stack(parts).sum(0)


class PublishedAggregation(nn.Module):
    """The published aggregation, see the module's text.

    Args:
        channels: Number of channels of each layer's map.
        n_features: Number D of features of a patch.
    """

    def __init__(self, channels: Sequence[int], n_features: int) -> None:
        super().__init__()
        self.n_features = n_features
        n_layers = len(channels)
        self.per_layer = nn.ModuleList(ChannelPool(c * SIDE**2, n_features) for c in channels)
        # The last pooling has bins of `n_layers` values. Where none of them lies in two layers, it can be done a layer.
        separate = n_features % n_layers == 0
        self.last_per_layer = ChannelPool(n_features, n_features // n_layers) if separate else nn.Identity()
        self.last = nn.Identity() if separate else ChannelPool(n_features * n_layers, n_features)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features of every patch.

        Args:
            maps: A map of shape ``(B, C, h, w)`` for every layer.

        Returns:
            Shape ``(B, D, h, w)`` on the grid of the first layer.
        """
        pooled = [
            self.last_per_layer(pool(neighbourhoods(feature_map)))
            for pool, feature_map in zip(self.per_layer, maps, strict=True)
        ]
        return self.last(on_first_grid(pooled))


class AverageAggregation(nn.Module):
    """A light variant: the mean of every neighbourhood of every channel, layers one after another.

    It keeps one value of a neighbourhood where the published aggregation keeps several, and never holds all nine.

    Args:
        channels: Number of channels of each layer's map. The number of features is their sum, which is 1536 as
            published for layers 2 and 3 of WideResNet-50.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.n_features = sum(channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features of every patch, see :meth:`PublishedAggregation.forward`."""
        return on_first_grid([F.avg_pool2d(feature_map, SIDE, stride=1, padding=SIDE // 2) for feature_map in maps])


def on_first_grid(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Resize maps bilinearly to the grid of the first and concatenate their channels."""
    grid = maps[0].shape[-2:]
    resized = [F.interpolate(m, size=grid, mode="bilinear", align_corners=False, antialias=False) for m in maps[1:]]
    return torch.cat([maps[0], *resized], dim=1)


def make_aggregation(
    aggregation: str,
    channels: Sequence[int],
    n_features: int,
) -> PublishedAggregation | AverageAggregation:
    """Build an aggregation by name.

    Args:
        aggregation: ``"published"`` or ``"average"``.
        channels: Number of channels of each layer's map.
        n_features: Number of features of a patch, used by ``"published"``.

    Raises:
        ValueError: If the name is unknown or a number is not positive.
    """
    if aggregation not in AGGREGATIONS:
        msg = f"aggregation must be one of {AGGREGATIONS}, got '{aggregation}'."
        raise ValueError(msg)
    if n_features < len(channels):
        msg = f"feature_dim must be at least the number of layers, {len(channels)}, got {n_features}."
        raise ValueError(msg)
    return PublishedAggregation(channels, n_features) if aggregation == "published" else AverageAggregation(channels)
