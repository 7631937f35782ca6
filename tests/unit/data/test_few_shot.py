# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""FewShotDataModule: which images are labelled, which are not, and where a held-out type appears."""

import json
from collections import Counter

import pandas as pd
import pytest
from anomalib.data import Folder
from hypothesis import given
from hypothesis import strategies as st

from anomalib_comet.data import ContaminatedDataModule, FewShotDataModule, ProceduralSurfaces
from anomalib_comet.data.contamination import frames
from anomalib_comet.data.contamination.protocol import few_of_each, plan_draw
from helpers.miniatures import write_image, write_mask

data_sets = st.lists(st.integers(3, 9), min_size=1, max_size=5).map(
    lambda sizes: {f"t{kind}/{number}.png": f"t{kind}" for kind, size in enumerate(sizes) for number in range(size)}
)


@given(defect_types=data_sets, seed=st.integers(0, 2**30), shots=st.integers(1, 3))
def test_as_many_of_each_type_and_fewer_among_more(defect_types, seed, shots):
    few = few_of_each(defect_types, shots, seed)
    assert set(Counter(defect_types[key] for key in few).values()) == {shots}
    assert set(few_of_each(defect_types, shots - 1, seed)) <= set(few)
    draw = plan_draw(defect_types, 20, ratio=0.05, seed=seed, shots=shots) if len(few) < len(defect_types) else None
    if draw is not None:
        assert [anomaly.key for anomaly in draw.labelled] == few
        assert not {anomaly.key for anomaly in draw.pool} & set(few)


def test_too_many_shots_are_refused():
    with pytest.raises(ValueError, match=r"shots=3 is more than there are anomalies of type 'b' \(1\)"):
        few_of_each({"b/1": "b", "a/1": "a", "a/2": "a"}, 3, 0)


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    root = tmp_path_factory.mktemp("surfaces")

    def make():
        counts = {"n_train": 10, "n_test_normal": 4, "n_test_anomalous": 40, "n_val_normal": 2, "n_val_anomalous": 12}
        return ProceduralSurfaces(root, image_size=64, num_workers=0, **counts)

    return make


def types_of(frame, datamodule):
    anomalies = frame[frame["label_index"] == 1]
    return set(frames.defect_types_of(anomalies, [datamodule.test_data])) if len(anomalies) else set()


def test_held_out_types_are_in_the_test_set_only(surfaces):
    whole = ContaminatedDataModule(surfaces(), ratio=0.0)
    whole.prepare_data()
    whole.setup()
    names = sorted(types_of(whole.test_data.samples, whole))
    held_out = names[0]
    data = FewShotDataModule(surfaces(), shots=2, held_out=[held_out], ratio=0.3, seed=3)
    data.setup()
    truth = data.contamination
    assert held_out not in set(truth["defect_type"])
    labelled = truth[truth["labelled"]]
    assert Counter(labelled["defect_type"]) == dict.fromkeys(names[1:], 2)
    assert truth["injected"].sum() == 3
    rows = data.train_data.samples.set_index("image_path")
    assert (rows.loc[labelled["image_path"], "label_index"] == 1).all()
    assert (rows.loc[labelled["image_path"], "mask_path"] != "").all()
    assert (rows.loc[truth.loc[truth["injected"], "image_path"], "label_index"] == 0).all()
    assert held_out not in types_of(data.val_data.samples, data)
    assert held_out in types_of(data.test_data.samples, data)
    assert not set(data.test_data.samples["image_path"]) & set(truth["image_path"])
    # All of the held-out type are tested, also those that the wrapped data module would validate on.
    tested = data.test_data.samples["image_path"]
    everywhere = pd.concat([whole.test_data.samples, whole.val_data.samples])["image_path"]
    assert tested.is_unique
    assert {path for path in everywhere if held_out in path} == {path for path in tested if held_out in path}
    assert any(held_out in path for path in whole.val_data.samples["image_path"])
    held_back = FewShotDataModule(surfaces(), shots=2, held_out=[held_out], val_split_mode="from_train")
    held_back.setup()
    assert {path for path in everywhere if held_out in path} == {
        path for path in held_back.test_data.samples["image_path"] if held_out in path
    }
    assert data.name.endswith(f"_r0.3_shots2_without_{held_out}_seed3")


