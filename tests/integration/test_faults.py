# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Bad days: what our models do about broken images, folders, disks, processes and checkpoints."""

import io
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.models import Padim
from lightning.pytorch import Callback
from PIL import Image

from anomalib_comet import checkpoints
from anomalib_comet.audit.command import main as audit
from anomalib_comet.backbones import FrozenBackbone
from anomalib_comet.data import ContaminatedDataModule
from anomalib_comet.data.images import UnreadableImagesError, unreadable_folders
from anomalib_comet.guard import NonFiniteTrainingError, TrainingGuard
from anomalib_comet.models import CoMetDifferNet, FunAd, SimpleNet
from helpers.miniatures import folder as write_folder
from helpers.tiny import (
    TINY,
    TINY_FUN_AD,
    TINY_SIMPLENET,
    engine,
    identical,
    in_order,
    surfaces,
    train,
    trained,
)

DRAWN_NOTHING = {"visualizer": False, "audit": False}


def comet(**kwargs):
    return CoMetDifferNet(**{**TINY, **DRAWN_NOTHING, **kwargs})


class Tiles:
    """A folder of tiles in the format of anomalib's Folder, fresh for every test."""

    def __init__(self, root):
        self.root = root
        self.arguments = write_folder(root).init_args
        self.good = root / "train" / "good"

    def folder(self, **kwargs):
        loading = {"train_batch_size": 5, "eval_batch_size": 5, "num_workers": 0}
        return Folder(**{**self.arguments, **loading, **kwargs})

    def contaminated(self, **kwargs):
        return ContaminatedDataModule(self.folder(**kwargs), ratio=0.1)


@pytest.fixture
def tiles(tmp_path):
    return Tiles(tmp_path / "tiles")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


def one(root, pattern="*.ckpt"):
    (path,) = Path(root).rglob(pattern)
    return path


# ------------------------------------------------------------------------------------------------------------- images
def damage_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[300:420] = bytes(120)
    path.write_bytes(content)


@pytest.mark.parametrize("contaminate", [True, False])
def test_images_that_cannot_be_read_are_named_before_training(tiles, tmp_path, contaminate):
    broken = {"000": b"", "001": b"<html>", "002": (tiles.good / "002.png").read_bytes()[:700]}
    for name, content in broken.items():
        (tiles.good / f"{name}.png").write_bytes(content)
    deep = np.linspace(0, 60000, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(deep).save(tiles.good / "003.png")
    data = tiles.contaminated() if contaminate else tiles.folder()
    with pytest.raises(
        UnreadableImagesError, match=r"4 of \d+ training and validation images cannot be used"
    ) as caught:
        train(comet(), data, tmp_path / "run")
    assert sorted(Path(path).name for path in caught.value.problems) == [f"00{k}.png" for k in range(4)]
    for said in ("the file is empty", "text and no image", "damaged", "values from 0 to 60000"):
        assert said in str(caught.value)
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_odd_images_that_can_be_read_are_trained_on(tiles, tmp_path):
    image = Image.open(tiles.good / "000.png")
    image.save(tiles.root / "photo.jpg")
    shutil.move(tiles.root / "photo.jpg", tiles.good / "000.png")  # a wrong extension
    image.convert("RGBA").save(tiles.good / "001.png")
    image.convert("L").save(tiles.good / "002.png")
    image.convert("P").save(tiles.good / "003.png")
    (tiles.good / "004.png").rename(tiles.good / "Grün 良品 '\".png")
    (tiles.good / "005.png").unlink()
    (tiles.good / "005.png").symlink_to(tiles.good / "006.png")
    long = tiles.good / "/".join(["x" * 200] * 3) / f"{'y' * 240}.png"
    long.parent.mkdir(parents=True)
    (tiles.good / "007.png").rename(long)
    model, data = comet(audit=True), tiles.contaminated()
    trained_by = train(model, data, tmp_path / "run", max_epochs=2)
    assert len(model.confidence.scores) == 22
    table = one(tmp_path / "run", "audit.csv").read_text(encoding="utf-8")
    assert "Grün 良品" in table
    assert str(long.resolve()) in table
    assert "unreadable" not in table
    assert trained_by.test(model, datamodule=data, verbose=False)


def test_damage_in_the_middle_of_a_file_is_named_when_training_meets_it(tiles, tmp_path, caplog):
    damage_in_the_middle(tiles.good / "007.png")
    damage_in_the_middle(tiles.good / "011.png")
    said = r"2 of 20 training images cannot be used: .*007\.png: it is damaged.*011\.png"
    with pytest.raises(UnreadableImagesError, match=said):
        train(FunAd(**TINY_FUN_AD, visualizer=False), tiles.folder(), tmp_path / "a")
    # Any model of anomalib, with a worker that reads the images, and the guard given to the engine.
    model = Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=4, visualizer=False)
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="image file") as caught:
        train(model, tiles.folder(num_workers=1), tmp_path / "b", callbacks=[TrainingGuard()])
    assert "2 of 38 images cannot be used" in caplog.text
    assert all("007.png" in note for note in getattr(caught.value, "__notes__", ["007.png"]))


