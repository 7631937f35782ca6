# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Parts of SimpleNet against definitions."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_comet.confident_meta_learning.patch_table import PatchConfidenceTable
from anomalib_comet.models import CoMetDifferNet, CoMetSimpleNet, SimpleNet
from anomalib_comet.models.simplenet.aggregation import (
    AverageAggregation,
    ChannelPool,
    PublishedAggregation,
    neighbourhoods,
)
from anomalib_comet.models.simplenet.loss import SimpleNetLoss
from anomalib_comet.models.simplenet.torch_model import SimpleNetModel
from helpers.tiny import TINY, TINY_SIMPLENET


def small_model(**kwargs):
    arguments = {**TINY_SIMPLENET, **kwargs}
    arguments.pop("image_size")
    return SimpleNetModel(**arguments).eval()


def batch_of(images):
    return SimpleNamespace(image=images, image_path=[f"{k}.png" for k in range(len(images))])


def adaptive_mean(values, n_out):
    """Adaptive average pooling of a list, by its definition."""
    n_in, out = len(values), []
    for k in range(n_out):
        start, stop = math.floor(k * n_in / n_out), math.ceil((k + 1) * n_in / n_out)
        out.append(sum(values[start:stop]) / (stop - start))
    return out


def published_aggregation_by_loops(maps, n_features):
    """The published definition, place by place: neighbourhood, resize to the first grid, pool, put together, pool."""
    n_images, _, height, width = maps[0].shape
    patches = []
    for feature_map in maps:
        _, channels, h, w = feature_map.shape
        padded = F.pad(feature_map, (1, 1, 1, 1))
        layer = torch.zeros(n_images, channels * 9, h, w, dtype=feature_map.dtype)
        for y in range(h):
            for x in range(w):
                layer[:, :, y, x] = padded[:, :, y : y + 3, x : x + 3].reshape(n_images, -1)
        patches.append(F.interpolate(layer, size=(height, width), mode="bilinear", align_corners=False))
    out = torch.zeros(n_images, n_features, height, width, dtype=maps[0].dtype)
    for i in range(n_images):
        for y in range(height):
            for x in range(width):
                pooled = [adaptive_mean(layer[i, :, y, x].tolist(), n_features) for layer in patches]
                out[i, :, y, x] = torch.tensor(
                    adaptive_mean([value for layer in pooled for value in layer], n_features), dtype=out.dtype
                )
    return out


@pytest.mark.parametrize(
    ("channels", "n_features"),
    [
        ([4, 8], 12),  # 36 and 72 values into 12, as 4608 and 9216 go into 1536: bins of 3 and 6
        ([5, 7], 16),  # bins that overlap
        ([2, 3, 4], 32),  # fewer values than features, and bins of the last pooling in two layers
        ([6], 10),
    ],
)
def test_published_aggregation_is_its_definition(channels, n_features):
    sizes = [(6, 8), (3, 4), (2, 2)]
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(2, c, *size, generator=generator, dtype=torch.float64)
        for c, size in zip(channels, sizes, strict=False)
    ]
    found = PublishedAggregation(channels, n_features).double()(maps)
    assert found.shape == (2, n_features, 6, 8)
    assert torch.allclose(found, published_aggregation_by_loops(maps, n_features), atol=1e-6)


def test_neighbourhoods_are_those_of_unfold():
    feature_map = torch.randn(2, 3, 5, 4)
    assert torch.equal(neighbourhoods(feature_map), F.unfold(feature_map, 3, padding=1).unflatten(2, (5, 4)))


@pytest.mark.parametrize(("n_in", "n_out"), [(18, 6), (18, 7), (5, 12), (6, 6)])
def test_channel_pool_is_adaptive_pooling(n_in, n_out):
    x = torch.randn(2, n_in, 3, 2)
    expected = F.adaptive_avg_pool1d(x.permute(0, 2, 3, 1).flatten(0, 2)[:, None], n_out)[:, 0]
    assert torch.allclose(ChannelPool(n_in, n_out)(x).permute(0, 2, 3, 1).flatten(0, 2), expected, atol=1e-6)


def test_average_aggregation_keeps_the_mean_of_each_neighbourhood():
    maps = [torch.randn(1, 2, 4, 4), torch.randn(1, 3, 2, 2)]
    aggregation = AverageAggregation([2, 3])
    found = aggregation(maps)
    assert aggregation.n_features == 5
    assert found.shape == (1, 5, 4, 4)
    assert found[0, 1, 2, 1].item() == pytest.approx(maps[0][0, 1, 1:4, 0:3].mean().item(), rel=1e-5)
    assert found[0, 0, 0, 0].item() == pytest.approx(maps[0][0, 0, :2, :2].sum().item() / 9, rel=1e-5)


