# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Loss of FUN-AD: balanced cross-entropy and mutual smoothness (Im, Son, Hong, WACV 2025)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def balanced_bce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the anomalies plus that of the normal patches.

    ``mean_{y=1} -log p + mean_{y=0} -log(1 - p)``: few anomalies weigh as much as many normal patches. A class that
    does not occur contributes nothing.

    Args:
        logits: Patch scores before the sigmoid, any shape.
        labels: Boolean, same shape, true for pseudo-anomalies.

    Example:
        >>> balanced_bce(torch.zeros(3), torch.tensor([True, False, False]))
        tensor(1.3863)
    """
    return class_mean(F.softplus(-logits), labels) + class_mean(F.softplus(logits), ~labels)


def class_mean(losses: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the members of a class, 0 where there are none; no shape depends on the data."""
    counted = members.to(losses)
    return (losses * counted).sum() / counted.sum().clamp(min=1.0)


def mutual_smoothness(probabilities: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Return ``0.5 mean |p_u - p_v|`` over mutually nearest pairs (u, v), 0 where there is none.

    Args:
        probabilities: Patch scores after the sigmoid, shape ``(N,)``.
        pairs: Shape ``(n_pairs, 2)``, see :func:`.neighbours.mutual_pairs`.

    Example:
        >>> mutual_smoothness(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([[0, 1]]))
        tensor(0.5000)
    """
    differences = (probabilities[pairs[:, 0]] - probabilities[pairs[:, 1]]).abs()
    return 0.5 * differences.sum() / max(1, len(pairs))


def distance_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference between Local-Net's outputs and centred log distances (ours).

    Where the published loss asks on which side of a threshold a patch lies, this one asks how far from the bank: what
    orders normal patches among each other orders images of a clean training set.

    Args:
        outputs: Local-Net's outputs, any shape.
        targets: See :func:`.pseudo_labels.centred_log`, same shape.
    """
    return (outputs - targets).square().mean()


class FunAdLoss(nn.Module):
    """Balanced cross-entropy plus weighted mutual smoothness.

    Args:
        smoothness: Weight of the mutual smoothness. Defaults to ``2.5``.
    """

    def __init__(self, smoothness: float = 2.5) -> None:
        super().__init__()
        self.smoothness = smoothness

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        clean_logits: torch.Tensor,
        pairs: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            logits: Scores before the sigmoid of the patches as trained on, some perturbed, shape ``(N,)``.
            labels: Their pseudo-labels, boolean, shape ``(N,)``.
            clean_logits: Scores of the patches as they are, shape ``(N,)``.
            pairs: Mutually nearest pairs among these, shape ``(n_pairs, 2)``.
        """
        loss = balanced_bce(logits, labels)
        if self.smoothness:
            loss = loss + self.smoothness * mutual_smoothness(clean_logits.sigmoid(), pairs)
        return loss
