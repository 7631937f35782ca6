# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetDifferNet through anomalib's engine: invariants of the strategy, checkpoints, exports."""

import warnings
from pathlib import Path

import numpy as np
import openvino as ov
import pandas as pd
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, ExportType, OpenVINOInferencer, TorchInferencer
from torch.utils.data import DataLoader, Subset

from anomalib_comet.models import CoMetDifferNet, DifferNet
from helpers.tiny import TINY, engine, surfaces

OFF = {"use_weights": False, "use_meta": False, "use_adaptive_l2": False}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


def train(model, datamodule, root, **kwargs):
    torch.manual_seed(0)
    trained_by = engine(root, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained_by.fit(model, datamodule=datamodule, ckpt_path=kwargs.pop("ckpt_path", None))
    return trained_by


def flows(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def identical(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A finished training: model, datamodule, engine and folder of the run."""
    model = CoMetDifferNet(**TINY, warmup_epochs=1, kappa=0.5)
    datamodule = surfaces(data_root)
    trained_by = train(model, datamodule, tmp_path_factory.mktemp("run"), max_epochs=4)
    return model.eval(), datamodule, trained_by, Path(trained_by.trainer.default_root_dir)


def test_switches_off_is_the_base_detector_bit_for_bit(data_root, tmp_path):
    base, off, on = DifferNet(**TINY), CoMetDifferNet(**TINY, **OFF), CoMetDifferNet(**TINY)
    for model in (base, off, on):
        train(model, surfaces(data_root), tmp_path)
    assert identical(flows(base), flows(off))
    assert not identical(flows(base), flows(on))


def test_scrambled_training_labels_change_nothing(data_root, tmp_path):
    trained = []
    for scrambled in (False, True):
        datamodule = surfaces(data_root)
        if scrambled:
            generator = torch.Generator().manual_seed(1)

            def train_dataloader(datamodule=datamodule, generator=generator):
                def collate(items):
                    batch = datamodule.train_data.collate_fn(items)
                    batch.gt_label = torch.randint(2, batch.gt_label.shape, generator=generator).bool()
                    batch.gt_mask = torch.randint(2, batch.gt_mask.shape, generator=generator).bool()
                    return batch

                return DataLoader(datamodule.train_data, batch_size=8, shuffle=True, collate_fn=collate)

            datamodule.train_dataloader = train_dataloader
        model = CoMetDifferNet(**TINY, warmup_epochs=1, kappa=0.0)
        train(model, datamodule, tmp_path)
        trained.append((flows(model), model.confidence.weights))
    assert identical(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]


def test_weights_are_written_beside_the_run_with_the_truth(run):
    model, datamodule, _, folder = run
    table = pd.read_csv(folder / "confidence_weights.csv")
    assert len(table) == len(datamodule.train_data) == 20
    assert table.injected.sum() == 4
    assert set(table.image_path) == set(datamodule.train_data.samples.image_path)
    assert table.anomaly_score.is_monotonic_decreasing
    assert table.confidence_weight.between(0, 1).all()
    assert table.confidence_weight.min() < 1
    assert (folder / "contamination.json").exists()
    # The scores are those of the finished model, which is the one that gets exported.
    first = table.iloc[0]
    image = read_image(first.image_path, as_tensor=True)[None]
    raw = model.model(model.pre_processor(image)).pred_score.item()
    assert raw == pytest.approx(first.anomaly_score, rel=1e-4)


def test_checkpoint_keeps_scores_threshold_and_weights(run, tmp_path):
    model, datamodule, trained_by, _ = run
    restored = CoMetDifferNet.load_from_checkpoint(trained_by.best_model_path).eval()
    images = torch.rand(3, 3, 72, 72)
    expected, found = model(images), restored(images)
    for name in ("pred_score", "anomaly_map", "pred_label", "pred_mask"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name
    assert restored.confidence.frame().equals(model.confidence.frame())
    assert restored.loss_pairs.state() == model.loss_pairs.state()
    metrics = [engine(tmp_path).test(m, datamodule=surfaces(datamodule.datamodule.root))[0] for m in (model, restored)]
    assert metrics[0] == metrics[1]


def test_checkpoint_needs_no_weights_of_the_backbone(tmp_path):
    settings = {**TINY, "backbone": "mobilenetv2_100", "layers": ["blocks.1"]}
    model = DifferNet(**settings, pre_trained=False)
    trained_by = engine(tmp_path, max_epochs=1)
    trained_by.fit(model, datamodule=surfaces(tmp_path / "data"))
    state = torch.load(trained_by.best_model_path, weights_only=False)
    state["hyper_parameters"]["pre_trained"] = True  # what a user would have trained with, and cannot download here
    state["hyper_parameters"]["backbone_weights"] = "file of the training machine.pth"
    torch.save(state, tmp_path / "moved.ckpt")
    restored = DifferNet.load_from_checkpoint(tmp_path / "moved.ckpt").eval()
    image = torch.rand(1, 3, 72, 72)
    assert torch.equal(restored(image).pred_score, model.eval()(image).pred_score)


@pytest.mark.parametrize("rotations", ["quarter", "random"])
def test_resumed_training_equals_uninterrupted(rotations, data_root, tmp_path):
    def fresh():
        return CoMetDifferNet(**{**TINY, "train_rotations": rotations}, warmup_epochs=1, kappa=0.0)

    class Seeded:
        """The order of images must be the same in both runs for the comparison to mean anything."""

        def __new__(cls):
            datamodule = surfaces(data_root)
            datamodule.train_dataloader = lambda: DataLoader(
                datamodule.train_data, batch_size=8, shuffle=False, collate_fn=datamodule.train_data.collate_fn
            )
            return datamodule

    whole, first, second = fresh(), fresh(), fresh()
    train(whole, Seeded(), tmp_path / "whole", max_epochs=4)
    half = train(first, Seeded(), tmp_path / "half", max_epochs=2)
    resumed = engine(tmp_path / "half", max_epochs=4)
    resumed.fit(second, datamodule=Seeded(), ckpt_path=half.best_model_path)
    for name, expected in flows(whole).items():
        assert torch.equal(expected, flows(second)[name]), name
    assert second.confidence.weights == whole.confidence.weights


def test_exports_agree(run, tmp_path):
    model, datamodule, trained_by, _ = run
    images = torch.stack(
        [read_image(path, as_tensor=True) for path in datamodule.test_data.samples.image_path.iloc[:3]]
    )
    with torch.no_grad():
        expected = model(images)

    def outputs(path, hint="f32"):
        compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": hint})
        return {next(iter(port.get_names())): value for port, value in compiled([images.numpy()]).items()}

    def largest_difference(found, name):
        return float(np.abs(found[name].astype(float).ravel() - getattr(expected, name).numpy().ravel()).max())

    onnx = trained_by.export(model, ExportType.ONNX, export_root=tmp_path)
    full = trained_by.export(model, ExportType.OPENVINO, export_root=tmp_path)
    half = trained_by.export(
        model, ExportType.OPENVINO, export_root=tmp_path / "fp16", compression_type=CompressionType.FP16
    )
    int8 = trained_by.export(
        model, ExportType.OPENVINO, export_root=tmp_path / "int8", compression_type=CompressionType.INT8
    )
    for path, tolerance in ((onnx, 1e-4), (full, 1e-4), (half, 5e-3), (int8, 5e-2)):
        found = outputs(path)  # OpenVINO reads ONNX too; the batch is 3, the export was traced with another
        assert largest_difference(found, "pred_score") <= tolerance, path
        assert largest_difference(found, "anomaly_map") <= tolerance, path
        if tolerance < 1e-3:
            assert (found["pred_label"].ravel() == expected.pred_label.numpy().ravel()).all()
            assert np.mean(found["pred_mask"].ravel() != expected.pred_mask.numpy().ravel()) < 1e-3

    # anomalib's own inferencers, from the file to the label.
    image_path = datamodule.test_data.samples.image_path.iloc[0]
    by_openvino = OpenVINOInferencer(full, device="CPU").predict(image_path)
    assert by_openvino.pred_score.item() == pytest.approx(expected.pred_score[0].item(), abs=0.03)  # bf16 by default
    assert by_openvino.anomaly_map.shape[-2:] == (64, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUST_REMOTE_CODE", "1")
        exported = trained_by.export(model, ExportType.TORCH, export_root=tmp_path)
        by_torch = TorchInferencer(exported, device="cpu").predict(image_path)
    assert by_torch.pred_score.item() == pytest.approx(expected.pred_score[0].item(), abs=1e-5)


def test_second_order_and_cross_fitting_train(data_root, tmp_path):
    model = CoMetDifferNet(
        **TINY,
        image_score="local",
        second_order=True,
        cross_fit_folds=2,
        cross_fit_epochs=1,
        warmup_epochs=3,
        uncertainty_scale="raw",
    )
    before = flows(model)
    datamodule = surfaces(data_root)
    train(model, datamodule, tmp_path, max_epochs=1)
    assert not identical(before, flows(model))
    assert set(model.confidence.weights) == set(datamodule.train_data.samples.image_path)


def test_random_rotations_train_and_the_list_is_written_wherever_training_ends(data_root, tmp_path):
    model = CoMetDifferNet(**{**TINY, "train_rotations": "random", "n_windows": 0}, warmup_epochs=9)
    trained_by = train(model, surfaces(data_root), tmp_path, max_epochs=-1, max_steps=4, precision="bf16-mixed")
    assert trained_by.trainer.global_step == 4  # in the middle of the second epoch of three steps
    table = pd.read_csv(Path(trained_by.trainer.default_root_dir) / "confidence_weights.csv")
    assert len(table) == 20


@pytest.mark.parametrize("precision", ["bf16-true"])
def test_half_precision_parameters_are_refused(precision, data_root, tmp_path):
    with pytest.raises(ValueError, match="use 32-true or bf16-mixed"):
        train(CoMetDifferNet(**TINY), surfaces(data_root), tmp_path, precision=precision)


def test_other_images_start_with_full_confidence(data_root, tmp_path, caplog):
    model = CoMetDifferNet(**TINY, warmup_epochs=1, kappa=0.0)
    train(model, surfaces(data_root), tmp_path, max_epochs=1)
    assert min(model.confidence.weights.values()) < 1
    moved = surfaces(tmp_path / "elsewhere")
    train(model, moved, tmp_path, max_epochs=1)
    assert "weights start at 1" in caplog.text
    assert set(model.confidence.weights) == set(moved.train_data.samples.image_path)


def test_dataloaders_over_a_subset_are_scored(data_root, tmp_path):
    datamodule = surfaces(data_root)
    datamodule.setup()
    collate = datamodule.train_data.collate_fn
    loader = DataLoader(Subset(datamodule.train_data, range(3, 12)), batch_size=4, collate_fn=collate)
    model = CoMetDifferNet(**TINY)
    engine(tmp_path, max_epochs=1).fit(model, train_dataloaders=loader)
    assert list(model.confidence.scores) == list(datamodule.train_data.samples.image_path[3:12])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_momentum": 1.0}, r"weight_momentum must be in \[0, 1\)"),
        ({"train_share": 0.0}, r"train_share must be in \(0, 1\)"),
        ({"kappa": -1.0}, "kappa must not be negative"),
        ({"refresh_epochs": 0}, "refresh_epochs must be above zero"),
        ({"task_size": 3}, "task_size must be at least 4"),
        ({"cross_fit_folds": 1}, "cross_fit_folds"),
        ({"uncertainty_scale": "log"}, "uncertainty_scale must be one of"),
        ({"train_rotations": "none"}, "train_rotations must be one of"),
        ({"train_windows": 0}, "train_windows must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoMetDifferNet(**{**TINY, **arguments})


def test_history_of_every_epoch_lies_beside_the_run(run):
    _, _, _, folder = run
    history = pd.read_csv(folder / "comet_history.csv")
    assert history.epoch.tolist() == [0, 1, 2, 3]
    measured = ["loss_detector", "loss_weighted", "loss_l2", "inner_improvement", "inner_distance"]
    measured += ["model_uncertainty", "l2_strength", "confidence_threshold", "weight_min", "weight_median", "score_max"]
    assert history[measured].notna().all(axis=None)  # warm-up is one epoch, so that the first has weights at its end
    assert (history.loss_weighted <= history.loss_detector + 1e-6).all() or (history.loss_detector < 0).any()
    assert (history.inner_distance > 0).all()
    assert (folder / "comet_history.png").stat().st_size > 10_000


CROSS_FITTED = {"feature_scaling": "whiten", "identity_start": True, "pooling": "mean_std", "image_score": "both"}


def test_cross_fitting_without_training_weighs_the_feature_scaling(data_root, tmp_path):
    """Folds are scored with statistics of the other folds, and the last statistics are those of the weights."""
    fitted = {}
    for rounds, folds in ((1, 0), (1, 2), (3, 2)):
        model = CoMetDifferNet(
            **{**TINY, **CROSS_FITTED},
            kappa=0.0,
            weight_power=4.0,
            cross_fit_folds=folds,
            cross_fit_epochs=0,
            cross_fit_rounds=rounds,
            warmup_epochs=9,
        )
        train(model, surfaces(data_root), tmp_path, max_epochs=1)
        fitted[rounds, folds] = model.model.scaling.matrix.clone(), model
    assert not torch.equal(fitted[1, 0][0], fitted[1, 2][0])
    assert not torch.equal(fitted[1, 2][0], fitted[3, 2][0])


def test_cross_fitting_without_epochs_needs_something_to_fit():
    class NoStatistics(CoMetDifferNet):
        fit_statistics = property()

    with pytest.raises(ValueError, match="cross_fit_epochs"):
        NoStatistics(**TINY, cross_fit_folds=2, cross_fit_epochs=0)