def test_published_sizes():
    model = SimpleNet(pre_trained=False, layers=None, visualizer=False)
    assert model.input_size == (288, 288)
    assert model.model.network.layers == ["layer2", "layer3"]
    assert model.model.network.map_sizes((288, 288)) == [(36, 36), (18, 18)]
    assert model.model.adaptor.weight.shape == (1536, 1536)
    assert model.model.discriminator[0].weight.shape == (1024, 1536)
    assert model.model.discriminator[2].negative_slope == 0.2
    assert model.model.noise_std.item() == pytest.approx(0.015)
    assert model.noise_scale is None
    adaptor, discriminator = model.configure_optimizers().param_groups
    assert (adaptor["lr"], discriminator["lr"], discriminator["weight_decay"]) == (1e-4, 2e-4, 0.0)


def test_loss_by_hand():
    # True patches: above the margin 0, at 0.25 a quarter below, at -1 one and a half; fake ones mirrored.
    true = torch.tensor([[0.75, 0.25, -1.0]])
    fake = torch.tensor([[-0.75, 0.0, 1.0]])
    assert SimpleNetLoss(0.5)(true, fake).tolist() == [[0.0, 0.75, 3.0]]


def test_sample_losses_are_the_hinge_over_both_outputs():
    model = SimpleNet(**TINY_SIMPLENET, visualizer=False)
    inputs = model.training_inputs(batch_of(torch.rand(3, 3, 64, 64)))
    features, noise = inputs
    assert features.shape == noise.shape == (3, 256, 32)
    assert noise.std().item() == pytest.approx(model.model.noise_std.item(), rel=0.02)
    found = model.sample_losses(inputs)
    net = model.model
    adapted = features @ net.adaptor.weight.T + net.adaptor.bias
    hidden = torch.cat([adapted, adapted + noise]).flatten(0, 1) @ net.discriminator[0].weight.T
    hidden = hidden + net.discriminator[0].bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()  # one batch for both
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    output = (hidden @ net.discriminator[3].weight.T + net.discriminator[3].bias).reshape(2, 3, 256)
    by_hand = (0.5 - output[0]).clamp(min=0) + (0.5 + output[1]).clamp(min=0)
    assert torch.allclose(found, by_hand.mean(1), atol=1e-5)
    assert torch.allclose(model.patch_losses(inputs).mean(1), found)


def test_one_optimizer_is_the_two_published_ones():
    def gradients(model, step):
        generator = torch.Generator().manual_seed(step)
        for p in [*model.model.adaptor.parameters(), *model.model.discriminator.parameters()]:
            p.grad = torch.randn(p.shape, generator=generator)

    ours, theirs = (SimpleNet(**TINY_SIMPLENET, visualizer=False) for _ in range(2))
    one = ours.configure_optimizers()
    two = [
        torch.optim.AdamW(theirs.model.adaptor.parameters(), lr=1e-4),
        torch.optim.Adam(theirs.model.discriminator.parameters(), lr=2e-4),
    ]
    for step in range(3):
        gradients(ours, step)
        gradients(theirs, step)
        one.step()
        for optimizer in two:
            optimizer.step()
    for (name, p), q in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_image_score_is_the_largest_patch_score():
    model = small_model()
    images = torch.rand(2, 3, 64, 64)
    scores = -model.discriminator(model.adaptor(model.features(images)).flatten(0, 2)).reshape(2, 16, 16)
    output = model(images)
    assert torch.allclose(output.pred_score, scores.flatten(1).max(1).values, atol=1e-6)
    assert output.anomaly_map.shape == (2, 1, 64, 64)
    detector = SimpleNet(**TINY_SIMPLENET, visualizer=False).eval()
    detector.model = model
    assert torch.allclose(detector.sample_scores(batch_of(images)), output.pred_score, atol=1e-6)


def test_map_lies_over_the_image():
    model = small_model(sigma=1.0)
    model.adaptor.weight.data.fill_(1.0)
    model.discriminator[3].weight.data.fill_(-1.0)
    model.discriminator[0].weight.data.fill_(1.0)  # D falls with the energy of the features
    image = torch.zeros(1, 3, 64, 96)
    image[..., 8:24, 64:80] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    row, column = divmod(int(model(image).anomaly_map.argmax()), 96)
    assert 4 <= row < 28
    assert 60 <= column < 84


