# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""KolektorSDD2 and VIADUCT, read from miniatures in their formats."""

import re
from pathlib import Path

import pytest
import torch

from anomalib_comet.data import VIADUCT, ContaminatedDataModule, FewShotDataModule, KolektorSDD2
from helpers.miniatures import kolektor_sdd2, viaduct

NATURAL, NORMAL = 12, 20
"""Defective and normal training images of the miniature of KolektorSDD2."""


@pytest.fixture(scope="module")
def sdd2(tmp_path_factory):
    root = tmp_path_factory.mktemp("sdd2")
    kolektor_sdd2(root)

    def make(**arguments):
        return KolektorSDD2(root, num_workers=0, train_batch_size=5, eval_batch_size=5, **arguments)

    return make


def ready(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def names(dataset):
    return {Path(path).name for path in dataset.samples["image_path"]}


def test_the_training_split_is_served_as_it_comes_and_labels_are_hidden(sdd2):
    datamodule = ready(sdd2())
    assert len(datamodule.train_data) == NORMAL + NATURAL
    assert all(re.fullmatch(r"100\d\d\.png", name) for name in names(datamodule.train_data))  # no stray copy, no mask
    for batch in datamodule.train_dataloader():
        assert not batch.gt_label.any()
        assert not batch.gt_mask.any()
        assert batch.mask_path is None or set(batch.mask_path) <= {""}
    truth = datamodule.contamination
    hidden = truth[truth["injected"]]
    assert len(hidden) == NATURAL
    assert hidden["natural"].all()
    assert set(hidden["defect_type"]) == {"defect"}
    assert all(mask.endswith("_GT.png") for mask in hidden["mask_path"])
    test = [(batch.gt_label.bool(), batch.gt_mask.flatten(1).any(1)) for batch in datamodule.test_dataloader()]
    labels, masked = (torch.cat(part) for part in zip(*test, strict=True))
    assert (len(labels), int(labels.sum())) == (18, 12)
    assert torch.equal(labels, masked)


def test_held_out_training_images_keep_their_truth(sdd2):
    datamodule = ready(sdd2(val_split_mode="from_train", val_split_ratio=0.25, seed=0))
    truth = datamodule.contamination
    assert truth["split"].value_counts().to_dict() == {"train": 24, "val": 8}
    assert truth["injected"].sum() == NATURAL


def test_a_contamination_of_the_clean_split_draws_from_its_own_anomalies(sdd2):
    natural, clean = ready(sdd2()), ready(sdd2(clean=True))
    assert len(clean.train_data) == NORMAL
    assert not clean.contamination["injected"].any()
    assert clean.name != natural.name
    parts = {ratio: ready(ContaminatedDataModule(sdd2(clean=True), ratio=ratio, max_ratio=0.6)) for ratio in (0.1, 0.6)}
    assert len(parts[0.1].train_data) == NORMAL + 2
    # With as many as there are, the training set is the one that comes with the data set, image by image.
    assert names(parts[0.6].train_data) == names(natural.train_data)
    for part in parts.values():
        assert names(part.test_data) == names(natural.test_data)
        assert not part.contamination["natural"].any()
    with pytest.raises(ValueError, match=r"12 anomalies may be drawn, 14 are needed"):
        ready(ContaminatedDataModule(sdd2(clean=True), ratio=0.7))
    labelled = ready(FewShotDataModule(sdd2(clean=True), shots=3))
    assert labelled.train_data.samples["label_index"].sum() == 3
    assert names(labelled.train_data) <= names(natural.train_data)


def test_a_contamination_of_the_natural_split_comes_on_top_of_it(sdd2):
    as_it_is = ready(ContaminatedDataModule(sdd2(), ratio=0))
    assert names(as_it_is.train_data) == names(ready(sdd2()).train_data)
    assert as_it_is.contamination["injected"].sum() == as_it_is.contamination["natural"].sum() == NATURAL
    more = ready(ContaminatedDataModule(sdd2(), ratio=0.2))
    truth = more.contamination
    assert (truth["injected"].sum(), truth["natural"].sum()) == (NATURAL + 6, NATURAL)
    assert more._description()["training_images_injected"] == 6
    assert len(more.test_data) == 18 - 6
    assert not any(batch.gt_label.any() for batch in more.train_dataloader())


def test_viaduct_finds_masks_by_both_rules_and_its_own_validation_images(tmp_path):
    viaduct(tmp_path)
    datamodule = ready(VIADUCT(tmp_path, val_split_mode="from_dir", num_workers=0, eval_batch_size=5))
    assert [len(part) for part in (datamodule.train_data, datamodule.val_data, datamodule.test_data)] == [20, 4, 18]
    assert not datamodule.val_data.samples["label_index"].any()
    for batch in datamodule.test_dataloader():
        assert torch.equal(batch.gt_mask.flatten(1).any(1), batch.gt_label.bool())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "train" / "10007_GT.png").unlink(), r"10007_GT\.png is missing"),
        (lambda folder: (folder / "test" / "20001_GT.png").write_bytes(b"x"), r"20001_GT\.png is no mask"),
        (lambda folder: [p.unlink() for p in (folder / "train").glob("1*")], r"has no images named like 10000\.png"),
        (lambda folder: folder.rename(folder.parent / "y"), r"not in .*/x, .*vicos\.si.*CC BY-NC-SA 4\.0"),
    ],
)
def test_what_is_wrong_with_a_copy_of_kolektor_sdd2_is_said(tmp_path, change, said):
    kolektor_sdd2(tmp_path / "x")
    change(tmp_path / "x")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        ready(KolektorSDD2(tmp_path / "x"))


def test_what_is_wrong_with_a_copy_of_viaduct_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"VIADUCT is not in .*fordatis\.fraunhofer\.de"):
        VIADUCT(tmp_path).prepare_data()
    viaduct(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no category 'x' .* it has \['05_cable_end_sleeve'\]"):
        ready(VIADUCT(tmp_path, category="x"))
    (tmp_path / "05_cable_end_sleeve" / "val").rename(tmp_path / "val")
    with pytest.raises(ValueError, match=r"no validation images of its own: use another val_split_mode"):
        ready(VIADUCT(tmp_path, val_split_mode="from_dir"))
    (tmp_path / "05_cable_end_sleeve" / "ground_truth" / "cut" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"cut/001\.png has no mask"):
        ready(VIADUCT(tmp_path))
