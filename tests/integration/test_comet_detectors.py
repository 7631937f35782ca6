# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Every detector under CoMet through anomalib's engine: invariants of the strategy, checkpoints, exports."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import pandas as pd
import pytest
import torch
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, ExportType, OpenVINOInferencer, TorchInferencer
from torch.utils.data import DataLoader, Subset

from anomalib_comet.backbones import FrozenBackbone
from anomalib_comet.models import CoMetDifferNet, CoMetSimpleNet, DifferNet, SimpleNet
from helpers.tiny import TINY, TINY_SIMPLENET, engine, identical, in_order, surfaces, train, trained

OFF = {"use_weights": False, "use_meta": False, "use_adaptive_l2": False}


class Detector(NamedTuple):
    """A detector, its version under CoMet, the arguments of a miniature, and those of its strategy."""

    base: type
    comet: type
    tiny: dict[str, Any]
    strategy: Mapping[str, Any] = MappingProxyType({})

    def plain(self, **kwargs: Any) -> Any:
        return self.base(**{**self.tiny, **kwargs})

    def __call__(self, **kwargs: Any) -> Any:
        return self.comet(**{**self.tiny, **self.strategy, **kwargs})


WHITENED = {"feature_scaling": "whiten", "identity_start": True, "pooling": "mean_std", "image_score": "both"}
CROSS_FITTED = {"cross_fit_folds": 2, "cross_fit_epochs": 0, "cross_fit_rounds": 2, "weight_power": 4.0}

# What a detector needs to be tested here is one line.
DETECTORS = {
    "differnet": Detector(DifferNet, CoMetDifferNet, TINY),
    "differnet-whitened": Detector(DifferNet, CoMetDifferNet, {**TINY, **WHITENED}, CROSS_FITTED),
    "simplenet": Detector(SimpleNet, CoMetSimpleNet, TINY_SIMPLENET),
    "simplenet-patch": Detector(
        SimpleNet, CoMetSimpleNet, {**TINY_SIMPLENET, "train_patches": 60}, {"weight_level": "patch"}
    ),
}


@pytest.fixture(scope="module", params=DETECTORS.values(), ids=DETECTORS)
def detector(request):
    return request.param


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


@pytest.fixture(scope="module")
def run(detector, data_root, tmp_path_factory):
    """A finished training: model, datamodule, engine and folder of the run."""
    model = detector(warmup_epochs=1, kappa=0.0)
    datamodule = surfaces(data_root)
    trained_by = train(model, datamodule, tmp_path_factory.mktemp("run"), max_epochs=4)
    return model.eval(), datamodule, trained_by, Path(trained_by.trainer.default_root_dir)


def test_switches_off_is_the_base_detector_bit_for_bit(detector, data_root, tmp_path):
    base, off, on = detector.plain(), detector(**OFF), detector()
    for model in (base, off, on):
        train(model, surfaces(data_root), tmp_path)
    assert identical(trained(base), trained(off))
    assert not identical(trained(base), trained(on))


