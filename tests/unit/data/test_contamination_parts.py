# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The parts of the contaminated data module that work on frames, files and configurations."""

import json
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import Avenue, Folder, MVTecAD
from anomalib.data.datasets import AnomalibDataset
from PIL import Image

from anomalib_comet.data.contamination import ContaminatedDataModule, frames
from anomalib_comet.data.contamination.manifest import Manifest, Settings, check_against, read_manifest, to_json
from anomalib_comet.data.contamination.protocol import Anomaly, Draw
from anomalib_comet.data.contamination.resampling import resampled_copy, rotated_and_shifted, small_change
from anomalib_comet.data.contamination.wrapped import build, fixed_random_state


@pytest.mark.parametrize("missing", [None, float("nan"), "", [], pd.NA])
def test_missing_masks_of_all_kinds_become_empty(missing):
    frame = pd.DataFrame({"image_path": ["a", "b"], "mask_path": [missing, "m"], "label_index": [0, 1]})
    assert frames.cleaned(frame)["mask_path"].to_list() == ["", "m"]


def test_cleaning_keeps_mask_lists_the_task_and_the_original():
    frame = pd.DataFrame({"image_path": ["a", "b"], "mask_path": [["m1", "m2"], None], "label_index": [1, 0]})
    frame["label_index"] = frame["label_index"].astype("Int64")
    frame.attrs["task"] = "segmentation"
    result = frames.cleaned(frame)
    assert result["mask_path"].to_list() == [["m1", "m2"], ""]
    assert result["label_index"].dtype == "int64"
    assert result.attrs == {"task": "segmentation"}
    assert frame["mask_path"].to_list() == [["m1", "m2"], None]


def test_frames_without_labels_are_refused():
    with pytest.raises(ValueError, match="no column 'label_index'"):
        frames.cleaned(pd.DataFrame({"image_path": ["a"], "mask_path": [""]}))


@pytest.mark.parametrize(
    ("paths", "columns", "expected"),
    [
        # MVTec-like: the label is the folder.
        (["/d/test/cut/0.png", "/d/test/hole/0.png"], {"label": ["cut", "hole"]}, ["cut", "hole"]),
        # Folder: everything is "abnormal", the type is in the path.
        (["/d/cut/0.png", "/d/hole/0.png"], {"label": ["abnormal"] * 2}, ["cut", "hole"]),
        (["/d/bad/0.png", "/d/bad/1.png"], {"label": ["abnormal"] * 2}, ["abnormal", "abnormal"]),
        # Tabular: the label is the name of an enumeration's member.
        (["/d/cut/0.png", "/d/hole/0.png"], {"label": ["DirType.ABNORMAL"] * 2}, ["cut", "hole"]),
        # Kolektor: folders are items, not types.
        (["/d/kos1/0.jpg", "/d/kos2/0.jpg"], {"label": ["Bad", "Bad"]}, ["Bad", "Bad"]),
        # Kaputt: a column of its own, which may have gaps.
        (["/d/0.png", "/d/1.png"], {"label": ["abnormal"] * 2, "defect_types": ["open", None]}, ["open", "abnormal"]),
        # No label at all.
        (["/d/NG/AK/0.png", "/d/NG/HS/0.png"], {}, ["AK", "HS"]),
    ],
)
def test_defect_types_are_found_where_each_data_set_keeps_them(paths, columns, expected):
    frame = pd.DataFrame({"image_path": paths, **columns})
    assert frames.defect_types_of(frame, []) == expected


def test_hidden_rows_tell_nothing_but_their_path():
    normals = frames.normal_training_rows(
        pd.DataFrame(
            {
                "image_path": ["n0", "n1"],
                "mask_path": ["masks/n0", "masks/n1"],
                "label": ["good", "good"],
                "label_index": [0, 0],
                "split": ["train", "train"],
                "defect_types": ["", ""],
                "capture": ["c0", "c1"],
            }
        )
    )
    anomalies = pd.DataFrame(
        {
            "image_path": ["a0"],
            "mask_path": ["masks/a0"],
            "label": ["cut"],
            "label_index": [1],
            "split": ["test"],
            "defect_types": ["cut"],
            "capture": ["c9"],
            "unknown_to_train": ["x"],
            frames.TRUE_DEFECT_TYPE: ["cut"],
            frames.SOURCE_PATH: ["a0"],
        }
    )
    hidden = frames.training_rows(normals, anomalies, hide=True)
    assert list(hidden.columns) == list(normals.columns)
    shown = hidden.iloc[0][["mask_path", "label", "label_index", "split", "defect_types"]].to_dict()
    assert shown == normals.iloc[0][list(shown)].to_dict()
    assert hidden[[frames.INJECTED, frames.LABELLED]].to_numpy().tolist() == [[True, False]]
    assert hidden.iloc[0][frames.TRUE_MASK_PATH] == "masks/a0"
    visible = frames.training_rows(normals, anomalies, hide=False).iloc[0]
    assert (visible["label"], visible["label_index"], visible["mask_path"]) == ("cut", 1, "masks/a0")


