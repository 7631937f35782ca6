# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The contaminated data module around every image and depth data module of anomalib, on miniature data sets."""

import gc
import json
import logging
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import anomalib.data
import pytest
import torch
from anomalib.data import AnomalibDataModule, Folder, MVTecAD
from anomalib.data.utils import LabelName
from anomalib.engine import Engine
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_comet.data.contamination import ContaminatedDataModule, NotEnoughAnomaliesError
from anomalib_comet.data.contamination.wrapped import build

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.miniatures import MINIATURES, TRAIN, TYPES, Miniature

RATIO, MAX_RATIO = 0.2, 0.3


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory):
    """Write each miniature once, when it is first asked for."""
    written: dict[str, Miniature] = {}

    def get(name: str) -> Miniature:
        if name == "kaputt":
            pytest.importorskip("pyarrow", reason="anomalib reads Kaputt with pyarrow")
        if name not in written:
            written[name] = MINIATURES[name](tmp_path_factory.mktemp(name))
        return written[name]

    return get


@pytest.fixture(params=sorted(MINIATURES))
def miniature(request, library) -> Miniature:
    return library(request.param)


def contaminated(miniature: Miniature, **arguments) -> ContaminatedDataModule:
    datamodule = ContaminatedDataModule(miniature.config, **{"ratio": RATIO, **arguments})
    if miniature.prepare:
        datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def paths(datamodule: AnomalibDataModule, part: str) -> set[str]:
    dataset = getattr(datamodule, f"{part}_data", None)
    return set() if dataset is None else set(dataset.samples["image_path"])


def evaluated(datamodule: AnomalibDataModule) -> set[str]:
    return paths(datamodule, "val") | paths(datamodule, "test")


def injected_paths(datamodule: ContaminatedDataModule) -> set[str]:
    truth = datamodule.contamination
    return set(truth.loc[truth["injected"], "image_path"])


def batches(datamodule: AnomalibDataModule):
    return {part: list(getattr(datamodule, f"{part}_dataloader")()) for part in ("train", "val", "test")}


def test_every_image_data_module_of_anomalib_is_covered(library):
    shipped = {
        name
        for name, entry in vars(anomalib.data).items()
        if isinstance(entry, type) and issubclass(entry, AnomalibDataModule) and "__init__" in vars(entry)
    }
    videos = {"Avenue", "ShanghaiTech", "UCSDped"}
    ours = {"AnomalibDataModule", "ContaminatedDataModule", "FewShotDataModule", "ProceduralSurfaces"}
    covered = {"Kaputt"} | {library(name).class_path for name in MINIATURES if name != "kaputt"}
    assert shipped - videos - ours == covered


def test_counts_labels_and_separation(miniature):
    datamodule = contaminated(miniature)
    count = math.floor(RATIO * miniature.normals + 1e-9)
    truth = datamodule.contamination

    assert len(datamodule.train_data) == miniature.normals + count
    assert truth["injected"].sum() == count
    assert not truth["labelled"].any()
    assert (truth["split"] == "train").all()

    drawn = Counter(truth.loc[truth["injected"], "defect_type"])
    assert set(drawn) <= set(miniature.types)
    for name, size in miniature.types.items():
        assert abs(drawn[name] - count * size / sum(miniature.types.values())) < 1

    assert not paths(datamodule, "train") & evaluated(datamodule)
    masks = truth.loc[truth["injected"], "mask_path"]
    assert all(len(mask) > 0 for mask in masks) == miniature.extra.get("masks", True)

    loaded = batches(datamodule)
    for batch in loaded["train"]:
        assert batch.gt_label.tolist() == [LabelName.NORMAL] * len(batch.image)
        assert batch.gt_mask is None or not batch.gt_mask.any()
        assert batch.mask_path is None or set(batch.mask_path) <= {""}
    assert sum(len(batch.image) for batch in loaded["train"]) == len(datamodule.train_data)
    assert sum(len(batch.image) for batch in loaded["test"]) == len(datamodule.test_data)
    if miniature.extra.get("unlabelled_test"):
        assert all(batch.gt_label is None for batch in loaded["test"])
    else:
        labels = torch.cat([batch.gt_label for batch in loaded["test"]])
        assert (labels == LabelName.ABNORMAL).any()
        assert (labels == LabelName.NORMAL).any() == miniature.extra.get("normal_test", True)


