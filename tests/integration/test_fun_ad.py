# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""FunAd through anomalib's engine: training, resuming, its table of training images, exports."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pandas as pd
import pytest
import torch
from anomalib.deploy import ExportType
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from anomalib_comet.audit.command import main as audit
from anomalib_comet.models import FunAd
from helpers.tiny import PUBLISHED_FUN_AD, TINY_FUN_AD, engine, identical, in_order, surfaces, train, trained


def tiny(**kwargs):
    return FunAd(**{**TINY_FUN_AD, "visualizer": False, **kwargs})


class KilledError(RuntimeError):
    pass


class KillAtStep(Callback):
    """The process dies in the middle of an epoch; the last checkpoint is that of the epoch before."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KilledError


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


def checkpoint_of(trained_by):
    return trained_by.trainer.checkpoint_callback.best_model_path


def test_head_learns_the_backbone_stays_and_the_score_is_not_saturated(data_root, tmp_path):
    model = tiny()
    head = trained(model.model.local_net)
    frozen = {name: t.clone() for name, t in model.model.descriptors.state_dict().items()}
    trained_by = train(model, surfaces(data_root), tmp_path)
    assert all(not torch.equal(head[name], p) for name, p in trained(model.model.local_net).items())
    assert identical(frozen, dict(model.model.descriptors.state_dict()))
    assert trained_by.trainer.global_step == 9  # 20 images in batches of 8, 3 epochs
    assert model._training_features is None
    results = trained_by.test(model, datamodule=surfaces(data_root), verbose=False)[0]
    assert 0.0 <= results["image_AUROC"] <= 1.0
    assert "pixel_AUROC" in results


@pytest.mark.parametrize(
    "settings",
    [
        {**PUBLISHED_FUN_AD, "rebuild_epochs": 1},
        {**PUBLISHED_FUN_AD, "rebuild_epochs": 3, "synthetic_noise": 0.5, "scope": "robust", "label_kappa": 0.0},
        {"lr_decay": True, "bank_half": True, "rebuild_epochs": 3},
    ],
    ids=["published", "robust", "distances"],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(data_root, tmp_path, settings):
    settings = {**settings, "train_patches": 20, "pair_patches": 100}
    whole = tiny(**settings)
    train(whole, in_order(data_root), tmp_path / "whole", max_epochs=4)

    killed = tiny(**settings)
    with pytest.raises(KilledError):
        train(killed, in_order(data_root), tmp_path / "killed", max_epochs=4, callbacks=[KillAtStep(7)])
    (checkpoint,) = (tmp_path / "killed").rglob("*.ckpt")
    resumed = tiny(**settings)
    assert not identical(trained(whole), trained(killed))
    engine(tmp_path / "resumed", max_epochs=4).fit(resumed, datamodule=in_order(data_root), ckpt_path=checkpoint)
    assert identical(trained(whole), trained(resumed))
    assert torch.equal(whole.bank.distances, resumed.bank.distances)
    assert torch.equal(whole.bank.in_bank, resumed.bank.in_bank)


KILLED_PROCESS = """
import os, signal, sys

sys.path.insert(0, {tests!r})
from lightning.pytorch import Callback

from anomalib_comet.models import FunAd
from helpers.tiny import in_order, train


