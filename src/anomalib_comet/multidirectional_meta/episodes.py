# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Episodes of multidirectional meta-learning: an inner phase on normal samples, an outer one with anomalies."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from sklearn.metrics import roc_auc_score

from anomalib_comet.arguments import is_number, is_whole

from .losses import hardest_classes, inner_loss, outer_terms, without_conflicts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .network import MultidirectionalNetwork


@dataclass(frozen=True)
class EpisodeSettings:
    """Numbers of an episode; see docs/multidirectional_meta.md for which are the paper's.

    Args:
        inner_epochs: Passes over the normal samples in the inner phase. Defaults to ``1``.
        outer_epochs: Passes over them in the outer phase. Defaults to ``15``.
        batch_size: Normal samples in a step. Defaults to ``256``.
        alpha: Weight of the hinge on the gap. Defaults to ``0.1``.
        margin: Gap beyond which the hinge is 0. Defaults to ``0.5``.
        reconstruction: Weight of the decoder's mean squared error in the inner phase. Defaults to ``0.1``.
        temperature_penalty: Weight of ``(log T)^2`` in the outer phase. Defaults to ``0.01``.
        head_penalty: Weight of the radial head's penalty in both phases. Defaults to ``0.01``.
        hardest: Classes of an episode that look most normal after the inner phase. Defaults to ``2``.
        random: Other classes of an episode, drawn at random. Defaults to ``1``.
        pcgrad: Whether terms of the outer loss are kept from working against each other. Defaults to ``False``.

    Raises:
        ValueError: If an argument is out of range.
    """

    inner_epochs: int = 1
    outer_epochs: int = 15
    batch_size: int = 256
    alpha: float = 0.1
    margin: float = 0.5
    reconstruction: float = 0.1
    temperature_penalty: float = 0.01
    head_penalty: float = 0.01
    hardest: int = 2
    random: int = 1
    pcgrad: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        for name in ("inner_epochs", "outer_epochs", "batch_size", "hardest", "random"):
            least = 0 if name == "random" else 1
            if not is_whole(getattr(self, name), least):
                msg = f"{name} must be a whole number of at least {least}, got {getattr(self, name)!r}."
                raise ValueError(msg)
        for name in ("alpha", "margin", "reconstruction", "temperature_penalty", "head_penalty"):
            if not is_number(getattr(self, name)):
                msg = f"{name} must be a number and not be negative, got {getattr(self, name)!r}."
                raise ValueError(msg)


@dataclass
class Record:
    """What an episode was like. Nothing in it is seen by training.

    Args:
        inner_loss: Mean of the inner loss over its last pass.
        outer_loss: Mean of the outer loss over its last pass, ``None`` without labelled anomalies.
        classes: Classes of the outer phase.
        temperature: T afterwards.
        spread: Share of latent dimensions that normal samples use.
        auroc: Training AUROC of labelled anomalies against normal samples by score: ``model``, ``inner`` (before the
            episode's outer phase, without the supervised part) and ``mahalanobis``; empty without labelled anomalies.
    """

    inner_loss: float
    outer_loss: float | None
    classes: list[str]
    temperature: float
    spread: float
    auroc: dict[str, float] = field(default_factory=dict)


class Stepper:
    """Does optimiser steps; a loop that counts them (Lightning) hands over its own wrappers.

    Args:
        inner: Optimiser of theta and phi.
        outer: Optimiser of phi and T.
        backward: Propagates a loss back. Defaults to ``Tensor.backward``.
    """

    def __init__(self, inner: Any, outer: Any, backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward) -> None:
        self.inner = inner
        self.outer = outer
        self.backward = backward