def test_wrapped_test_and_validation_sets_lose_the_pool_and_nothing_else(miniature):
    without = contaminated(miniature, ratio=0.0)
    datamodule = contaminated(miniature, ratio=RATIO, max_ratio=MAX_RATIO)
    pool = {entry.key for entry in datamodule.draw.pool}
    assert len(pool) == math.floor(MAX_RATIO * miniature.normals + 1e-9)
    for part in ("val", "test"):
        if any("synthetic_anomaly" in path for path in paths(without, part)):
            # Synthetic images have other names each time; their normal sources do not.
            continue
        lost = paths(without, part) - paths(datamodule, part)
        assert not paths(datamodule, part) - paths(without, part)
        assert all(any(path.endswith(key) for key in pool) for path in lost)
    normals = paths(without, "train")
    assert paths(datamodule, "train") - injected_paths(datamodule) == normals


def test_a_sweep_is_nested_and_keeps_its_test_set(miniature):
    runs = [contaminated(miniature, ratio=ratio, max_ratio=MAX_RATIO) for ratio in (0.0, 0.1, RATIO, MAX_RATIO)]
    for smaller, larger in pairwise(runs):
        assert injected_paths(smaller) < injected_paths(larger)
        for part in ("val", "test"):
            real = [{path for path in paths(run, part) if "synthetic_anomaly" not in path} for run in (smaller, larger)]
            assert real[0] == real[1]
    assert not evaluated(runs[0]) & injected_paths(runs[-1])


def test_overlap_keeps_the_drawn_images_in_the_test_set(miniature):
    without = contaminated(miniature, ratio=0.0)
    datamodule = contaminated(miniature, overlap=True)
    for part in ("val", "test"):
        assert len(paths(datamodule, part)) == len(paths(without, part))
    if not any(miniature.extra.get(key) for key in ("synthetic_test", "unlabelled_test", "own_pool")):
        assert injected_paths(datamodule) <= evaluated(datamodule)
    batches(datamodule)


def test_labelled_anomalies_show_label_and_mask(miniature):
    datamodule = contaminated(miniature, labelled=3)
    truth = datamodule.contamination.set_index("image_path")
    assert truth["labelled"].sum() == 3
    assert truth["injected"].sum() == math.floor(RATIO * miniature.normals + 1e-9)
    assert not (set(truth.index[truth["labelled"]]) & evaluated(datamodule))
    seen = 0
    for batch in batches(datamodule)["train"]:
        for place, path in enumerate(batch.image_path):
            assert bool(batch.gt_label[place]) == truth.loc[path, "labelled"]
            if batch.gt_mask is not None and miniature.extra.get("masks", True):
                assert bool(batch.gt_mask[place].any()) == truth.loc[path, "labelled"]
            seen += int(truth.loc[path, "labelled"])
    assert seen == 3


def test_validation_from_the_contaminated_training_set_needs_no_test_labels(miniature):
    whole = contaminated(miniature, ratio=MAX_RATIO)
    datamodule = contaminated(miniature, ratio=MAX_RATIO, val_split_mode="from_train", val_split_ratio=0.25)
    truth = datamodule.contamination
    held = truth[truth["split"] == "val"]
    hidden = math.floor(MAX_RATIO * miniature.normals + 1e-9)
    assert held["injected"].sum() == hidden // 4 > 0
    assert (~held["injected"]).sum() == miniature.normals // 4
    assert paths(datamodule, "train") | paths(datamodule, "val") == paths(whole, "train")
    assert not paths(datamodule, "train") & paths(datamodule, "val")
    for batch in batches(datamodule)["val"]:
        assert not batch.gt_label.any()
        assert batch.gt_mask is None or not batch.gt_mask.any()
    smaller = contaminated(miniature, ratio=RATIO, val_split_mode="from_train", val_split_ratio=0.25)
    normal_val = set(held.loc[~held["injected"], "image_path"])
    assert paths(smaller, "val") - injected_paths(smaller) == normal_val