def test_broken_test_images_let_training_go_on_and_stop_the_test(tiles, tmp_path, caplog):
    (tiles.root / "test" / "good" / "000.png").write_bytes(b"")
    model, data = SimpleNet(**TINY_SIMPLENET, visualizer=False), tiles.folder(val_split_mode="from_train")
    with caplog.at_level(logging.WARNING):
        trained_by = train(model, data, tmp_path, max_epochs=1)
    assert "1 of 18 test images cannot be used" in caplog.text
    with pytest.raises(UnreadableImagesError, match=r"1 of 18 test images .*000\.png: the file is empty"):
        trained_by.test(model, datamodule=data, verbose=False)


def test_masks_of_another_size_are_told_and_stretched(tiles, tmp_path, caplog):
    for path in (tiles.root / "ground_truth").rglob("*.png"):
        Image.open(path).resize((16, 20)).save(path)
    model, data = SimpleNet(**TINY_SIMPLENET, visualizer=False), tiles.contaminated()
    with caplog.at_level(logging.WARNING):
        trained_by = train(model, data, tmp_path, max_epochs=1)
    assert "masks have another size than their image and are stretched to it" in caplog.text
    assert "16 x 20 pixels, the image 32 x 32" in caplog.text
    assert "pixel_AUROC" in trained_by.test(model, datamodule=data, verbose=False)[0]


@pytest.mark.parametrize(
    "model",
    [comet, lambda: FunAd(**TINY_FUN_AD, visualizer=False), lambda: SimpleNet(**TINY_SIMPLENET)],
    ids=["CoMetDifferNet", "FunAd", "SimpleNet"],
)
def test_one_image_is_enough_to_train(model, tiles, tmp_path, caplog):
    for path in sorted(tiles.good.iterdir())[1:]:
        path.unlink()
    detector = model()
    train(detector, tiles.folder(val_split_mode="none"), tmp_path, max_epochs=2, limit_val_batches=0)
    assert all(torch.isfinite(p).all() for p in trained(detector).values())
    scores = detector.eval()(torch.rand(2, 3, 64, 64)).pred_score
    assert torch.isfinite(scores).all()
    assert ("there is one training image" in caplog.text) == isinstance(detector, FunAd)


@pytest.mark.parametrize(
    "model",
    [lambda: comet(image_score="global"), lambda: FunAd(**TINY_FUN_AD, visualizer=False)],
    ids=["CoMetDifferNet", "FunAd"],
)
def test_without_masks_the_map_keeps_a_range_of_its_own(model, tiles, tmp_path):
    detector, data = model(), tiles.folder(mask_dir=None, val_split_mode="same_as_test")
    trained_by = train(detector, data, tmp_path)
    batches = trained_by.predict(detector, datamodule=data)
    maps = torch.cat([batch.anomaly_map.flatten() for batch in batches])
    assert float(maps.max()) > 0.9
    assert float(maps.min()) < 0.1


# ------------------------------------------------------------------------------------------------------------ folders
def broken_link(tiles):
    (tiles.good / "000.png").unlink()
    (tiles.good / "000.png").symlink_to("nowhere.png")
    return {}


