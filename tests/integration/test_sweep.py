# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-comet sweep`` on real images with models of anomalib and ours: numbers, interruption, report."""

import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
import yaml
from anomalib import LearningType
from anomalib.metrics import AUROC, Evaluator
from anomalib.models import Padim

from anomalib_comet.cli import main
from anomalib_comet.sweep import SweepError, cells_of, sweep_from
from anomalib_comet.sweep.measuring import build_model, check_model, measure_cell, predictions_of_test_set
from helpers.browser import chromium
from helpers.tiny import TINY, engine, identical, surfaces, trained

SURFACES = {
    "n_train": 16,
    "n_test_normal": 6,
    "n_test_anomalous": 12,
    "n_val_normal": 2,
    "n_val_anomalous": 4,
    "severity": 1.0,
    "image_size": 72,
    "train_batch_size": 8,
    "eval_batch_size": 8,
    "num_workers": 0,
}
CONFIGS = Path(__file__).parents[2] / "configs" / "sweeps"
FLOW = {name: list(v) if isinstance(v, tuple) else v for name, v in TINY.items()}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A sweep of a stock model and one of ours."""
    root = str(tmp_path_factory.mktemp("surfaces"))
    return {
        "models": {
            "PaDiM": {
                "class_path": "Padim",
                "init_args": {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"], "n_features": 20},
                "max_epochs": 1,
                "image_size": [64, 64],
            },
            "CoMet <b>": {"class_path": "CoMetDifferNet", "init_args": FLOW},
        },
        "data": {"class_path": "ProceduralSurfaces", "init_args": {"root": root, **SURFACES}},
        "categories": ["woven"],
        "ratios": [0, 0.25],
        "seeds": [0],
        "max_epochs": 2,
        "trainer": {"accelerator": "cpu"},
        "published": [
            {"model": "PaDiM", "metric": "image_auroc", "value": 0.5, "ratio": 0.25, "source": "a <paper>"},
        ],
    }


def sweep_command(*args):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *map(str, args)])
    return ended.value.code


@pytest.fixture(scope="module")
def output(content, tmp_path_factory):
    """The folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert sweep_command("--config", folder / "sweep.yaml", "--output", folder / "out", "--in_process") == 0
    return folder / "out"


def test_table_has_a_row_a_cell_with_true_counts(output):
    frame = pd.read_csv(output / "results.csv")
    assert frame["train_images"].tolist() == [16, 20, 16, 20]
    assert frame["train_injected"].tolist() == [0, 4, 0, 4]
    assert frame["epochs"].tolist() == [1, 1, 2, 2]
    assert len(set(frame["test_set"])) == 1
    assert frame["seed"].tolist() == [0] * 4
    metrics = frame[["image_auroc", "image_ap", "f1", "precision", "recall", "pixel_auroc", "aupro", "f1_max"]]
    assert metrics.notna().all(axis=None)
    assert metrics.ge(0).all(axis=None)
    assert metrics.le(1).all(axis=None)
    assert (frame["f1"] <= frame["f1_max"]).all()
    assert set(frame["threshold_images"]) == {"training"}
    assert frame["audit_ap"].notna().tolist() == [False, False, False, True]
    assert (frame["peak_memory_mib"] > 100).all()
    pd.testing.assert_frame_equal(frame, pd.read_parquet(output / "results.parquet"), check_dtype=False)


def test_same_cell_gives_the_same_numbers(content, output):
    frame = pd.read_csv(output / "results.csv")
    cell = cells_of(sweep_from(content))[3]
    again = measure_cell(cell.settings)
    assert again["image_auroc"] == pytest.approx(frame["image_auroc"][3])
    assert again["pixel_auroc"] == pytest.approx(frame["pixel_auroc"][3])