def test_repeated_setup_changes_nothing(miniature):
    datamodule = contaminated(miniature)
    first = {part: paths(datamodule, part) for part in ("train", "val", "test")}
    for stage in ("fit", "test", None, TrainerFn.TESTING):
        datamodule.setup(stage)
        assert {part: paths(datamodule, part) for part in first} == first


def splits_of(datamodule: AnomalibDataModule) -> dict[str, list[str]]:
    return {
        part: sorted(path for path in paths(datamodule, part) if "synthetic_anomaly" not in path)
        for part in ("train", "val", "test")
    }


OTHER_PROCESS = """
import json, pickle, sys
from pathlib import Path
from anomalib_comet.data.contamination import ContaminatedDataModule

result = {}
for name, config in json.load(sys.stdin).items():
    datamodule = ContaminatedDataModule(config, ratio=0.2)
    datamodule.setup("fit")
    result[name] = {}
    for part in ("train", "val", "test"):
        dataset = getattr(datamodule, part + "_data", None)
        images = [] if dataset is None else dataset.samples["image_path"]
        result[name][part] = sorted(path for path in images if "synthetic_anomaly" not in path)
# What a spawned loader worker does: unpickle the data set and read from it.
dataset = pickle.loads(Path("dataset.pickle").read_bytes())
labels = [int(dataset[place].gt_label) for place in range(len(dataset))]
print(json.dumps({"splits": result, "labels": labels}))
"""


def test_other_processes_split_and_draw_the_same(library, tmp_path):
    """anomalib's own splits differ between processes: what trained in one is tested on in another."""
    names = [name for name in sorted(MINIATURES) if name != "kaputt"]
    here = {name: splits_of(contaminated(library(name))) for name in names}
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(contaminated(library("folder"), labelled=1).train_data))
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        input=json.dumps({name: library(name).config for name in names}),
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    assert there["splits"] == here
    assert sorted(there["labels"]) == [0] * 24 + [1]


@pytest.mark.parametrize("name", ["folder", "mvtecad_from_test", "folder_plain"])
def test_the_trap_is_there_without_us(library, name):
    """If anomalib ever seeds these splits, the care taken here can go."""
    config = library(name).config
    splits = []
    for _ in range(4):
        inner = build(config)
        inner.setup()
        splits.append(frozenset(paths(inner, "test")))
    assert len(set(splits)) > 1


def test_the_wrapped_module_and_the_global_generators_stay_as_they_were(library):
    inner = build(library("folder").config)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sweep = [ContaminatedDataModule(inner, ratio=ratio, max_ratio=0.3) for ratio in (0.1, 0.3)]
    for datamodule in sweep:
        datamodule.setup()
    assert torch.equal(torch.rand(3), expected)
    assert not hasattr(inner, "train_data")
    assert paths(sweep[0], "test") == paths(sweep[1], "test")
    assert len(injected_paths(sweep[0])) == 2  # still what it was before the second one was set up


def test_a_module_that_was_trained_on_is_split_anew(library):
    inner = build(library("folder").config)
    inner.setup(TrainerFn.FITTING)
    datamodule = ContaminatedDataModule(inner, ratio=0.2)
    datamodule.setup()
    assert splits_of(datamodule) == splits_of(contaminated(library("folder")))


def test_synthetic_images_live_as_long_as_the_data_module(library):
    datamodule = contaminated(library("mvtecad_synthetic_test"))
    synthetic = [Path(path) for path in paths(datamodule, "test") if "synthetic_anomaly" in path]
    assert synthetic
    # A spawned worker receives a copy of the data set and deletes it when it ends.
    worker_copy = pickle.loads(pickle.dumps(datamodule.test_data))  # noqa: S301
    del worker_copy
    gc.collect()
    assert all(path.exists() for path in synthetic)
    del datamodule
    gc.collect()
    assert not any(path.exists() for path in synthetic)