def empty_class(tiles):
    (tiles.root / "train" / "none").mkdir()
    return {"normal_dir": ["train/good", "train/none"]}


def missing_mask(tiles):
    (tiles.root / "ground_truth" / "cut" / "000.png").unlink()
    return {}


def other_letters(tiles):
    tiles.good.rename(tiles.root / "train" / "grün")
    return {"normal_dir": "train/grün"}


def long_path(tiles):
    long = tiles.root / "/".join(["x" * 200] * 3)
    long.parent.mkdir(parents=True)
    tiles.good.rename(long)
    return {"normal_dir": str(long)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (broken_link, r"1 images of plates are links to files that are not there: .*000\.png"),
        (empty_class, r"there is no image in .*none; put some there, or leave the folder out"),
        (missing_mask, "another number of masks than of anomalous images"),
        (other_letters, r"other letters than those of ASCII \(.*grün\)"),
        (long_path, "longer than 512 characters: name a folder further up"),
    ],
)
def test_folders_that_are_not_as_expected_get_one_sentence(change, said, tiles):
    changed = change(tiles)
    with pytest.raises(ValueError, match=said):
        tiles.contaminated(**changed).setup()


def without_rights(function, *args):
    """Call a function as a user who may read only what all may."""
    if os.geteuid():
        return function(*args)
    context = multiprocessing.get_context("fork")  # a process of its own: rights do not come back
    here, there = context.Pipe()

    def child():
        os.setgid(65534)
        os.setuid(65534)
        there.send(function(*args))

    process = context.Process(target=child)
    process.start()
    assert here.poll(60)
    result = here.recv()
    process.join()
    return result


def said_of_setup(datamodule):
    try:
        datamodule.setup()
    except ValueError as error:
        return str(error)
    return ""


def test_folders_that_may_not_be_read_are_named(monkeypatch):
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)  # unlike tmp_path, which is closed to others altogether
    tiles = Tiles(place / "tiles")
    closed = tiles.good / "lot 2"
    closed.mkdir()
    (tiles.good / "000.png").rename(closed / "000.png")
    try:
        closed.chmod(0)
        images = [str(path) for path in tiles.good.glob("*.png")]
        assert without_rights(unreadable_folders, images) == [str(closed)]
        (tiles.root / "train" / "good").chmod(0)
        assert "may not be read (permission denied)" in without_rights(said_of_setup, tiles.contaminated())
    finally:
        tiles.good.chmod(0o755)
        closed.chmod(0o755)
        shutil.rmtree(place)


# -------------------------------------------------------------------------------------------------------------- losses
class Spoil(Callback):
    """Do something to a model before a step, as an overflow in the gradients of the one before would."""

    def __init__(self, step, spoil):
        self.step, self.spoil = step, spoil

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.spoil(pl_module)


def nan_loss(model):
    losses = model.sample_losses
    model.sample_losses = lambda inputs: losses(inputs) * float("nan")


@torch.no_grad()
def nan_parameters(model):
    next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_before_it_spoils_anything(data_root, tmp_path):
    model = comet(use_meta=False)
    with pytest.raises(NonFiniteTrainingError) as caught:
        train(model, in_order(data_root), tmp_path, callbacks=[Spoil(4, nan_loss)])
    data = in_order(data_root)
    data.setup()
    second_batch = data.train_data.samples.image_path.iloc[8:16].tolist()
    assert "The loss of step 4 (epoch 1, from 0) is nan" in str(caught.value)
    assert f"The images of this step: {', '.join(second_batch)}." in str(caught.value)
    checkpoint = one(tmp_path)
    assert f"The last checkpoint is whole: {checkpoint}" in str(caught.value)
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["global_step"] == 3
    assert all(torch.isfinite(t).all() for t in kept["state_dict"].values() if t.is_floating_point())
    assert all(torch.isfinite(p).all() for p in trained(model).values())  # the model is as it was before the step


