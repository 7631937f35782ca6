# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The audit through real trainings and through the command line."""

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anomalib.data import Folder
from anomalib.models import Padim
from PIL import Image

from anomalib_comet.audit import AuditReport, audit_model
from anomalib_comet.audit.command import main
from anomalib_comet.cli import main as console_script
from anomalib_comet.models import CoMetDifferNet, DifferNet
from helpers.miniatures import write_image
from helpers.tiny import TINY, engine, surfaces


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A finished training under CoMet: model, datamodule and folder of the run."""
    model, datamodule = CoMetDifferNet(**TINY, warmup_epochs=1, kappa=0.5), surfaces(data_root)
    trained_by = engine(tmp_path_factory.mktemp("run"), max_epochs=2)
    trained_by.fit(model, datamodule=datamodule)
    return model, datamodule, Path(trained_by.trainer.default_root_dir)


@pytest.fixture(scope="module")
def padim(tmp_path_factory):
    """A stock model that keeps nothing of its training images, and the folder it was trained on."""
    root = tmp_path_factory.mktemp("padim")
    for k in range(12):
        write_image(root / "tiles" / ("a" if k < 8 else "b") / f"{k:03}.png", defect=k == 5)
    datamodule = Folder(
        "tiles",
        root=root / "tiles",
        normal_dir=["a", "b"],
        test_split_mode="none",
        val_split_mode="from_train",
        val_split_ratio=0.2,
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
    )
    torch.manual_seed(0)
    model = Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=20)
    model.pre_processor = Padim.configure_pre_processor((32, 32))
    report = AuditReport(thumbnail_size=64)
    trained_by = engine(root / "results", max_epochs=1, callbacks=[report])
    trained_by.fit(model, datamodule=datamodule)
    return model, datamodule, Path(trained_by.best_model_path), report


def checkpoint(folder):
    return folder / "weights" / "lightning" / "model.ckpt"


def read(folder):
    return pd.read_csv(folder / "audit.csv")


def test_comet_writes_the_audit_when_training_ends(run):
    model, datamodule, folder = run
    table, page = read(folder), (folder / "audit.html").read_text(encoding="utf-8")
    learnt = model.training_frame()
    assert table["image_path"].tolist() == learnt["image_path"].tolist()
    assert table["anomaly_score"].tolist() == pytest.approx(learnt["anomaly_score"].tolist())
    assert table["confidence_weight"].tolist() == pytest.approx(learnt["confidence_weight"].tolist())
    assert table["rank"].tolist() == list(range(1, 21))
    truth = datamodule.contamination.set_index("image_path")["injected"]
    assert table.set_index("image_path")["injected"].sort_index().equals(truth.sort_index())
    assert table["injected"].sum() == 4
    assert table["status"].eq("ok").all()
    assert "what training learnt" in page
    assert 'id="evaluation"' in page
    assert "CoMetDifferNet / ProceduralSurfaces_r0.25_seed0 / woven / v0" in page


def test_comet_leaves_anomalib_s_callbacks_and_can_be_told_not_to(data_root, tmp_path):
    plain = [type(callback) for callback in DifferNet(**TINY).configure_callbacks()]
    model = CoMetDifferNet(**TINY, audit=False)
    assert [type(callback) for callback in model.configure_callbacks()] == plain
    assert [type(callback) for callback in CoMetDifferNet(**TINY).configure_callbacks()] == [*plain, AuditReport]
    trained_by = engine(tmp_path, max_epochs=1)
    trained_by.fit(model, datamodule=surfaces(data_root))
    assert not list(tmp_path.rglob("audit.*"))


def test_a_callback_of_the_user_is_the_one_that_counts_and_trouble_does_not_stop_training(data_root, tmp_path, caplog):
    (tmp_path / "a file").touch()
    mine = AuditReport(output=tmp_path / "a file" / "below", thumbnail_size=64)
    trained_by = engine(tmp_path, max_epochs=1, callbacks=[mine])
    with caplog.at_level(logging.WARNING):
        trained_by.fit(CoMetDifferNet(**TINY), datamodule=surfaces(data_root))
    assert [callback for callback in trained_by.trainer.callbacks if isinstance(callback, AuditReport)] == [mine]
    assert "The audit of the training set was not written" in caplog.text
    assert mine.result is None
    assert Path(trained_by.best_model_path).is_file()


def test_a_stock_model_scores_its_images_itself(padim):
    model, datamodule, _, report = padim
    table = report.result.table
    assert set(table["image_path"]) == set(datamodule.train_data.samples["image_path"])
    assert "model's own predictions" in report.result.source
    assert "keeps no table" in report.result.source
    # Un-normalised: what the inner model says of an image that was pre-processed as in training.
    path = table["image_path"].iloc[3]
    image = torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model.eval().model(model.pre_processor(image))
    assert table["anomaly_score"].iloc[3] == pytest.approx(expected.pred_score.item(), rel=1e-4)
    assert table["anomaly_score"].max() > 1
    assert table["confidence_weight"].between(0, 1).all()


def test_images_that_training_did_not_see_are_all_scored_by_the_model(run, tmp_path):
    model, datamodule, _ = run
    known = datamodule.train_data.samples["image_path"].tolist()[:5]
    other = datamodule.test_data.samples["image_path"].tolist()[:2]
    assert audit_model(model, known, tmp_path).source.startswith("Scores and weights are what training learnt")
    result = audit_model(model, known + other, tmp_path)
    assert "2 of 7 images are not in the table" in result.source
    assert result.table["anomaly_score"].notna().all()


def test_without_maps_the_model_is_asked_only_where_it_has_to_be(run, padim, tmp_path):
    model, datamodule, folder = run
    asked = []

    def count(module, _args):
        asked.append(module)

    with model.model.register_forward_pre_hook(count):
        known = audit_model(model, datamodule.train_data.samples["image_path"], tmp_path, maps=0)
    assert asked == []
    assert known.table["anomaly_score"].tolist() == pytest.approx(read(folder)["anomaly_score"].tolist())
    assert '"limits":null' in known.page_path.read_text(encoding="utf-8")
    with model.model.register_forward_pre_hook(count):
        few = audit_model(model, datamodule.train_data.samples["image_path"], tmp_path, maps=3, batch_size=2)
    assert len(asked) == 2  # three images in batches of two
    assert '"mapped":3,' in few.page_path.read_text(encoding="utf-8")
    assert few.table["image_path"].tolist() == known.table["image_path"].tolist()
    blocks = re.findall(r'id="block0">(.*?)</script>', few.page_path.read_text(encoding="utf-8"))
    assert [bool(heat) for _, heat in json.loads(blocks[0])] == [True] * 3 + [False] * 17  # those of the first ranks
    stock, images, _, report = padim
    scored = audit_model(stock, images.train_data.samples["image_path"], tmp_path, maps=0)
    assert scored.table["anomaly_score"].tolist() == pytest.approx(
        report.result.table["anomaly_score"].tolist(), rel=1e-4
    )
    assert '"limits":null' in scored.page_path.read_text(encoding="utf-8")


def test_models_are_left_in_their_mode_and_wrong_ones_are_refused(run, tmp_path):
    model, datamodule, _ = run
    paths = datamodule.train_data.samples["image_path"].tolist()[:3]
    model.train()
    audit_model(model, paths, tmp_path)
    assert model.model.training
    model.eval()
    with pytest.raises(ValueError, match="no images to audit"):
        audit_model(model, [], tmp_path)
    with pytest.raises(ValueError, match=r"None of the 1 images can be read; nowhere\.png"):
        audit_model(model, ["nowhere.png"], tmp_path)


def test_command_with_the_checkpoint_alone(run, tmp_path, capsys):
    """The images are those that the checkpoint knows, the model is that of the path."""
    _, _, folder = run
    assert main(["--ckpt_path", str(checkpoint(folder)), "--output", str(tmp_path / "out")]) == 0
    assert "what training learnt" in capsys.readouterr().out
    columns = ["rank", "image_path", "anomaly_score", "confidence_weight"]
    assert read(tmp_path / "out")[columns].equals(read(folder)[columns])


def test_command_with_a_data_module_knows_the_truth(run, data_root, tmp_path, capsys):
    """By a configuration beside the run, as `anomalib train` writes it, and by arguments."""
    _, datamodule, folder = run
    moved = tmp_path / "run"
    shutil.copytree(folder, moved)
    (moved / "audit.csv").unlink()
    inner = datamodule.datamodule
    arguments = {
        "root": str(data_root),
        "category": "woven",
        "n_train": 16,
        "n_test_normal": 6,
        "n_test_anomalous": 12,
        "n_val_normal": 4,
        "n_val_anomalous": 4,
        "severity": 1.0,
        "image_size": 72,
        "num_workers": 0,
    }
    assert inner.category == "woven"
    surface = {"class_path": "anomalib_comet.data.ProceduralSurfaces", "init_args": arguments}
    data = {
        "class_path": "anomalib_comet.data.ContaminatedDataModule",
        "init_args": {"ratio": 0.25, "datamodule": surface},
    }
    model = {"class_path": "anomalib_comet.models.CoMetDifferNet", "init_args": {}}
    (moved / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"max_epochs": 2}}))
    assert main(["--ckpt_path", str(checkpoint(moved)), "--limit", "5"]) == 0
    said = capsys.readouterr().out
    assert "4 of 20 images are known to be anomalous: average precision" in said
    assert read(moved)["injected"].sum() == 4
    assert '"leftOut":15' in (moved / "audit.html").read_text(encoding="utf-8")

    # The console script, another ratio by an argument over the configuration.
    output = tmp_path / "other"
    options = ["--config", str(moved / "config.yaml"), "--data.init_args.ratio", "0.5", "--output", str(output)]
    with pytest.raises(SystemExit) as stop:
        console_script(["audit", "--ckpt_path", str(checkpoint(folder)), *options])
    assert stop.value.code == 0
    assert "8 of 24 images are known to be anomalous" in capsys.readouterr().out


def test_command_on_a_folder_with_broken_images(padim, tmp_path, capsys):
    _, datamodule, ckpt, _ = padim
    images = tmp_path / "images"
    shutil.copytree(Path(datamodule.root), images)
    (images / "a" / "broken.png").write_bytes(b"\x89PNG nothing")
    (images / "notes.txt").write_text("no image")
    assert main(["--ckpt_path", str(ckpt), "--images", str(images), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"unreadable: {images / 'a' / 'broken.png'}" in said
    assert "model's own predictions" in said
    table = read(tmp_path / "out")
    assert len(table) == 13
    assert table["status"].tolist() == ["ok"] * 12 + ["unreadable"]
    assert table["rank"].isna().sum() == 1
    assert "injected" not in table


NONSENSE = ["--data", "ProceduralSurfaces", "--data.category", "nonsense"]
RATIO = ["--data", "ContaminatedDataModule", "--data.ratio", "5", "--data.datamodule", "ProceduralSurfaces"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (
            ["--ckpt_path", "{ckpt}", "--images", "{images}", "--data", "ProceduralSurfaces"],
            "--images and --data both say which images are audited: leave one of them out.",
        ),
        (["--ckpt_path", "{ckpt}", "--images", "nowhere"], "there is no folder nowhere"),
        (["--ckpt_path", "{ckpt}", "--images", "{empty}"], "there is no image below"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--model", "Padims"], "did you mean Padim"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--model", "os.path.join"], "is no model of anomalib"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--model", "nowhere.Model"], "cannot be imported"),
        (
            ["--ckpt_path", "{ckpt}", "--images", "{images}", "--model", "CoMetDifferNet"],
            "is no checkpoint of CoMetDifferNet",
        ),
        (["--ckpt_path", "{comet}", "--images", "{images}", "--model", "Padim"], "is no checkpoint of Padim: name the"),
        (
            ["--ckpt_path", "{text}", "--images", "{images}", "--model", "CoMetDifferNet"],
            "it is no file that torch saves",
        ),
        (["--ckpt_path", "{bare}", "--images", "{large}"], "Padim fails on these images: The size of tensor"),
        (
            ["--ckpt_path", "{ckpt}", *NONSENSE],
            "--data: ProceduralSurfaces cannot be made: Unknown category 'nonsense'",
        ),
        (["--ckpt_path", "{ckpt}", *RATIO], "--data: ContaminatedDataModule cannot be made: ratio must lie in [0, 1]"),
        (["--ckpt_path", "{ckpt}", *RATIO[:-1], "nope.Nope"], "--data: datamodule: No module named 'nope'"),
        (["--ckpt_path", "{ckpt}", "--data", "Folder"], "is required but not provided"),
        (
            ["--ckpt_path", "{ckpt}", "--config", "{config}"],
            "config.yaml: nope.Nope is no data module that is known here",
        ),
        (["--ckpt_path", "{ckpt}", "--abacus", "3"], "--abacus"),
        (["--ckpt_path", "{ckpt}", "--limit", "x"], "audit: --limit: Expected a <class 'int'>. Got value: x"),
        (["--ckpt_path", "{ckpt}", "--maps", "all"], "audit: --maps: Expected a <class 'int'>. Got value: all"),
        (
            ["--ckpt_path", "{ckpt}", "--data", "Folder", "--data.name", "x", "--data.train_batch_size", "z"],
            "audit: --data: train_batch_size: Expected a <class 'int'>. Got value: z",
        ),
        (["--ckpt_path", "{lost}", "--images", "{images}"], "name the class by --model"),
        (["--ckpt_path", "{unsafe}", "--images", "{images}", "--model", "Padim"], "cannot be loaded safely"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--device", "abacus"], "cannot be used here"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--thumbnail_size", "8"], "between 32 and 512"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--batch_size", "0"], "at least 1"),
        (["--ckpt_path", "{ckpt}", "--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--output", "{text}"], "--output: {text} is a file; name a"),
        (["--ckpt_path", "{ckpt}", "--images", "{images}", "--output", "{text}/a"], "--output: {text}/a cannot be wr"),
        (["--ckpt_path", "{lonely}"], "Which images to audit is not known"),
    ],
)
def test_command_says_in_one_sentence_what_is_wrong(arguments, message, padim, run, tmp_path, capsys):
    _, datamodule, ckpt, _ = padim
    (tmp_path / "empty").mkdir()
    shutil.copy(ckpt, tmp_path / "lost.ckpt")
    torch.save({"state_dict": {}, "hook": Path}, tmp_path / "unsafe.ckpt")
    (tmp_path / "text.ckpt").write_text("epochs and losses\n" * 20)
    state = torch.load(ckpt, weights_only=True)
    state["anomalib_components_enabled"]["pre_processor"] = False
    (tmp_path / "Padim").mkdir()
    torch.save(state, tmp_path / "Padim" / "bare.ckpt")
    shutil.copy(ckpt, tmp_path / "Padim" / "lonely.ckpt")
    (tmp_path / "large").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "large" / "1.png")
    (tmp_path / "config.yaml").write_text("data: {class_path: nope.Nope}")
    places = {
        "comet": checkpoint(run[2]),
        "text": tmp_path / "text.ckpt",
        "bare": tmp_path / "Padim" / "bare.ckpt",
        "large": tmp_path / "large",  # other than the images of training, and nobody resizes them
        "lonely": tmp_path / "Padim" / "lonely.ckpt",
        "config": tmp_path / "config.yaml",
        "ckpt": ckpt,
        "images": datamodule.root,
        "empty": tmp_path / "empty",
        "lost": tmp_path / "lost.ckpt",
        "unsafe": tmp_path / "unsafe.ckpt",
    }
    assert main([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message.format(**places) in said
    assert len(said.strip().splitlines()) == 1


def test_a_device_without_memory_is_one_sentence(padim, capsys, monkeypatch):
    _, datamodule, ckpt, _ = padim

    def exhausted(*_args, **_kwargs):
        msg = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has\na lot to say"
        raise torch.OutOfMemoryError(msg)

    arguments = ["--ckpt_path", str(ckpt), "--images", str(datamodule.root), "--device", "cpu"]
    monkeypatch.setattr("anomalib_comet.audit.command.audit_model", exhausted)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert "cpu has too little memory: lower --batch_size" in said
    assert len(said.splitlines()) == 1
    monkeypatch.setattr("anomalib_comet.audit.command.restored", lambda *_: SimpleNamespace(to=exhausted))
    assert main(arguments) == 2
    assert "too little memory" in capsys.readouterr().err


def test_images_of_a_run_that_left_no_table_in_its_checkpoint(run, tmp_path, capsys):
    """Paths come from the table beside the run, scores from the model."""
    _, datamodule, folder = run
    early = tmp_path / "CoMetDifferNet" / "v0"
    checkpoint(early).parent.mkdir(parents=True)
    state = torch.load(checkpoint(folder), weights_only=True)
    table = next(value for value in _dictionaries(state) if "confidence_weight" in value)
    table.update(image_path=[], anomaly_score=torch.zeros(0), confidence_weight=torch.zeros(0), threshold=None)
    torch.save(state, checkpoint(early))
    assert main(["--ckpt_path", str(checkpoint(early))]) == 2
    assert "Which images to audit is not known" in capsys.readouterr().err
    paths = sorted(datamodule.train_data.samples["image_path"])
    for name, listed in (("audit.csv", paths[:5]), ("confidence_weights.csv", paths)):
        wrong = pd.DataFrame({"image_path": listed, "anomaly_score": -1.0, "confidence_weight": -1.0})
        wrong.to_csv(early / name, index=False)
        assert main(["--ckpt_path", str(checkpoint(early)), "--output", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        assert f"The images are those of {early / name}" in said
        assert "model's own predictions" in said
        assert sorted(read(tmp_path / "out")["image_path"]) == listed
        assert (read(tmp_path / "out")["anomaly_score"] != -1).all()


def _dictionaries(value):
    """All dictionaries in a checkpoint."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dictionaries(inner)