def make_optimizers(network: MultidirectionalNetwork, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return AdamW of theta and phi for the inner phase and Adam of phi and T for the outer one.

    Args:
        network: The network.
        lr: Learning rate of both.
    """
    # Decay would pull a radial head to where it starts anyway; a head has its own penalty.
    groups = [{"params": network.phi, "weight_decay": 0.0}]
    groups += [{"params": network.theta}] if network.theta else []
    return torch.optim.AdamW(groups, lr=lr), torch.optim.Adam([*network.phi, network.log_temperature], lr=lr)


def run_episode(
    network: MultidirectionalNetwork,
    normals: torch.Tensor,
    anomalies: Mapping[str, torch.Tensor],
    settings: EpisodeSettings,
    stepper: Stepper,
    generator: torch.Generator,
) -> Record:
    """Run one episode: the inner phase, then the outer one where there are labelled anomalies.

    Args:
        network: The network, its scaling fitted.
        normals: Features of normal samples, shape ``(N, D)``.
        anomalies: Features of labelled anomalies by class, shapes ``(A_c, D)``, none of them empty.
        settings: Numbers of the episode.
        stepper: Optimisers.
        generator: Draws batches, classes and dropout.

    Returns:
        What it was like.

    Raises:
        NonFiniteTrainingError: If a loss, or a score afterwards, is not finite.
    """
    with _dropout_from(generator):
        losses = inner_phase(network, normals, settings, stepper, generator)
    network.inner_head.load_state_dict(network.head.state_dict())
    outer: float | None = None
    classes: list[str] = []
    if anomalies:
        network.eval()
        with torch.no_grad():
            confidences = {name: network.margins(part).sigmoid() for name, part in anomalies.items()}
        classes = hardest_classes(confidences, generator, settings.hardest, settings.random)
        outer = outer_phase(network, normals, [anomalies[name] for name in classes], settings, stepper, generator)
    network.eval()
    features = torch.cat([normals, *anomalies.values()])
    with torch.no_grad():
        scores = network(features)
    _refuse_non_finite(scores, "score of a training sample")
    return Record(
        inner_loss=losses,
        outer_loss=outer,
        classes=classes,
        temperature=network.temperature.item(),
        spread=float(network.spread(normals)),
        auroc=_training_auroc(network, features, scores, len(normals)) if anomalies else {},
    )


def inner_phase(
    network: MultidirectionalNetwork,
    normals: torch.Tensor,
    settings: EpisodeSettings,
    stepper: Stepper,
    generator: torch.Generator,
) -> float:
    """Learn the normal samples: theta and phi, from normal samples alone, at T = 1.

    ``BCE(S, 1) + reconstruction * MSE + head_penalty * penalty``.

    Args:
        network: The network.
        normals: Features of normal samples, shape ``(N, D)``.
        settings: Numbers of the episode.
        stepper: Optimisers.
        generator: Draws batches.

    Returns:
        Mean loss over the last pass.
    """
    network.train()
    scaled = network.scaling(normals).detach()
    losses: list[float] = []
    for _ in range(settings.inner_epochs):
        losses = []
        for rows in _batches(len(normals), settings.batch_size, generator):
            target = scaled[rows.to(scaled.device)]
            latents = network.encoder(target)
            loss = inner_loss(network.head(latents)) + settings.head_penalty * network.head.penalty()
            if network.decoder is not None:
                loss = loss + settings.reconstruction * (network.decoder(latents) - target).square().mean()
            stepper.inner.zero_grad()
            stepper.backward(loss)
            _refuse_non_finite(loss, "loss of the inner phase")
            stepper.inner.step()
            losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def outer_phase(
    network: MultidirectionalNetwork,
    normals: torch.Tensor,
    anomalies: Sequence[torch.Tensor],
    settings: EpisodeSettings,
    stepper: Stepper,
    generator: torch.Generator,
) -> float:
    """Tune the decision surface: phi and T, with theta frozen, by normal samples and labelled anomalies.

    Args:
        network: The network. Its theta is bit-identical afterwards.
        normals: Features of normal samples, shape ``(N, D)``.
        anomalies: Features of the labelled anomalies of each class, shapes ``(A_c, D)``.
        settings: Numbers of the episode.
        stepper: Optimisers.
        generator: Draws batches, and orders of ``pcgrad``.

    Returns:
        Mean loss over the last pass.
    """
    network.eval()  # theta is frozen, its dropout too
    with torch.no_grad():
        known = network.latents(normals)
        others = [network.latents(part) for part in anomalies]
    parameters = [*network.phi, network.log_temperature]
    losses: list[float] = []
    for _ in range(settings.outer_epochs):
        losses = []
        for rows in _batches(len(normals), settings.batch_size, generator):
            scale = network.temperature
            terms = outer_terms(
                network.head(known[rows.to(known.device)]) / scale,
                [network.head(part) / scale for part in others],
                settings.alpha,
                settings.margin,
            )
            bound = settings.temperature_penalty * network.log_temperature.square()
            bound = bound + settings.head_penalty * network.head.penalty()
            loss = torch.stack(terms).sum() + bound
            stepper.outer.zero_grad()
            if not settings.pcgrad:
                stepper.backward(loss)
            _refuse_non_finite(loss, "loss of the outer phase")  # past a trainer's own guard, which says more
            if settings.pcgrad:
                _set_gradients(parameters, terms, bound, generator)
            stepper.outer.step()
            losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def _set_gradients(
    parameters: list[torch.nn.Parameter],
    terms: list[torch.Tensor],
    bound: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Set the gradients of parameters to the terms' without conflicts, plus the penalties'."""
    flat = []
    for loss in (*terms, bound):
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        flat.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, parts, strict=True)]
            )
        )
    total = without_conflicts(flat[:-1], generator) + flat[-1]
    for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def _batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    yield from torch.randperm(count, generator=generator).split(batch_size)


@contextlib.contextmanager
def _dropout_from(generator: torch.Generator) -> Iterator[None]:
    """Let the global generator, which dropout draws from, be seeded by a given one, and put it back afterwards."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


def _refuse_non_finite(values: torch.Tensor, what: str) -> None:
    """Refuse losses and scores that are not finite, before scikit-learn does without saying what they are."""
    if bool(values.isfinite().all()):
        return
    from anomalib_comet.guard import NonFiniteTrainingError  # noqa: PLC0415  # arrays alone need no trainer

    msg = f"A {what} is no longer finite, and training has stopped: a lower learning rate (lr) helps most often."
    raise NonFiniteTrainingError(msg)


@torch.no_grad()
def _training_auroc(
    network: MultidirectionalNetwork, features: torch.Tensor, scores: torch.Tensor, n_normal: int
) -> dict[str, float]:
    labels = [0] * n_normal + [1] * (len(features) - n_normal)
    found = {
        "model": scores,
        "inner": network.inner_scores(features),
        "mahalanobis": network.mahalanobis_scores(features),
    }
    return {name: float(roc_auc_score(labels, value.float().cpu().numpy())) for name, value in found.items()}
