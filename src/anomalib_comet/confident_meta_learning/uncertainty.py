# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Model uncertainty from the covariance of task losses, and the regulariser that follows it.

Source: Aqeel, Sharifi, Cristani, Setti, ICCV 2025: ``Sigma`` is the 2x2 covariance of (L_train, L_val) and
``lambda(Sigma) = lambda0 (1 + gamma det(Sigma))``. Realisations are task pairs: the un-weighted detector loss on the
task's training part at theta, and on its validation part at theta'.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, get_args

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

UncertaintyScale = Literal["correlation", "relative", "raw"]
"""How ``det(Sigma)`` is made comparable between losses, see :func:`model_uncertainty`."""

MINIMUM_PAIRS = 3


def loss_covariance(pairs: torch.Tensor) -> torch.Tensor:
    """Return ``Sigma``, the unbiased 2x2 covariance of (L_train, L_val).

    Args:
        pairs: Losses of shape ``(K, 2)``: a row a task, training loss and validation loss.

    Returns:
        Tensor of shape ``(2, 2)``.

    Example:
        >>> loss_covariance(torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]))
        tensor([[1., 2.],
                [2., 4.]])
    """
    return torch.cov(pairs.T)


def model_uncertainty(pairs: torch.Tensor, scale: UncertaintyScale = "correlation") -> torch.Tensor:
    """Return ``det(Sigma)``, the model uncertainty, on the chosen scale.

    The raw determinant is of the order of the losses' standard deviation to the fourth (1e-8 to 1e-3 in practice), so
    that gamma never acts. The scale-free versions are ours.

    Args:
        pairs: Losses of shape ``(K, 2)``.
        scale: ``"correlation"`` normalises the covariance, which leaves ``1 - rho^2`` in ``[0, 1]``: 0 where a task's
            training loss says all about its validation loss, 1 where it says nothing. ``"relative"`` divides each loss
            by its mean magnitude first. ``"raw"`` is the published form. Defaults to ``"correlation"``.

    Returns:
        A scalar tensor, not negative; 0 with fewer than three pairs.
    """
    if len(pairs) < MINIMUM_PAIRS:
        return torch.zeros((), dtype=pairs.dtype, device=pairs.device)
    values = pairs.detach().double()
    if scale == "relative":
        values = values / values.abs().mean(0).clamp(min=torch.finfo(values.dtype).tiny)
    sigma = loss_covariance(values)
    determinant = torch.linalg.det(sigma) if scale != "correlation" else _one_minus_rho_squared(sigma)
    return determinant.clamp(min=0.0).to(pairs.dtype)


def _one_minus_rho_squared(sigma: torch.Tensor) -> torch.Tensor:
    variances = sigma[0, 0] * sigma[1, 1]
    if variances <= 0:
        return torch.zeros_like(variances)
    return 1.0 - sigma[0, 1] ** 2 / variances


def adaptive_l2(uncertainty: torch.Tensor | float, lambda0: float, gamma: float) -> float:
    """Return the strength of the L2 regulariser, ``lambda(Sigma) = lambda0 (1 + gamma det(Sigma))``.

    Args:
        uncertainty: ``det(Sigma)``, not negative.
        lambda0: Base strength.
        gamma: Gain on the uncertainty.

    Returns:
        The strength as a plain number, because lambda is a constant of the optimisation.

    Example:
        >>> adaptive_l2(0.5, lambda0=1e-5, gamma=0.5)
        1.25e-05
    """
    return lambda0 * (1.0 + gamma * float(uncertainty))


class LossPairWindow:
    """Sliding window over the task pairs (L_train, L_val).

    Args:
        size: Number of pairs kept, at least 3. Defaults to ``32``.

    Raises:
        ValueError: If ``size`` is below 3.
    """

    def __init__(self, size: int = 32) -> None:
        if size < MINIMUM_PAIRS:
            msg = f"The window of task losses needs at least {MINIMUM_PAIRS} pairs for a covariance, got {size}."
            raise ValueError(msg)
        self._pairs: deque[tuple[float, float]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._pairs)

    def extend(self, pairs: Iterable[tuple[float, float]]) -> None:
        """Append pairs (L_train, L_val); the oldest ones leave."""
        self._pairs.extend(pairs)

    def tensor(self) -> torch.Tensor:
        """Return the pairs as a tensor of shape ``(K, 2)``."""
        return torch.tensor(list(self._pairs), dtype=torch.float64).reshape(-1, 2)

    def state(self) -> list[list[float]]:
        """Return the pairs as plain data for a checkpoint."""
        return [list(pair) for pair in self._pairs]

    def restore(self, state: Iterable[Iterable[float]]) -> None:
        """Take the pairs of a checkpoint."""
        self._pairs.clear()
        self._pairs.extend((float(a), float(b)) for a, b in state)


def check_scale(scale: str) -> UncertaintyScale:
    """Return ``scale`` if it is a known one.

    Raises:
        ValueError: If it is not.
    """
    if scale not in get_args(UncertaintyScale):
        msg = f"uncertainty_scale must be one of {get_args(UncertaintyScale)}, got '{scale}'."
        raise ValueError(msg)
    return scale  # type: ignore[return-value]