def test_the_threshold_is_that_of_the_run(run, tmp_path, monkeypatch):
    model, datamodule, _ = run
    paths = datamodule.train_data.samples["image_path"].tolist()
    own = model.training_frame()
    values = own["anomaly_score"]
    tukey = values.quantile(0.75) + 1.5 * (values.quantile(0.75) - values.quantile(0.25))
    for threshold, expected in ((model.confidence.threshold, model.confidence.threshold), (None, tukey)):
        own.attrs["threshold"] = threshold
        monkeypatch.setattr(model, "training_frame", own.copy)
        result = audit_model(model, paths, tmp_path, maps=0)
        text = result.page_path.read_text(encoding="utf-8")
        assert json.loads(re.search(r'"fence":([^,]+),', text)[1]) == pytest.approx(expected)
        assert ("The run's own threshold is t" in result.source) == (threshold is not None)
        assert "use_weights" not in result.source
    assert model.confidence.threshold < 0.99 * tukey  # by kappa 0.5
    monkeypatch.setattr(model, "use_weights", False)
    assert "None counted in this training" in audit_model(model, paths, tmp_path, maps=0).source
    # Scores of the model's own have no threshold of the run.
    monkeypatch.setattr(model, "training_frame", lambda: own.iloc[:3])
    assert "threshold" not in audit_model(model, paths, tmp_path, maps=0).source