def test_statistics_of_the_training_set():
    vectors = torch.randn(48, 32) * torch.linspace(0.5, 2.0, 32) + 3.0
    weights = torch.ones(48)
    model = small_model()
    model.fit_statistics(vectors, weights, noise_scale=0.5)
    spread = vectors.var(0, unbiased=False).mean().sqrt().item()
    assert model.noise_std.item() == pytest.approx(0.5 * spread, rel=1e-4)
    standardized = small_model(feature_scaling="standardize")
    standardized.fit_statistics(vectors, weights, noise_scale=0.5)
    assert standardized.noise_std.item() == pytest.approx(0.5, rel=1e-4)
    assert standardized.scaling(vectors).mean(0).abs().max() < 1e-4
    outlier = torch.cat([vectors, torch.full((1, 32), 1e3)])
    robust = small_model(feature_scaling="standardize")
    robust.fit_statistics(outlier, torch.cat([weights, torch.zeros(1)]), noise_scale=0.5)
    torch.testing.assert_close(robust.scaling.matrix, standardized.scaling.matrix)
    assert robust.noise_std.item() == pytest.approx(0.5, rel=1e-4)


def test_adaptor_keeps_the_spread_of_features_at_the_start():
    features = torch.randn(500, 32) @ torch.randn(32, 32)
    spreads = []
    for seed in range(20):
        adapted = small_model(seed=seed).adapt(features)
        spreads.append(adapted.var(0).mean() / features.var(0).mean())
    assert torch.stack(spreads).mean().item() == pytest.approx(1.0, abs=0.1)


def test_initial_weights_and_noise_are_drawn_from_own_generators():
    state = torch.get_rng_state()
    first, second, other = (SimpleNet(**TINY_SIMPLENET, seed=s, train_patches=9, visualizer=False) for s in (1, 1, 2))
    batch = batch_of(torch.zeros(2, 3, 64, 64))
    inputs = [model.training_inputs(batch) for model in (first, second, other)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(inputs[0], inputs[1], strict=True))
    assert not torch.equal(inputs[0][1], inputs[2][1])
    assert not torch.equal(inputs[0][1], first.training_inputs(batch)[1])
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_drawn_patches_take_their_values_along():
    model = SimpleNet(**TINY_SIMPLENET, train_patches=9, visualizer=False).eval()
    batch = batch_of(torch.rand(3, 3, 64, 64))
    inputs = model.training_inputs(batch)
    assert [tuple(t.shape) for t in inputs] == [(3, 9, 32), (3, 9, 32), (3, 9)]
    assert all(len(set(row.tolist())) == 9 for row in inputs[2])
    assert inputs[2][0].tolist() != inputs[2][1].tolist()
    scores = model.patch_scores(batch)
    assert torch.allclose(model.select_patches(scores, inputs), model.model.patch_scores(inputs[0]), atol=1e-6)


def test_half_precision_memory_rounds_what_is_computed_too():
    images = torch.rand(2, 3, 64, 64)
    exact = SimpleNet(**TINY_SIMPLENET, visualizer=False).training_inputs(batch_of(images))[0]
    rounded = SimpleNet(**TINY_SIMPLENET, cache_half=True, visualizer=False).training_inputs(batch_of(images))[0]
    assert torch.equal(exact.half().float(), rounded)
    assert not torch.equal(exact, rounded)


# --------------------------------------------------------------------------------------------- weights per patch
def comet(**kwargs):
    model = CoMetSimpleNet(**TINY_SIMPLENET, use_adaptive_l2=False, visualizer=False, **kwargs).train()
    model.log = lambda *_, **__: None
    return model


def gradients(model, batch):
    model.zero_grad()
    model.training_step(batch, 0)["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_meta", [False, True])
