# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Loss of DifferNet: negative log-likelihood per dimension."""

import torch
from torch import nn


def negative_log_likelihood(z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
    """Return ``(0.5 ||z||^2 - log|det J|) / D`` for every vector, without the constant ``0.5 log(2 pi)``.

    Args:
        z: Latents of shape ``(..., D)``.
        log_det: Log-determinants of shape ``(...)``.

    Returns:
        Tensor of shape ``(...)``.

    Example:
        >>> negative_log_likelihood(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0]))
        tensor([2.])
    """
    return (0.5 * z.square().sum(-1) - log_det) / z.shape[-1]


class DifferNetLoss(nn.Module):
    """Mean negative log-likelihood per dimension (Rudolph, Wandt, Rosenhahn, WACV 2021, equation 4)."""

    @staticmethod
    def forward(z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
        """Return the loss of every image.

        Args:
            z: Latents of shape ``(B, ..., D)``: all vectors of an image (transforms, windows) between first and last.
            log_det: Log-determinants of shape ``(B, ...)``.

        Returns:
            Mean over an image's vectors, shape ``(B,)``.
        """
        return negative_log_likelihood(z, log_det).flatten(1).mean(1)
