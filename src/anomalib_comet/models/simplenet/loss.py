# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Loss of SimpleNet: truncated, hinge-like."""

import torch
from torch import nn


def truncated_l1(true: torch.Tensor, fake: torch.Tensor, margin: float) -> torch.Tensor:
    """Return ``max(0, th - D(true)) + max(0, th + D(fake))``.

    Args:
        true: Output D of the discriminator for patches of training images, any shape.
        fake: The same for those patches with noise, same shape.
        margin: ``th``; the loss of a patch is zero where D is above it for the true and below its negative for the
            fake one.

    Returns:
        Tensor of the same shape.

    Example:
        >>> truncated_l1(torch.tensor([1.0, 0.25]), torch.tensor([-1.0, 0.0]), margin=0.5)
        tensor([0.0000, 0.7500])
    """
    return (margin - true).clamp(min=0.0) + (margin + fake).clamp(min=0.0)


class SimpleNetLoss(nn.Module):
    """Truncated l1 loss (Liu, Zhou, Xu, Wang, CVPR 2023).

    Args:
        margin: Truncation ``th``. Defaults to ``0.5``.
    """

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, true: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Return the loss of every patch.

        Args:
            true: Discriminator's output for true patches, shape ``(B, P)``.
            fake: For the same patches with noise, shape ``(B, P)``.

        Returns:
            Losses of shape ``(B, P)``.
        """
        return truncated_l1(true, fake, self.margin)
