# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Descriptors of patches, and of the image they belong to: tokens of a vision transformer, or maps of a CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .extractor import FrozenBackbone, build_timm_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IMAGE_DESCRIPTORS = ("auto", "class", "pooled", "none")


def is_vision_transformer(backbone: str) -> bool:
    """Tell whether timm has a network of this name whose features are tokens.

    Args:
        backbone: Name of a network, see :class:`.extractor.FrozenBackbone`.
    """
    library, _, name = backbone.rpartition("/")
    if library not in {"", "timm"} or not timm.is_model(name):
        return False
    # On the meta device: no memory, no random numbers, milliseconds.
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False, num_classes=0)
    return hasattr(network, "num_prefix_tokens")


class TokenBackbone(nn.Module):
    """Tokens of a frozen vision transformer of timm, after its last block and norm.

    Args:
        backbone: Name of a timm vision transformer.
        pre_trained: Whether to load published weights. Ignored where ``backbone_weights`` is given.
        backbone_weights: Path of a local state dict of the network without classifier, at its own image size.
        image_size: Height and width in pixels of the images to come; position embeddings are resampled for it once.

    Raises:
        ValueError: If the network cannot take images of this size.
    """

    def __init__(
        self,
        backbone: str,
        pre_trained: bool,
        backbone_weights: str | Path | None,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        network: Any = build_timm_network(backbone.rpartition("/")[2], pre_trained, backbone_weights)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        embedding: Any = getattr(network, "patch_embed", None)
        cell = getattr(embedding, "patch_size", None)
        if not isinstance(cell, tuple) or not getattr(embedding, "grid_size", None):
            msg = (
                f"backbone '{backbone}' does not say on which grid its tokens lie: use a plain vision transformer, "
                "e.g. 'vit_base_patch8_224.dino', or a CNN."
            )
            raise ValueError(msg)
        if any(side % step for side, step in zip(self.image_size, cell, strict=True)):
            msg = (
                f"Images of {image_size[0]} x {image_size[1]} pixels do not divide into the patches of backbone "
                f"'{backbone}', {cell[0]} x {cell[1]} pixels each: choose multiples of these."
            )
            raise ValueError(msg)
        if tuple(embedding.img_size or ()) != self.image_size:
            if not hasattr(network, "set_input_size"):
                msg = f"backbone '{backbone}' takes images of {embedding.img_size} pixels only."
                raise ValueError(msg)
            network.set_input_size(img_size=self.image_size)
        # With a CNN before the transformer, a cell is larger than a patch of it.
        height, width = network.patch_embed.grid_size
        self.grid = (int(height), int(width))
        self.n_prefix = int(network.num_prefix_tokens)
        self.has_class_token = self.n_prefix > 0 and getattr(network, "cls_token", None) is not None
        self.n_features = int(network.num_features)
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first prefix token, shape ``(B, D)``, empty without one, and patch tokens ``(B, h, w, D)``."""
        tokens = self.network.forward_features(images)
        first = tokens[:, 0] if self.has_class_token else tokens[:, 0, :0]
        return first, tokens[:, self.n_prefix :].unflatten(1, self.grid)


class MapBackbone(nn.Module):
    """Feature maps of several layers of a network, resized to the grid of the first and concatenated.

    Args:
        backbone: Name of a timm or torchvision network, or ``"gabor"``.
        layers: Names of the layers, ``None`` for the backbone's defaults.
        pre_trained: Whether to load published weights.
        backbone_weights: Path of a local state dict.
        image_size: Height and width in pixels of the images to come.
    """

    has_class_token = False

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None,
        pre_trained: bool,
        backbone_weights: str | Path | None,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.network = FrozenBackbone(backbone, layers, pre_trained, backbone_weights)
        self.n_features = sum(self.network.out_channels)
        self.grid = self.network.map_sizes(image_size)[0]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an empty token, shape ``(B, 0)``, and descriptors of patches, shape ``(B, h, w, D)``."""
        maps = self.network(images)
        grid = maps[0].shape[-2:]
        resized = [F.interpolate(m, size=grid, mode="bilinear", align_corners=False, antialias=False) for m in maps[1:]]
        patches = torch.cat([maps[0], *resized], dim=1).permute(0, 2, 3, 1)
        return patches[:, 0, 0, :0], patches


class PatchDescriptors(nn.Module):
    """A frozen network's descriptors of patches and of the image they belong to, kept apart.

    What is the same for all patches of an image is never repeated: who needs ``[token ; patch]`` splits the linear
    layer that comes next, ``W [t ; p] = W_t t + W_p p``.

    Args:
        backbone: Name of a timm vision transformer, of another timm or torchvision network, or ``"gabor"``.
        layers: Names of the layers whose maps are used, ``None`` for the backbone's defaults; not for a vision
            transformer, whose last tokens are used. Defaults to ``None``.
        pre_trained: Whether to load published weights. Defaults to ``True``.
        backbone_weights: Path of a local state-dict file instead, loaded strictly. Defaults to ``None``.
        image_size: Height and width in pixels of the images to come. Defaults to ``(224, 224)``.
        image_descriptor: The descriptor of an image: ``"class"`` for the class token, ``"pooled"`` for mean and
            standard deviation of its patches' descriptors over places, ``"none"``, or ``"auto"`` for the class token
            where the network has one and none elsewhere. Defaults to ``"auto"``.

    Attributes:
        n_token: Number of values of an image's descriptor.
        n_patch: Number of values of a patch's descriptor.
        grid: Height and width in patches.

    Raises:
        ValueError: If a name is unknown or images of this size do not fit the network.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.

    Example:
        >>> token, patches = PatchDescriptors("gabor", ["scale3"], image_descriptor="pooled")(torch.rand(2, 3, 64, 64))
        >>> token.shape, patches.shape
        (torch.Size([2, 22]), torch.Size([2, 8, 8, 11]))
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        image_size: tuple[int, int] = (224, 224),
        image_descriptor: str = "auto",
    ) -> None:
        super().__init__()
        if image_descriptor not in IMAGE_DESCRIPTORS:
            msg = f"image_descriptor must be one of {IMAGE_DESCRIPTORS}, got '{image_descriptor}'."
            raise ValueError(msg)
        self.source: TokenBackbone | MapBackbone
        if is_vision_transformer(backbone):
            if layers:
                msg = f"layers must not be given for '{backbone}': of a vision transformer the last tokens are used."
                raise ValueError(msg)
            self.source = TokenBackbone(backbone, pre_trained, backbone_weights, image_size)
        else:
            self.source = MapBackbone(backbone, layers, pre_trained, backbone_weights, image_size)
        if image_descriptor == "class" and not self.source.has_class_token:
            msg = f"backbone '{backbone}' has no class token: use image_descriptor 'pooled', 'none' or 'auto'."
            raise ValueError(msg)
        if image_descriptor == "auto":
            image_descriptor = "class" if self.source.has_class_token else "none"
        self.image_descriptor = image_descriptor
        self.backbone = backbone
        self.layers = list(getattr(self.source.network, "layers", []))
        self.grid = self.source.grid
        self.n_patch = self.source.n_features
        self.n_token = {"class": 1, "pooled": 2, "none": 0}[image_descriptor] * self.n_patch
        self.requires_grad_(requires_grad=False)
        self.train(mode=False)

    def train(self, mode: bool = True) -> PatchDescriptors:
        """Stay in evaluation mode: the features are frozen."""
        del mode
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the descriptors of images and of their patches, without gradients.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            Image descriptors of shape ``(B, n_token)`` and patch descriptors of shape ``(B, h, w, n_patch)``.
        """
        token, patches = self.source(images)
        if self.image_descriptor == "pooled":
            token = mean_and_deviation(patches.flatten(1, 2))
        elif self.image_descriptor == "none":
            token = token[:, :0]
        return token, patches

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these descriptors from those of another configuration: plain data, and a digest of the weights."""
        return {
            "backbone": self.backbone,
            "layers": self.layers,
            "grid": list(self.grid),
            "image_descriptor": self.image_descriptor,
            "digest": weights_digest(self),
        }


def mean_and_deviation(patches: torch.Tensor) -> torch.Tensor:
    """Return mean and standard deviation over places of patches ``(B, P, D)``, shape ``(B, 2 D)``."""
    mean = patches.mean(dim=1)
    variance = (patches - mean[:, None]).square().mean(dim=1)
    return torch.cat([mean, (variance + 1e-12).sqrt()], dim=1)


def average_neighbours(patches: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Return the means over neighbourhoods of ``side`` x ``side`` places, at the border over those that there are.

    Args:
        patches: Shape ``(B, P, D)``.
        grid: Height and width in patches.
        side: Side of a neighbourhood in places, odd.
    """
    if side == 1:
        return patches
    maps = patches.unflatten(1, grid).permute(0, 3, 1, 2)
    means = F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)
    return means.permute(0, 2, 3, 1).flatten(1, 2)


def weights_digest(module: nn.Module) -> str:
    """Return a digest of all parameters and buffers of a module, by name and content."""
    import hashlib  # noqa: PLC0415  # used once a training

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=False).items()):
        digest.update(name.encode())
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, buffer in sorted(module.named_buffers()):
        digest.update(f"{name}{tuple(buffer.shape)}".encode())
    return digest.hexdigest()