def test_too_few_anomalies_name_the_largest_ratio_which_works(library):
    with pytest.raises(NotEnoughAnomaliesError, match=r"12 anomalies may be drawn, 14 are needed") as caught:
        contaminated(library("mvtecad"), ratio=0.1, max_ratio=0.7)
    assert caught.value.largest_ratio == 0.6
    assert len(injected_paths(contaminated(library("mvtecad"), ratio=0.6))) == 12


def test_a_test_set_without_anomalies_left_is_told(library, caplog):
    with caplog.at_level(logging.WARNING):
        contaminated(library("mvtecad"), ratio=0.6)
    assert "All anomalies were drawn" in caplog.text


def test_a_test_set_without_normal_images_is_told_and_can_be_mended(library, caplog):
    with caplog.at_level(logging.WARNING):
        contaminated(library("realiad"))
    assert "no normal images (test_split_mode=none)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        mended = contaminated(library("realiad"), test_split_mode="from_dir")
    assert not caplog.text
    assert set(mended.test_data.samples["label_index"]) == {0, 1}


def test_labelled_images_of_the_training_split_are_left_out(library, caplog):
    with caplog.at_level(logging.WARNING):
        datamodule = contaminated(library("kaputt"), ratio=0.0)
    assert "3 training images of Kaputt are not labelled normal" in caplog.text
    assert len(datamodule.train_data) == TRAIN


def test_images_in_both_training_and_test_set_are_told(library, caplog):
    config = library("folder").config
    config["init_args"]["normal_test_dir"] = config["init_args"]["normal_dir"]
    with caplog.at_level(logging.WARNING):
        ContaminatedDataModule(config, ratio=0.1).setup()
    assert "20 images are both in the training set and in the test or validation set" in caplog.text


@pytest.mark.parametrize("arguments", [{"ratio": 0.1}, {"ratio": 0, "max_ratio": 0.1}, {"ratio": 0, "labelled": 1}])
@pytest.mark.parametrize("test_split_mode", ["synthetic", "from_dir"])
def test_no_anomalies_at_all_are_told(library, arguments, test_split_mode):
    root = library("folder_plain").init_args["root"]
    inner = Folder(name="x", root=root, normal_dir="good", test_split_mode=test_split_mode, num_workers=0)
    with pytest.raises(ValueError, match=r"x has no anomalous test or validation images .*abnormal_dir"):
        ContaminatedDataModule(inner, **arguments).setup()
    datamodule = ContaminatedDataModule(inner, ratio=0)
    datamodule.setup()
    assert not datamodule.contamination["injected"].any()


def test_a_ratio_below_one_image_is_told(library):
    with pytest.raises(ValueError, match=r"ratio=0.04 of 20 normal training images .* at least 0.05"):
        contaminated(library("mvtecad"), ratio=0.04)
    with pytest.raises(ValueError, match=r"val_split_ratio=0.01 of 20 normal training images"):
        contaminated(library("mvtecad"), val_split_mode="from_train", val_split_ratio=0.01)


def test_resampling_makes_up_for_missing_anomalies(library, tmp_path):
    arguments = {"ratio": 0.9, "max_draw": 0.5, "resample_dir": tmp_path / "copies"}
    datamodule = contaminated(library("mvtecad"), **arguments)
    truth = datamodule.contamination
    injected = truth[truth["injected"]]
    assert len(injected) == 18
    assert injected["image_path"].is_unique
    assert injected["source_path"].nunique() == 6
    assert not set(injected["source_path"]) & evaluated(datamodule)
    labels = datamodule.test_data.samples["label_index"]
    assert (labels == LabelName.ABNORMAL).sum() == 6
    batches(datamodule)
    again = contaminated(library("mvtecad"), **arguments)
    assert paths(again, "train") == paths(datamodule, "train")
    manifest = datamodule.write_manifest(tmp_path / "m.json")
    with pytest.raises(ValueError, match="holds re-sampled copies; set resample_dir"):
        contaminated(library("mvtecad"), manifest=manifest)
    repeated = contaminated(library("mvtecad"), manifest=manifest, resample_dir=tmp_path / "copies")
    assert paths(repeated, "train") == paths(datamodule, "train")


