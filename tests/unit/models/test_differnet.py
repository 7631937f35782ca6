# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Parts of DifferNet against definitions."""

import math

import pytest
import torch
from anomalib.models.components import GaussianBlur2d
from FrEIA.modules import GLOWCouplingBlock
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_comet.backbones import FeatureCache, FeatureScaling
from anomalib_comet.models.differnet.anomaly_map import AnomalyMapGenerator, turn, turn_back
from anomalib_comet.models.differnet.augmentation import random_rotations
from anomalib_comet.models.differnet.flow import NormalizingFlow
from anomalib_comet.models.differnet.loss import DifferNetLoss
from anomalib_comet.models.differnet.torch_model import (
    DifferNetModel,
    mean_of_largest,
    spatial_mean,
    spatial_std,
    window_means,
)


def small_model(**kwargs):
    arguments = {
        "backbone": "gabor",
        "image_size": (64, 64),
        "n_scales": 2,
        "coupling_blocks": 2,
        "hidden_units": 16,
        "n_windows": 4,
        "local_coupling_blocks": 2,
        "local_hidden_units": 8,
    }
    return DifferNetModel(**{**arguments, **kwargs}).eval()


def test_flow_is_invertible_and_knows_its_jacobian():
    flow = NormalizingFlow(10, coupling_blocks=3, hidden_units=16).double()
    x = torch.randn(5, 10, dtype=torch.float64)
    z, log_det = flow(x)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda v: flow(v[None])[0][0]))(x)
    assert torch.allclose(torch.linalg.slogdet(jacobians).logabsdet, log_det, atol=1e-10)
    assert torch.allclose(flow.inverse(z), x, atol=1e-10)


def test_coupling_is_clamped_as_published():
    # With both subnets constant, the block computes exp(alpha * 0.636 * atan(s / alpha)) * x + t for each half.
    flow = NormalizingFlow(2, coupling_blocks=1, hidden_units=4, clamp=3.0).double()
    coupling = flow.couplings[0]
    assert isinstance(coupling, GLOWCouplingBlock)
    for subnet in (coupling.subnet1, coupling.subnet2):
        torch.nn.init.zeros_(subnet[-1].weight)
        subnet[-1].bias.data = torch.tensor([6.0, 0.5], dtype=torch.float64)  # s, t
    _, log_det = flow(torch.ones(1, 2, dtype=torch.float64))
    assert log_det.item() == pytest.approx(2 * 3.0 * 0.636 * math.atan(6.0 / 3.0))