def test_parameters_that_are_not_finite_are_blamed_on_the_step_before_and_never_saved(data_root, tmp_path):
    data = in_order(data_root)
    data.setup()
    first_batch = data.train_data.samples.image_path.iloc[:8].tolist()
    with pytest.raises(NonFiniteTrainingError, match="has made 1 parameters not finite") as caught:
        train(comet(), in_order(data_root), tmp_path / "a", callbacks=[Spoil(4, nan_parameters)])
    assert f"The step before, on {', '.join(first_batch)}," in str(caught.value)

    class AtTheEnd(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                nan_parameters(pl_module)

    model = SimpleNet(**TINY_SIMPLENET, visualizer=False)
    with pytest.raises(NonFiniteTrainingError, match="not finite after step 6, so no checkpoint of them is written"):
        train(model, in_order(data_root), tmp_path / "b", callbacks=[AtTheEnd()])
    assert torch.load(one(tmp_path / "b"), weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(("every", "limits"), [(10, {}), (3, {}), (3, {"limit_val_batches": 0})])
def test_the_last_epoch_is_in_the_checkpoint_whatever_the_interval_of_validation(every, limits, data_root, tmp_path):
    model = comet(use_meta=False)
    train(model, surfaces(data_root), tmp_path, max_epochs=4, check_val_every_n_epoch=every, **limits)
    assert torch.load(one(tmp_path), weights_only=True)["epoch"] == 3


# ----------------------------------------------------------------------------------------------------- disk, processes
class FullDisk(Callback):
    """From an epoch on, no file can grow beyond some bytes."""

    def __init__(self, epoch, n_bytes):
        self.epoch, self.n_bytes = epoch, n_bytes

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.n_bytes, hard))


