# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The network of multidirectional meta-learning over vectors of features: scaling, encoder, head, temperature."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from anomalib_comet.arguments import is_number, is_whole
from anomalib_comet.backbones import FeatureScaling

from .direction import fit_direction
from .losses import latent_spread, temperature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .direction import Direction

Encoder = Literal["none", "mlp"]
Head = Literal["radial", "linear"]


class MultidirectionalNetwork(nn.Module):
    """Margin ``s`` between "normal" and "anomaly" for vectors of features.

    ``theta`` is the representation: the scaling, fitted in closed form to normal samples, and an encoder. ``phi`` is
    the head, the decision surface. Features are standardised, whitened with Ledoit-Wolf shrinkage and turned into
    principal axes.

    Args:
        n_features: Number of features D of a sample.
        encoder: ``"mlp"`` for a residual perceptron D -> 256 -> 128 with a small decoder, or ``"none"`` (ours), which
            takes the whitened features themselves. Defaults to ``"none"``.
        head: ``"linear"`` for two logits, or ``"radial"`` (ours) for a weighted squared distance to a learned centre
            that starts as the Mahalanobis distance. Defaults to ``"radial"``.
        hidden: Widths of the perceptron's hidden layer and of its output. Defaults to ``(256, 128)``.
        dropout: Dropout of the perceptron, in [0, 1). Defaults to ``0.1``.
        odin: Step of the input perturbation in units of scaled features, 0 for none. Defaults to ``0.0``.
        seed: Seed of initial weights. Defaults to ``0``.

    Raises:
        ValueError: If an argument is unknown or out of range.
    """

    def __init__(
        self,
        n_features: int,
        encoder: str = "none",
        head: str = "radial",
        hidden: tuple[int, int] = (256, 128),
        dropout: float = 0.1,
        odin: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if encoder not in get_args(Encoder) or head not in get_args(Head):
            msg = (
                f"encoder must be one of {get_args(Encoder)} and head one of {get_args(Head)}, "
                f"got '{encoder}' and '{head}'."
            )
            raise ValueError(msg)
        widths = tuple(hidden) if isinstance(hidden, Sequence) else ()
        two = len(widths) == 2 and all(is_whole(width, 1) for width in widths)  # noqa: PLR2004
        if not two or not is_number(dropout) or dropout >= 1 or not is_number(odin):
            msg = (
                "hidden must be two whole numbers above zero, dropout lie in [0, 1) and odin be a number and not be "
                f"negative, got {hidden!r}, {dropout!r} and {odin!r}."
            )
            raise ValueError(msg)
        self.odin = odin
        self._arguments: tuple[Any, ...] = (n_features, encoder, head, widths, dropout, odin, seed)
        self.scaling = FeatureScaling(n_features, "pca")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder: nn.Module = nn.Identity()
            self.decoder: nn.Module | None = None
            n_latents = n_features
            if encoder == "mlp":
                n_latents = hidden[1]
                self.encoder = Perceptron(n_features, hidden[0], n_latents, dropout)
                self.decoder = nn.Sequential(
                    nn.Linear(n_latents, hidden[0]), nn.GELU(), nn.Linear(hidden[0], n_features)
                )
            self.head: RadialHead | LinearHead = RadialHead(n_latents) if head == "radial" else LinearHead(n_latents)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        # Of the supervised part, in scaled features; zero until it is fitted, and without it.
        self.direction: torch.Tensor
        self.register_buffer("direction", torch.zeros(n_features))
        self.direction_std: torch.Tensor
        self.register_buffer("direction_std", torch.ones(()))
        # The decision surface as the last inner phase left it, earlier outer phases included.
        self.inner_head = copy.deepcopy(self.head).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was fitted and learned: everything is as the seed made it, in the same tensors."""
        self.load_state_dict(type(self)(*self._arguments).state_dict())

    @property
    def theta(self) -> list[nn.Parameter]:
        """Trainable parameters of the representation, the decoder's included."""
        decoder = [] if self.decoder is None else list(self.decoder.parameters())
        return [*self.encoder.parameters(), *decoder]

    @property
    def phi(self) -> list[nn.Parameter]:
        """Parameters of the decision surface."""
        return list(self.head.parameters())

    @torch.no_grad()
    def fit_scaling(self, normals: torch.Tensor) -> None:
        """Fit the scaling, and the units of a radial head, to normal samples.

        Args:
            normals: Features of normal samples, shape ``(N, D)``, at least two.

        Raises:
            ValueError: If there are fewer than two samples, or a feature is not finite.
        """
        if len(normals) < 2:  # noqa: PLR2004
            msg = f"At least 2 normal samples are needed to measure how normal samples vary, got {len(normals)}."
            raise ValueError(msg)
        if not bool(normals.isfinite().all()):
            msg = "A feature of a normal sample is NaN or infinite."
            raise ValueError(msg)
        self.scaling.fit(normals, torch.ones(len(normals)))
        if isinstance(self.head, RadialHead):
            self.eval()
            self.head.fit_units(self.latents(normals.to(self.scaling.mean)))
            self.inner_head.load_state_dict(self.head.state_dict())

    def fit(
        self,
        normals: torch.Tensor,
        anomalies: Mapping[str, torch.Tensor],
        supervised: bool,
        generator: torch.Generator,
        images: torch.Tensor | None = None,
    ) -> Direction | None:
        """Fit what is fitted in closed form, before the first episode: the scaling, and the supervised part.

        Args:
            normals: Features of normal samples, shape ``(N, D)``, at least two.
            anomalies: Features of labelled anomalies by class, shapes ``(A_c, D)``.
            supervised: Whether a supervised part is wished. It belongs to a radial head without encoder.
            generator: Draws folds.
            images: Number of the image that each normal sample is of, shape ``(N,)``. Defaults to ``None``, an image
                a sample.

        Returns:
            The supervised part, ``None`` without one.

        Raises:
            ValueError: See :meth:`fit_scaling`.
        """
        self.fit_scaling(normals)
        self.direction.zero_()  # of an earlier fit
        if not supervised or not self.takes_direction:
            return None
        direction = fit_direction(normals, anomalies, copy.deepcopy(self.scaling).cpu(), generator, images)
        if direction is not None:
            self.use_direction(direction)
        return direction

    @property
    def takes_direction(self) -> bool:
        """Whether a supervised part can be added: to a radial head on whitened features themselves."""
        return self.decoder is None and isinstance(self.head, RadialHead)

    @torch.no_grad()
    def use_direction(self, direction: Direction) -> None:
        """Take over a supervised part: its weights, and its unit of the squared distance.

        Args:
            direction: What :func:`.direction.fit_direction` found.
        """
        self.direction.copy_(direction.weights)
        self.direction_std.fill_(direction.std)

    def latents(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the encoder makes of features, shape ``(..., L)``."""
        return self.encoder(self.scaling(features))

    def margins(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``s`` of shape ``(...)`` for features of shape ``(..., D)``."""
        return self.head(self.latents(features))

    @property
    def temperature(self) -> torch.Tensor:
        """The temperature T, within its bounds."""
        return temperature(self.log_temperature)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the anomaly score ``-s / T``, the log-odds of the paper's ``1 - S``: the same order, unsaturated.

        The supervised part, where there is one, is added here and nowhere in training: it separates the labelled
        anomalies so well that nothing would be left to learn from them.

        Args:
            features: Shape ``(..., D)``.

        Returns:
            Scores of shape ``(...)``, unbounded, larger for more anomalous.
        """
        scaled = self.scaling(features)
        if self.odin:
            scaled = self._perturbed(scaled)
        return -self._full_margins(scaled) / self.temperature

    def _full_margins(self, scaled: torch.Tensor) -> torch.Tensor:
        """Return the margins of scaled features, the supervised part included."""
        margins = self.head(self.encoder(scaled))
        if isinstance(self.head, RadialHead):
            # No matrix product: OpenVINO 2026 fails to fuse one of a vector with the factor behind it.
            along = (scaled * self.direction).sum(dim=-1)
            margins = margins - self.head.per_distance * self.direction_std * along
        return margins

    def logarithmic(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores in the same order and on a scale on which normal samples spread evenly.

        Squared distances have a long tail, which anomalib's normalisation by the range of validation scores would clip.
        With a radial head this is the logarithm of the distance, the supervised part included; the scores of two
        logits stay as they are.

        Args:
            scores: What :meth:`forward` returned.
        """
        return _logarithmic(scores * self.temperature, self.head) if isinstance(self.head, RadialHead) else scores

    def _perturbed(self, scaled: torch.Tensor) -> torch.Tensor:
        """Return scaled features after one step that raises the confidence of "normal" (ODIN's correct sign).

        Gradients are needed even where they are switched off; in inference mode, which anomalib's engine evaluates in,
        tensors that were made in it have to be copied.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            network = copy.deepcopy(self) if any(map(torch.is_inference, self.state_dict().values())) else self
            start = scaled.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(network._full_margins(start).sum(), start)  # noqa: SLF001  # a copy's own
        return scaled + self.odin * slope.sign()

    @torch.no_grad()
    def inner_scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return the anomaly score ``-s`` before the last outer phase, without the supervised part, shape ``(...)``."""
        return -self.inner_head(self.latents(features))

    @torch.no_grad()
    def mahalanobis_scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return the squared Mahalanobis distance to the normal samples over D, shape ``(...)``: no training at all."""
        return self.scaling(features).square().mean(dim=-1)

    @torch.no_grad()
    def compared_scores(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what a model's score is to be compared with, on the same scale, so that patches pool in the same way.

        Args:
            features: Shape ``(..., D)``.

        Returns:
            By name, shapes ``(...)``: ``inner``, :meth:`inner_scores` with the logarithm of their own head, and
            ``mahalanobis``, the logarithm of :meth:`mahalanobis_scores`.
        """
        inner, distances = self.inner_scores(features), self.mahalanobis_scores(features)
        if isinstance(self.inner_head, RadialHead):
            inner = _logarithmic(inner, self.inner_head)
        return {"inner": inner, "mahalanobis": distances.clamp(min=torch.finfo(distances.dtype).tiny).log()}

    @torch.no_grad()
    def spread(self, features: torch.Tensor) -> torch.Tensor:
        """Return :func:`.losses.latent_spread` of features of shape ``(N, D)``."""
        return latent_spread(self.latents(features))


class LinearHead(nn.Module):
    """Two logits, "normal" and "anomaly"; their difference is the margin.

    Args:
        n_latents: Number of latents L.
    """

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.logits = nn.Linear(n_latents, 2)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the margin of shape ``(...)`` for latents of shape ``(..., L)``."""
        logits = self.logits(latents)
        return logits[..., 0] - logits[..., 1]

    def penalty(self) -> torch.Tensor:
        """Return 0: two logits are free."""
        return torch.zeros((), device=self.logits.weight.device)


class RadialHead(nn.Module):
    """Margin that falls with a weighted squared distance to a learned centre (ours).

    ``s = b - g (sum_j exp(a_j) (z_j - c_j)^2 - m) / d``. With ``a = c = 0``, the start, this is the squared
    Mahalanobis distance of whitened features, in units of its mean m and standard deviation d over normal samples.
    Labelled anomalies can only teach it in which directions deviations matter, and where the middle is, so that a
    deviation of an unseen kind still counts.

    Args:
        n_latents: Number of latents L.
    """

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.zeros(n_latents))
        self.centre = nn.Parameter(torch.zeros(n_latents))
        self.bias = nn.Parameter(torch.tensor(2.0))
        self.log_gain = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.tensor(float(n_latents)))
        self.register_buffer("std", torch.tensor(math.sqrt(2.0 * n_latents)))  # of a Gaussian, until measured
        self.mean: torch.Tensor
        self.std: torch.Tensor

    @torch.no_grad()
    def fit_units(self, latents: torch.Tensor) -> None:
        """Measure mean and standard deviation of the squared distance over normal samples, shape ``(N, L)``."""
        distances = latents.double().square().sum(dim=1)
        self.mean.fill_(float(distances.mean()))
        self.std.fill_(max(float(distances.std()), 1e-6 * float(distances.mean()), 1e-12))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the margin of shape ``(...)`` for latents of shape ``(..., L)``."""
        distances = ((latents - self.centre).square() * self.log_weights.exp()).sum(dim=-1)
        return self.bias - self.per_distance * (distances - self.mean)

    @property
    def per_distance(self) -> torch.Tensor:
        """How much a margin falls when the squared distance grows by 1."""
        return self.log_gain.exp() / self.std

    def penalty(self) -> torch.Tensor:
        """Return the mean square of what has been learned, which holds it near the Mahalanobis distance."""
        return self.log_weights.square().mean() + self.centre.square().mean()


def _logarithmic(scores: torch.Tensor, head: RadialHead) -> torch.Tensor:
    """Return the logarithms of the distances that negative margins ``-s`` of a radial head stand for."""
    distances = head.mean + (head.bias + scores) / head.per_distance
    # The supervised part may make a distance negative: below a tenth of the mean the logarithm goes on as a line.
    floor = 0.1 * head.mean
    return torch.where(distances > floor, torch.maximum(distances, floor).log(), floor.log() + distances / floor - 1)


class Perceptron(nn.Module):
    """Residual perceptron D -> H -> L with layer norm, GELU and dropout.

    Args:
        n_in: Number of inputs D.
        n_hidden: Width H of the hidden layer.
        n_out: Number of outputs L.
        dropout: In [0, 1).
    """

    def __init__(self, n_in: int, n_hidden: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(n_in, n_hidden), nn.LayerNorm(n_hidden), nn.GELU(), nn.Dropout(dropout))
        self.block = nn.Sequential(
            nn.Linear(n_hidden, n_hidden), nn.LayerNorm(n_hidden), nn.GELU(), nn.Dropout(dropout)
        )
        self.leave = nn.Linear(n_hidden, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return latents of shape ``(..., L)`` for inputs of shape ``(..., D)``."""
        x = self.enter(x)
        return self.leave(x + self.block(x))
