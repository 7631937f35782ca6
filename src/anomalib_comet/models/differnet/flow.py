# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The normalizing flow of DifferNet: fixed permutations and affine coupling blocks."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from FrEIA.modules import GLOWCouplingBlock
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

ATAN_SCALE = 0.636
"""About 2 / pi, as in the published clamp."""


class SoftClampedCoupling(GLOWCouplingBlock):
    """FrEIA's GLOW coupling block with DifferNet's clamp of the log-scale, ``alpha * 0.636 * atan(s / alpha)``.

    FrEIA's own clamp is ``alpha * 0.636 * atan(s)``, which is steeper at zero by the factor alpha. The division
    makes the difference, and a plain method (FrEIA keeps a lambda) can be pickled and exported.

    Args:
        dims: Number of features.
        subnet: Called with numbers of input and output features, returns the subnet.
        clamp: The bound alpha.
    """

    def __init__(self, dims: int, subnet: Callable[[int, int], nn.Module], clamp: float) -> None:
        super().__init__([(dims,)], subnet_constructor=subnet, clamp=clamp, clamp_activation=self._soft_clamp)

    def _soft_clamp(self, s: torch.Tensor) -> torch.Tensor:
        return ATAN_SCALE * torch.atan(s / self.clamp)


class NormalizingFlow(nn.Module):
    """A chain of [fixed random permutation, affine coupling].

    Args:
        n_features: Number of features D, at least 2.
        coupling_blocks: Number of coupling blocks.
        hidden_units: Width of the subnets' hidden layers.
        n_hidden: Number of hidden layers of width ``hidden_units`` after the first; the published subnet has 2, that
            is Linear D/2 -> h -> h -> h -> D with ReLU between. Defaults to ``2``.
        clamp: Bound alpha of the log-scale, positive. Defaults to ``3.0``.
        identity_start: Whether the last layer of every subnet starts at zero, which makes the flow the identity but for
            its permutations. Defaults to ``False``.
        seed: Seed of permutations and initial weights, drawn from a generator of their own. Defaults to ``0``.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(
        self,
        n_features: int,
        coupling_blocks: int,
        hidden_units: int,
        n_hidden: int = 2,
        clamp: float = 3.0,
        identity_start: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if n_features < 2 or coupling_blocks < 1 or hidden_units < 1 or clamp <= 0:  # noqa: PLR2004
            msg = (
                "A flow needs at least 2 features, 1 coupling block, 1 hidden unit and a positive clamp, got "
                f"{n_features}, {coupling_blocks}, {hidden_units} and {clamp}."
            )
            raise ValueError(msg)
        generator = torch.Generator().manual_seed(seed)

        def subnet(n_in: int, n_out: int) -> nn.Sequential:
            widths = [n_in, *[hidden_units] * (n_hidden + 1), n_out]
            layers: list[nn.Module] = []
            for i, o in itertools.pairwise(widths):
                layers += [_linear(i, o, generator), nn.ReLU()]
            if identity_start:
                nn.init.zeros_(layers[-2].weight)  # type: ignore[arg-type]
                nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
            return nn.Sequential(*layers[:-1])

        self.couplings = nn.ModuleList()
        for k in range(coupling_blocks):
            self.register_buffer(f"permutation{k}", torch.randperm(n_features, generator=generator))
            self.couplings.append(SoftClampedCoupling(n_features, subnet, clamp))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features to latents.

        Args:
            x: Shape ``(B, D)``.

        Returns:
            Latents ``z`` of shape ``(B, D)`` and ``log |det dz/dx|`` of shape ``(B,)``.
        """
        log_det = x.new_zeros(x.shape[0])
        for k, coupling in enumerate(self.couplings):
            (x,), block_log_det = coupling([x.index_select(1, getattr(self, f"permutation{k}"))])
            log_det = log_det + block_log_det
        return x, log_det

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """Map latents of shape ``(B, D)`` back to features of the same shape."""
        for k, coupling in reversed(list(enumerate(self.couplings))):
            (z,), _ = coupling([z], rev=True)
            z = z[:, torch.argsort(getattr(self, f"permutation{k}"))]
        return z


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with torch's default initialisation, drawn from ``generator``."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    bound = 1.0 / math.sqrt(n_in)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer
