# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Every file in ``configs/`` runs through anomalib's command line, on small data and with small networks."""

from pathlib import Path

import pytest
import yaml
from anomalib.cli import AnomalibCLI

from anomalib_comet import plugin
from anomalib_comet.backbones import FrozenBackbone, PatchDescriptors
from anomalib_comet.models.differnet import DifferNetModel
from anomalib_comet.models.simplenet import SimpleNetModel
from helpers.miniatures import write_image, write_mask

CONFIGS = Path(__file__).parents[2] / "configs"
GABOR = {"backbone": "gabor", "layers": "null", "image_size": "[64,64]"}
SMALLER = {
    "DifferNet": {
        **GABOR,
        "n_scales": "1",
        "coupling_blocks": "1",
        "hidden_units": "8",
        "n_windows": "2",
        "local_hidden_units": "8",
        "local_coupling_blocks": "1",
    },
    "SimpleNet": {**GABOR, "feature_dim": "16", "hidden_units": "8"},
    "FunAd": {**GABOR, "image_descriptor": "auto", "hidden_units": "[8,4]", "patch_pool": "1"},
    "MultidirectionalMeta": GABOR,
    "Fastflow": {"pre_trained": "false", "flow_steps": "1", "backbone": "resnet18"},
    "Stfpm": {"pre_trained": "false", "layers": "[layer1]", "backbone": "resnet18"},
    "Supersimplenet": {"pre_trained": "false", "layers": "[layer3]", "backbone": "resnet18"},
}
SURFACES = {"n_train": 10, "n_test_normal": 4, "n_test_anomalous": 6, "n_val_normal": 2, "n_val_anomalous": 2}


def detector_of(config):
    """The name of the base detector of a configuration."""
    return config["model"]["class_path"].rpartition(".")[-1].removeprefix("CoMet")


def tiles(root, types, train, test):
    """MVTec-style folders with tiny images."""
    for k in range(train):
        write_image(root / "train" / "good" / f"{k:03}.png")
    for k in range(test):
        write_image(root / "test" / "good" / f"{k:03}.png")
        for kind in types:
            write_image(root / "test" / kind / f"{k:03}.png", defect=True)
            write_mask(root / "ground_truth" / kind / f"{k:03}_mask.png")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_trains_and_tests(path, tmp_path):
    plugin.register()
    config = yaml.safe_load(path.read_text())
    data, prefix = config["data"], "data.init_args"
    if data["class_path"].endswith(("ContaminatedDataModule", "FewShotDataModule")):
        data, prefix = data["init_args"]["datamodule"], f"{prefix}.datamodule.init_args"
    few = {"data.init_args.shots": "1"} if "shots" in config["data"]["init_args"] else {}
    overrides = few | {f"model.init_args.{name}": value for name, value in SMALLER[detector_of(config)].items()}
    kind = data["class_path"].rpartition(".")[-1]
    if kind == "ProceduralSurfaces":
        overrides |= {f"{prefix}.{name}": str(value) for name, value in {**SURFACES, "image_size": 64}.items()}
        overrides[f"{prefix}.root"] = str(tmp_path / "data")
    elif kind == "MVTecAD":
        tiles(tmp_path / "data" / data["init_args"]["category"], ["crack", "hole"], train=10, test=4)
        overrides |= {f"{prefix}.root": str(tmp_path / "data"), f"{prefix}.num_workers": "0"}
    else:
        types = [Path(folder).name for folder in data["init_args"]["abnormal_dir"]]
        tiles(tmp_path / "data", types, train=10, test=4)
        overrides |= {f"{prefix}.root": str(tmp_path / "data"), f"{prefix}.num_workers": "0"}
    overrides |= {"trainer.max_epochs": "1", "trainer.check_val_every_n_epoch": "1"}
    overrides |= {"trainer.accelerator": "cpu", "default_root_dir": str(tmp_path / "runs")}
    AnomalibCLI(["train", "--config", str(path), *(f"--{name}={value}" for name, value in overrides.items())])
    (run,) = (tmp_path / "runs").glob("*/*/**/v0")
    assert (run / "weights" / "lightning" / "model.ckpt").exists()
    assert list((run / "images").rglob("*.png"))
    assert (run / "confidence_weights.csv").exists() == ("comet" in path.stem)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configured_backbone_and_layers_exist_at_the_configured_size(path):
    config = yaml.safe_load(path.read_text())
    arguments = config["model"]["init_args"]
    size = tuple(arguments.get("image_size", (256, 256)))
    common = {"backbone": arguments["backbone"], "layers": arguments.get("layers"), "hidden_units": 1}
    if detector_of(config) == "DifferNet":
        model = DifferNetModel(
            **common, pre_trained=False, image_size=size, n_scales=arguments["n_scales"], coupling_blocks=1
        )
        model.features.check_image_size(size)
    elif detector_of(config) == "SimpleNet":
        model = SimpleNetModel(**common, pre_trained=False, aggregation=arguments["aggregation"])
        model.network.map_sizes(size)
    elif detector_of(config) == "FunAd":
        descriptors = PatchDescriptors(arguments["backbone"], common["layers"], False, image_size=size)
        assert min(descriptors.grid) > arguments["patch_pool"]
    else:  # anomalib's own
        layers = arguments.get("layers", ["layer1"])
        assert len(FrozenBackbone(arguments["backbone"], layers, pre_trained=False).map_sizes(size)) == len(layers)