def test_scrambled_training_labels_change_nothing(detector, data_root, tmp_path):
    results = []
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
        model = detector(warmup_epochs=1, kappa=0.0)
        train(model, datamodule, tmp_path)
        results.append((trained(model), model.confidence.weights))
    assert identical(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_history_of_every_epoch_lies_beside_the_run(run):
    _, _, _, folder = run
    history = pd.read_csv(folder / "comet_history.csv")
    assert history.epoch.tolist() == [0, 1, 2, 3]
    measured = ["loss_detector", "loss_weighted", "loss_l2", "inner_improvement", "inner_distance"]
    measured += ["model_uncertainty", "l2_strength", "confidence_threshold", "weight_min", "weight_median", "score_max"]
    assert history[measured].notna().all(axis=None)  # warm-up is one epoch, so that the first has weights at its end
    assert (history.inner_distance > 0).all()
    assert (folder / "comet_history.png").stat().st_size > 10_000


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
    images = torch.stack([read_image(path, as_tensor=True) for path in table.image_path])
    with torch.no_grad():
        scores = model.anchor(model.model(model.pre_processor(images)).pred_score)
    assert scores.numpy() == pytest.approx(table.anomaly_score, rel=1e-4, abs=1e-5)


def test_checkpoint_keeps_scores_threshold_and_weights(detector, run, tmp_path):
    model, datamodule, trained_by, _ = run
    restored = detector.comet.load_from_checkpoint(trained_by.best_model_path).eval()
    images = torch.rand(3, 3, 72, 72)
    expected, found = model(images), restored(images)
    for name in ("pred_score", "anomaly_map", "pred_label", "pred_mask"):
        assert torch.equal(getattr(expected, name), getattr(found, name)), name
    assert restored.confidence.frame().equals(model.confidence.frame())
    assert identical(restored.patch_confidence.weights, model.patch_confidence.weights)
    assert restored.loss_pairs.state() == model.loss_pairs.state()
    metrics = [engine(tmp_path).test(m, datamodule=surfaces(datamodule.datamodule.root))[0] for m in (model, restored)]
    assert metrics[0] == metrics[1]


def test_checkpoint_needs_no_weights_of_the_backbone(detector, tmp_path):
    model = detector.plain(backbone="mobilenetv2_100", layers=["blocks.1"], pre_trained=False)
    trained_by = engine(tmp_path, max_epochs=1)
    trained_by.fit(model, datamodule=surfaces(tmp_path / "data"))
    state = torch.load(trained_by.best_model_path, weights_only=False)
    state["hyper_parameters"]["pre_trained"] = True  # what a user would have trained with, and cannot download here
    state["hyper_parameters"]["backbone_weights"] = "file of the training machine.pth"
    torch.save(state, tmp_path / "moved.ckpt")
    restored = detector.base.load_from_checkpoint(tmp_path / "moved.ckpt").eval()
    image = torch.rand(1, 3, 72, 72)
    assert torch.equal(restored(image).pred_score, model.eval()(image).pred_score)


def test_resumed_training_equals_uninterrupted(detector, data_root, tmp_path):
    whole, first, second = (detector(warmup_epochs=1, kappa=0.0) for _ in range(3))
    train(whole, in_order(data_root), tmp_path / "whole", max_epochs=4)
    half = train(first, in_order(data_root), tmp_path / "half", max_epochs=2)
    resumed = engine(tmp_path / "half", max_epochs=4)
    resumed.fit(second, datamodule=in_order(data_root), ckpt_path=half.best_model_path)
    for name, expected in trained(whole).items():
        assert torch.equal(expected, trained(second)[name]), name
    assert second.confidence.weights == whole.confidence.weights
    assert identical(second.patch_confidence.weights, whole.patch_confidence.weights)
    assert bool(whole.patch_confidence.weights) == whole.by_patch


@pytest.mark.parametrize(
    "detector", [pytest.param(d, id=name) for name, d in DETECTORS.items() if not d.strategy], indirect=True
)
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


@pytest.mark.parametrize("precision", ["bf16-true"])
def test_half_precision_parameters_are_refused(detector, precision, data_root, tmp_path):
    with pytest.raises(ValueError, match="use 32-true or bf16-mixed"):
        train(detector(), surfaces(data_root), tmp_path, precision=precision)


def test_other_images_start_with_full_confidence(detector, data_root, tmp_path, caplog):
    model = detector(warmup_epochs=1, kappa=0.0)
    train(model, surfaces(data_root), tmp_path, max_epochs=1)
    assert min(model.confidence.weights.values()) < 1
    moved = surfaces(tmp_path / "elsewhere")
    train(model, moved, tmp_path, max_epochs=1)
    assert "weights start at 1" in caplog.text
    paths = set(moved.train_data.samples.image_path)
    assert set(model.confidence.weights) == paths
    assert set(model.patch_confidence.weights) == (paths if model.by_patch else set())


def test_dataloaders_over_a_subset_are_scored(detector, data_root, tmp_path):
    datamodule = surfaces(data_root)
    datamodule.setup()
    collate = datamodule.train_data.collate_fn
    loader = DataLoader(Subset(datamodule.train_data, range(3, 12)), batch_size=4, collate_fn=collate)
    model = detector()
    engine(tmp_path, max_epochs=1).fit(model, train_dataloaders=loader)
    assert list(model.confidence.scores) == list(datamodule.train_data.samples.image_path[3:12])


def test_training_ends_anywhere_in_mixed_precision(detector, data_root, tmp_path):
    model = detector(warmup_epochs=9)
    trained_by = train(model, surfaces(data_root), tmp_path, max_epochs=-1, max_steps=4, precision="bf16-mixed")
    assert trained_by.trainer.global_step == 4  # in the middle of the second epoch of three steps
    assert len(pd.read_csv(Path(trained_by.trainer.default_root_dir) / "confidence_weights.csv")) == 20


def test_features_are_computed_once_an_image(detector, data_root, tmp_path):
    counts = []
    for epochs in (1, 3):
        model = detector(warmup_epochs=1)
        seen = []
        network = next(m for m in model.modules() if isinstance(m, FrozenBackbone))
        network.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
        train(model, surfaces(data_root), tmp_path, max_epochs=epochs, limit_val_batches=0)
        counts.append(sum(seen))
    assert counts[0] == counts[1] > 0
