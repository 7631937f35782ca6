# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""MultidirectionalMeta through anomalib's engine: training, leaks, resuming, exports."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, ExportType
from anomalib.models import Supersimplenet
from anomalib.models.image.supersimplenet import torch_model
from PIL import Image

from anomalib_comet.data import ContaminatedDataModule, FewShotDataModule, ProceduralSurfaces
from anomalib_comet.guard import NonFiniteTrainingError
from anomalib_comet.models import MultidirectionalMeta
from anomalib_comet.post_processing import LabelFreePostProcessor
from helpers.tiny import engine, identical, train, trained

TINY = {
    "backbone": "gabor",
    "layers": ["scale2", "scale3"],
    "image_size": (64, 64),
    "inner_epochs": 2,
    "outer_epochs": 3,
    "lr": 1e-2,
    "visualizer": False,
}
LEVELS = {
    "image": {},
    "patch": {"level": "patch", "train_patches": 16},
    "published": {"pooling": "mean", "encoder": "mlp", "head": "linear", "hidden": (16, 8)},
}
HELD_OUT = "scratch"


def tiny(**kwargs):
    return MultidirectionalMeta(**{**TINY, **kwargs})


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


def few(root, **kwargs):
    counts = {"n_test_normal": 6, "n_test_anomalous": 24, "n_val_normal": 2, "n_val_anomalous": 8}
    counts["n_train"] = kwargs.pop("n_train", 24)
    surfaces = ProceduralSurfaces(root, image_size=72, num_workers=0, severity=1.0, train_batch_size=8, **counts)
    return FewShotDataModule(surfaces, **{"shots": 2, "held_out": [HELD_OUT], **kwargs})


@pytest.fixture(scope="module", params=list(LEVELS))
def run(request, data_root, tmp_path_factory):
    """A trained model of each level, its data module, engine and settings."""
    settings = LEVELS[request.param]
    model, data = tiny(**settings), few(data_root)
    return model, data, train(model, data, tmp_path_factory.mktemp("run")), settings


def test_an_epoch_is_an_episode_of_known_numbers(run):
    model, data, trained_by, settings = run
    assert len(model.records) == 3
    assert trained_by.trainer.global_step == 3 * (2 + 3) * (2 if settings.get("level") == "patch" else 1)
    logged = trained_by.trainer.callback_metrics
    names = {"inner_loss", "outer_loss", "temperature", "latent_spread"}
    assert names | {f"labelled_auroc_{name}" for name in ("model", "inner", "mahalanobis")} <= set(logged)
    # Validation has images of both kinds here.
    assert all(0 <= float(logged[f"val_auroc_{name}"]) <= 1 for name in ("model", "inner", "mahalanobis"))
    assert 0 < float(logged["latent_spread"]) <= 1
    assert HELD_OUT not in {name for record in model.records for name in record.classes}
    assert model._samples is None
    result = trained_by.test(model, datamodule=data, verbose=False)[0]
    assert 0 <= result["image_AUROC"] <= 1
    assert ("pixel_AUROC" in result) == (settings.get("level") == "patch")


def test_poisoned_images_of_a_held_out_type_change_nothing(data_root, tmp_path):
    """Training, scaling and thresholds are the same whatever the held-out images show."""

    def learned(name, poison):
        data = few(tmp_path / name, ratio=0.1)
        data.prepare_data()
        data.setup()
        if poison:
            rng = np.random.default_rng(0)
            test = data.test_data.samples
            paths = [
                p for p in (tmp_path / name).rglob("*.png") if HELD_OUT in p.parts and "ground_truth" not in p.parts
            ]
            assert len(paths) > 4
            assert {str(p) for p in paths} >= set(test.loc[test["label"] == HELD_OUT, "image_path"])
            for path in paths:
                Image.fromarray(rng.integers(0, 256, (72, 72, 3), dtype=np.uint8)).save(path)
        model = tiny()
        train(model, few(tmp_path / name, ratio=0.1), tmp_path / f"{name}_run")
        return model

    clean, poisoned = learned("clean", poison=False), learned("poisoned", poison=True)
    states = [{k: v.nan_to_num() for k, v in model.state_dict().items()} for model in (clean, poisoned)]
    assert identical(*states)  # thresholds and the range of scores are among them
    assert "post_processor._image_threshold" in states[0]
    seen = tiny()
    train(seen, few(data_root, held_out=None, ratio=0.1), tmp_path / "seen")
    assert not identical(trained(clean), trained(seen))  # the test can fail