def test_random_state_is_fixed_inside_and_untouched_outside():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    before = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with fixed_random_state(7):
        first = draws()
    assert draws() == before
    with fixed_random_state(7):
        assert draws() == first


def test_rotation_by_zero_changes_nothing_and_a_shift_moves_the_pixels():
    image = torch.rand(3, 40, 60)
    assert torch.allclose(rotated_and_shifted(image, 0.0, 0.0, 0.0), image, atol=1e-4)
    shifted = rotated_and_shifted(image, 0.0, 0.05, -0.05)
    # 5 % of 60 columns to the right, 5 % of 40 rows upwards.
    assert torch.allclose(shifted[:, :-2, 3:], image[:, 2:, :-3], atol=1e-4)


def test_rotation_fills_the_corners_from_the_image():
    assert rotated_and_shifted(torch.ones(3, 32, 64), 10.0, 0.05, 0.05).min() > 0.999


def test_changes_are_small_never_none_and_differ_between_copies():
    changes = [small_change(0, "test/cut/0.png", copy) for copy in range(1, 200)]
    assert len(set(changes)) == len(changes)
    assert all(2.5 <= abs(rotation) <= 10 and max(abs(x), abs(y)) <= 0.05 for rotation, x, y in changes)
    assert small_change(0, "test/cut/0.png", 1) == changes[0]


def test_copies_are_written_once(tmp_path):
    source = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(source)
    folder = tmp_path / "copies"
    path = resampled_copy(str(source), folder, seed=0, key="a.png", copy=1)
    written = folder.stat().st_mtime_ns
    assert resampled_copy(str(source), folder, seed=0, key="a.png", copy=1) == path
    assert folder.stat().st_mtime_ns == written
    others = [resampled_copy(str(source), folder, seed=s, key="a.png", copy=c) for s, c in ((0, 2), (1, 1))]
    assert len({path, *others}) == 3 == len(list(folder.iterdir()))
    assert not np.array_equal(np.array(Image.open(path)), np.array(Image.open(source)))


SETTINGS = Settings(ratio=0.1, max_ratio=0.2, overlap=False, seed=3, labelled=1, max_draw=1.0)
DRAW = Draw((Anomaly("test/cut/0.png", "cut"), Anomaly("test/cut/0.png", "cut", 1)), 1, (Anomaly("test/b/1.png", "b"),))
TYPES = {"test/cut/0.png": "cut", "test/b/1.png": "b"}


def test_a_manifest_survives_the_round_trip(tmp_path):
    file = tmp_path / "contamination.json"
    file.write_text(to_json(Manifest(SETTINGS, 10, DRAW), {"share": 0.09}))
    manifest = read_manifest(file)
    assert manifest == Manifest(SETTINGS, 10, DRAW)
    assert check_against(manifest, TYPES, 10, tmp_path, file) == DRAW


@pytest.mark.parametrize(
    "path", ["../secret.png", "test/../../secret.png", "/etc/passwd", "C:\\secret.png", "test\\..\\..\\x.png", "//h/x"]
)
def test_a_manifest_cannot_name_files_outside_the_data_set(tmp_path, path):
    file = tmp_path / "contamination.json"
    file.write_text(to_json(Manifest(SETTINGS, 10, Draw((Anomaly(path, "cut"),), 1)), {}))
    with pytest.raises(ValueError, match="outside the data set's folder"):
        read_manifest(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "it has the format 'other'"),
        ({"version": 2}, "version 2"),
        ({"ratio": None}, "ratio must be a number"),
        ({"images": [{"image_path": "a", "defect_type": "b", "copy": 0, "use": "all"}]}, "'all' is missing or unknown"),
        ({"images": [{"image_path": 3, "defect_type": "b", "copy": 0, "use": "injected"}]}, "must be text"),
        ({"images": 2 * [{"image_path": "a", "defect_type": "b", "copy": 0, "use": "injected"}]}, "lists 'a' twice"),
        ({"injected_count": 5}, "lists 1 injected images and says that there are 5"),
        ({"overlap": "false"}, "overlap must be true or false"),
        ({"seed": 1.9}, "seed must be a whole number"),
        ({"max_ratio": 0.05}, "max_ratio=0.05 is smaller than ratio=0.1"),
        ({"held_out": "hole"}, "held_out must be a list"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path, change, message):
    file = tmp_path / "contamination.json"
    content = json.loads(to_json(Manifest(SETTINGS, 10, DRAW), {}))
    file.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        read_manifest(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="no readable contamination manifest"):
        read_manifest(file)
    with pytest.raises(FileNotFoundError, match="There is no manifest at"):
        read_manifest(tmp_path / "missing.json")