def test_depth_images_cannot_be_resampled(library, tmp_path):
    with pytest.raises(ValueError, match="Depth images cannot be re-sampled"):
        contaminated(library("mvtec3d"), ratio=0.9, resample_dir=tmp_path)


def test_a_manifest_repeats_a_draw_on_a_copy_of_the_data(library, tmp_path):
    miniature = library("mvtecad")
    shutil.copytree(miniature.init_args["root"], tmp_path / "elsewhere")
    original = contaminated(miniature, ratio=0.15, max_ratio=0.3, seed=4, labelled=2)
    manifest = original.write_manifest(tmp_path / "runs" / "contamination.json")
    inner = MVTecAD(root=tmp_path / "elsewhere", num_workers=0)
    repeated = ContaminatedDataModule(inner, ratio=0.99, manifest=manifest)
    assert repeated.name == original.name
    repeated.setup()
    assert repeated.draw == original.draw
    for part in ("train", "val", "test"):
        relative = [
            {Path(path).relative_to(Path(root).resolve()) for path in paths(datamodule, part)}
            for datamodule, root in ((original, miniature.init_args["root"]), (repeated, tmp_path / "elsewhere"))
        ]
        assert relative[0] == relative[1]
    content = json.loads(manifest.read_text())
    uses = Counter(image["use"] for image in content["images"])
    assert uses == {"injected": 3, "withheld": 3, "labelled": 2}
    assert content["share"] == pytest.approx(3 / 23, abs=1e-6)
    with pytest.raises(ValueError, match="use it with the data set that it was written for"):
        contaminated(library("mpdd"), manifest=_with_other_image(manifest, tmp_path))


def _with_other_image(manifest: Path, folder: Path) -> Path:
    content = json.loads(manifest.read_text())
    content["images"][0]["image_path"] = "test/good/000.png"
    other = folder / "other.json"
    other.write_text(json.dumps(content))
    return other


def test_augmentations_of_the_wrapped_module_reach_the_contaminated_sets(library):
    flip = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [16, 16]}}
    config = library("mvtecad").config
    config["init_args"]["train_augmentations"] = flip
    datamodule = ContaminatedDataModule(config, ratio=0.2)
    datamodule.setup()
    assert next(iter(datamodule.train_dataloader())).image.shape[-2:] == (16, 16)
    assert next(iter(datamodule.test_dataloader())).image.shape[-2:] == (32, 32)


def test_pipelines_of_anomalib_build_and_tile_it(library, monkeypatch):
    """``anomalib benchmark`` and the tiled ensemble hand over nested mappings of omegaconf."""
    from anomalib.pipelines.tiled_ensemble.components.utils.ensemble_tiling import EnsembleTiler
    from anomalib.pipelines.tiled_ensemble.components.utils.helper_functions import get_ensemble_datamodule

    monkeypatch.setattr(anomalib.data, "ContaminatedDataModule", ContaminatedDataModule, raising=False)
    config = {
        "class_path": "ContaminatedDataModule",
        # The pipeline insists on both names of a split mode.
        "init_args": {
            "datamodule": library("mvtecad").config,
            "ratio": 0.2,
            "val_split_mode": "inner",
            "test_split_mode": "inner",
        },
    }
    tiler = EnsembleTiler(tile_size=(32, 32), stride=(32, 32), image_size=(64, 64))
    tiles = [get_ensemble_datamodule(config, (64, 64), tiler, (0, column)) for column in range(2)]
    assert paths(tiles[0], "train") == paths(tiles[1], "train")
    tiles[0].setup(TrainerFn.FITTING)
    batch = next(iter(tiles[0].train_dataloader()))
    assert batch.image.shape[-2:] == (32, 32)
    assert not batch.gt_label.any()