def test_flow_draws_from_its_own_generator():
    state = torch.get_rng_state()
    first, second, other = (NormalizingFlow(6, 2, 8, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_loss_by_hand():
    # Two transforms of one image: (.5 * (1 + 9) - 1) / 2 = 2 and (.5 * (4 + 0) - 0) / 2 = 1.
    z = torch.tensor([[[1.0, 3.0], [2.0, 0.0]]])
    assert DifferNetLoss()(z, torch.tensor([[1.0, 0.0]])).tolist() == [1.5]


def test_score_is_the_mean_square_over_turns():
    model = small_model()
    image = torch.rand(1, 3, 64, 64)
    by_hand = [model.flow(model.features(torch.rot90(image, k, (2, 3)))[0])[0].square().mean() for k in range(4)]
    assert model(image).pred_score.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


@pytest.mark.parametrize("k", range(4))
def test_turns_are_exact(k):
    image = torch.rand(2, 3, 5, 7)
    assert torch.equal(turn(image, k), torch.rot90(image, k, (-2, -1)))
    assert torch.equal(turn_back(turn(image, k), k), image)


def test_score_and_map_follow_a_turned_image():
    model = small_model()
    image = torch.rand(2, 3, 64, 64)
    plain, turned = model(image), model(turn(image, 1))
    assert torch.allclose(plain.pred_score, turned.pred_score, rtol=1e-5)
    assert torch.allclose(turn(plain.anomaly_map, 1), turned.anomaly_map, rtol=1e-4, atol=1e-5)
    assert plain.anomaly_map.shape == (2, 1, 64, 64)


def test_oblong_images():
    model = small_model(image_size=(64, 96))
    image = torch.rand(2, 3, 64, 96)
    output = model(image)
    assert output.anomaly_map.shape == (2, 1, 64, 96)
    assert torch.allclose(output.pred_score, model(turn(image, 2)).pred_score, rtol=1e-5)


def test_map_is_high_where_the_windows_are_unlikely():
    model = small_model()
    image = torch.full((1, 3, 64, 64), 0.2)
    image[..., :16, 48:] = torch.rand(3, 16, 16) * 8
    anomaly_map = model(image).anomaly_map[0, 0]
    row, column = divmod(int(anomaly_map.argmax()), 64)
    assert row < 24
    assert column >= 40


@pytest.mark.parametrize("sigma", [1.0, 4.0, 8.0])
def test_map_is_smoothed_as_by_anomalibs_square_kernel(sigma):
    scores = torch.rand(2, 7, 5)
    enlarged = torch.nn.functional.interpolate(scores[:, None], size=(63, 40), mode="bilinear", align_corners=False)
    smooth = GaussianBlur2d(sigma=sigma, border_type="replicate")(enlarged)
    assert torch.allclose(AnomalyMapGenerator(sigma)(scores, (63, 40)), smooth, rtol=0, atol=5e-6)


def test_local_image_score_is_the_most_anomalous_window():
    image = torch.rand(2, 3, 64, 64)
    model = small_model(image_score="local")
    windows = model.turned_features(image)[1]
    expected = model.local_latents(windows)[0].square().mean(dim=(1, 4)).flatten(1).max(1).values
    assert torch.allclose(model(image).pred_score, expected)
    assert torch.equal(model(image).anomaly_map, small_model()(image).anomaly_map)
    with pytest.raises(ValueError, match="image_score must be"):
        small_model(image_score="local", n_windows=0)


def test_window_means():
    feature_map = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert window_means(feature_map, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert window_means(feature_map, (8, 8)).shape == (1, 1, 8, 8)


def test_image_score_does_not_depend_on_the_map():
    image = torch.rand(1, 3, 64, 64)
    without = small_model(n_windows=0)(image)
    assert without.anomaly_map is None
    assert torch.equal(without.pred_score, small_model()(image).pred_score)


def test_random_rotations():
    images = torch.rand(2, 3, 32, 32)
    rotated = random_rotations(images, 4, torch.Generator().manual_seed(0))
    assert rotated.shape == (2, 4, 3, 32, 32)
    assert torch.equal(rotated, random_rotations(images, 4, torch.Generator().manual_seed(0)))
    disc = (torch.linspace(-1, 1, 65)[:, None] ** 2 + torch.linspace(-1, 1, 65) ** 2 < 0.5).float().expand(1, 3, 65, 65)
    spun = random_rotations(disc, 8, torch.Generator().manual_seed(1))[0]
    assert (spun - disc).abs().mean() < 0.02  # a disc looks the same at any angle


def test_cache_computes_an_image_once_and_respects_its_bound():
    calls = []

    def compute(images):
        calls.append(len(images))
        return (images.mean(dim=(2, 3)), images)

    images = torch.rand(3, 3, 4, 4)
    cache = FeatureCache(gib=1)
    first = cache.get(["a", "b", "c"], images, compute)
    again = cache.get(["c", "a", "d"], images[[2, 0, 1]], compute)
    assert calls == [3, 1]
    assert torch.equal(again[0][:2], first[0][[2, 0]])
    assert torch.equal(again[1], images[[2, 0, 1]])
    one_image = images[0].numel() * 4 + 3 * 4
    bounded = FeatureCache(gib=2.5 * one_image / 1024**3)
    bounded.get(["a", "b", "c"], images, compute)
    assert len(bounded) == 2
    assert torch.equal(bounded.get(["a", "c", "b"], images[[0, 2, 1]], compute)[1], images[[0, 2, 1]])


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="n_transforms must be 1, 2 or 4"):
        small_model(n_transforms=3)
    with pytest.raises(ValueError, match="n_scales"):
        small_model(n_scales=0)
    with pytest.raises(ValueError, match="too small"):
        small_model(backbone="torchvision/alexnet", pre_trained=False).features.check_image_size((64, 64))
    with pytest.raises(ValueError, match="n_windows=100"):
        small_model(n_windows=100).features.check_image_size((64, 64))
    with pytest.raises(ValueError, match="positive clamp"):
        small_model(clamp=0.0)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_whitening_gives_the_weighted_covariance_of_the_identity(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = (
        torch.randn(4000, 5, generator=generator) @ (torch.eye(5) + 0.2 * torch.randn(5, 5, generator=generator)) + 3.0
    )
    weights = torch.rand(4000, generator=generator)
    scaling = FeatureScaling(5, "whiten")
    scaling.fit(vectors, weights)
    white = scaling(vectors).double()
    shares = (weights / weights.sum()).double()[:, None]
    torch.testing.assert_close((shares * white).sum(0), torch.zeros(5, dtype=torch.float64), atol=1e-3, rtol=0)
    covariance = (shares * white).T @ white
    torch.testing.assert_close(covariance, torch.eye(5, dtype=torch.float64), atol=0.1, rtol=0)  # shrinkage is small


def test_an_image_of_weight_zero_does_not_move_the_scaling():
    vectors = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0], [100.0, -100.0]])
    for kind in ("standardize", "whiten"):
        with_outlier, without = FeatureScaling(2, kind), FeatureScaling(2, kind)
        with_outlier.fit(vectors, torch.tensor([1.0, 1.0, 1.0, 0.0]))
        without.fit(vectors[:3], torch.ones(3))
        torch.testing.assert_close(with_outlier.mean, without.mean)
        if kind == "standardize":  # shrinkage depends on the number of vectors
            torch.testing.assert_close(with_outlier.matrix, without.matrix)
            torch.testing.assert_close(without.matrix, 1 / vectors[:3].std(0, correction=0))


