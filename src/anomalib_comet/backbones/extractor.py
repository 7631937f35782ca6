# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""One frozen feature extractor over timm, torchvision, local weight files and the Gabor bank."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
import torchvision
from timm.models import create_feature_extractor as timm_feature_extractor
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor as torchvision_feature_extractor

from .gabor import GaborBank

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

DEFAULT_LAYERS: dict[str, list[str]] = {
    "alexnet": ["features"],
    "squeezenet1_1": ["features"],
    "mobilenetv2_100": ["blocks.2", "blocks.4"],
    "resnet18": ["layer2", "layer3"],
    "wide_resnet50_2": ["layer2", "layer3"],
}
"""Layers used when ``layers`` is not given; the first part of a timm name (before the dot) is looked up."""

_skip_loading: contextvars.ContextVar[bool] = contextvars.ContextVar("_skip_loading", default=False)


@contextlib.contextmanager
def keep_checkpoint_weights() -> Iterator[None]:
    """Build backbones without downloading or reading weights, because a checkpoint is about to supply them.

    A checkpoint holds the frozen weights too. Without this a model restored on the edge would ask for a download, or
    for a ``backbone_weights`` file that exists on the training machine only.
    """
    token = _skip_loading.set(True)
    try:
        yield
    finally:
        _skip_loading.reset(token)


def keeps_checkpoint_weights() -> bool:
    """Tell whether networks are to be built without weights, see :func:`keep_checkpoint_weights`."""
    return _skip_loading.get()


def build_timm_network(backbone: str, pre_trained: bool, weights: str | Path | None) -> nn.Module:
    """Build a network of timm without its classifier, with its weights: from a file, published, or random.

    Args:
        backbone: Name of a timm model.
        pre_trained: Whether to load the published weights. Ignored where ``weights`` is given.
        weights: Path of a state-dict file, loaded strictly.

    Returns:
        The network.

    Raises:
        ValueError: If timm has no such network, or ``weights`` does not fit it.
        FileNotFoundError: If ``weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """
    library, name = _find_library(f"timm/{backbone}")
    return _build_network(library, name, pre_trained, weights)


class FrozenBackbone(nn.Module):
    """Feature maps of a frozen network, always in evaluation mode and without gradients.

    Args:
        backbone: Name of a timm model (``"mobilenetv2_100"``), of a torchvision model (``"alexnet"``; a name that both
            have is timm's unless written ``"torchvision/resnet18"``), or ``"gabor"`` for the built-in Gabor bank,
            which needs no weights.
        layers: Names of the modules whose outputs are the features, in timm's or torchvision's own naming
            (``"blocks.2"``, ``"layer3"``, ``"features"``; for ``"gabor"`` ``"scale1"`` to ``"scale4"``). ``None``
            takes the defaults of :data:`DEFAULT_LAYERS`, or all scales of the Gabor bank. Defaults to ``None``.
        pre_trained: Whether to load the library's published weights (downloaded at first use). Ignored by ``"gabor"``
            and where ``backbone_weights`` is given. Defaults to ``True``.
        backbone_weights: Path of a local file with the network's whole state dict (without the classifier for timm
            names, with it for torchvision names), loaded strictly: for machines without a network. Defaults to
            ``None``.

    Attributes:
        layers: The names of the layers, in the order in which ``forward`` returns their maps.
        out_channels: Number of channels of each map.

    Raises:
        ValueError: If the backbone or a layer is unknown, if a layer does not give maps of shape ``(B, C, H, W)``,
            or if ``backbone_weights`` does not fit the network.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.

    Example:
        >>> backbone = FrozenBackbone("gabor")
        >>> [tuple(m.shape) for m in backbone(torch.rand(1, 3, 64, 64))][:2]
        [(1, 11, 32, 32), (1, 11, 16, 16)]
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if backbone == "gabor":
            bank = GaborBank()
            self.layers = list(layers) if layers else bank.layer_names
            _check_layers(backbone, self.layers, bank.layer_names)
            if backbone_weights is not None:
                logger.warning("backbone_weights is ignored: the gabor backbone has no weights.")
            self.network: nn.Module = bank
        else:
            library, name = _find_library(backbone)
            network = _build_network(library, name, pre_trained, backbone_weights)
            known = [module_name for module_name, _ in network.named_modules() if module_name]
            self.layers = list(layers) if layers else DEFAULT_LAYERS.get(name.split(".")[0], [])
            if not self.layers:
                msg = f"backbone '{backbone}' has no default layers: name them with `layers`, e.g. {known[-3:]}."
                raise ValueError(msg)
            _check_layers(backbone, self.layers, known)
            make = timm_feature_extractor if library == "timm" else torchvision_feature_extractor
            self.network = make(network.eval(), {layer: layer for layer in self.layers})
        self.network.requires_grad_(requires_grad=False)
        self.train(mode=False)
        self.out_channels = [m.shape[1] for m in self._dry_run((224, 224))]

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in evaluation mode: the features are frozen, batch norm statistics included."""
        del mode
        return super().train(mode=False)

    def map_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return height and width in cells of each layer's map for images of ``image_size`` (height, width).

        Raises:
            ValueError: If the network's layers reduce images of this size to nothing.
        """
        return [(int(m.shape[2]), int(m.shape[3])) for m in self._dry_run(image_size)]

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps of ``images``.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            For every layer a map of shape ``(B, C, h, w)``, without gradients.
        """
        features = self.network(images)
        return [features[layer] for layer in self.layers]

    @torch.no_grad()
    def _dry_run(self, image_size: tuple[int, int]) -> list[torch.Tensor]:
        reference = next(iter(self.network.parameters()), None)
        device = reference.device if reference is not None else next(self.network.buffers()).device
        try:
            maps = self(torch.zeros(1, 3, *image_size, device=device))
        except RuntimeError as error:
            msg = (
                f"Images of {image_size[0]} x {image_size[1]} pixels are too small for layers {self.layers} of "
                f"backbone '{self.backbone}': use larger images or earlier layers."
            )
            raise ValueError(msg) from error
        for layer, feature_map in zip(self.layers, maps, strict=True):
            if feature_map.ndim != 4:  # noqa: PLR2004
                msg = (
                    f"Layer '{layer}' of backbone '{self.backbone}' gives a tensor of shape "
                    f"{tuple(feature_map.shape)}; maps of shape (batch, channels, height, width) are needed."
                )
                raise ValueError(msg)
        return maps


