# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The network and its two phases: what each may change, and what a radial head starts as."""

import numpy as np
import pytest
import torch

from anomalib_comet.backbones import FeatureScaling
from anomalib_comet.multidirectional_meta import (
    Direction,
    EpisodeSettings,
    MultidirectionalNetwork,
    Stepper,
    fit_direction,
    inner_phase,
    make_optimizers,
    outer_phase,
    run_episode,
)

D = 6


@pytest.fixture
def normals():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(D, D, generator=generator)
    return torch.randn(120, D, generator=generator) @ mixing + 3.0


def network(normals, **kwargs):
    made = MultidirectionalNetwork(D, hidden=(16, 8), **kwargs)
    made.fit_scaling(normals)
    return made


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_radial_head_starts_as_the_mahalanobis_distance(normals):
    made = network(normals).eval()
    others = torch.cat([normals, normals + 4.0])
    scaled = made.scaling(normals)
    covariance = scaled.T @ scaled / len(normals)
    assert torch.allclose(covariance, torch.diag(covariance.diag()), atol=1e-3)  # principal axes
    # s = 2 - (distance - mean) / std, by hand
    distance = made.scaling(others).square().sum(1)
    known = made.scaling(normals).double().square().sum(1)
    expected = 2.0 - (distance - known.mean()) / known.std()
    assert torch.allclose(made.margins(others), expected.float(), atol=1e-3)
    assert torch.allclose(made.mahalanobis_scores(others), distance / D)
    assert torch.equal(made.inner_scores(others), -made.margins(others))


