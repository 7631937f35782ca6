# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The built-in backbone: a fixed Gabor energy bank with local colour, no weights to download.

A quadrature pair of Gabor filters is applied at several scales and orientations; the energy of a pair,
``sqrt(even^2 + odd^2)``, says how much texture of that wavelength and direction there is at a place, whatever
its phase. Scales are octaves: the same small kernels on an image halved again and again by average pooling, which
is cheap and exports to ONNX and OpenVINO as plain convolutions.

It is a stand-in for learned features where none can be had (air-gapped machines, tests, the demo), and weaker than
they are.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma weights of red, green and blue."""


def gabor_kernels(orientations: int, wavelength: float = 4.0, size: int = 9) -> torch.Tensor:
    """Return quadrature pairs of Gabor kernels, zero-mean and of unit energy.

    Args:
        orientations: Number of directions, spread evenly over 180 degrees.
        wavelength: Wavelength of the carrier in pixels. Defaults to ``4.0``.
        size: Side of a kernel in pixels, odd. Defaults to ``9``.

    Returns:
        Tensor of shape ``(2 * orientations, 1, size, size)``: all even (cosine) kernels, then all odd (sine) ones.

    Example:
        >>> gabor_kernels(8).shape
        torch.Size([16, 1, 9, 9])
    """
    half = size // 2
    axis = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    sigma = 0.5 * wavelength
    kernels = []
    for phase in (0.0, -math.pi / 2):
        for k in range(orientations):
            theta = math.pi * k / orientations
            along = x * math.cos(theta) + y * math.sin(theta)
            kernel = torch.exp(-(x**2 + y**2) / (2 * sigma**2)) * torch.cos(2 * math.pi * along / wavelength + phase)
            kernel = kernel - kernel.mean()
            kernels.append(kernel / kernel.norm())
    return torch.stack(kernels)[:, None].float()


class GaborBank(nn.Module):
    """Multi-scale, multi-orientation Gabor energies and local colour.

    Args:
        scales: Number of octaves, the first at half the image's resolution. Defaults to ``4``.
        orientations: Number of directions at each scale. Defaults to ``8``.

    Example:
        >>> bank = GaborBank()
        >>> maps = bank(torch.rand(2, 3, 64, 64))
        >>> {name: tuple(m.shape[1:]) for name, m in maps.items()}
        {'scale1': (11, 32, 32), 'scale2': (11, 16, 16), 'scale3': (11, 8, 8), 'scale4': (11, 4, 4)}
    """

    def __init__(self, scales: int = 4, orientations: int = 8) -> None:
        super().__init__()
        self.scales = scales
        self.orientations = orientations
        self.register_buffer("kernels", gabor_kernels(orientations), persistent=False)
        self.register_buffer("luminance", torch.tensor(LUMINANCE)[None, :, None, None], persistent=False)
        self.kernels: torch.Tensor
        self.luminance: torch.Tensor

    @property
    def layer_names(self) -> list[str]:
        """Names of the maps, fine to coarse."""
        return [f"scale{k + 1}" for k in range(self.scales)]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return one feature map per octave.

        Args:
            images: Normalised images of shape ``(B, 3, H, W)``.

        Returns:
            For octave ``k`` (1 is the finest) a map of shape ``(B, orientations + 3, H / 2^k, W / 2^k)``: the Gabor
            energies of the luminance, then the mean colour of the place.
        """
        maps = {}
        colour = images
        pad = self.kernels.shape[-1] // 2
        for name in self.layer_names:
            luminance = (colour * self.luminance).sum(1, keepdim=True)
            even, odd = F.conv2d(F.pad(luminance, [pad] * 4, mode="replicate"), self.kernels).chunk(2, dim=1)
            energy = (even.square() + odd.square() + 1e-6).sqrt()
            colour = F.avg_pool2d(colour, 2)
            maps[name] = torch.cat([F.avg_pool2d(energy, 2), colour], dim=1)
        return maps
