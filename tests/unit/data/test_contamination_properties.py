# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""ContaminatedDataModule over random folder trees: what holds for every one of them."""

import math
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from anomalib.data import Folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anomalib_comet.data import ContaminatedDataModule, NotEnoughAnomaliesError

NAMES = ["crack", "cut", "Kratzer ü", "异常", "a b", "UPPER"]
FILES = ["1", "image 2", "ü", "良品", "x.y", "3-a", "Z", "00", "ab", "q"]
TRUTH = {"injected", "labelled", "true_defect_type", "true_mask_path", "source_path"}


@dataclass(frozen=True)
class Tree:
    """A data set on disk: images by folder; nothing but their names is read."""

    normals: tuple[str, ...]
    tests: tuple[str, ...]
    types: dict[str, tuple[str, ...]]

    @property
    def anomalies(self):
        return sum(map(len, self.types.values()))

    def write(self, root, *, backwards=False):
        paths = [f"train/{name}.png" for name in self.normals] + [f"good/{name}.png" for name in self.tests]
        paths += [f"bad/{kind}/{name}.png" for kind, names in self.types.items() for name in names]
        for path in reversed(paths) if backwards else paths:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return len(paths)


@st.composite
def trees(draw):
    def some(least, most):
        names = st.lists(st.sampled_from(FILES), min_size=least, max_size=most, unique=True)
        return tuple(draw(names))

    deep = draw(st.sampled_from(["", "lot 1/", "a/b/"]))  # normal images of some lots lie in subfolders
    normals = tuple((deep if k % 2 else "") + name for k, name in enumerate(some(2, 9)))
    kinds = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    return Tree(normals, some(1, 4), {kind: some(1, 5) for kind in kinds})


@st.composite
def protocols(draw):
    ratio = draw(st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0]))
    return {
        "ratio": ratio,
        "max_ratio": draw(st.sampled_from([None, *[r for r in (0.5, 1.0) if r >= ratio]])),
        "overlap": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
        "labelled": draw(st.integers(0, 3)),
        "max_draw": draw(st.sampled_from([0.5, 1.0])),
        "val_split_mode": draw(st.sampled_from(["inner", "from_train"])),
        "val_split_ratio": 0.5,
    }


def contaminated(root, val_split_mode, **protocol):
    inner = Folder(
        name="tree",
        root=root,
        normal_dir="train",
        normal_test_dir="good",
        abnormal_dir="bad",
        val_split_mode="from_test",  # anomalib's default: by chance, and without a seed
        num_workers=0,
    )
    datamodule = ContaminatedDataModule(inner, val_split_mode=val_split_mode, **protocol)
    datamodule.setup()
    return datamodule


def keys(dataset, root):
    return [Path(path).relative_to(root.resolve()).as_posix() for path in dataset.samples["image_path"]]


def state(datamodule, root):
    return [keys(dataset, root) for dataset in (datamodule.train_data, datamodule.val_data, datamodule.test_data)]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees(), protocol=protocols())
def test_properties_of_every_tree(root, tree, protocol):
    shutil.rmtree(root, ignore_errors=True)
    n_images, n_normal = tree.write(root), len(tree.normals)
    hidden = math.floor(Fraction(repr(protocol["ratio"])) * n_normal)
    pool = math.floor(Fraction(repr(protocol["max_ratio"] or protocol["ratio"])) * n_normal)
    available = math.floor(Fraction(repr(protocol["max_draw"])) * tree.anomalies)
    if protocol["ratio"] and not hidden:
        with pytest.raises(ValueError, match="is less than one anomaly"):
            contaminated(root, **protocol)
        return
    if pool + protocol["labelled"] > available:
        with pytest.raises(NotEnoughAnomaliesError, match=f"Not enough anomalies: {available} "):
            contaminated(root, **protocol)
        return
    datamodule = contaminated(root, **protocol)

    train, val, test = state(datamodule, root)
    truth = datamodule.contamination
    # Counts are exact, and nothing occurs twice.
    assert truth["injected"].sum() == hidden
    assert truth["labelled"].sum() == protocol["labelled"]
    assert len(truth) == n_normal + hidden + protocol["labelled"]
    held_out = protocol["val_split_mode"] == "from_train"
    seen = [*train, *val] if held_out else train
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == len(truth)

    # Without overlap no image is both in training and in evaluation; with it, only the hidden ones are.
    evaluated = set(test) if held_out else {*val, *test}
    drawn = {a.key for a in (*datamodule.draw.pool, *datamodule.draw.labelled)}
    injected = {a.key for a in datamodule.draw.injected}
    shared = set(seen) & evaluated
    assert shared == (injected if protocol["overlap"] else set())
    # Every image is somewhere: trained on, evaluated, or set aside for a larger ratio.
    assert len({*seen, *evaluated, *drawn}) == n_images
    # Under overlap a hidden image that is held out stays in the test set as well.
    assert set(val) & set(test) <= (injected if held_out and protocol["overlap"] else set())

    # Labels are hidden: in what a model sees, an injected image is a normal one.
    rows = datamodule.train_data.samples
    for row in rows[rows["injected"]].itertuples():
        assert row.label_index == 0
        assert row.mask_path == ""
    visible = [c for c in rows.columns if c not in TRUTH and not c.endswith("_path")]
    unlabelled = rows[~rows["labelled"].astype(bool)]
    assert all(unlabelled[column].map(str).nunique() == 1 for column in visible)

    # The same seed draws the same, whatever the order in which the files were made.
    shutil.rmtree(root)
    tree.write(root, backwards=True)
    again = contaminated(root, **protocol)
    assert again.draw == datamodule.draw
    assert state(again, root) == [train, val, test]