def test_manifests_of_other_data_are_refused(tmp_path):
    manifest = Manifest(SETTINGS, 10, DRAW)
    with pytest.raises(ValueError, match=r"'test/b/1\.png', which is no anomalous test or validation image"):
        check_against(manifest, {"test/cut/0.png": "cut"}, 10, tmp_path, tmp_path / "m.json")
    with pytest.raises(ValueError, match=r"calls 'test/b/1\.png' 'b', and in .* it is of the type 'cut'"):
        check_against(manifest, TYPES | {"test/b/1.png": "cut"}, 10, tmp_path, tmp_path / "m.json")
    held_out = replace(manifest, settings=replace(SETTINGS, held_out=("b",)))
    with pytest.raises(ValueError, match=r"draws 'test/b/1\.png', which is of the type 'b' that it holds out"):
        check_against(held_out, TYPES, 10, tmp_path, tmp_path / "m.json")
    with pytest.raises(ValueError, match="written for 10 normal training images, this data set has 11"):
        check_against(manifest, TYPES, 11, tmp_path, tmp_path / "m.json")


def test_configurations_are_built_with_their_nested_classes():
    flip = {"class_path": "torchvision.transforms.v2.RandomHorizontalFlip", "init_args": {"p": 0.25}}
    config = {"class_path": "MVTecAD", "init_args": {"category": "cable", "train_augmentations": flip}}
    datamodule = build(config)
    assert isinstance(datamodule, MVTecAD)
    assert (datamodule.category, datamodule.train_augmentations.p) == ("cable", 0.25)
    assert isinstance(build({**config, "class_path": "anomalib.data.MVTecAD"}), MVTecAD)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"init_args": {}}, "needs a 'class_path'"),
        ({"class_path": "MVTecAD", "root": "x"}, r"got the keys \['class_path', 'root'\]"),
        ({"class_path": "NoSuchData"}, "'NoSuchData' is no anomalib data module"),
        ({"class_path": "no_such_package.Data"}, "is no anomalib data module"),
        ({"class_path": "pathlib.Path"}, "is no anomalib data module"),
        ({"class_path": "MVTecAD", "init_args": {"rooot": "x"}}, "MVTecAD cannot be built: .*rooot"),
        ({"class_path": "MVTecAD", "init_args": {"train_batch_size": "x"}}, "MVTecAD cannot be built"),
    ],
)
def test_wrong_configurations_get_one_sentence(config, message):
    with pytest.raises(ValueError, match=message):
        ContaminatedDataModule(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"datamodule": "MVTecAD"}, "must be an anomalib data module or a dict"),
        ({"datamodule": Avenue()}, "Avenue serves video clips"),
        ({"datamodule": ContaminatedDataModule(MVTecAD())}, "cannot wrap another one"),
        ({"ratio": float("nan")}, "ratio must lie in"),
        ({"ratio": 0.3, "max_ratio": 0.2}, "max_ratio=0.2 is smaller"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"labelled": -1}, "labelled must be 0 or more"),
        ({"max_draw": 0}, "max_draw must lie in"),
        ({"val_split_mode": "same_as_test"}, "val_split_mode must be 'inner' or 'from_train'"),
        ({"val_split_ratio": 1}, r"val_split_ratio must lie in \(0, 1\)"),
        ({"test_split_mode": "from_train"}, "test_split_mode must be 'inner' or one of 'none', 'from_dir'"),
        ({"manifest": "missing.json"}, "There is no manifest"),
    ],
)
def test_wrong_arguments_are_told_before_any_image_is_looked_for(arguments, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        ContaminatedDataModule(**{"datamodule": MVTecAD(), **arguments})


def test_names_keep_runs_apart():
    inner = Folder(name="tiles", normal_dir="good")
    settings = [
        {"ratio": 0},
        {"ratio": 0.1},
        {"ratio": 0.1, "seed": 1},
        {"ratio": 0.1, "max_ratio": 0.2},
        {"ratio": 0.1, "overlap": True},
        {"ratio": 0.1, "labelled": 4},
    ]
    names = [ContaminatedDataModule(inner, **arguments).name for arguments in settings]
    assert names[:2] == ["tiles_r0_seed0", "tiles_r0.1_seed0"]
    assert len(set(names)) == len(names)


def test_what_anomalib_sets_from_outside_is_passed_on():
    inner = MVTecAD(category="cable", train_batch_size=1, eval_batch_size=7, num_workers=3)
    datamodule = ContaminatedDataModule(inner)
    assert (datamodule.train_batch_size, datamodule.eval_batch_size, datamodule.num_workers) == (1, 7, 3)
    datamodule.category = "grid"
    assert inner.category == "grid" == datamodule.category
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        _ = datamodule.contamination


def test_data_sets_are_read_from_frames_only():
    """Hiding a label in the frame hides it from the model only while no data set looks it up elsewhere."""
    import anomalib.data

    own = {
        name
        for name, entry in vars(anomalib.data).items()
        if isinstance(entry, type) and issubclass(entry, AnomalibDataset) and "__getitem__" in vars(entry)
    }
    # These two were read: both take label and mask from the frame. A new one has to be read first.
    assert own - {"AvenueDataset", "ShanghaiTechDataset", "UCSDpedDataset"} == {"AnomalibDataset", "MVTecLOCODataset"}