def test_help_and_interruption(padim, capsys, monkeypatch):
    _, datamodule, ckpt, _ = padim
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for option in ("--ckpt_path", "--images", "--config", "--data", "--model", "--output", "--limit", "--device"):
        assert option in said
    with pytest.raises(SystemExit):
        console_script(["--help"])
    assert "anomalib-comet audit" in capsys.readouterr().out

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("anomalib_comet.audit.command.audit_model", interrupt)
    assert main(["--ckpt_path", str(ckpt), "--images", str(datamodule.root)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_from_the_command_line_from_training_to_audit(tmp_path, capsys):
    """The callback in YAML, and the configuration as anomalib leaves it beside the run."""
    arguments = {"n_train": 16, "n_test_normal": 6, "n_test_anomalous": 12, "n_val_normal": 4, "n_val_anomalous": 4}
    surface = {"root": str(tmp_path / "data"), "image_size": 72, "num_workers": 0, "train_batch_size": 8, **arguments}
    config = {
        "model": {"class_path": "anomalib_comet.models.DifferNet", "init_args": {**TINY, "image_size": [64, 64]}},
        "data": {
            "class_path": "ContaminatedDataModule",
            "init_args": {"ratio": 0.25, "datamodule": {"class_path": "ProceduralSurfaces", "init_args": surface}},
        },
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "devices": 1,
            "callbacks": [
                {"class_path": "anomalib_comet.audit.AuditReport", "init_args": {"thumbnail_size": 64, "limit": 10}}
            ],
        },
        "default_root_dir": str(tmp_path / "results"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    console_script(["fit", "--config", str(tmp_path / "run.yaml")])
    (page,) = {path.resolve() for path in (tmp_path / "results").rglob("audit.html")}
    folder = page.parent
    by_callback = read(folder)
    assert '"leftOut":10' in page.read_text(encoding="utf-8")
    page.unlink()
    capsys.readouterr()
    assert (folder / "config.yaml").is_file()
    assert main(["--ckpt_path", str(checkpoint(folder))]) == 0
    said = capsys.readouterr().out
    assert "4 of 20 images are known to be anomalous" in said
    assert "model's own predictions" in said
    assert read(folder)["image_path"].tolist() == by_callback["image_path"].tolist()
    assert read(folder)["anomaly_score"].tolist() == pytest.approx(by_callback["anomaly_score"].tolist(), rel=1e-4)
    assert page.is_file()
