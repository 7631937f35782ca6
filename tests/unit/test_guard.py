# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Random generators, losses and files, each on its own."""

import io
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from anomalib_comet.files import may_fail, whole_file
from anomalib_comet.guard import NonFiniteTrainingError, TrainingGuard, random_state, set_random_state, with_guard


def drawn():
    numbers = np.random.random(2).tolist(), np.random.normal()  # noqa: NPY002  # the global generator is meant
    return random.random(), numbers, torch.rand(1).item(), torch.randperm(9).tolist()


def test_random_generators_go_on_from_plain_data():
    outside = random_state()
    try:
        np.random.normal()  # noqa: NPY002  # one of a pair of Gaussian numbers is kept in the state
        buffer = io.BytesIO()
        torch.save(random_state(), buffer)
        expected = [drawn() for _ in range(3)]
        buffer.seek(0)
        set_random_state(torch.load(buffer, weights_only=True))
        assert [drawn() for _ in range(3)] == expected
    finally:
        set_random_state(outside)


@pytest.mark.parametrize(
    ("precision", "value", "refused"),
    [
        ("32-true", 1.0, False),
        ("32-true", float("nan"), True),
        ("32-true", float("inf"), True),
        ("16-mixed", float("nan"), True),
        ("16-mixed", float("inf"), False),
    ],
)
def test_an_infinite_loss_is_allowed_only_while_its_scale_is_sought(precision, value, refused):
    trainer = SimpleNamespace(precision=precision, global_step=3, current_epoch=1, checkpoint_callback=None)
    model, guard = torch.nn.Linear(2, 1), TrainingGuard()
    guard.on_train_batch_start(trainer, model, SimpleNamespace(image_path=["a.png", "b.png"]), 0)
    if not refused:
        guard.on_before_backward(trainer, model, torch.tensor(value))
        return
    with pytest.raises(NonFiniteTrainingError, match=r"a\.png, b\.png.*No checkpoint was written yet"):
        guard.on_before_backward(trainer, model, torch.tensor(value))


@pytest.mark.parametrize(
    ("every", "epochs", "then"), [(10, 2, 2), (10, 15, 5), (10, 30, 10), (None, 7, None), (3, -1, 3)]
)
def test_the_last_epoch_is_validated(every, epochs, then, caplog):
    limits = {"max_epochs": epochs, "check_val_every_n_epoch": every, "val_check_interval": 5}
    trainer = Trainer(**limits, accelerator="cpu", logger=False, enable_checkpointing=False)
    with caplog.at_level(logging.WARNING):
        TrainingGuard().setup(trainer, torch.nn.Linear(2, 1), "fit")
    assert trainer.check_val_every_n_epoch == then
    warned = [message for message in caplog.messages if "To keep the interval, make max_epochs a multiple" in message]
    assert bool(warned) == (then != every)


def test_there_is_one_guard():
    other = Callback()
    (guard, kept) = with_guard([other], None)
    assert isinstance(guard, TrainingGuard)
    assert kept is other
    assert with_guard([guard, other], None) == [guard, other]
    assert with_guard(other, SimpleNamespace(callbacks=[guard])) == [other]


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path, caplog):
    path = tmp_path / "folder" / "list.csv"
    with whole_file(path) as file:
        file.write(b"first")

    def fail():
        with whole_file(path) as file:
            file.write(b"sec")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    with caplog.at_level(logging.WARNING), may_fail("list.csv"):
        fail()
    assert "list.csv was not written (No space left on device); training goes on." in caplog.text
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["list.csv"]
