# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What helps a detector that somebody else has written to give its losses and scores per sample.

Such a detector has a loss of a batch, a forward pass that runs its frozen part every time and draws its random numbers
inside, and image scores that a sigmoid has squeezed. These functions work around each of them from outside, on the one
instance and for the duration of a call: the detector's classes stay as they are.

Example:
    A detector whose ``model`` returns features and whose ``loss`` is a mean over the batch::

        def training_inputs(self, batch):
            return {"images": batch.image, "frozen": self.model.backbone(batch.image)}

        def sample_losses(self, inputs):
            with given_outputs(self.model.backbone, inputs["frozen"]):
                features = self.model(inputs["images"])
            return sample_by_sample(self.loss, features)
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


def sample_by_sample(loss: Callable[..., torch.Tensor], *outputs: Any) -> torch.Tensor:
    """Return a detector's own loss of every sample: the loss of a batch that holds this sample alone.

    The mean of the result is the loss of the batch exactly where that is a mean over samples. Where it is a sum, it is
    the sum of the result; where it is a mean over something that samples hold in different numbers (pixels of a mask),
    it is neither, and the samples need weights.

    Args:
        loss: The loss; it takes ``outputs`` of any batch size and returns a scalar.
        *outputs: Its arguments: tensors, or tuples, lists or dicts of tensors, with the batch as first dimension.

    Returns:
        Losses of shape ``(B,)``.

    Example:
        >>> sample_by_sample(torch.nn.MSELoss(), torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
        tensor([1., 9.])
    """
    n_samples = len(tree_leaves(outputs)[0])
    # Not torch.vmap: a loss that adds up in place, or selects pixels by a mask, does not pass through it.
    return torch.stack([loss(*tree_map(lambda t, k=k: t[k : k + 1], outputs)) for k in range(n_samples)])


@contextlib.contextmanager
def standing_in(module: nn.Module, function: Callable[..., Any], method: str = "forward") -> Iterator[None]:
    """Let a function stand in for a method of one module, ``forward`` by default, within the context.

    Args:
        module: The module, an instance; its class stays as it is.
        function: Called with the arguments of the method, without ``self``.
        method: Name of the method. Defaults to ``"forward"``.
    """
    missing = object()
    before = vars(module).get(method, missing)
    setattr(module, method, function)
    try:
        yield
    finally:
        if before is missing:
            delattr(module, method)
        else:
            setattr(module, method, before)


def given_outputs(
    module: nn.Module,
    outputs: Any,
    method: str = "forward",
) -> contextlib.AbstractContextManager[None]:
    """Let a module return given outputs instead of computing them, within the context.

    A frozen part then runs once a step, in ``training_inputs``, and not in each of the passes that a step makes.

    Args:
        module: The module, an instance; its class stays as it is.
        outputs: What it returns, whatever it is called with.
        method: Name of the method that returns it. Defaults to ``"forward"``.

    Returns:
        A context manager.
    """
    return standing_in(module, lambda *_, **__: outputs, method)


@contextlib.contextmanager
def recorded_outputs(*modules: nn.Module) -> Iterator[list[Any]]:
    """Record what modules return within the context, e.g. the logits of which a detector returns the sigmoid.

    Args:
        *modules: The modules whose outputs are wanted.

    Yields:
        A list, to which every call of one of the modules adds its output.
    """
    outputs: list[Any] = []
    handles = [module.register_forward_hook(lambda _m, _args, output: outputs.append(output)) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
