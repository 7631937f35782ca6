# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Quarter turns of images and the anomaly map of window scores."""

import torch
from anomalib.models.components import GaussianBlur2d
from torch import nn
from torch.nn import functional as F  # noqa: N812


def turn(images: torch.Tensor, k: int) -> torch.Tensor:
    """Turn images counter-clockwise by ``k`` quarters, exactly: a transposition and flips, which export everywhere.

    Args:
        images: Shape ``(..., H, W)``.
        k: Number of quarters, 0 to 3.

    Returns:
        Shape ``(..., H, W)`` for even ``k``, ``(..., W, H)`` for odd.
    """
    if k == 1:
        return images.transpose(-1, -2).flip(-2)
    if k == 2:  # noqa: PLR2004
        return images.flip(-1, -2)
    if k == 3:  # noqa: PLR2004
        return images.transpose(-1, -2).flip(-1)
    return images


def turn_back(maps: torch.Tensor, k: int) -> torch.Tensor:
    """Undo :func:`turn` by ``k`` quarters."""
    return turn(maps, -k % 4)


class AnomalyMapGenerator(nn.Module):
    """Smooth map in the size of the image from scores of local windows.

    Args:
        sigma: Standard deviation of the Gaussian blur in pixels.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.blur = GaussianBlur2d(sigma=sigma, channels=1, border_type="replicate")

    def forward(self, window_scores: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Return the anomaly map.

        Args:
            window_scores: Shape ``(B, h, w)``.
            image_size: Height and width of the map in pixels.

        Returns:
            Anomaly map of shape ``(B, 1, H, W)``.
        """
        maps = F.interpolate(window_scores[:, None], size=image_size, mode="bilinear", align_corners=False)
        # Columns, then rows: what the square kernel does, with a sixteenth of the products at 33 x 33.
        kernel = self.blur.kernel
        column, row = kernel.sum(dim=-1, keepdim=True), kernel.sum(dim=-2, keepdim=True)
        maps = F.pad(maps, self.blur.padding_shape, mode=self.blur.border_type)
        return F.conv2d(F.conv2d(maps, column), row)