@pytest.mark.parametrize("train_patches", [None, 40])
def test_equal_patch_weights_are_an_image_weight(use_meta, train_patches):
    settings = {"use_meta": use_meta, "train_patches": train_patches, "inner_lr": 0.1}
    batch = batch_of(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    values = dict(zip(batch.image_path, [1.0, 0.5, 0.25, 0.75], strict=True))
    by_image, by_patch = comet(**settings), comet(**settings, weight_level="patch")
    by_image.confidence.weights = values
    by_patch.patch_confidence.weights = {path: torch.full((256,), w).half() for path, w in values.items()}
    expected, found = gradients(by_image, batch), gradients(by_patch, batch)
    for name, gradient in expected.items():
        assert torch.allclose(gradient, found[name], atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("use_meta", [False, True])
def test_first_steps_by_patch_are_unweighted(use_meta):
    batch = batch_of(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    plain, by_patch = comet(use_meta=use_meta, use_weights=False), comet(use_meta=use_meta, weight_level="patch")
    expected, found = gradients(plain, batch), gradients(by_patch, batch)
    for name, gradient in expected.items():
        assert torch.allclose(gradient, found[name], atol=1e-6), name


def test_patch_weights_scale_the_loss_of_their_patch():
    model = comet(use_meta=False, weight_level="patch", train_patches=40)
    batch = batch_of(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    weights = torch.rand(2, 256, generator=torch.Generator().manual_seed(1)).half()
    model.patch_confidence.weights = dict(zip(batch.image_path, weights, strict=True))
    loss = model.training_step(batch, 0)["loss"]
    twin = comet(use_meta=False, weight_level="patch", train_patches=40)
    inputs = twin.training_inputs(batch)
    losses = twin.patch_losses(inputs)
    by_hand = sum(weights[i, inputs[2][i, k]].float() * losses[i, k] for i in range(2) for k in range(40)) / (2 * 40)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_pairs_of_the_uncertainty_are_not_weighted():
    pairs = []
    batch = batch_of(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for value in (1.0, 0.125):
        model = comet(weight_level="patch", inner_lr=0.0)
        model.patch_confidence.weights = {path: torch.full((256,), value).half() for path in batch.image_path}
        model.training_step(batch, 0)
        pairs.append(model.loss_pairs.tensor())
    assert torch.equal(*pairs)


def test_patch_table_by_hand():
    # Anchored at the lowest score: 0, 1, 2, 3, 4, 5, 6, 19; Q1 = 1.75, Q3 = 5.25, kappa 1: t = 8.75.
    table = PatchConfidenceTable(kappa=1.0, power=1.0, momentum=0.5)
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 19.0]])
    table.refresh(["a", "b"], scores)
    assert table.threshold == pytest.approx(8.75)
    assert table.weights["a"].tolist() == [1.0] * 4
    assert table.weights["b"].tolist() == pytest.approx([1.0, 1.0, 1.0, 8.75 / 19], abs=1e-3)
    table.refresh(["b", "a"], scores)  # "a" holds the outlier now, and half of each comes from before
    assert table.lookup(["a"])[0].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.5 + 0.5 * 8.75 / 19], abs=1e-3)
    assert table.lookup(["b", "new"])[:, 3].tolist() == pytest.approx([0.5 + 0.5 * 8.75 / 19, 1.0], abs=1e-3)
    restored = PatchConfidenceTable()
    restored.restore(table.state())
    assert torch.equal(restored.lookup(["a", "b"]), table.lookup(["a", "b"]))
    table.forget()
    assert table.lookup(["a", "b"]).tolist() == [[1.0], [1.0]]
    shifted = PatchConfidenceTable(kappa=1.0)
    shifted.refresh(["a", "b"], scores - 100.0, starts_at_zero=False)
    assert shifted.weights["b"][3].item() == pytest.approx(8.75 / 19, abs=5e-3)


def test_bad_arguments_are_refused():
    for arguments, message in [
        ({"aggregation": "max"}, r"aggregation must be one of"),
        ({"feature_dim": 1}, "feature_dim must be at least the number of layers"),
        ({"hidden_units": 0}, "hidden_units must be at least 1"),
        ({"sigma": 0.0}, "sigma above zero"),
        ({"noise_std": 0.0}, "noise_std and noise_scale must be above zero"),
        ({"train_patches": 0}, "train_patches must be at least 1"),
        ({"center_crop": (80, 64)}, "center_crop"),
        ({"pre_processor": False}, "needs a pre-processor with a Resize"),
    ]:
        with pytest.raises(ValueError, match=message):
            SimpleNet(**{**TINY_SIMPLENET, **arguments})
    with pytest.raises(ValueError, match="weight_level must be one of"):
        comet(weight_level="pixel")
    with pytest.raises(ValueError, match="cross_fit_folds gives weights to images"):
        comet(weight_level="patch", cross_fit_folds=2)
    with pytest.raises(ValueError, match="CoMetDifferNet has no losses and scores of patches"):
        CoMetDifferNet(**TINY, weight_level="patch")


def test_patch_weights_refuse_training_augmentations():
    model = comet(weight_level="patch")
    datamodule = SimpleNamespace(train_augmentations=torch.nn.Identity())
    model.trainer = SimpleNamespace(precision="32-true", datamodule=datamodule, fabric=None)
    with pytest.raises(ValueError, match="leave them out or use weight_level='image'"):
        model.on_train_start()


def test_center_crop():
    model = SimpleNet(**{**TINY_SIMPLENET, "image_size": [80, 90]}, center_crop=[64, 72], visualizer=False)
    assert model.input_size == (64, 72)
    image = torch.rand(2, 3, 100, 100)
    assert torch.allclose(model.pre_processor(image), model.pre_processor.transform(image))
