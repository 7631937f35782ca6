# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The one interface to frozen features."""

import math

import pytest
import timm
import torch

from anomalib_comet.backbones import FrozenBackbone, GaborBank, keep_checkpoint_weights
from anomalib_comet.backbones.gabor import gabor_kernels


def test_gabor_kernels_are_zero_mean_unit_quadrature_pairs():
    kernels = gabor_kernels(8)
    assert torch.allclose(kernels.mean(dim=(1, 2, 3)), torch.zeros(16), atol=1e-7)
    assert torch.allclose(kernels.flatten(1).norm(dim=1), torch.ones(16), atol=1e-6)
    even, odd = kernels.chunk(2)
    assert torch.allclose((even * odd).sum(dim=(1, 2, 3)), torch.zeros(8), atol=1e-6)


@pytest.mark.parametrize("octave", [1, 2, 3])
@pytest.mark.parametrize("orientation", [0, 2, 5])
def test_gabor_energy_peaks_at_the_gratings_own_scale_and_direction(octave, orientation):
    # The carrier's wavelength is 4 pixels at the finest octave, and doubles with every octave.
    wavelength, angle = 4.0 * 2 ** (octave - 1), math.pi * orientation / 8
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    grating = torch.cos(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength)
    maps = GaborBank()(grating.expand(1, 3, -1, -1))
    energy = torch.stack([m[0, :8].mean(dim=(1, 2)) for m in maps.values()])  # (scales, orientations)
    assert divmod(int(energy.argmax()), 8) == (octave - 1, orientation)


def test_gabor_colour_is_the_local_mean():
    image = torch.rand(1, 3, 64, 64)
    coarse = GaborBank()(image)["scale4"]
    assert coarse.shape == (1, 11, 4, 4)
    assert torch.allclose(coarse[:, 8:], torch.nn.functional.avg_pool2d(image, 16), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [
        ("gabor", ["scale2"], [11]),
        ("mobilenetv2_100", None, [32, 96]),
        ("torchvision/squeezenet1_1", ["features"], [512]),
        ("resnet18.a1_in1k", ["layer1"], [64]),
    ],
)
def test_features_are_frozen_maps(name, layers, channels):
    backbone = FrozenBackbone(name, layers, pre_trained=False)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    maps = backbone(torch.rand(2, 3, 96, 64, requires_grad=True))
    assert [m.shape[1] for m in maps] == backbone.out_channels == channels
    assert [tuple(m.shape[2:]) for m in maps] == backbone.map_sizes((96, 64))
    assert not any(m.requires_grad for m in maps)


def test_local_weights_are_loaded_strictly(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=0).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = FrozenBackbone("mobilenetv2_100", ["blocks.1"], backbone_weights=tmp_path / "weights.pth")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.blocks[1](source.blocks[0](source.bn1(source.conv_stem(image))))
    assert torch.allclose(backbone(image)[0], expected, atol=1e-5)

    incomplete = {k: v for k, v in source.state_dict().items() if "blocks.6" not in k}
    torch.save(incomplete, tmp_path / "incomplete.pth")
    with pytest.raises(ValueError, match=r"backbone_weights .* is not a state dict of 'mobilenetv2_100'"):
        FrozenBackbone("mobilenetv2_100", backbone_weights=tmp_path / "incomplete.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match="not a state dict"):
        FrozenBackbone("mobilenetv2_100", backbone_weights=tmp_path / "text.pth")


def test_bad_names_say_what_would_work():
    with pytest.raises(ValueError, match="neither a timm nor a torchvision model, nor 'gabor'"):
        FrozenBackbone("resnet1800")
    with pytest.raises(ValueError, match=r"no layer \['layer9'\]; it has, among others"):
        FrozenBackbone("resnet18", ["layer9"], pre_trained=False)
    with pytest.raises(ValueError, match=r"no layer \['blocks.2'\]; it has, among others, \['scale1'"):
        FrozenBackbone("gabor", ["blocks.2"])
    with pytest.raises(ValueError, match="shape"):
        FrozenBackbone("vit_tiny_patch16_224", ["blocks.1"], pre_trained=False)
    with pytest.raises(FileNotFoundError, match="backbone_weights"):
        FrozenBackbone("resnet18", backbone_weights="missing.pth")
    with pytest.raises(ValueError, match="too small"):
        FrozenBackbone("torchvision/alexnet", pre_trained=False).map_sizes((32, 32))


def test_missing_download_names_the_ways_out():
    with pytest.raises(RuntimeError, match=r"`backbone_weights`.*`backbone=gabor`"):
        FrozenBackbone("resnet18")  # the tests run offline


def test_a_checkpoint_needs_no_weights():
    with keep_checkpoint_weights():
        FrozenBackbone("resnet18")
        FrozenBackbone("resnet18", backbone_weights="gone.pth")