@pytest.mark.parametrize("nested", [(), ("deep", "light")])
def test_held_out_images_that_are_all_of_validation_leave_it(nested, tmp_path):
    """Folder names types by folders: a validation set of one type alone still knows which one it is."""
    rng = np.random.default_rng(0)
    held_out = [f"test/scratch/{name}" for name in nested] or ["test/scratch"]
    counts = {"train/good": 12, "test/good": 6, "test/dent": 2, **dict.fromkeys(held_out, 12 // len(held_out))}
    for folder, count in counts.items():
        (tmp_path / folder).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / folder / f"{k}.png")

    def folders(share):
        arguments = {"normal_dir": "train/good", "normal_test_dir": "test/good", "num_workers": 0}
        arguments |= {"abnormal_dir": ["test/dent", *held_out], "val_split_mode": "from_test", "val_split_ratio": share}
        return Folder("x", root=tmp_path, **arguments)

    def anomalies_of(samples):
        return {Path(path).parts[len(tmp_path.parts) + 1] for path in samples.image_path[samples.label_index == 1]}

    def sets(share):
        whole = ContaminatedDataModule(folders(share), ratio=0.0)
        few = FewShotDataModule(folders(share), shots=1, held_out=["scratch"])
        whole.setup()
        few.setup()
        return whole, few

    alone = []
    for share in (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5):
        whole, few = sets(share)
        assert "scratch" not in anomalies_of(few.val_data.samples)
        tested = [path for path in few.test_data.samples.image_path if "scratch" in path]
        assert len(tested) == len(set(tested)) == 12
        alone += [share] if anomalies_of(whole.val_data.samples) == {"scratch"} else []
    assert alone  # the case is among them

    def learned(name):
        model = tiny()
        train(model, sets(alone[0])[1], tmp_path / name, max_epochs=1)
        return {k: v.nan_to_num() for k, v in model.state_dict().items()}

    clean = learned("clean")
    for path in (tmp_path / "test" / "scratch").rglob("*.png"):
        Image.fromarray(np.full((40, 40, 3), 7, dtype=np.uint8)).save(path)
    assert identical(clean, learned("poisoned"))


@pytest.mark.parametrize("settings", LEVELS.values(), ids=list(LEVELS))
def test_resumed_training_equals_uninterrupted(settings, data_root, tmp_path):
    whole = tiny(**settings)
    train(whole, few(data_root), tmp_path / "whole", max_epochs=4)
    half = tiny(**settings)
    train(half, few(data_root), tmp_path / "half", max_epochs=2)
    (checkpoint,) = (tmp_path / "half").rglob("*.ckpt")
    resumed = tiny(**settings)
    engine(tmp_path / "resumed", max_epochs=4).fit(resumed, datamodule=few(data_root), ckpt_path=checkpoint)
    assert identical(trained(whole), trained(resumed))
    assert not identical(trained(half), trained(resumed))
    assert identical(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))


@pytest.mark.parametrize("settings", [{}, {"encoder": "mlp", "hidden": (16, 8)}], ids=["radial", "perceptron"])
def test_a_second_fit_keeps_nothing_of_the_first_ones_images(settings, data_root, tmp_path):
    twice, once = tiny(**settings), tiny(**settings)
    train(twice, few(data_root, held_out=None), tmp_path / "first", max_epochs=1)
    for name, model in (("second", twice), ("only", once)):
        train(model, few(data_root), tmp_path / name, max_epochs=2)
    states = [{k: v.nan_to_num() for k, v in model.state_dict().items()} for model in (twice, once)]
    assert identical(*states)  # scaling, encoder, head, T, direction, thresholds and the range of scores
    assert twice.records == once.records
    assert twice._draws == once._draws


