# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Published experiments from end to end on miniatures in the formats of their data sets."""

from pathlib import Path

import pandas as pd
import pytest
from anomalib.cli import AnomalibCLI

from anomalib_comet import plugin
from anomalib_comet.cli import main
from anomalib_comet.sweep import cells_of, read_sweep
from anomalib_comet.sweep.measuring import check_model
from helpers.miniatures import kolektor_sdd2, mvtecad, viaduct, visa
from helpers.tiny import TINY, TINY_FUN_AD, TINY_SIMPLENET

CONFIGS = Path(__file__).parents[2] / "configs" / "sweeps"
SMALLER = {
    "DifferNet": {**TINY, "layers": None, "pooling": "mean"},
    "SimpleNet": {**TINY_SIMPLENET, "center_crop": [56, 56], "noise_std": None},
    "FUN-AD": {**TINY_FUN_AD, "patch_pool": 1},
}
# Changes that make a sweep small; cells, published values and injected images of a cell that are left.
SWEEPS = {
    # One category of fifteen: the published means over all of them are no values of it.
    "comet_mvtec_ad": (mvtecad, ["categories=[bottle]", "ratios=[0.1]"], 4, 0, 2),
    "comet_viaduct": (viaduct, ["ratios=[0]"], 4, 4, 0),
    "comet_ksdd2": (kolektor_sdd2, ["ratios=[0.118]"], 4, 4, 2),
    "fun_ad_mvtec_ad": (mvtecad, ["categories=[bottle]"], 2, 0, 2),
    "fun_ad_visa": (visa, ["categories=[capsules]"], 2, 0, 2),
}


def test_every_published_experiment_is_run_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(("comet_", "fun_ad_"))} == set(SWEEPS)


@pytest.mark.parametrize("name", SWEEPS)
def test_published_sweep_runs_on_a_miniature(name, tmp_path, capsys):
    write, changes, cells, values, injected = SWEEPS[name]
    write(tmp_path / "data")
    path, root = CONFIGS / f"{name}.yaml", f"data.init_args.root={tmp_path / 'data'}"
    # As it is written, but for the place of the data: names and types of all arguments.
    whole = read_sweep(path, [root])
    for label, cell in {cell.model: cell for cell in cells_of(whole)}.items():
        check_model(cell.settings["model"], label)

    for label in whole.models:
        smaller = SMALLER[label.removeprefix("CoMet")].items()
        changes = [*changes, *(f"models.{label}.init_args.{key}={_yaml(value)}" for key, value in smaller)]
        changes += [f"models.{label}.max_epochs=1", f"models.{label}.train_batch_size=8"]
    changes += [root, "data.init_args.num_workers=0", "seeds=[0]", "trainer.accelerator=cpu"]
    options = [part for change in changes for part in ("--set", change)]
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "--config", str(path), "--output", str(tmp_path / "out"), "--in_process", *options])
    said = capsys.readouterr()
    assert ended.value.code == 0, said
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(frame) == cells
    assert set(frame["train_injected"]) == {injected}
    measured = frame[["image_auroc", "f1", "precision", "recall", "f1_max", "pixel_auroc", "threshold"]]
    assert measured.notna().all(axis=None)
    assert said.out.count(": published 0.") == values
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("CoMet ICCV 2025") == values
    if values:
        beside = pd.read_csv(tmp_path / "out" / "published.csv")
        measured = frame.set_index("model").loc[beside["model"], "image_auroc"]
        assert beside["measured"].tolist() == pytest.approx(measured.tolist())
    if name.startswith("fun_ad"):
        assert frame["overlap"].tolist() == [False, True]
        assert (frame["test_anomalous"].diff().iloc[1:] == 2).all()  # a tenth of 20 normal images stays in the test set


def _yaml(value):
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)


def test_kolektor_sdd2_trains_from_the_command_line_and_its_audit_is_rated(tmp_path):
    plugin.register()
    kolektor_sdd2(tmp_path / "data")
    smaller = {name: _yaml(value) for name, value in TINY_SIMPLENET.items()} | {"warmup_epochs": "0"}
    data = {"root": tmp_path / "data", "num_workers": 0, "train_batch_size": 8}
    arguments = [f"--model.{name}={value}" for name, value in smaller.items()]
    arguments += [f"--data.{name}={value}" for name, value in data.items()]
    arguments += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", f"--default_root_dir={tmp_path / 'runs'}"]
    AnomalibCLI(["train", "--model=CoMetSimpleNet", "--data=KolektorSDD2", *arguments])
    (run,) = (tmp_path / "runs").glob("*/KolektorSDD2/**/v0")
    audit = pd.read_csv(run / "audit.csv")
    assert len(audit) == 32
    assert audit["injected"].sum() == 12
    assert set(audit["defect_type"].dropna()) == {"defect"}
    assert "Recall among the first 12" in (run / "audit.html").read_text()
