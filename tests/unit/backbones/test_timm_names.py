# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""timm's networks, built by a name that downloads nothing."""

import pytest
import timm
import torch
from anomalib.models.components import TimmFeatureExtractor

from anomalib_comet.backbones import keep_checkpoint_weights, timm_name_without_download


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(7)
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), path)
    return path


def test_network_has_the_weights_of_the_file_where_pre_trained_ones_are_asked_for(weights):
    state = torch.load(weights)
    with timm_name_without_download("resnet18", weights) as name:
        loaded, plain = (timm.create_model(name, pretrained=asked, num_classes=0) for asked in (True, False))
        features = TimmFeatureExtractor(name, ["layer1", "layer3"])
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert not torch.equal(plain.state_dict()["conv1.weight"], state["conv1.weight"])
    assert all(torch.equal(value, state[key]) for key, value in features.feature_extractor.state_dict().items())
    assert [f.shape[1] for f in features(torch.rand(1, 3, 64, 64)).values()] == [64, 256]


def test_network_is_random_without_a_file_and_outside_the_context(weights):
    with timm_name_without_download("resnet18", weights) as name:
        pass
    state = torch.load(weights)
    with timm_name_without_download("resnet18") as again:
        assert again == name
        network = timm.create_model(name, pretrained=True)
    assert not torch.equal(network.state_dict()["conv1.weight"], state["conv1.weight"])
    with keep_checkpoint_weights(), timm_name_without_download("resnet18", "no such file") as name:
        timm.create_model(name, pretrained=True)


def test_random_state_is_left_alone(weights):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with timm_name_without_download("resnet18", weights):
        assert torch.equal(torch.rand(1), expected)


def test_transformers_are_known_by_their_name():
    with timm_name_without_download("vit_tiny_patch16_224.augreg_in21k") as name:
        extractor = TimmFeatureExtractor(name, ["blocks.2"], output_fmt="NLC")
    assert extractor(torch.rand(1, 3, 224, 224))["blocks.2"].shape == (1, 196, 192)


def test_bad_files_and_names_are_refused_at_once(weights, tmp_path):
    with (
        pytest.raises(ValueError, match="is not a state dict of 'resnet34'"),
        timm_name_without_download("resnet34", weights),
    ):
        pass
    with pytest.raises(FileNotFoundError), timm_name_without_download("resnet18", tmp_path / "missing.pth"):
        pass
    with pytest.raises(ValueError, match="neither a timm"), timm_name_without_download("resnet1", weights):
        pass