def test_a_full_disk_leaves_the_checkpoint_before_and_training_goes_on_from_it(data_root, tmp_path):
    whole = comet()
    train(whole, surfaces(data_root), tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="could not be written") as caught:
            train(comet(), surfaces(data_root), tmp_path / "full", callbacks=[FullDisk(2, 50_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoint = one(tmp_path / "full")
    assert str(checkpoint) in str(caught.value)
    assert "The one before it is whole; make room and go on from the last one by ckpt_path" in str(caught.value)
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.ckpt"]  # nothing unfinished is left
    resumed = comet()
    torch.manual_seed(5)
    engine(tmp_path / "resumed").fit(resumed, datamodule=surfaces(data_root), ckpt_path=checkpoint)
    assert identical(trained(whole), trained(resumed))  # shuffled in the same way, too


KILLED_PROCESS = """
import os, signal, sys

sys.path.insert(0, {tests!r})
from lightning.pytorch import Callback

from anomalib_comet.models import CoMetDifferNet
from helpers.tiny import surfaces, train


class Kill(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)


train(CoMetDifferNet(**{settings!r}), surfaces({data!r}), {root!r}, max_epochs=4, callbacks=[Kill()])
"""


def test_two_runs_in_one_folder_killed_in_mid_epoch_end_like_uninterrupted_ones(data_root, tmp_path):
    settings = {**TINY, **DRAWN_NOTHING, "warmup_epochs": 1}
    whole = CoMetDifferNet(**settings)
    surfaces(data_root).setup()  # renders the images
    processes = []
    for number, step in enumerate((7, 10)):
        script = KILLED_PROCESS.format(
            tests=str(Path(__file__).parent.parent),
            settings=settings,
            data=str(data_root),
            root=str(tmp_path / "runs"),
            step=step,
        )
        processes.append(subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True))
        # anomalib numbers the folders of runs, and of two runs that start at the same moment one would be refused.
        end = time.monotonic() + 120
        while not list((tmp_path / "runs").rglob(f"v{number}")) and time.monotonic() < end:
            time.sleep(0.05)
    train(whole, surfaces(data_root), tmp_path / "whole", max_epochs=4)
    for process in processes:
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == -signal.SIGKILL, errors

    for number, steps in enumerate((6, 9)):
        run = one(tmp_path / "runs", f"v{number}")
        checkpoint = one(run)
        assert torch.load(checkpoint, weights_only=True)["global_step"] == steps
        assert {path.name for path in run.iterdir()} >= {"contamination.json", "confidence_weights.csv"}
        resumed = CoMetDifferNet(**settings)
        engine(tmp_path / f"resumed{number}", max_epochs=4).fit(
            resumed, datamodule=surfaces(data_root), ckpt_path=checkpoint
        )
        assert identical(trained(whole), trained(resumed))
        assert resumed.confidence.weights == whole.confidence.weights


# -------------------------------------------------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def checkpoint(data_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    train(comet(), surfaces(data_root), root, max_epochs=1)
    return one(root)


def changed(checkpoint, path, change):
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def test_a_checkpoint_says_who_wrote_it(checkpoint):
    writer = torch.load(checkpoint, weights_only=True)[checkpoints.KEY]
    assert writer == checkpoints.written_by()
    assert writer["torch"] == torch.__version__.partition("+")[0]


def later_format(content):
    content[checkpoints.KEY] = {"format": 99, "anomalib-comet": "9.0.0", "anomalib": "3.1.0", "torch": "3.0.0"}


def unknown_argument(content):
    content[checkpoints.KEY]["anomalib-comet"] = "0.0.3"
    content["hyper_parameters"]["hidden_layers"] = 3


def other_parameters(content):
    content[checkpoints.KEY]["anomalib-comet"] = "0.0.3"
    state = content["state_dict"]
    name = next(name for name in state if name.endswith("weight") and state[name].ndim == 2)
    state[name] = torch.zeros(3, 3)
    state["model.gone"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (later_format, RuntimeError, r"is of anomalib-comet 9\.0\.0 \(anomalib 3\.1\.0.* update anomalib-comet"),
        (unknown_argument, TypeError, r"hidden_layers.*written by anomalib-comet 0\.0\.3 .*use the version that wrote"),
        (other_parameters, RuntimeError, r"1 other shapes .*is \(3, 3\) and not .*1 unknown \(model\.gone\).*0\.0\.3"),
    ],
)
def test_a_checkpoint_of_another_version_is_told_from_ours(change, error, said, checkpoint, data_root, tmp_path):
    path = changed(checkpoint, tmp_path / "other.ckpt", change)
    with pytest.raises(error, match=said):
        CoMetDifferNet.load_from_checkpoint(path)
    if error is RuntimeError:
        with pytest.raises(error, match=said):
            engine(tmp_path / "resumed").fit(comet(), datamodule=surfaces(data_root), ckpt_path=path)


class Malicious:
    """What unpickling makes of it touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_malicious_files_are_refused_everywhere(checkpoint, data_root, tmp_path, capsys):
    proof = tmp_path / "proof"
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["image_size"] = Malicious(proof)
    path = tmp_path / "malicious.ckpt"
    torch.save(content, path)
    refused = "is refused: it holds more than tensors and plain data, and could run code of whoever made it"
    with pytest.raises(pickle.UnpicklingError, match=refused):
        CoMetDifferNet.load_from_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match=refused):
        engine(tmp_path / "fit").fit(comet(), datamodule=surfaces(data_root), ckpt_path=path)
    with pytest.raises(pickle.UnpicklingError, match=refused):
        engine(tmp_path / "test").test(comet(), datamodule=surfaces(data_root), ckpt_path=path)
    assert audit(["--ckpt_path", str(path), "--model", "CoMetDifferNet", "--images", str(data_root)]) == 2
    assert "cannot be loaded safely" in capsys.readouterr().err
    weights = tmp_path / "weights.pth"
    torch.save({"conv": Malicious(proof)}, weights)
    with pytest.raises(ValueError, match="is not a state dict of"):
        FrozenBackbone("squeezenet1_1", backbone_weights=weights)
    assert not proof.exists()
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)  # the file is what it is said to be
    assert proof.exists()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_a_part_of_a_checkpoint_is_told(kept, checkpoint, data_root, tmp_path):
    whole = checkpoint.read_bytes()
    path = tmp_path / "part.ckpt"
    path.write_bytes(whole[: round(kept * len(whole))])
    assert not zipfile.is_zipfile(path)
    with pytest.raises(ValueError, match=r"part of one|part of a checkpoint"):
        CoMetDifferNet.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"part of one|part of a checkpoint"):
        engine(tmp_path).fit(comet(), datamodule=surfaces(data_root), ckpt_path=path)
