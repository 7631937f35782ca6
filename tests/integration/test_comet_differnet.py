# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetDifferNet through anomalib's engine: what is its own, beside ``test_comet_detectors.py``."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from anomalib_comet.confident_meta_learning import ConfidenceTable
from anomalib_comet.models import CoMetDifferNet
from helpers.tiny import TINY, engine, identical, in_order, surfaces, train, trained


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("surfaces")


def test_resumed_training_draws_the_same_rotations(data_root, tmp_path):
    def fresh():
        return CoMetDifferNet(**{**TINY, "train_rotations": "random"}, warmup_epochs=1, kappa=0.0)

    whole, first, second = fresh(), fresh(), fresh()
    train(whole, in_order(data_root), tmp_path / "whole", max_epochs=4)
    half = train(first, in_order(data_root), tmp_path / "half", max_epochs=2)
    resumed = engine(tmp_path / "half", max_epochs=4)
    resumed.fit(second, datamodule=in_order(data_root), ckpt_path=half.best_model_path)
    for name, expected in trained(whole).items():
        assert torch.equal(expected, trained(second)[name]), name
    assert second.confidence.weights == whole.confidence.weights


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
    before = trained(model)
    datamodule = surfaces(data_root)
    train(model, datamodule, tmp_path, max_epochs=1)
    assert not identical(before, trained(model))
    assert set(model.confidence.weights) == set(datamodule.train_data.samples.image_path)


def test_random_rotations_train_and_the_list_is_written_wherever_training_ends(data_root, tmp_path):
    model = CoMetDifferNet(**{**TINY, "train_rotations": "random", "n_windows": 0}, warmup_epochs=9)
    trained_by = train(model, surfaces(data_root), tmp_path, max_epochs=-1, max_steps=4, precision="bf16-mixed")
    assert trained_by.trainer.global_step == 4  # in the middle of the second epoch of three steps
    table = pd.read_csv(Path(trained_by.trainer.default_root_dir) / "confidence_weights.csv")
    assert len(table) == 20


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
        ({"image_size": (64,)}, "image_size must be a height and a width"),
        ({"cache_gib": -1.0}, "cache_gib must not be negative"),
        ({"feature_scaling": "none", "cross_fit_folds": 2, "cross_fit_epochs": 0}, "use feature_scaling=whiten"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoMetDifferNet(**{**TINY, **arguments})


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
    class Untrained(CoMetDifferNet):
        scores_before_training = False

    with pytest.raises(ValueError, match="cross_fit_epochs"):
        Untrained(**TINY, cross_fit_folds=2, cross_fit_epochs=0)


def test_statistics_are_fitted_with_the_weights_of_cross_fitting(data_root, tmp_path, monkeypatch):
    seen = []
    fit = CoMetDifferNet.fit_statistics
    monkeypatch.setattr(
        CoMetDifferNet,
        "fit_statistics",
        lambda self, training_set, weights=None, indices=None: (
            seen.append((dict(weights) if weights else None, indices)),
            fit(self, training_set, weights, indices),
        ),
    )
    strategy = {"cross_fit_folds": 2, "cross_fit_epochs": 0, "kappa": 0.0, "warmup_epochs": 9}
    model = CoMetDifferNet(**{**TINY, **CROSS_FITTED, **strategy})
    train(model, surfaces(data_root), tmp_path, max_epochs=2)
    (unweighted, of_all), first, second, (weights, also_all) = seen
    assert unweighted is first[0] is second[0] is None
    assert of_all is also_all is None
    assert sorted(first[1] + second[1]) == list(range(20))
    assert 0 < min(weights.values()) < 1


def test_other_images_are_scaled_anew(data_root, tmp_path):
    model = CoMetDifferNet(**{**TINY, **CROSS_FITTED})
    train(model, surfaces(data_root), tmp_path, max_epochs=1)
    before = model.model.scaling.mean.clone()
    train(model, surfaces(tmp_path / "others", seed=1), tmp_path, max_epochs=1)
    assert not torch.equal(before, model.model.scaling.mean)


def test_a_run_that_ends_by_steps_keeps_its_list_in_the_checkpoint(data_root, tmp_path):
    model = CoMetDifferNet(**TINY)
    trained_by = train(model, surfaces(data_root), tmp_path, max_epochs=-1, max_steps=4)
    (checkpoint,) = Path(trained_by.trainer.default_root_dir).rglob("*.ckpt")
    restored = CoMetDifferNet.load_from_checkpoint(checkpoint)
    assert restored.confidence.scores == model.confidence.scores
    assert len(restored.training_frame()) == 20
    assert restored.training_frame().attrs["threshold"] == model.confidence.threshold


def test_a_file_name_that_is_not_unicode_is_written_as_it_is(tmp_path):
    table = ConfidenceTable()
    name = b"\xff.png".decode(errors="surrogateescape")
    table.refresh([name, "b.png"], torch.tensor([2.0, 1.0]))
    table.write_csv(tmp_path / "list.csv")
    assert b"\xff.png" in (tmp_path / "list.csv").read_bytes()