def _find_library(backbone: str) -> tuple[str, str]:
    """Tell which library has the network, and its name there."""
    library, _, name = backbone.rpartition("/")
    if library not in {"", "timm", "torchvision"}:
        msg = f"backbone '{backbone}' is not understood: write a timm name, 'torchvision/<name>' or 'gabor'."
        raise ValueError(msg)
    if library != "torchvision" and timm.is_model(name):
        return "timm", name
    if library != "timm" and name in torchvision.models.list_models(module=torchvision.models):
        return "torchvision", name
    close = timm.list_models(f"*{name.split('.')[0][:6]}*")[:3]
    hint = f" Did you mean one of {close}?" if close else ""
    msg = f"backbone '{backbone}' is neither a timm nor a torchvision model, nor 'gabor'.{hint}"
    raise ValueError(msg)


def _check_layers(backbone: str, layers: list[str], known: list[str]) -> None:
    missing = [layer for layer in layers if layer not in known]
    if missing:
        shallow = [name for name in known if name.count(".") <= 1][:40]
        msg = f"backbone '{backbone}' has no layer {missing}; it has, among others, {shallow}."
        raise ValueError(msg)


def _build_network(library: str, name: str, pre_trained: bool, backbone_weights: str | Path | None) -> nn.Module:
    """Build the whole network with its weights: from the file, published, or random, in this order."""
    skip = _skip_loading.get()
    if backbone_weights is not None and not skip and not Path(backbone_weights).is_file():
        msg = f"backbone_weights '{backbone_weights}' does not exist: give the path of a state-dict file for '{name}'."
        raise FileNotFoundError(msg)
    download = pre_trained and backbone_weights is None and not skip
    try:
        if library == "timm":
            network = timm.create_model(name, pretrained=download, num_classes=0)
        else:
            network = torchvision.models.get_model(name, weights="DEFAULT" if download else None)
    except Exception as error:
        if not download:
            raise
        msg = (
            f"The pre-trained weights of backbone '{name}' could not be downloaded ({type(error).__name__}): give a "
            "local state-dict file with `backbone_weights`, or use the built-in `backbone=gabor`, which needs none."
        )
        raise RuntimeError(msg) from error
    if backbone_weights is not None and not skip:
        _load_strictly(network, Path(backbone_weights), name)
    return network


def _load_strictly(network: nn.Module, path: Path, name: str) -> None:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415  # only this file format needs it

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, strict=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"backbone_weights '{path}' is not a state dict of '{name}': {reason}"
        raise ValueError(msg) from error
