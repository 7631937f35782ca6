# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Confidence weights of training images: pure functions of anomaly scores.

Source: Aqeel, Sharifi, Cristani, Setti, "Towards Real Unsupervised Anomaly Detection Via Confident Meta-Learning",
ICCV 2025. All functions take scores of the *whole* training set: at 10 % contamination a batch of eight holds two or
more anomalies 19 % of the time, and a threshold over it would move with them.
"""

from __future__ import annotations

import torch


def iqr_threshold(scores: torch.Tensor, kappa: float = 1.5) -> torch.Tensor:
    """Return the score above which a training image loses confidence: ``t = Q3 + kappa (Q3 - Q1)``.

    Args:
        scores: Anomaly scores of the training set, shape ``(N,)``, finite.
        kappa: Width of the fence in interquartile ranges. The paper's form is Tukey's fence; 0 puts the threshold at
            the third quartile. Defaults to ``1.5``.

    Returns:
        The threshold ``t``, a scalar tensor of the scores' type.

    Raises:
        ValueError: If ``scores`` is not a non-empty vector of finite numbers.

    Example:
        >>> iqr_threshold(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), kappa=1.5)
        tensor(7.)
    """
    _check_scores(scores)
    values = scores.detach().double()
    q1, q3 = _quantile(values, 0.25), _quantile(values, 0.75)
    return (q3 + kappa * (q3 - q1)).to(scores.dtype)


def confidence_weights(scores: torch.Tensor, threshold: torch.Tensor | float, power: float = 1.0) -> torch.Tensor:
    """Return the confidence weight of each training image: ``w_i = min(1, (t / a_i)^p)``.

    A weight is a constant of the optimisation (detached): it bounds the influence of an image. Scores must be positive
    and anchored at zero, because ``t / a`` is free of scale but not of shift.

    Args:
        scores: Anomaly scores ``a``, shape ``(N,)``, not negative.
        threshold: The threshold ``t`` of :func:`iqr_threshold`.
        power: Exponent ``p``; 1 is the paper's form. Defaults to ``1.0``.

    Returns:
        Weights of shape ``(N,)`` in ``[0, 1]``. All are 1 if no score is above the threshold.

    Raises:
        ValueError: If a score is negative or not finite.

    Example:
        >>> confidence_weights(torch.tensor([1.0, 2.0, 4.0]), threshold=2.0)
        tensor([1.0000, 1.0000, 0.5000])
    """
    _check_scores(scores)
    if (scores < 0).any():
        msg = "Confidence weights need anomaly scores that are not negative: shift them to start at zero."
        raise ValueError(msg)
    scores = scores.detach()
    limit = torch.as_tensor(threshold, dtype=scores.dtype, device=scores.device)
    return torch.where(scores > limit, (limit / scores).clamp(min=0.0) ** power, torch.ones_like(scores))


def training_set_weights(
    scores: torch.Tensor,
    kappa: float = 1.5,
    power: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the confidence weights of a whole training set and their threshold.

    Where the interquartile range is zero (all scores equal, or more than half of them) there is no scale on which a
    score could be called unusual, and every weight is 1.

    Args:
        scores: Anomaly scores of the training set, shape ``(N,)``, not negative.
        kappa: See :func:`iqr_threshold`. Defaults to ``1.5``.
        power: See :func:`confidence_weights`. Defaults to ``1.0``.

    Returns:
        Weights of shape ``(N,)`` and the threshold, a scalar tensor.
    """
    threshold = iqr_threshold(scores, kappa)
    spread = iqr_threshold(scores, 1.0) - iqr_threshold(scores, 0.0)
    if spread <= torch.finfo(scores.dtype).eps * scores.abs().max():
        return torch.ones_like(scores), threshold
    return confidence_weights(scores, threshold, power), threshold


def anchored_scores(scores: torch.Tensor, quantile: float = 0.005) -> torch.Tensor:
    """Return scores shifted to start at zero: ``a = max(s - q, epsilon)``, q a low quantile of all training scores.

    ``t / a`` is free of scale but not of shift, and the raw score of many detectors (a discriminator's output, a
    probability with its sign turned) has no natural zero. Ours: the paper is silent on it.

    Args:
        scores: Anomaly scores of the training set, shape ``(N,)``, finite, of any sign.
        quantile: The quantile of ``scores`` that becomes zero, in ``[0, 1]``. Defaults to ``0.005``.

    Returns:
        Scores of shape ``(N,)``, above zero; the order of those above the quantile is kept.

    Raises:
        ValueError: If ``scores`` is not a non-empty vector of finite numbers.

    Example:
        >>> anchored_scores(torch.tensor([-3.0, -2.0, 0.0]), quantile=0.0)[1:]
        tensor([1., 3.])
    """
    _check_scores(scores)
    scores = scores.detach()
    shifted = scores - _quantile(scores.double(), quantile).to(scores.dtype)
    return shifted.clamp(min=max(1e-6 * float(shifted.max()), torch.finfo(scores.dtype).tiny))


def smoothed(previous: torch.Tensor, current: torch.Tensor, momentum: float) -> torch.Tensor:
    """Return the exponential moving average ``momentum * previous + (1 - momentum) * current``.

    Args:
        previous: Earlier weights, any shape.
        current: New weights of the same shape.
        momentum: Share of the earlier weights, in ``[0, 1)``; 0 forgets them.

    Returns:
        Tensor of the same shape.
    """
    return momentum * previous + (1.0 - momentum) * current


def _quantile(values: torch.Tensor, quantile: float) -> torch.Tensor:
    """A quantile with linear interpolation; ``torch.quantile`` refuses more than 16 million values (patches)."""
    position = quantile * (values.numel() - 1)
    low = int(position)
    ordered = values.sort().values
    return torch.lerp(ordered[low], ordered[min(low + 1, values.numel() - 1)], position - low)


def _check_scores(scores: torch.Tensor) -> None:
    if scores.ndim != 1 or scores.numel() == 0:
        msg = f"Anomaly scores must be a vector with one score an image, got shape {tuple(scores.shape)}."
        raise ValueError(msg)
    if not torch.isfinite(scores).all():
        bad = int((~torch.isfinite(scores)).sum())
        msg = f"{bad} of {scores.numel()} anomaly scores are not finite: training has diverged, lower lr or inner_lr."
        raise ValueError(msg)