class Kill(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


train(FunAd(**{settings!r}), in_order({data!r}), {root!r}, max_epochs=4, callbacks=[Kill()])
"""


def test_a_process_killed_in_the_middle_goes_on_from_its_checkpoint_and_its_file_of_features(
    data_root, tmp_path, monkeypatch
):
    settings = {**TINY_FUN_AD, **PUBLISHED_FUN_AD, "train_patches": 20, "pair_patches": 100, "visualizer": False}
    whole = FunAd(**settings)
    train(whole, in_order(data_root), tmp_path / "whole", max_epochs=4)

    settings["feature_store"] = str(tmp_path / "features")
    tests = str(Path(__file__).parent.parent)
    script = KILLED_PROCESS.format(tests=tests, settings=settings, data=str(data_root), root=str(tmp_path / "killed"))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (checkpoint,) = (tmp_path / "killed").rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 6

    resumed = FunAd(**settings)
    monkeypatch.setattr(resumed, "_records", lambda images: pytest.fail("features were computed again"))
    engine(tmp_path / "resumed", max_epochs=4).fit(resumed, datamodule=in_order(data_root), ckpt_path=checkpoint)
    assert identical(trained(whole), trained(resumed))
    assert torch.equal(whole.bank.distances, resumed.bank.distances)
    assert torch.equal(whole.bank.in_bank, resumed.bank.in_bank)


def test_scrambled_training_labels_change_nothing(data_root, tmp_path):
    generator = torch.Generator().manual_seed(5)

    def run(name, scramble):
        datamodule = in_order(data_root)
        if scramble:
            datamodule.setup()
            original = datamodule.train_data.collate_fn

            def collate(items):
                for item in items:
                    item.gt_label = torch.randint(2, (), generator=generator).bool()
                return original(items)

            datamodule.train_dataloader = lambda: DataLoader(datamodule.train_data, batch_size=8, collate_fn=collate)
        model = tiny()
        train(model, datamodule, tmp_path / name, max_epochs=2)
        return model

    hidden, shown = run("hidden", scramble=False), run("shown", scramble=True)
    assert identical(trained(hidden), trained(shown))
    assert torch.equal(hidden.bank.distances, shown.bank.distances)


def test_stored_features_are_used_again_and_give_the_same_training(data_root, tmp_path, monkeypatch):
    in_memory = tiny(feature_store="memory")
    train(in_memory, in_order(data_root), tmp_path / "a", max_epochs=2)
    first = tiny(feature_store=str(tmp_path / "features"))
    train(first, in_order(data_root), tmp_path / "b", max_epochs=2)
    (file,) = (tmp_path / "features").iterdir()
    assert file.suffix == ".features"
    second = tiny(feature_store=str(tmp_path / "features"))
    computed = []
    monkeypatch.setattr(second, "_records", computed.append)
    train(second, in_order(data_root), tmp_path / "c", max_epochs=2)
    assert not computed
    assert identical(trained(in_memory), trained(first))
    assert identical(trained(in_memory), trained(second))
    # Another image in a known place: the features of the old one are not taken.
    datamodule = in_order(data_root)
    datamodule.setup()
    path = datamodule.train_data.samples.image_path.iloc[0]
    os.utime(path, ns=(1, 1))
    third = tiny(feature_store=str(tmp_path / "features"))
    train(third, in_order(data_root), tmp_path / "d", max_epochs=1)
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_features_of_other_layers_or_another_precision_are_not_taken(data_root, tmp_path, monkeypatch):
    folder = tmp_path / "features"
    cases = [({}, "32-true"), ({"layers": ["scale4", "scale3"]}, "32-true"), ({}, "bf16-mixed")]
    for number, (settings, precision) in enumerate(cases, 1):
        model = tiny(feature_store=str(folder), **settings)
        train(model, in_order(data_root), tmp_path / str(number), max_epochs=1, precision=precision)
        assert len(list(folder.glob("*.features"))) == number


def test_checkpoint_holds_the_audit_but_no_features(data_root, tmp_path):
    model = tiny(top_share=0.1)
    trained_by = train(model, surfaces(data_root), tmp_path)
    restored = FunAd.load_from_checkpoint(checkpoint_of(trained_by))
    frame = restored.training_frame()
    expected = model.training_frame()
    assert frame.equals(expected)
    assert len(frame) == 20
    assert set(frame.columns) >= {"image_path", "anomaly_score", "confidence_weight", "head_score", "in_bank"}
    assert frame.confidence_weight.between(0, 1).all()
    distances = model.bank.distances.topk(6, dim=1)[0].mean(1)  # a tenth of 64 patches
    assert np.allclose(frame.anomaly_score, distances)
    state = torch.load(checkpoint_of(trained_by), weights_only=True)["state_dict"]
    n_patches = model.model.n_patches
    assert not any(t.ndim == 2 and t.shape[0] >= n_patches * 10 for t in state.values())
    images = torch.rand(2, 3, 72, 72)
    with torch.no_grad():
        assert torch.equal(restored.eval()(images).pred_score, model.eval()(images).pred_score)


def test_audit_of_a_checkpoint_has_distance_and_score_of_every_image(data_root, tmp_path, capsys):
    model = tiny()
    trained_by = train(model, surfaces(data_root), tmp_path / "run")
    assert audit(["--ckpt_path", str(checkpoint_of(trained_by)), "--output", str(tmp_path / "out")]) == 0
    assert "what training learnt" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "audit.csv").set_index("image_path")
    learnt = model.training_frame().set_index("image_path").loc[table.index]
    assert table["rank"].tolist() == list(range(1, 21))
    assert table["anomaly_score"].is_monotonic_decreasing
    for column in ("anomaly_score", "confidence_weight", "pseudo_distance", "head_score"):
        assert np.allclose(table[column], learnt[column]), column
    assert table["in_bank"].equals(learnt["in_bank"])
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "none counted in this training" in page
    assert all(Path(path).name in page for path in table.index)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("defaults", {}),
        ("published", PUBLISHED_FUN_AD),
        ("vit", {"backbone": "vit_tiny_patch16_224", "layers": None, "pre_trained": False, "image_descriptor": "auto"}),
    ],
)
@pytest.mark.parametrize("kind", [ExportType.ONNX, ExportType.OPENVINO])
def test_export_at_another_batch_size(name, arguments, kind, tmp_path):
    del name
    model = tiny(**arguments).eval()
    for scaling in (model.model.patch_scaling, model.model.image_scaling):
        scaling.fit(torch.randn(500, len(scaling.mean)), torch.ones(500))  # not the identity
    images = torch.rand(3, 3, 72, 80)
    path = engine(tmp_path).export(model, kind, export_root=tmp_path)
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {next(iter(port.get_names())): value for port, value in compiled([images.numpy()]).items()}
    with torch.no_grad():
        expected = model(images)
    for output in ("pred_score", "anomaly_map"):
        difference = np.abs(found[output].ravel() - getattr(expected, output).numpy().ravel()).max()
        assert difference <= 1e-4, output
    assert len(set(found["pred_score"].ravel().tolist())) == 3
