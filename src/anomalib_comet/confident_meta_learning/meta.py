# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Meta-learning of one batch: MAML over tasks of a few images, as pure functions of the parameters.

Sources: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", ICML 2017 (the inner and outer step); Aqeel, Sharifi,
Cristani, Setti, ICCV 2025 (confidence weights and adaptive regulariser in the outer loss):

    theta' = theta - alpha grad L_train(theta)
    L_meta(theta') = sum_i w_i L_AD(x_i | theta') + lambda(Sigma') ||theta'||^2

Sums over images are taken as means over the batch, so that the learning rate does not depend on the batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Parameters = Mapping[str, torch.Tensor]
    SampleLosses = Callable[[Parameters, Any], torch.Tensor]
    """Parameters and inputs in, the detector's un-weighted loss of every sample out, shape (B,)."""


SMALLEST_TASK = 4


@dataclass(frozen=True)
class MetaGradient:
    """Outcome of one meta-step.

    Attributes:
        gradients: Outer gradient for every parameter, by name (first order), or ``None`` where ``loss`` carries the
            graph through theta' (second order).
        loss: Outer loss, a scalar.
        pairs: Un-weighted losses (L_train at theta, L_val at theta') of every task, shape ``(K, 2)``.
        inner_improvement: Mean over tasks of (L_val at theta - L_val at theta'); see :func:`meta_gradient`.
        inner_distance: Mean over tasks of ``||theta' - theta|| / ||theta||``; if tiny, meta-learning does nothing.
        weighted_loss: The outer loss without its regulariser, a scalar without gradients.
    """

    gradients: dict[str, torch.Tensor] | None
    loss: torch.Tensor
    pairs: torch.Tensor
    inner_improvement: torch.Tensor
    inner_distance: torch.Tensor
    weighted_loss: torch.Tensor


def split_tasks(n_samples: int, task_size: int, train_share: float = 0.7) -> list[tuple[slice, slice]]:
    """Cut a shuffled batch into tasks, each with its training and validation part, and the same with parts swapped.

    Args:
        n_samples: Number of images in the batch.
        task_size: Wished number of images in a task; the batch is cut into equal tasks as close to it as possible.
        train_share: Share of a task's images in its training part. Defaults to ``0.7``.

    Returns:
        Pairs of slices (training part, validation part), two a task: every image is in one validation part and in one
        training part. A part has two images at least, because batch norm cannot train on one; fewer than four images
        make no task.

    Example:
        >>> split_tasks(5, task_size=5, train_share=0.6)
        [(slice(0, 3, None), slice(3, 5, None)), (slice(3, 5, None), slice(0, 3, None))]
    """
    if n_samples < SMALLEST_TASK:
        return []
    n_tasks = min(max(1, round(n_samples / task_size)), n_samples // SMALLEST_TASK)
    size, larger = divmod(n_samples, n_tasks)
    splits, start = [], 0
    for task in range(n_tasks):
        stop = start + size + (task < larger)
        n_train = min(max(2, round(train_share * (stop - start))), stop - start - 2)
        train, val = slice(start, start + n_train), slice(start + n_train, stop)
        splits += [(train, val), (val, train)]
        start = stop
    return splits


def take(inputs: Any, rows: slice) -> Any:
    """Return some rows of every tensor in ``inputs`` (a tensor, or a tuple, list or dict of tensors)."""
    return tree_map(lambda tensor: tensor[rows], inputs)


def inner_update(
    losses: SampleLosses,
    parameters: Parameters,
    inputs: Any,
    weights: torch.Tensor,
    step_size: float,
    steps: int = 1,
    first_order: bool = True,
    max_norm: float = 0.0,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Adapt the parameters to a task: ``theta' = theta - alpha grad sum_i w_i L_AD(x_i | theta)``, ``steps`` times.

    Args:
        losses: The detector's per-sample losses as a function of the parameters.
        parameters: theta, tensors that require gradients.
        inputs: The task's training part.
        weights: Confidence weights of these samples, shape ``(B,)``.
        step_size: alpha.
        steps: Number of gradient steps. Defaults to ``1``.
        first_order: Whether theta' forgets how it came from theta. Defaults to ``True``.
        max_norm: Gradients of a larger norm (over all parameters) are scaled down to it; 0 for no bound. Ours: the
            gradient of a sharp likelihood has heavy tails, and a plain SGD step on it throws theta' away. Defaults to
            ``0.0``.

    Returns:
        theta' by name (leaves that require gradients in first order; in second order with their history), and the mean
        un-weighted loss at theta, a scalar without gradients.
    """
    start = torch.zeros(())
    adapted: dict[str, torch.Tensor] = dict(parameters)
    for step in range(steps):
        sample_losses = losses(adapted, inputs)
        if step == 0:
            start = sample_losses.detach().mean()
        gradients = torch.autograd.grad(
            (weights * sample_losses).mean(),
            list(adapted.values()),
            create_graph=not first_order,
            allow_unused=True,
            materialize_grads=True,  # zeros for parameters that the loss does not reach
        )
        if max_norm:
            norm = torch.stack(torch._foreach_norm([g.detach() for g in gradients])).norm()  # noqa: SLF001
            gradients = torch._foreach_mul(gradients, (max_norm / norm.clamp(min=max_norm)))  # noqa: SLF001
        if first_order:
            with torch.no_grad():  # one fused operation for all tensors: small ones are all overhead
                values = torch._foreach_add(list(adapted.values()), gradients, alpha=-step_size)  # noqa: SLF001
            adapted = {name: value.requires_grad_() for name, value in zip(adapted, values, strict=True)}
        else:
            pairs = zip(adapted.items(), gradients, strict=True)
            adapted = {name: value - step_size * gradient for (name, value), gradient in pairs}
    return adapted, start


def meta_gradient(
    losses: SampleLosses,
    parameters: Parameters,
    inputs: Any,
    weights: torch.Tensor,
    *,
    task_size: int,
    step_size: float,
    steps: int = 1,
    train_share: float = 0.7,
    first_order: bool = True,
    l2_strength: float = 0.0,
    max_norm: float = 0.0,
) -> MetaGradient:
    """Return the outer gradient of a batch: every image adapts its task once and judges the adapted model once.

    With ``step_size`` 0 this is the gradient of the plain weighted loss ``mean_i w_i L_AD(x_i | theta)``.

    Args:
        losses: The detector's per-sample losses as a function of the parameters.
        parameters: theta, tensors that require gradients.
        inputs: The batch, a tensor or a tuple, list or dict of tensors with the same first dimension.
        weights: Confidence weights of the samples, shape ``(B,)``, ``B >= 4``; or of the patches of each, shape
            ``(B, P)`` or ``(B, 1)``, where ``losses`` gives losses of shape ``(B, P)``.
        task_size: Wished number of images in a task.
        step_size: alpha, the inner learning rate.
        steps: Inner steps. Defaults to ``1``.
        train_share: Share of a task in its training part. Defaults to ``0.7``.
        first_order: Whether the outer gradient at theta' is applied to theta as it is (first-order MAML). Defaults to
            ``True``.
        l2_strength: lambda of the regulariser ``lambda ||theta'||^2`` of the outer loss, averaged over tasks; see
            :func:`is_regularised`. Defaults to ``0.0``.
        max_norm: See :func:`inner_update`. Defaults to ``0.0``.

    Returns:
        The outcome, see :class:`MetaGradient`. The inner improvement compares a part's loss as the training part of
        its own task (at theta) with its loss as the validation part (at theta'), so it costs nothing.
    """
    n_samples = len(weights)
    names = list(parameters)
    decayed = [k for k, name in enumerate(names) if is_regularised(parameters[name])] if l2_strength else []
    total: list[torch.Tensor] = []
    outer_loss = weights.new_zeros(())
    train_losses, val_losses, distances = [], [], []
    weighted_loss = weights.new_zeros(())
    theta = [parameters[name].detach() for name in names]
    theta_norm = squared_norm(theta).sqrt()
    splits = split_tasks(n_samples, task_size, train_share)
    for train, val in splits:
        adapted, train_loss = inner_update(
            losses,
            parameters,
            take(inputs, train),
            weights[train],
            step_size,
            steps,
            first_order,
            max_norm,
        )
        values = list(adapted.values())
        sample_losses = losses(adapted, take(inputs, val))
        n_losses = n_samples * (sample_losses.numel() // len(sample_losses))  # a sample may have one a patch
        loss = (weights[val] * sample_losses).sum() / n_losses
        weighted_loss = weighted_loss + loss.detach()
        with torch.no_grad():
            distances.append(squared_norm([a - b for a, b in zip(values, theta, strict=True)]).sqrt() / theta_norm)
        share = l2_strength / len(splits)
        penalised = [values[k] for k in decayed]
        if first_order:
            gradients = list(torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True))
            with torch.no_grad():
                if penalised:  # the gradient of lambda ||theta'||^2 is 2 lambda theta'
                    torch._foreach_add_([gradients[k] for k in decayed], penalised, alpha=2 * share)
                    loss = loss + share * squared_norm(penalised)
                if total:
                    torch._foreach_add_(total, gradients)
                else:
                    total = gradients
            loss = loss.detach()
        elif penalised:
            loss = loss + share * squared_norm(penalised)
        outer_loss = outer_loss + loss
        train_losses.append(train_loss)
        val_losses.append(sample_losses.detach().mean())
    # Rows 2k and 2k+1 are one task with its parts swapped: what is the validation part of one row is the training
    # part of the other, whose loss at theta is therefore known.
    at_theta = torch.stack(train_losses)
    at_adapted = torch.stack(val_losses)
    swapped = at_theta.reshape(-1, 2).flip(1).reshape(-1)
    return MetaGradient(
        gradients=dict(zip(names, total, strict=True)) if first_order else None,
        loss=outer_loss,
        pairs=torch.stack([at_theta, at_adapted], dim=1),
        inner_improvement=(swapped - at_adapted).mean(),
        inner_distance=torch.stack(distances).mean(),
        weighted_loss=weighted_loss,
    )


def is_regularised(parameter: torch.Tensor) -> bool:
    """Tell whether a parameter counts in ``||theta||^2``: biases and norm layers, which are vectors, do not."""
    return parameter.ndim > 1


def squared_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum of all squares, a scalar."""
    return torch.stack(torch._foreach_norm(tensors)).square().sum()  # noqa: SLF001


def surrogate(value: torch.Tensor, parameters: Parameters, gradients: Parameters) -> torch.Tensor:
    """Return a scalar with the given value whose gradients are the given ones.

    It lets Lightning's automatic optimisation (precision, clipping, accumulation, DDP hooks, checkpoints) carry a
    gradient that was computed elsewhere.

    Args:
        value: The number that is reported as the loss.
        parameters: Tensors that require gradients, by name.
        gradients: Their gradients, by the same names.

    Returns:
        A scalar tensor with a graph.
    """
    names = list(gradients)
    return _Surrogate.apply(value, len(names), *[gradients[n] for n in names], *[parameters[n] for n in names])


class _Surrogate(torch.autograd.Function):
    """A number whose derivative is given."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, count: int, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.gradients = tensors[:count]
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = torch._foreach_mul(list(ctx.gradients), output)  # noqa: SLF001
        return (None, None, *[None] * len(ctx.gradients), *scaled)