@pytest.mark.parametrize("head", ["radial", "linear"])
@pytest.mark.parametrize("pcgrad", [False, True])
def test_outer_phase_leaves_theta_bit_identical_and_bounds_t(normals, head, pcgrad):
    made = network(normals, encoder="mlp", head=head)
    settings = EpisodeSettings(outer_epochs=30, batch_size=50, pcgrad=pcgrad)
    stepper = Stepper(*make_optimizers(made, lr=0.5))  # wild: T would leave its bounds
    generator = torch.Generator().manual_seed(0)
    inner_phase(made, normals, settings, stepper, generator)
    theta = [state(part) for part in (made.scaling, made.encoder, made.decoder)]
    phi = state(made.head)
    anomalies = [normals[:4] + 9.0, normals[4:7] - 9.0]
    outer_phase(made, normals, anomalies, settings, stepper, generator)
    for part, before in zip((made.scaling, made.encoder, made.decoder), theta, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
    assert any(not torch.equal(value, phi[name]) for name, value in made.head.state_dict().items())
    assert 0.5 <= made.temperature.item() <= 10.0


def test_inner_phase_sees_normal_samples_only(normals):
    settings = EpisodeSettings(inner_epochs=2, batch_size=50)
    trained = []
    for shift in (5.0, -50.0):
        made = network(normals, encoder="mlp", head="linear")
        stepper = Stepper(*make_optimizers(made, lr=1e-3))
        record = run_episode(
            made, normals, {"a": normals[:3] + shift}, settings, stepper, torch.Generator().manual_seed(1)
        )
        trained.append((record.inner_loss, state(made.encoder), state(made.inner_head)))
    assert trained[0][0] == trained[1][0]
    for first, second in zip(trained[0][1:], trained[1][1:], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_outer_phase_learns_which_directions_matter(normals):
    made = network(normals)
    scaled = 0.1 * torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    scaled[:, 2] = 2.5
    anomalies = made.scaling.mean + torch.linalg.solve(made.scaling.matrix, scaled.T).T
    stepper = Stepper(*make_optimizers(made, lr=1e-2))
    for seed in range(5):
        record = run_episode(
            made, normals, {"a": anomalies}, EpisodeSettings(), stepper, torch.Generator().manual_seed(seed)
        )
    weights = made.head.log_weights.detach()
    # The last axis hardly varies, and less than the shrunken covariance says: it costs nothing to listen to it.
    assert weights[2] > weights[[0, 1, 3, 4]].max() + 0.5
    assert set(record.auroc) == {"model", "inner", "mahalanobis"}
    assert record.classes == ["a"]


def test_supervised_part_is_added_to_the_distance_and_to_nothing_else(normals):
    made = network(normals).eval()
    before = made(normals)
    weights = torch.arange(1.0, D + 1)
    made.use_direction(Direction(weights=weights, share=0.5, std=3.0, auroc={}))
    # score = -(2 - g (distance - mean) / d) + g / d * 3 * direction, with g = T = 1 at the start
    expected = before + 3.0 / made.head.std * (made.scaling(normals) @ weights)
    assert torch.allclose(made(normals), expected, atol=1e-4)
    assert torch.equal(made.inner_scores(normals), before)


def test_share_of_the_supervised_part_follows_held_out_classes():
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(200, 10, generator=generator)
    shared = torch.randn(2, 12, 10, generator=generator)
    shared[:, :, 0] += 2.0  # both classes lie on one side of one feature
    own = torch.randn(2, 12, 10, generator=generator)
    own[0, :, 1] += 3.0
    own[1, :, 1] -= 3.0  # what tells the one class points away from the other
    scaling = FeatureScaling(10, "pca")
    scaling.fit(normals, torch.ones(200))
    found = [
        fit_direction(normals, {"a": part[0], "b": part[1]}, scaling, torch.Generator().manual_seed(0))
        for part in (shared, own)
    ]
    assert found[0].share >= 0.5
    assert found[1].share == 0.0
    assert found[0].auroc[2.0] > found[0].auroc[0.0]
    assert fit_direction(normals, {"a": shared[0]}, scaling, torch.Generator()) is None
    single = {"a": shared[0, :1], "b": shared[1]}  # one sample of a class does not say how well the class is found
    assert fit_direction(normals, single, scaling, torch.Generator()) is None
    some = {**single, "c": shared[0, 1:3]}
    assert fit_direction(normals, some, scaling, torch.Generator()) is not None
    few = fit_direction(normals[:13], {"a": shared[0], "b": shared[1]}, scaling, torch.Generator())
    assert few is not None  # 13 in four folds leave none with a single sample
    assert np.isfinite(few.std)


def test_patches_of_an_image_are_held_out_together():
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(16).repeat_interleave(20)
    # Patches of an image lie close to each other and far from those of other images, as anomalies do.
    centres = 3.0 * torch.randn(16 + 10, 60, generator=generator)
    normals = centres[images] + torch.randn(len(images), 60, generator=generator)
    anomalies = {name: centres[16 + k :: 2] + torch.randn(5, 60, generator=generator) for k, name in enumerate("ab")}
    scaling = FeatureScaling(60, "pca")
    scaling.fit(normals, torch.ones(len(normals)))
    arguments = (normals, anomalies, scaling, torch.Generator().manual_seed(0))
    known = fit_direction(*arguments)
    unknown = fit_direction(*arguments, images)
    assert known.auroc[0.0] > 0.99  # other patches of each held-out image were fitted
    assert unknown.auroc[0.0] < 0.9
    assert fit_direction(*arguments, images.clamp(max=10)) is None  # eleven images, less than three a fold


def test_logarithm_of_a_score_is_that_of_the_distance(normals):
    made = network(normals).eval()
    scores = made(normals)
    assert torch.allclose(made.logarithmic(scores), (D * made.mahalanobis_scores(normals)).log(), atol=1e-3)
    wide = torch.linspace(-50.0, 50.0, 200)
    assert bool((made.logarithmic(wide).diff() > 0).all())  # also where the supervised part outweighs the distance
    logits = network(normals, head="linear").eval()
    assert torch.equal(logits.logarithmic(scores), scores)


def test_compared_scores_are_on_the_scale_of_the_model(normals):
    made = network(normals).eval()
    for name, shift in (("mahalanobis", torch.tensor(float(D)).log()), ("inner", torch.tensor(0.0))):
        found = made.compared_scores(normals)[name] + shift
        assert torch.allclose(found, made.logarithmic(made(normals)), atol=1e-3)  # nothing is learned yet
    before = made.compared_scores(normals)["inner"]
    with torch.no_grad():
        for parameter in (*made.phi, made.log_temperature):
            parameter.add_(0.3)
    assert torch.equal(made.compared_scores(normals)["inner"], before)  # neither the new head nor its temperature
    made.inner_head.load_state_dict(made.head.state_dict())
    assert torch.allclose(made.compared_scores(normals)["inner"], made.logarithmic(made(normals)), atol=1e-3)
    logits = network(normals, head="linear").eval()
    assert torch.equal(logits.compared_scores(normals)["inner"], logits.inner_scores(normals))
    assert bool(made.compared_scores(made.scaling.mean[None])["mahalanobis"].isfinite().all())


def test_perturbation_raises_the_confidence_of_normal(normals):
    plain, perturbed = network(normals), network(normals, odin=0.05)
    assert (perturbed(normals) < plain(normals)).all()
    with torch.inference_mode():  # as anomalib's engine evaluates, and with a network that was made in it
        made_here = network(normals, odin=0.05)
        assert torch.equal(perturbed(normals.clone()), perturbed(normals))
        assert torch.equal(made_here(normals.clone()), perturbed(normals))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"encoder": "cnn"}, "encoder must be one of"),
        ({"dropout": 1.0}, r"dropout lie in \[0, 1\)"),
        ({"dropout": float("nan")}, r"dropout lie in \[0, 1\)"),
        ({"odin": -1.0}, "odin be a number and not be negative"),
        ({"odin": float("nan")}, "odin be a number and not be negative"),
        ({"hidden": (8, 4, 2)}, r"hidden must be two whole numbers above zero, .* got \(8, 4, 2\)"),
        ({"hidden": (8,)}, "hidden must be two whole numbers above zero"),
        ({"hidden": 8}, "hidden must be two whole numbers above zero"),
    ],
)
def test_bad_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        MultidirectionalNetwork(D, **change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"outer_epochs": 0}, "outer_epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
        ({"random": -1}, "random must be a whole number of at least 0, got -1"),
        ({"alpha": float("nan")}, "alpha must be a number and not be negative, got nan"),
        ({"margin": "1"}, "margin must be a number and not be negative, got '1'"),
    ],
)
def test_bad_numbers_of_an_episode_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        EpisodeSettings(**change)


def test_scaling_needs_two_finite_samples(normals):
    made = MultidirectionalNetwork(D)
    with pytest.raises(ValueError, match="At least 2 normal samples"):
        made.fit_scaling(normals[:1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        made.fit_scaling(torch.cat([normals, torch.full((1, D), float("nan"))]))