def test_scores_are_those_of_anomalibs_own_test(tmp_path):
    metric = AUROC(fields=["pred_score", "gt_label"], prefix="image_")
    arguments = {
        "backbone": "resnet18",
        "pre_trained": False,
        "layers": ["layer1"],
        "n_features": 20,
        "visualizer": False,
    }
    torch.manual_seed(0)
    model = Padim(
        **arguments,
        pre_processor=Padim.configure_pre_processor(image_size=(64, 64)),
        post_processor=False,
        evaluator=Evaluator(test_metrics=[metric]),
    )
    data, trained_by = surfaces(tmp_path), engine(tmp_path, max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained_by.fit(model, datamodule=data)
        (theirs,) = trained_by.test(model, datamodule=data)
    ours = predictions_of_test_set(model, data, torch.device("cpu"))
    order, label = ours["score"].argsort(), ours["label"]
    ranks = torch.empty(len(label))
    ranks[torch.from_numpy(order)] = torch.arange(1.0, len(label) + 1)
    n = int(label.sum())
    auroc = (ranks[torch.from_numpy(label)].sum() - n * (n + 1) / 2) / (n * (len(label) - n))
    # anomalib's metric squeezes scores outside [0, 1] through a sigmoid, which may tie the largest ones.
    assert float(auroc) == pytest.approx(theirs["image_AUROC"], abs=0.02)


INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background may have it ignored
from anomalib_comet.cli import main
main()
"""


def test_interruption_in_mid_training_loses_no_finished_cell(content, tmp_path):
    long = {**content["models"]["CoMet <b>"], "max_epochs": 100_000}
    models = {"PaDiM": content["models"]["PaDiM"], "long": long}
    path, cells = tmp_path / "sweep.yaml", tmp_path / "out" / "cells"
    path.write_text(yaml.safe_dump({**content, "models": models, "ratios": [0.25], "published": []}, sort_keys=False))

    # A process of its own: a signal that comes late or is ignored there does not touch the tests.
    arguments = [sys.executable, "-W", "ignore", "-c", INTERRUPTIBLE, "sweep", "--config", str(path)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*arguments, "--output", str(tmp_path / "out"), "--in_process"], stdout=log, stderr=log, text=True
        )
        try:
            deadline = time.monotonic() + 240
            while not list(cells.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(2)  # into the second cell
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=120)
        finally:
            process.kill()
    assert code == 130, (tmp_path / "log").read_text()
    assert "the same command goes on" in (tmp_path / "log").read_text().replace("\n", " ")
    (finished,) = cells.iterdir()
    written = finished.stat().st_mtime_ns
    arguments = ["--set", "models.long.max_epochs=1", "--in_process"]
    assert sweep_command("--config", path, "--output", tmp_path / "out", *arguments) == 0
    assert finished.stat().st_mtime_ns == written
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 2


def test_report_is_one_page_that_loads_nothing(output, tmp_path):
    text = (output / "report.html").read_text()
    assert "<b>" not in text.replace("CoMet &lt;b&gt;", "")
    driver = chromium(tmp_path)
    try:
        driver.get((output / "report.html").resolve().as_uri())
        widths = driver.execute_script("return [...document.images].map(i => i.naturalWidth)")
        assert len(widths) == 9
        assert all(widths)
        body = driver.find_element("tag name", "body").text
        page_fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert driver.execute_script(page_fits)
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        requests = [
            entry["message"] for entry in driver.get_log("performance") if "requestWillBeSent" in entry["message"]
        ]
        assert not [entry for entry in requests if "http" in entry.partition('"url":"')[2][:5]]
    finally:
        driver.quit()
    assert "CoMet <b>" in body
    assert "4 of 4" in body
    assert "a <paper>" in body
    assert "Fewer than 3 seeds" in body


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("models.PaDiM.class_path=Padin", "models.PaDiM: Padin: there is no such AnomalibModule"),
        ("models.PaDiM.init_args.layer=[layer1]", "models.PaDiM: Padim: Option 'layer' is not accepted"),
        (
            "models.PaDiM.init_args.n_features=x",
            "models.PaDiM: Padim: n_features: Expected a <class 'int'>. Got value: x",
        ),
        ("data.init_args.n_train=x", "data: ProceduralSurfaces: n_train: Expected a <class 'int'>. Got value: x"),
        ("data.init_args.n_trian=3", "Option 'n_trian' is not accepted"),
        ("categories=[leather]", "leather"),
        ("ratios=[0,1]", "it needs both kinds"),
        ("ratios=[0,0.05,0.25]", "ratios: 0.05 of the 16 normal training images of woven is less than one anomaly"),
        ("trainer.acelerator=cpu", "trainer.acelerator: Lightning's trainer has no such argument; did you mean acc"),
        ("models.PaDiM.trainer.xyz=1", "models.PaDiM.trainer.xyz: Lightning's trainer has no such argument."),
        ("models.PaDiM.backbone_weights=nowhere.pth", "backbone_weights: there is no file nowhere.pth"),
    ],
)
def test_what_cannot_work_is_said_before_any_training(content, tmp_path, capsys, change, said):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**content, "published": []}, sort_keys=False))
    arguments = ["--config", tmp_path / "sweep.yaml", "--output", tmp_path / "out", "--in_process", "--set", change]
    assert sweep_command(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_models_under_comet_get_the_seed_of_the_cell_and_write_no_audit():
    first, second = (build_model({"class_path": "CoMetDifferNet", "init_args": FLOW}, seed=seed) for seed in (0, 1))
    assert not first.audit
    assert not identical(trained(first), trained(second))
    assert identical(trained(first), trained(build_model({"class_path": "CoMetDifferNet", "init_args": FLOW}, seed=0)))


def test_weights_of_a_backbone_that_only_the_model_names(tmp_path):
    weights = tmp_path / "resnet18.pth"
    expected = timm.create_model("resnet18", pretrained=False, num_classes=0).state_dict()
    torch.save(expected, weights)
    entry = {
        "class_path": "Padim",
        "init_args": {"layers": ["layer1"], "n_features": 20},
        "backbone_weights": str(weights),
    }
    check_model(entry, "models.A")
    state = build_model(entry, seed=0).state_dict()
    (found,) = (value for name, value in state.items() if name.endswith("extractor.conv1.weight"))
    assert torch.equal(found, expected["conv1.weight"])
    for check in (lambda entry: check_model(entry, "models"), lambda entry: build_model(entry, seed=0)):
        with pytest.raises(SweepError, match=r"models: backbone_weights are for a model .* EfficientAd does not"):
            check({**entry, "class_path": "EfficientAd", "init_args": {}})


def test_models_that_do_not_train_are_refused(monkeypatch):
    entry = {"class_path": "Padim", "init_args": {"backbone": "resnet18", "pre_trained": False}}
    check_model(entry, "models.A")
    for kind in (LearningType.ZERO_SHOT, property(lambda self: LearningType.FEW_SHOT)):
        monkeypatch.setattr(Padim, "learning_type", kind)
        with pytest.raises(SweepError, match=r"models.A: Padim does not train on the images"):
            check_model(entry, "models.A")
    monkeypatch.setattr(Padim, "learning_type", property(lambda self: LearningType[f"{self.name.upper()}_SHOT"]))
    monkeypatch.setattr(Padim, "name", "zero")
    with pytest.raises(SweepError, match="does not train on the images"):
        build_model(entry, seed=0)


# Sweeps of published experiments have data modules of their own: test_reproduction.py runs them.
OTHERS = ("comet_", "fun_ad_", "results_")
SHIPPED = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith(OTHERS)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweep_runs_on_a_miniature(path, tmp_path):
    smaller = {name: value for name, value in FLOW.items() if name != "backbone"}
    changes = [f"data.init_args.{name}={value}" for name, value in {**SURFACES, "root": tmp_path / "data"}.items()]
    for label in yaml.safe_load(path.read_text())["models"]:
        changes += [f"models.{label}.init_args.{name}={value}" for name, value in smaller.items()]
    changes += ["max_epochs=1", "seeds=[0]", "ratios=[0, 0.25]", "trainer.accelerator=cpu"]
    options = [part for change in changes for part in ("--set", change)]
    assert sweep_command("--config", path, "--output", tmp_path / "out", "--in_process", *options) == 0
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(frame) == 2 * len(yaml.safe_load(path.read_text())["models"])
    assert frame["image_auroc"].notna().all()


def test_sweep_of_the_results_runs_on_a_miniature(tmp_path):
    surfaces, tiles = (
        yaml.safe_load((CONFIGS / f"results_{name}.yaml").read_text(encoding="utf-8")) for name in ("surfaces", "tiles")
    )
    assert surfaces["models"] == tiles["models"]
    weights = tmp_path / "mobilenetv2_100.pth"
    torch.save(timm.create_model("mobilenetv2_100", pretrained=False, num_classes=0).state_dict(), weights)
    changes = [f"data.init_args.{name}={value}" for name, value in {**SURFACES, "root": tmp_path / "data"}.items()]
    for label, model in surfaces["models"].items():
        changes += [f"models.{label}.backbone_weights={weights}", f"models.{label}.max_epochs=1"]
        place = "image_size" if "image_size" in model else "init_args.image_size"
        changes.append(f"models.{label}.{place}=[64, 64]")
    # DifferNet's local flow and its smallest scale need larger images than these.
    for label in ("DifferNet", "CoMetDifferNet"):
        changes += [f"models.{label}.init_args.{name}" for name in ("n_scales=1", "n_windows=2")]
    changes += ["seeds=[0]", "ratios=[0.25]", "categories=[woven]", "trainer.accelerator=cpu"]
    options = [part for change in changes for part in ("--set", change)]
    path = CONFIGS / "results_surfaces.yaml"
    assert sweep_command("--config", path, "--output", tmp_path / "out", "--in_process", *options) == 0
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(frame["model"]) == set(surfaces["models"])
    assert frame["image_auroc"].notna().all()
