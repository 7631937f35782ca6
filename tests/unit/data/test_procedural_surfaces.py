# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the procedural surfaces: pixels, masks, files, and anomalib's use of them."""

import copy
import hashlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import LabelName
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from PIL import Image
from torchvision.transforms.v2 import Resize

from anomalib_comet.data.procedural_surfaces import (
    DEFECT_TYPES,
    MATERIALS,
    ProceduralSurfaces,
    ProceduralSurfacesDataset,
    SurfaceSpec,
    render,
)
from anomalib_comet.data.procedural_surfaces.files import image_path, mask_path, render_missing
from anomalib_comet.data.procedural_surfaces.random_stream import RandomStream

ALL_DEFECTS = [(category, defect) for category, defects in DEFECT_TYPES.items() for defect in defects]

KNOWN_UNIFORM = 0.721154236482862
KNOWN_SUMS = [1558731, 1394160, 1150771, 1353009, 1985486]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of rendered images for all tests that only read."""
    return tmp_path_factory.mktemp("surfaces") / "ProceduralSurfaces"


def small(root: Path, **arguments) -> ProceduralSurfaces:
    """A datamodule of few small images."""
    defaults = {
        "category": "wood",
        "n_train": 8,
        "n_test_normal": 4,
        "n_test_anomalous": 7,
        "n_val_normal": 2,
        "n_val_anomalous": 2,
        "image_size": 64,
        "num_workers": 0,
        "train_batch_size": 4,
    }
    return ProceduralSurfaces(root=root, **(defaults | arguments))


def fingerprint(spec: SurfaceSpec) -> str:
    image, mask = render(spec)
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()


class TestRandomStream:
    def test_numbers_are_those_of_every_platform(self) -> None:
        # PCG64's output for a given seed is fixed for ever; these values were written down once.
        stream = RandomStream("key", 1)
        assert stream.uniform() == pytest.approx(KNOWN_UNIFORM, abs=1e-15)
        assert RandomStream("key", 1).integer(0, 10**9) == int(KNOWN_UNIFORM * (10**9 + 1))

    def test_keys_do_not_run_into_each_other(self) -> None:
        assert RandomStream("a", "bc").uniform() != RandomStream("ab", "c").uniform()
        assert RandomStream(1, 11).uniform() != RandomStream(11, 1).uniform()

    def test_gaussians_are_standard(self) -> None:
        sample = RandomStream("gauss").gaussians((3, 101, 97))
        assert sample.shape == (3, 101, 97)
        # 29391 values: the standard error is 0.006 for the mean and 0.004 for the standard deviation.
        assert abs(sample.mean()) < 0.025
        assert abs(sample.std() - 1.0) < 0.02
        assert np.abs(sample).max() <= 3.5


class TestRendering:
    @pytest.mark.parametrize(("category", "defect"), ALL_DEFECTS)
    def test_mask_is_exactly_what_the_defect_changed(self, category: str, defect: str) -> None:
        spec = SurfaceSpec(category, "test", defect, index=3, image_size=(128, 160))
        image, mask = render(spec)
        good, empty = render(spec, with_defect=False)
        assert image.shape == (128, 160, 3)
        assert not empty.any()
        changed = np.abs(image.astype(int) - good.astype(int)).max(axis=2) > 0
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.9
        assert 10 < mask.sum() < 0.1 * mask.size

    @pytest.mark.parametrize(("category", "defect"), ALL_DEFECTS)
    def test_change_grows_with_severity_in_the_same_mask(self, category: str, defect: str) -> None:
        spec = SurfaceSpec(category, "test", defect, index=5, image_size=(96, 96))
        good, _ = render(spec, with_defect=False)
        masks, changes = [], []
        for severity in (0.1, 0.3, 0.6, 1.0):
            image, mask = render(replace(spec, severity=severity))
            masks.append(mask)
            changes.append(np.abs(image.astype(float) - good)[mask].mean())
        assert all((mask == masks[0]).all() for mask in masks)
        assert changes == sorted(changes)
        assert changes[-1] > 5.0 * changes[0] > 0.0
        # Barely visible: the good surface itself varies more than twice as much.
        assert changes[0] < 0.5 * good.std()

    def test_size_changes_the_resolution_not_the_scene(self) -> None:
        spec = SurfaceSpec("print", "test", "hole", image_size=(256, 256), severity=1.0)
        large, large_mask = render(spec)
        medium, medium_mask = render(replace(spec, image_size=(128, 128)))
        blocks = large.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), medium.ravel())[0, 1] > 0.9
        assert medium_mask.mean() == pytest.approx(large_mask.mean(), rel=0.35)

    @pytest.mark.parametrize("category", MATERIALS)
    def test_normal_images_vary_and_are_well_exposed(self, category: str) -> None:
        images = [render(SurfaceSpec(category, index=index, image_size=(64, 64)))[0] for index in range(12)]
        assert len({image.tobytes() for image in images}) == 12
        levels = [image.mean() for image in images]
        assert 60 < min(levels) < max(levels) < 245
        assert np.std(levels) > 4
        assert np.mean([((image == 0) | (image == 255)).mean() for image in images]) < 0.12

    def test_every_part_of_the_key_changes_the_image(self) -> None:
        base = SurfaceSpec("woven", "test", "stain", 1, image_size=(64, 64))
        others = [
            replace(base, category="wood"),
            replace(base, split="val"),
            replace(base, defect="hole"),
            replace(base, index=2),
            replace(base, severity=0.5),
            replace(base, seed=1),
        ]
        assert len({fingerprint(spec) for spec in [base, *others]}) == 7

    def test_pixels_do_not_depend_on_order_or_threads(self) -> None:
        specs = [SurfaceSpec(category, "test", defect, 2, 0.5, (48, 64)) for category, defect in ALL_DEFECTS]
        with ThreadPoolExecutor(4) as pool:
            threaded = list(pool.map(fingerprint, reversed(specs)))[::-1]
        assert threaded == [fingerprint(spec) for spec in specs]

    def test_pixels_of_this_rendering_version(self) -> None:
        # A change here means that files of an earlier version are no longer right: increase RENDERING_VERSION.
        coarse = [
            int(render(SurfaceSpec(category, "test", DEFECT_TYPES[category][0], image_size=(64, 64)))[0].sum())
            for category in MATERIALS
        ]
        assert coarse == KNOWN_SUMS

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"category": "steel"}, "brushed"),
            ({"category": "woven", "split": "training"}, "train, val, test"),
            ({"category": "woven", "defect": "crack"}, "fibre, hole, scratch, stain"),
            ({"category": "wood", "severity": 0.0}, "greater than 0"),
            ({"category": "wood", "severity": 1.5}, "at most 1"),
            ({"category": "wood", "image_size": (16, 256)}, "at least 32"),
        ],
    )
    def test_bad_descriptions_are_refused(self, arguments: dict, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            SurfaceSpec(**arguments)


class TestDataset:
    def test_items(self, root: Path) -> None:
        dataset = ProceduralSurfacesDataset(
            root, "print", "test", n_normal=2, n_anomalous=5, severity=0.8, image_size=[64, 96], seed=3
        )
        assert len(dataset) == 7
        for index in range(7):
            row, item = dataset.samples.iloc[index], dataset[index]
            assert str(item.image_path) == row.image_path
            assert item.image.shape == (3, 64, 96)
            spec = next(s for s in dataset.specs if (s.defect, s.index) == (row.label, int(Path(row.image_path).stem)))
            image, mask = render(spec)
            torch.testing.assert_close(item.image, torch.from_numpy(image).permute(2, 0, 1) / 255.0)
            assert (item.gt_mask.numpy() == mask).all()
            assert int(item.gt_label) == int(mask.any()) == row.label_index

    def test_more_images_keep_those_that_exist(self, root: Path) -> None:
        few = ProceduralSurfacesDataset(root, "wood", "test", 2, 4, image_size=48)
        many = ProceduralSurfacesDataset(root, "wood", "test", 3, 11, image_size=48)
        assert set(few.samples.image_path) < set(many.samples.image_path)
        assert many.samples.label.value_counts().to_dict() == {
            "good": 3, "crack": 3, "fibre": 2, "hole": 2, "scratch": 2, "stain": 2,
        }  # fmt: skip

    def test_another_process_sees_the_same_pixels(self, root: Path) -> None:
        dataset = ProceduralSurfacesDataset(root, "woven", "test", 1, 4, image_size=64)
        specs = [SurfaceSpec(category, "test", defect, 2, 0.5, (48, 64)) for category, defect in ALL_DEFECTS]
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rendered = list(pool.map(render, specs))
            item = pool.submit(dataset.__getitem__, 3).result()
        for spec, (image, mask) in zip(specs, rendered, strict=True):
            assert hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() == fingerprint(spec)
        assert torch.equal(item.image, dataset[3].image)
        assert torch.equal(item.gt_mask, dataset[3].gt_mask)

    def test_writers_that_race_leave_complete_files(self, tmp_path: Path) -> None:
        specs = [SurfaceSpec("wood", "test", "stain", index, image_size=(48, 48)) for index in range(6)]
        with ThreadPoolExecutor(4) as pool:
            rendered = list(pool.map(lambda _: render_missing(tmp_path, specs), range(4)))
        assert max(rendered) == 6
        assert render_missing(tmp_path, specs) == 0
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 12
        for spec in specs:
            image, mask = render(spec)
            with Image.open(image_path(tmp_path, spec)) as picture:
                assert (np.asarray(picture) == image).all()
            with Image.open(mask_path(tmp_path, spec)) as picture:
                assert (np.asarray(picture) == 255 * mask).all()

    def test_survives_copying_and_new_sample_frames(self, root: Path) -> None:
        datamodule = small(root)
        datamodule.setup()
        mixed = copy.deepcopy(datamodule.train_data)
        defects = datamodule.test_data.samples.query("label_index == 1").assign(label_index=0, mask_path="")
        frame = defects.iloc[:2].copy()
        frame.attrs = dict(datamodule.train_data.samples.attrs)
        mixed.samples = frame
        item = pickle.loads(pickle.dumps(mixed))[1]  # noqa: S301
        assert item.gt_label == LabelName.NORMAL
        assert not item.gt_mask.any()
        with Image.open(frame.image_path.iloc[1]) as picture:
            assert (np.asarray(picture) == np.rint(item.image.permute(1, 2, 0).numpy() * 255)).all()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"n_normal": 0}, "at least one image"),
            ({"n_normal": -1, "n_anomalous": 3}, "negative"),
            ({"defect_types": ["missing_print"]}, "fibre, hole"),
            ({"defect_types": []}, "at least one type"),
            ({"defect_types": ["hole", "hole"]}, "none twice"),
            ({"image_size": (64, 64, 3)}, "height, width"),
        ],
    )
    def test_bad_arguments_are_refused_before_rendering(self, tmp_path: Path, arguments: dict, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            ProceduralSurfacesDataset(tmp_path, "woven", **arguments)
        assert not list(tmp_path.iterdir())


class TestDatamodule:
    def test_splits(self, root: Path) -> None:
        datamodule = small(root)
        datamodule.prepare_data()
        datamodule.setup()
        assert (datamodule.name, datamodule.category) == ("ProceduralSurfaces", "wood")
        counts = {
            name: datamodule.__dict__[name].samples.label_index.value_counts().to_dict()
            for name in ("train_data", "test_data", "val_data")
        }
        assert counts == {"train_data": {0: 8}, "test_data": {0: 4, 1: 7}, "val_data": {0: 2, 1: 2}}
        paths = [path for name in counts for path in datamodule.__dict__[name].samples.image_path]
        pixels = {Path(path).read_bytes() for path in paths}
        assert len(paths) == len(set(paths)) == len(pixels)
        batch = next(iter(datamodule.test_dataloader()))
        assert batch.image.shape == (11, 3, 64, 64)
        assert (batch.gt_mask.flatten(1).any(1) == batch.gt_label.bool()).all()

    @pytest.mark.parametrize("mode", ["none", "same_as_test", "from_train", "from_test", "synthetic", "from_dir"])
    def test_every_validation_mode(self, root: Path, mode: str) -> None:
        datamodule = small(root, val_split_mode=mode)
        datamodule.setup()
        if mode == "none":
            assert not hasattr(datamodule, "val_data")
            return
        sizes = tuple(len(getattr(datamodule, f"{name}_data")) for name in ("train", "val", "test"))
        assert (
            sizes
            == {
                "same_as_test": (8, 11, 11),
                "from_train": (4, 4, 11),
                "from_test": (8, 5, 6),
                "synthetic": (4, 4, 11),
                "from_dir": (8, 4, 11),
            }[mode]
        )
        assert next(iter(datamodule.val_dataloader())).image.shape[1:] == (3, 64, 64)
        again = small(root, val_split_mode=mode)
        again.setup()
        if mode != "synthetic":
            assert list(again.val_data.samples.image_path) == list(datamodule.val_data.samples.image_path)

    def test_synthetic_test_set(self, root: Path) -> None:
        datamodule = small(root, test_split_mode="synthetic")
        datamodule.setup()
        assert isinstance(datamodule.test_data, SyntheticAnomalyDataset)
        assert sorted(datamodule.test_data.samples.label_index) == [0, 0, 1, 1]

    def test_export_is_an_mvtec_ad_folder(self, root: Path, tmp_path: Path) -> None:
        datamodule = small(root)
        folder = datamodule.export(tmp_path)
        assert folder == tmp_path / "wood"
        read = MVTecAD(root=tmp_path, category="wood", augmentations=Resize((64, 64)))
        read.setup()
        datamodule.setup()
        for name in ("train_data", "test_data"):
            ours, theirs = getattr(datamodule, name), getattr(read, name)
            assert list(theirs.samples.label) == list(ours.samples.label)
            for index in range(len(ours)):
                assert torch.equal(ours[index].image, theirs[index].image)
                assert torch.equal(ours[index].gt_mask, theirs[index].gt_mask)
        with pytest.raises(FileExistsError, match="another folder"):
            datamodule.export(tmp_path)

    def test_relative_root_gives_the_paths_that_batches_carry(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        datamodule = small(Path("here"), n_train=2, n_test_normal=1, n_test_anomalous=1, val_split_mode="none")
        datamodule.setup()
        batch = next(iter(datamodule.train_dataloader()))
        assert sorted(batch.image_path) == list(datamodule.train_data.samples.image_path)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"category": "cable"}, "woven, brushed"),
            ({"n_train": 0}, "n_train must be at least 1"),
            ({"n_test_anomalous": 0}, "n_test_anomalous"),
            ({"severity": 2.0}, "severity"),
            ({"defect_types": ["dent"]}, "dent"),
        ],
    )
    def test_bad_arguments_are_refused(self, tmp_path: Path, arguments: dict, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            small(tmp_path, **arguments)