def test_validation_pools_all_three_scores_alike():
    """Before anything is learned they are the same score, whose top share of patches has the same mean."""
    model = tiny(level="patch", top_share=0.3).eval()
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = model.model.network
    network.fit_scaling(model.model.features(images[:4]).flatten(0, 2))
    model.validation_step(ImageBatch(image=images, gt_label=torch.tensor([0, 0, 0, 0, 1, 1])))
    ((_, score, inner, mahalanobis),) = model._validated
    assert torch.allclose(inner, score, atol=1e-3)
    assert torch.allclose(mahalanobis + np.log(len(network.direction)), score, atol=1e-3)


def test_a_validation_that_was_broken_off_leaves_no_scores(data_root, tmp_path, monkeypatch):
    model, data = tiny(), few(data_root)
    trained_by = train(model, data, tmp_path, max_epochs=1)
    step, kept = model.validation_step, []

    def failing(*args, **kwargs):
        step(*args, **kwargs)
        msg = "broken off"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(model, "validation_step", failing)
        with pytest.raises(RuntimeError, match="broken off"):
            trained_by.validate(model, datamodule=data, verbose=False)
    assert model._validated

    def watching(*args, **kwargs):
        kept.append(len(model._validated))
        return step(*args, **kwargs)

    monkeypatch.setattr(model, "validation_step", watching)
    trained_by.validate(model, datamodule=data, verbose=False)
    assert kept[0] == 0


def test_exports_and_checkpoint_agree(run, tmp_path):
    model, data, trained_by, settings = run
    images = torch.stack([read_image(p, as_tensor=True) for p in data.test_data.samples.image_path.iloc[:3]])
    model.eval()
    with torch.no_grad():
        expected = model(images)
        loaded = MultidirectionalMeta.load_from_checkpoint(trained_by.trainer.checkpoint_callback.best_model_path)
        assert torch.equal(loaded.eval()(images).pred_score, expected.pred_score)
    with_map = settings.get("level") == "patch"
    for kind, tolerance in (
        (ExportType.ONNX, 1e-4),
        (ExportType.OPENVINO, 1e-4),
        ("int8", 1e-1),
    ):  # of a tiny model, and of maps
        arguments = {"compression_type": CompressionType.INT8} if kind == "int8" else {}
        path = trained_by.export(
            model, ExportType.OPENVINO if kind == "int8" else kind, export_root=tmp_path / str(kind), **arguments
        )
        compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = {next(iter(port.get_names())): value for port, value in compiled([images.numpy()]).items()}
        for name in ("pred_score", "anomaly_map") if with_map else ("pred_score",):
            difference = np.abs(found[name].ravel() - getattr(expected, name).numpy().ravel()).max()
            assert difference <= tolerance, (kind, name)
    assert float(expected.pred_score.max()) > float(expected.pred_score.min())