def test_the_command_line_builds_it_and_names_misspelt_arguments(library):
    from jsonargparse import ArgumentError, ArgumentParser

    root = library("mvtecad").init_args["root"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    arguments = ["--data=ContaminatedDataModule", "--data.ratio=0.2", "--data.datamodule=MVTecAD"]
    config = parser.parse_args([*arguments, f"--data.datamodule.root={root}", "--data.datamodule.num_workers=0"])
    datamodule = parser.instantiate_classes(config).data
    datamodule.setup()
    assert len(injected_paths(datamodule)) == 4
    with pytest.raises(ArgumentError, match="Option 'rooot' is not accepted"):
        parser.parse_args([*arguments, "--data.datamodule.rooot=x"])


def engine(folder: Path) -> Engine:
    return Engine(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


@pytest.mark.parametrize("name", ["mvtecad", "mvtecad_without_val", "bmad_without_masks"])
def test_stock_padim_trains_and_leaves_a_manifest_beside_the_run(library, tmp_path, name):
    from anomalib.models import Padim

    model = Padim(
        backbone="resnet18",
        layers=["layer1"],
        pre_trained=False,
        n_features=8,
        pre_processor=Padim.configure_pre_processor((32, 32)),
        visualizer=False,
    )
    datamodule = ContaminatedDataModule(library(name).config, ratio=0.2)
    runner = engine(tmp_path)
    (metrics,) = runner.train(model, datamodule=datamodule)
    assert 0 <= metrics["image_AUROC"] <= 1
    run = Path(runner.trainer.default_root_dir)
    assert run.relative_to(tmp_path).parts[:2] == ("Padim", datamodule.name)
    recorded = {image["image_path"] for image in json.loads((run / "contamination.json").read_text())["images"]}
    assert recorded == {entry.key for entry in datamodule.draw.pool}
    # Testing neither draws anew nor rewrites what the fit has recorded.
    (run / "contamination.json").unlink()
    (again,) = engine(tmp_path).test(model, datamodule=ContaminatedDataModule(library(name).config, ratio=0.2))
    assert again["image_AUROC"] == pytest.approx(metrics["image_AUROC"])
    assert not (run / "contamination.json").exists()


def test_no_label_leaks_into_a_model_that_reads_labels(library, tmp_path, monkeypatch):
    """SuperSimpleNet reads labels and masks even unsupervised: it must see normal images only."""
    from anomalib.models import Supersimplenet
    from anomalib.models.image.supersimplenet import torch_model

    # No weights can be downloaded here, and none are needed to see what comes in.
    extractor = partial(torch_model.TimmFeatureExtractor, pre_trained=False)
    monkeypatch.setattr(torch_model, "TimmFeatureExtractor", extractor)

    class Watching(Supersimplenet):
        def training_step(self, batch, *args, **kwargs):
            seen.extend([batch.gt_label.sum().item(), batch.gt_mask.sum().item()])
            return super().training_step(batch, *args, **kwargs)

    def train(**arguments) -> None:
        resize = Supersimplenet.configure_pre_processor((128, 128))
        model = Watching(backbone="resnet18", layers=["layer2"], pre_processor=resize, visualizer=False)
        engine(tmp_path).fit(model, datamodule=ContaminatedDataModule(library("btech").config, ratio=0.3, **arguments))

    seen: list[float] = []
    train()
    assert seen
    assert not any(seen)
    seen.clear()
    train(labelled=2)
    # The control: two labelled anomalies with a patch of 8 x 8 pixels each, at four times the size.
    assert sum(seen) == 2 + 2 * 32 * 32


def test_defect_types_of_the_miniature_are_those_of_the_folders(library):
    datamodule = contaminated(library("folder"), ratio=0.6)
    truth = datamodule.contamination
    assert Counter(truth.loc[truth["injected"], "defect_type"]) == TYPES
    parents = truth.loc[truth["injected"], "image_path"].map(lambda path: Path(path).parent.name)
    assert (parents == truth.loc[truth["injected"], "defect_type"]).all()