def test_first_scores_of_an_identity_flow_on_whitened_features_are_mahalanobis_distances():
    model = small_model(n_scales=1, n_windows=0, feature_scaling="whiten", identity_start=True)
    pooled = torch.randn(300, 1, model.features.n_features) * torch.arange(1, model.features.n_features + 1)
    model.fit_scaling(pooled, None, torch.ones(300))
    white = (pooled[:, 0] - model.scaling.mean) @ model.scaling.matrix.T
    torch.testing.assert_close(model.score((pooled,)), white.square().mean(1), rtol=1e-4, atol=1e-4)


def test_std_pooling_sees_a_small_spot_that_the_mean_hardly_shows():
    flat = torch.zeros(1, 1, 16, 16)
    spot = flat.clone()
    spot[..., 3, 4] = 1.0
    assert float(spatial_mean(spot)) == pytest.approx(1 / 256)
    assert float(spatial_std(spot)) == pytest.approx((1 / 256 * (1 - 1 / 256)) ** 0.5, rel=1e-4)
    assert float(spatial_std(flat)) < 1e-5


def test_image_scores_of_windows():
    values = torch.tensor([[1.0, 5.0, 3.0, 2.0], [0.0, 0.0, 0.0, 8.0]])
    assert mean_of_largest(values, 0.0).tolist() == [5.0, 8.0]
    assert mean_of_largest(values, 0.5).tolist() == [4.0, 4.0]
    assert mean_of_largest(values, 1.0).tolist() == [2.75, 2.0]


def test_both_is_the_geometric_mean_of_global_and_local():
    scores = {}
    pooled, windows = torch.randn(3, 1, 44), torch.randn(3, 1, 44, 4, 4)
    for kind in ("global", "local", "both"):
        model = small_model(n_scales=1, n_transforms=1, image_score=kind, local_share=0.25)
        scores[kind] = model.score((pooled, windows))
    torch.testing.assert_close(scores["both"], (scores["global"] * scores["local"]).sqrt())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image_score": "both", "n_windows": 0}, "need windows"),
        ({"local_share": 1.5}, "local_share"),
        ({"pooling": "max"}, "pooling"),
        ({"feature_scaling": "zca"}, "feature_scaling"),
    ],
)
def test_wrong_scores_and_scalings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        small_model(**wrong)


def test_a_feature_that_does_not_vary_keeps_its_size():
    vectors = torch.randn(500, 4) * 100.0
    vectors[:, 2] = 7.0 + 1e-6 * torch.randn(500)
    for kind in ("standardize", "whiten"):
        scaling = FeatureScaling(4, kind)
        scaling.fit(vectors, torch.ones(500))
        moved = vectors[:1].clone()
        moved[:, 2] += 1.0
        change = scaling(moved) - scaling(vectors[:1])
        torch.testing.assert_close(change, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), atol=1e-4, rtol=1e-4)


def test_equal_images_are_not_blown_up_to_rounding():
    vectors = torch.full((8, 3), 0.3) + 1e-8 * torch.randn(8, 3)
    scaling = FeatureScaling(3, "whiten")
    scaling.fit(vectors, torch.ones(8))
    assert scaling.matrix.abs().max() < 10