def test_manifest_repeats_the_draw(surfaces, tmp_path):
    first = FewShotDataModule(surfaces(), shots=1, held_out=["scratch"], ratio=0.2, seed=5)
    first.prepare_data()
    first.setup()
    path = first.write_manifest(tmp_path / "contamination.json")
    again = FewShotDataModule(surfaces(), manifest=path)
    again.setup()
    assert again.draw == first.draw
    assert again.settings == first.settings
    with pytest.raises(ValueError, match=r"holds out \['scratch'\], not \['hole'\]"):
        FewShotDataModule(surfaces(), held_out=["hole"], manifest=path)
    content = json.loads(path.read_text())
    assert (content["shots"], content["held_out"]) == (1, ["scratch"])
    del content["shots"], content["held_out"]  # as an earlier version wrote it
    path.write_text(json.dumps(content))
    assert FewShotDataModule(surfaces(), manifest=path).settings.shots == 0


def test_mistakes_are_said_in_one_sentence(surfaces):
    with pytest.raises(ValueError, match=r"labelled \(in total\) or shots \(of each defect type\), not both"):
        ContaminatedDataModule(surfaces(), labelled=3, shots=1)
    with pytest.raises(TypeError, match=r"held_out must be a list of defect types, e.g. \[scratch\]"):
        FewShotDataModule(surfaces(), held_out="scratch")
    with pytest.raises(TypeError, match=r"list of defect types as text, e.g. \['1'\], got 1 in it"):
        FewShotDataModule(surfaces(), held_out=["scratch", 1])
    data = FewShotDataModule(surfaces(), held_out=["scrath"])
    data.prepare_data()
    with pytest.raises(ValueError, match=r"held_out names \['scrath'\], but .* has the defect types \[.*'scratch'"):
        data.setup()


def test_messages_name_what_the_module_has(surfaces, caplog):
    types = {f"{kind}/{number}": kind for kind in "abcd" for number in range(13)}
    known = r"8 with labels, 2 shots of 4 types\); shots can be at most 1, or set max_draw to at least 0\.1539"
    with pytest.raises(ValueError, match=known):
        plan_draw(types, 10, ratio=0.0, shots=2, max_draw=0.1)
    assert len(plan_draw(types, 10, ratio=0.0, shots=2, max_draw=0.1539).labelled) == 8
    with pytest.raises(ValueError, match=r"3 shots of 4 types\); set max_draw to at least 0\.2308"):
        plan_draw(types, 10, ratio=0.0, shots=3, max_draw=0.05)
    data = FewShotDataModule(surfaces(), shots=13)
    data.prepare_data()
    data.setup()
    assert "none is left to test on; lower shots." in caplog.text


def test_types_with_and_without_masks_are_read_alike(tmp_path, caplog):
    for k in range(4):
        write_image(tmp_path / "train" / "good" / f"{k}.png")
        write_image(tmp_path / "test" / "good" / f"{k}.png")
        for kind in ("with", "without"):
            write_image(tmp_path / "test" / kind / f"{k}.png", defect=True)
        write_mask(tmp_path / "ground_truth" / "with" / f"{k}_mask.png")
        write_mask(tmp_path / "ground_truth" / "without" / f"{k}_mask.png")

    class PartlyMasked(Folder):
        def _setup(self, stage=None):
            super()._setup(stage)
            samples = self.test_data.samples
            samples.loc[samples["image_path"].str.contains("/without/"), "mask_path"] = ""

    inner = PartlyMasked(
        name="mixed",
        root=tmp_path,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=["test/with", "test/without"],
        mask_dir=["ground_truth/with", "ground_truth/without"],
        val_split_mode="none",
        num_workers=0,
    )
    data = FewShotDataModule(inner, shots=2)
    data.setup()
    assert "2 of 4 labelled anomalies have no mask" in caplog.text
    batch = next(iter(data.train_dataloader()))
    assert int(batch.gt_label.sum()) == 4
    assert batch.gt_mask is None
