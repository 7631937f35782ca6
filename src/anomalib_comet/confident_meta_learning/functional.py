# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""A detector's losses as a function of its parameters, for inner steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.func import functional_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch


def functional_losses(detector: Any) -> Callable[[Mapping[str, torch.Tensor], Any], torch.Tensor]:
    """Return a detector's un-weighted losses as a function of its parameters and its inputs.

    Running statistics of batch norm are cloned for every call: they must not see adapted weights.

    Args:
        detector: A module with a method ``weighted_losses``.
    """
    module = _Losses(detector)
    running = {
        f"detector.{name}.{buffer}": value
        for name, child in trained_batch_norms(detector)
        for buffer, value in child.named_buffers(recurse=False)
    }

    def losses(parameters: Mapping[str, torch.Tensor], inputs: Any) -> torch.Tensor:
        tensors = {f"detector.{name}": value for name, value in parameters.items()}
        tensors.update({name: value.clone() for name, value in running.items()})
        return functional_call(module, tensors, (inputs,), tie_weights=False)

    return losses


def trained_batch_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return names and modules of the layers of batch norm whose running statistics follow the training.

    Args:
        module: Any module.
    """
    batch_norm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001
    return [(name, m) for name, m in module.named_modules() if isinstance(m, batch_norm) and m.training]


class _Losses(nn.Module):
    """A module whose forward is a detector's losses, for ``functional_call``."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, inputs: Any) -> torch.Tensor:
        return self.detector.weighted_losses(inputs)
