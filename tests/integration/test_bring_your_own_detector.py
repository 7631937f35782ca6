# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The code of docs/bring_your_own_detector.md, taken from the page and run as it stands."""

import importlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.models import ReverseDistillation

from anomalib_comet import plugin
from anomalib_comet.models.frozen_features import resizing_pre_processor
from helpers.tiny import engine, surfaces

PAGE = (Path(__file__).parents[2] / "docs" / "bring_your_own_detector.md").read_text()
MODULES = dict(re.findall(r"<!-- (\w+)\.py -->\s+```python\n(.*?)```", PAGE, flags=re.DOTALL))
(COMMAND,) = re.findall(r"```bash\n(anomalib train .*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def module(request, tmp_path, monkeypatch):
    """A module of the page, importable."""
    (tmp_path / f"{request.param}.py").write_text(MODULES[request.param])
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(request.param)


def test_the_page_keeps_its_promise_of_30_lines():
    lines = [line for line in MODULES["my_detector"].splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.parametrize("module", ["my_detector"], indirect=True)
def test_own_detector_trains_by_the_command_of_the_page(module, tmp_path):
    plugin.register()
    small = {"n_train": 10, "n_test_normal": 4, "n_test_anomalous": 6, "n_val_normal": 2, "n_val_anomalous": 2}
    small |= {"image_size": 64, "num_workers": 0, "root": tmp_path / "data"}
    options = [f"--data.datamodule.{name}={value}" for name, value in small.items()]
    options += ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", f"--default_root_dir={tmp_path / 'runs'}"]
    program, *arguments = shlex.split(COMMAND.replace("\\\n", " "))
    assert program == "anomalib"
    trained = AnomalibCLI([*arguments, *options]).model
    assert type(trained) is module.CoMetAutoencoder
    assert (trained.lr, trained.confidence.kappa) == (0.002, 1.0)
    (table,) = (tmp_path / "runs").rglob("confidence_weights.csv")
    assert len(pd.read_csv(table)) == 11
    assert list((tmp_path / "runs").rglob("model.ckpt"))


@pytest.mark.parametrize("module", ["my_reverse_distillation"], indirect=True)
def test_wrapped_detector_has_its_own_loss_and_trains(module, tmp_path):
    torch.manual_seed(0)
    model = module.CoMetReverseDistillation(
        backbone="resnet18", pre_trained=False, pre_processor=resizing_pre_processor((64, 64))
    )
    model.log = lambda *_args, **_kwargs: None
    batch = SimpleNamespace(image=torch.randn(5, 3, 64, 64))
    model.train()
    with torch.no_grad():
        own = ReverseDistillation.training_step(model, batch)["loss"]
        losses = model.sample_losses(model.training_inputs(batch))
    assert losses.shape == (5,)
    assert losses.mean().item() == pytest.approx(own.item(), rel=1e-5)
    del model.log
    trained_by = engine(tmp_path, max_epochs=1)
    datamodule = surfaces(tmp_path / "data")
    trained_by.fit(model, datamodule=datamodule)
    assert set(model.confidence.weights) == set(datamodule.train_data.samples.image_path)
    assert trained_by.trainer.callback_metrics["inner_improvement"] > 0
