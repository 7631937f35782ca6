# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Training with ``strategy="ddp"`` in two processes on the CPU (gloo), and the same in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch.utils._pytree import tree_flatten

from anomalib_comet.confident_meta_learning.strategy import CHECKPOINT_KEY
from anomalib_comet.distributed import Ranks, refuse_unsupported
from anomalib_comet.models.fun_ad.lightning_model import STATE_KEY
from anomalib_comet.models.fun_ad.pseudo_labels import pseudo_labels
from helpers.several_processes import CASES, fit, images_for_one

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


@pytest.fixture(scope="module")
def two(data_root, tmp_path_factory):
    """The folder in which two processes have left what they know, of every case."""
    out = tmp_path_factory.mktemp("two")
    script = str(TESTS / "helpers" / "several_processes.py")
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, script, str(data_root), str(out)],
        env=environment,
        cwd=out,
        timeout=500,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return out


def known_by(two, case):
    return [torch.load(two / f"{case}_{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(first, second, **tolerance):
    """The same structure with the same numbers; tensors and floats bit for bit unless a tolerance is given."""
    (values, structure), (others, other_structure) = tree_flatten(first), tree_flatten(second)
    assert structure == other_structure
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}
    for value, other in zip(values, others, strict=True):
        if isinstance(value, (torch.Tensor, float)):
            torch.testing.assert_close(value, other, equal_nan=True, **tolerance)
        else:
            assert value == other


@pytest.mark.parametrize("case", [*CASES, "resumed"])
def test_both_processes_know_the_same(two, case):
    first, second = known_by(two, case)
    assert_same(first, second)
    if CHECKPOINT_KEY in first["learnt"]:
        learnt = first["learnt"][CHECKPOINT_KEY]
        assert len(learnt["confidence"]["image_path"]) == len(set(learnt["confidence"]["image_path"])) == 23
        assert float(learnt["confidence"]["confidence_weight"].min()) < 1.0
        assert learnt["history"]
    else:
        assert len(first["learnt"][STATE_KEY]["image_path"]) == 23


@pytest.mark.parametrize("case", ["differnet", "fun_ad"])
def test_two_processes_train_like_one_with_the_same_batches(two, case, data_root, tmp_path):
    """The tolerance is that of sums in another order: all numbers of a step are the same."""
    model, trained_by, known = fit(case, images_for_one(data_root), tmp_path)
    expected = known_by(two, case)[0]
    known["test"] = trained_by.test(model, datamodule=images_for_one(data_root), verbose=False)[0]
    expected.pop("folder")
    assert_same(known, expected, rtol=1e-3, atol=1e-5)


def test_resumed_training_is_an_uninterrupted_one(two):
    uninterrupted, resumed = known_by(two, "differnet")[0], known_by(two, "resumed")[0]
    assert_same(uninterrupted["state"], resumed["state"])
    assert_same(uninterrupted["learnt"], resumed["learnt"])


def test_published_bank_and_pseudo_labels_are_those_of_one_process(two, data_root, tmp_path):
    """Of the first epoch, before the head has learnt: later ones follow the draws of every process."""
    _, _, known = fit("published_fun_ad", images_for_one(data_root), tmp_path)
    expected = known_by(two, "published_fun_ad")[0]
    found, others = (dict(learnt["learnt"][STATE_KEY]) for learnt in (known, expected))
    del found["image_scores"], others["image_scores"]  # of the head at the end
    assert_same(found, others, rtol=1e-4, atol=1e-5)
    labels = pseudo_labels(known["scaled_distances"])
    assert torch.equal(labels, pseudo_labels(expected["scaled_distances"]))
    assert labels.any()


def test_processes_have_one_folder(two):
    first, second = known_by(two, "differnet")
    run = Path(first["folder"])
    assert Path(second["folder"]) == run
    assert (run / "confidence_weights.csv").exists()
    assert [path.name for path in run.parent.glob("v*")] == ["v0"]
    assert (run.parent / "latest").resolve() == run.resolve()


def test_different_images_are_refused_in_both_processes(two):
    for rank in (0, 1):
        refusal = (two / f"refusal_{rank}.txt").read_text(encoding="utf-8")
        assert "The processes have different" in refusal
        assert "seed" in refusal


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FSDPStrategy(), "not with FSDPStrategy: use --trainer.strategy ddp"),
        (DDPStrategy(start_method="spawn"), "ddp_spawn, ddp_fork and ddp_notebook end with the training"),
        (DDPStrategy(model_averaging_period=2), "which model averaging does not give"),
    ],
)
def test_other_strategies_are_refused(strategy, message):
    trainer = type("Trainer", (), {"strategy": strategy})()
    with pytest.raises(ValueError, match=message):
        refuse_unsupported(trainer, "FunAd")
    for supported in (DDPStrategy(), SingleDeviceStrategy(torch.device("cpu"))):
        trainer.strategy = supported
        refuse_unsupported(trainer, "FunAd")


def test_shares_are_consecutive_and_leave_nothing_out():
    for count in (1, 2, 3, 7):
        for size in (0, 1, 2, 5, 14):
            shares = [Ranks(count, rank).share(range(size)) for rank in range(count)]
            assert [item for share in shares for item in share] == list(range(size))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