def test_perturbation_is_the_same_in_the_engine_and_exported(data_root, tmp_path):
    model, data = tiny(odin=0.05), few(data_root)
    trained_by = train(model, data, tmp_path, max_epochs=1)
    trained_by.validate(model, datamodule=data, verbose=False)
    assert 0 <= trained_by.test(model, datamodule=data, verbose=False)[0]["image_AUROC"] <= 1
    predicted = torch.cat([batch.pred_score for batch in trained_by.predict(model, datamodule=data)])
    assert bool(predicted.isfinite().all())
    paths = data.test_data.samples.image_path.iloc[:3]
    images = torch.stack([read_image(path, as_tensor=True) for path in paths])
    expected = model.eval()(images).pred_score.detach()
    assert torch.allclose(expected.ravel(), predicted[:3].ravel(), atol=1e-5)
    exported = trained_by.export(model, ExportType.OPENVINO, export_root=tmp_path / "exported")  # by way of ONNX
    compiled = ov.Core().compile_model(str(exported), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([images.numpy()])["pred_score"]
    model.model.network.odin = 0.0
    plain = model(images).pred_score.detach().numpy()
    assert np.abs(found.ravel() - expected.numpy().ravel()).max() < 1e-4 < np.abs(plain.ravel() - found.ravel()).max()


@pytest.mark.parametrize(
    ("arguments", "level", "sentence"),
    [
        ({"shots": 0}, "image", "There are no labelled anomalies in the training set"),
        ({"shots": 1}, "image", "One labelled anomaly says little of its type: fibre, hole, stain"),
        ({"shots": 1}, "patch", "One labelled anomaly says little of its type: fibre, hole, stain"),
        ({"shots": 1}, "image", "part of the score is left out: 2 types of at least 2 labelled anomalies each are"),
        ({"n_train": 11}, "image", "part of the score is left out: 12 normal images are needed .* there are 11"),
        ({"held_out": ["scratch", "stain", "hole"]}, "image", "All labelled anomalies are of one type, 'fibre'"),
        ({"masks": False}, "patch", "have no mask: their patches that lie farthest"),
    ],
)
def test_little_is_enough_and_said(arguments, level, sentence, data_root, tmp_path, caplog):
    arguments = dict(arguments)
    masks = arguments.pop("masks", True)
    data = few(tmp_path / "few" if "n_train" in arguments else data_root, **arguments)
    data.prepare_data()
    data.setup()
    if not masks:
        data.train_data.samples["mask_path"] = ""
        data.train_data.samples.attrs["task"] = "classification"
    model = tiny(level=level)
    caplog.set_level("INFO", "anomalib_comet")
    train(model, data, tmp_path, max_epochs=1)
    assert f"of {len(model.model.network.direction)} features are whitened" in caplog.text
    assert re.search(sentence, caplog.text)
    assert (model.records[0].outer_loss is None) == (arguments.get("shots") == 0)


@pytest.mark.parametrize("pcgrad", [False, True])
def test_training_that_diverges_is_stopped(pcgrad, data_root, tmp_path):
    with pytest.raises(NonFiniteTrainingError, match=r"lower (the|learning) "):
        train(tiny(lr=1e5, pcgrad=pcgrad), few(data_root), tmp_path)


def test_thresholds_need_no_label(data_root, tmp_path):
    model = tiny(post_processor=LabelFreePostProcessor())
    data = few(data_root, val_split_mode="from_train", val_split_ratio=0.25)
    trained_by = train(model, data, tmp_path)
    assert set(data.val_data.samples["label_index"]) == {0}
    threshold = float(model.post_processor.image_threshold)
    assert np.isfinite(threshold)
    scores = torch.cat([batch.pred_score for batch in trained_by.predict(model, datamodule=data)])
    assert bool(((scores >= 0) & (scores <= 1)).all())


def test_stock_model_that_reads_labels_trains_on_the_same_module(data_root, tmp_path, monkeypatch):
    # No weights can be downloaded here, and none are needed to see what comes in.
    extractor = partial(torch_model.TimmFeatureExtractor, pre_trained=False)
    monkeypatch.setattr(torch_model, "TimmFeatureExtractor", extractor)
    seen = []

    class Watching(Supersimplenet):
        def training_step(self, batch, *args, **kwargs):
            seen.append((batch.gt_label.sum().item(), bool(batch.gt_mask.any())))
            return super().training_step(batch, *args, **kwargs)

    resize = Supersimplenet.configure_pre_processor((128, 128))
    model = Watching(backbone="resnet18", layers=["layer2"], supervised=True, pre_processor=resize, visualizer=False)
    train(model, few(data_root), tmp_path, max_epochs=1)
    assert sum(count for count, _ in seen) == 2 * 3  # two shots of three types
    assert any(mask for _, mask in seen)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"level": "pixel"}, "level must be one of"),
        ({"pooling": "max"}, "pooling one of"),
        ({"patch_pool": 2}, "patch_pool must be odd"),
        ({"patch_pool": 2.5}, "patch_pool must be odd"),
        ({"sigma": float("nan")}, "sigma be a number above zero"),
        ({"lr": 0.0}, "lr must be a number above zero"),
        ({"lr": float("nan")}, "lr must be a number above zero"),
        ({"train_patches": 2.5}, "train_patches a whole number of at least 1, got 0.01 and 2.5"),
        ({"outer_epochs": 0}, "outer_epochs must be a whole number of at least 1"),
        ({"encoder": "mlp", "hidden": (8, 4, 2)}, "hidden must be two whole numbers"),
    ],
)
def test_bad_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(**change)
