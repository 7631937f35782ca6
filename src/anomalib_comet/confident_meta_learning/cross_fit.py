# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Cross-fitted anomaly scores: no image is scored by a model that has seen it.

A model that has absorbed an anomaly scores it as normal, and its confidence weight comes out as 1. Confident learning
proper (Northcutt, Jiang, Chuang, JAIR 2021) therefore asks for out-of-sample scores; the CoMet paper does not.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from anomalib_comet.distributed import Ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_comet.training_set import TrainingSet


def fold_indices(n_samples: int, folds: int, seed: int) -> list[torch.Tensor]:
    """Cut ``range(n_samples)`` into random folds of equal size, give or take one.

    Args:
        n_samples: Number of samples, at least ``folds``.
        folds: Number of folds.
        seed: Seed of the permutation.

    Returns:
        Sorted index tensors, one a fold.

    Raises:
        ValueError: If there are fewer samples than folds.
    """
    if n_samples < folds:
        msg = f"Cross-fitting in {folds} folds needs as many training images, there are {n_samples}."
        raise ValueError(msg)
    order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values for part in torch.tensor_split(order, folds)]


def cross_fitted_scores(
    module: Any,
    training_set: TrainingSet,
    *,
    folds: int,
    epochs: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
    start_at_zero: bool = True,
) -> tuple[list[str], torch.Tensor]:
    """Fit and train the detector briefly without each fold, and score the fold with it.

    A detector with parts that are fitted in closed form (``fit_statistics(training_set, weights, indices)``) has them
    fitted to the other folds first. The module's parameters and the global random state are left as they were. Scores
    of different folds come from different models, and are brought to one scale before they are put together, see
    :func:`on_one_scale`.

    Args:
        module: The Lightning module of the detector, at its initial parameters.
        training_set: Its training images.
        folds: Number of folds, at least 2.
        epochs: Epochs of each training; 0 for the closed-form parts alone.
        seed: Seed of folds and of the order of images.
        weights: Confidence weight of each image by path, for the closed-form parts and the losses; ``None`` for all 1.
            Defaults to ``None``.
        start_at_zero: Whether the detector's scores have a natural zero. Defaults to ``True``.

    Returns:
        Paths of all training images, and their scores of shape ``(N,)``.
    """
    initial = copy.deepcopy(module.state_dict())
    modes = {part: part.training for part in module.modules()}
    paths: list[str] = []
    scores: list[torch.Tensor] = []
    parts = fold_indices(len(training_set), folds, seed)
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.random.fork_rng():
            for fold, held_out in enumerate(parts):
                module.load_state_dict(initial)
                rest = torch.cat([part for other, part in enumerate(parts) if other != fold])
                if hasattr(module, "fit_statistics"):
                    module.fit_statistics(training_set, weights, rest.tolist())
                optimizer = _optimizer(module)
                for part, training in modes.items():
                    part.training = training
                for _ in range(epochs):
                    order = rest[torch.randperm(len(rest), generator=generator)]
                    for batch in training_set.batches(order.tolist()):
                        optimizer.zero_grad()
                        losses = module.sample_losses(module.training_inputs(batch))
                        if weights is not None:
                            losses = losses * losses.new_tensor([weights.get(str(p), 1.0) for p in batch.image_path])
                        losses.mean().backward()
                        optimizer.step()
                # Every process trains on the whole rest; its own draws have no part in the scores.
                Ranks.of(module).copy_state(module, parameters=epochs > 0)
                fold_paths, fold_scores = training_set.scores(module, held_out.tolist())
                paths += fold_paths
                scores.append(on_one_scale(fold_scores, start_at_zero))
    finally:
        module.load_state_dict(initial)
        module.zero_grad(set_to_none=True)
    return paths, torch.cat(scores)


def on_one_scale(scores: torch.Tensor, start_at_zero: bool) -> torch.Tensor:
    """Bring the scores of a fold to a scale on which those of other folds can stand beside them.

    Args:
        scores: Scores of one fold, shape ``(N,)``.
        start_at_zero: Whether they have a natural zero, which must stay where it is: they are divided by their median
            then. Otherwise the median becomes 0 and the interquartile range 1; where that is zero, they are only
            shifted.

    Returns:
        Tensor of shape ``(N,)``.

    Example:
        >>> on_one_scale(torch.tensor([2.0, 4.0, 6.0]), start_at_zero=True)
        tensor([0.5000, 1.0000, 1.5000])
        >>> on_one_scale(torch.tensor([2.0, 4.0, 6.0]), start_at_zero=False)
        tensor([-1.,  0.,  1.])
    """
    q1, median, q3 = torch.quantile(scores, torch.tensor([0.25, 0.5, 0.75], dtype=scores.dtype))
    if start_at_zero:
        return scores / median.clamp(min=torch.finfo(scores.dtype).tiny)
    spread = q3 - q1
    return (scores - median) / (spread if float(spread) > 0 else 1.0)


def _optimizer(module: Any) -> torch.optim.Optimizer:
    configured = module.configure_optimizers()
    while isinstance(configured, (list, tuple)):
        configured = configured[0]
    if isinstance(configured, dict):
        configured = configured["optimizer"]
    return configured
