# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Parts of FUN-AD against definitions and hand-computed values."""

import errno
import math
import os
import signal
import subprocess
import sys
import tempfile

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms import InterpolationMode

from anomalib_comet.backbones import PatchDescriptors, average_neighbours
from anomalib_comet.models import FunAd
from anomalib_comet.models.fun_ad.feature_store import FeatureStore, fingerprint
from anomalib_comet.models.fun_ad.loss import FunAdLoss, balanced_bce, distance_loss, mutual_smoothness
from anomalib_comet.models.fun_ad.memory_bank import bounded, candidates, draw_bank, draw_vectors, pooled_score
from anomalib_comet.models.fun_ad.neighbours import kth_nearest_image, mutual_pairs, nearest
from anomalib_comet.models.fun_ad.pseudo_labels import (
    centred_log,
    fence,
    min_max,
    perturb,
    pseudo_labels,
    robust_scale,
    scale_distances,
    uncertain,
)
from anomalib_comet.models.fun_ad.torch_model import FunAdModel, LocalNet
from helpers.tiny import PUBLISHED_FUN_AD as PUBLISHED
from helpers.tiny import TINY_FUN_AD

INF = math.inf


# ------------------------------------------------------------------------------------------------------ memory bank
def test_candidates_score_below_the_middle_between_lowest_and_highest():
    # Scaled by min and max: 0, 1, 0.25, 0.5 (not below), 0.375.
    assert candidates(torch.tensor([1.0, 9.0, 3.0, 5.0, 4.0])).tolist() == [0, 2, 4]
    assert candidates(torch.tensor([1.0, 9.0, 3.0, 5.0, 4.0]), "quantile", 0.8).tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("rule", ["min_max", "quantile"])
def test_candidates_in_degenerate_cases(rule):
    assert candidates(torch.full((4,), 0.7), rule, 1.0).tolist() == [0, 1, 2, 3]  # max = min: nobody stands out
    assert candidates(torch.tensor([0.7]), rule).tolist() == [0]
    # One image far below all: by min-max it is alone, and would only be compared with itself.
    assert candidates(torch.tensor([9.0, 0.0, 9.5, 8.0]), rule, 0.25).tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"1 of 2 image scores are NaN"):
        candidates(torch.tensor([0.1, math.nan]), rule)


def test_bank_is_a_random_half_of_the_candidates():
    allowed = torch.tensor([1, 4, 6, 7, 9, 12, 13, 20])
    drawn = [draw_bank(allowed, torch.Generator().manual_seed(k)) for k in range(60)]
    assert all(len(d) == len(set(d.tolist())) == 4 and set(d.tolist()) <= set(allowed.tolist()) for d in drawn)
    counts = torch.stack(drawn).flatten().bincount()[allowed]
    assert counts.min() > 15  # each about 30 times of 60
    assert draw_bank(torch.tensor([3]), torch.Generator()).tolist() == [3]
    assert draw_bank(torch.tensor([3, 5]), torch.Generator()).tolist() == [3, 5]
    assert torch.equal(drawn[7], draw_bank(allowed, torch.Generator().manual_seed(7)))


def test_image_score_is_the_largest_or_the_mean_of_the_top_share():
    scores = torch.tensor([[1.0, 8.0, 3.0, 2.0], [0.0, -1.0, -2.0, -3.0]])
    assert pooled_score(scores).tolist() == [8.0, 0.0]
    assert pooled_score(scores, 0.5).tolist() == [5.5, -0.5]
    assert pooled_score(scores, 1.0).tolist() == [3.5, -1.5]


# ------------------------------------------------------------------------------------------------------- neighbours
@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_nearest_by_hand(engine):
    bank = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    distances, where = nearest(torch.tensor([[0.0, 0.0], [3.0, 3.0]]), bank, k=2, engine=engine)
    assert distances.tolist() == [[0.0, 1.0], [1.0, 13.0]]
    assert where.tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_nearest_leaves_itself_out_by_index_and_keeps_duplicates(engine):
    bank = torch.tensor([[5.0], [5.0], [7.0]])
    distances, where = nearest(bank, bank, exclude=(torch.arange(3), torch.arange(3)), engine=engine)
    assert distances.flatten().tolist() == [0.0, 0.0, 4.0]
    assert where.flatten()[:2].tolist() == [1, 0]
    own, owners = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])  # two images, of two patches and of one
    assert nearest(bank, bank, exclude=(own, owners), engine=engine)[0].flatten().tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_nearest_where_nothing_is_left(engine):
    one = torch.tensor([[1.0]])
    own = torch.zeros(1, dtype=torch.long)
    distances, where = nearest(one, one, k=2, exclude=(own, own), engine=engine)
    assert distances.tolist() == [[INF, INF]]
    assert where.tolist() == [[-1, -1]]
    distances, where = nearest(one, torch.zeros(0, 1), engine=engine)
    assert (distances.tolist(), where.tolist()) == ([[INF]], [[-1]])
    assert nearest(torch.zeros(0, 1), one, engine=engine)[0].shape == (0, 1)


@pytest.mark.parametrize("group", [1, 3, 40])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_faiss_and_torch_agree(group, k, offset, monkeypatch):
    monkeypatch.setattr("anomalib_comet.models.fun_ad.neighbours.CHUNK_VALUES", 1000)
    monkeypatch.setattr("anomalib_comet.models.fun_ad.neighbours.BLOCK", 100)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(240, 12, generator=generator) + offset
    # Groups in no order, one of which has nothing in the bank.
    own = torch.randperm(240, generator=generator) // group
    chosen = torch.arange(240)[(torch.arange(240) % 2 == 0) & (own != 0)]
    bank, owners = vectors[chosen], own[chosen]
    found = [nearest(vectors, bank, k, (own, owners), engine) for engine in ("faiss", "torch")]
    exact = torch.cdist(vectors.double(), bank.double()).square()
    exact[own[:, None] == owners[None]] = INF
    expected = exact.sort(dim=1)
    for distances, where in found:
        assert torch.allclose(distances.double(), expected.values[:, :k], atol=1e-4)
        assert torch.equal(where, expected.indices[:, :k])


def test_nearest_refuses_what_has_no_distance():
    with pytest.raises(ValueError, match="not finite"):
        nearest(torch.tensor([[math.nan]]), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="engine must be one of"):
        nearest(torch.zeros(1, 1), torch.zeros(1, 1), engine="annoy")
    with pytest.raises(ValueError, match="query and bank must be"):
        nearest(torch.zeros(1, 2), torch.zeros(1, 1))


def test_kth_nearest_image_by_hand():
    bank = torch.tensor([[[0.0], [9.0]], [[2.0], [8.0]], [[5.0], [6.0]]])
    query = torch.tensor([[0.0], [7.0]])
    # To 0 the images are 0, 2 and 5 away, to 7 they are 2, 1 and 1.
    assert kth_nearest_image(query, bank, 1, torch.tensor([-1, -1])).tolist() == [0.0, 1.0]
    assert kth_nearest_image(query, bank, 3, torch.tensor([-1, -1])).tolist() == [25.0, 4.0]
    assert kth_nearest_image(query, bank, 1, torch.tensor([0, 2])).tolist() == [4.0, 1.0]
    assert kth_nearest_image(query, bank, 9, torch.tensor([0, 2])).tolist() == [25.0, 4.0]  # there are two others
    assert kth_nearest_image(query, bank, 9, torch.tensor([0, -1])).tolist() == [25.0, 4.0]
    assert kth_nearest_image(query[1:], bank, 9, torch.tensor([-1])).tolist() == [4.0]
    assert kth_nearest_image(query, bank, 3, torch.tensor([2, -1])).tolist() == [4.0, 4.0]
    assert kth_nearest_image(query, bank[:1], 3, torch.tensor([0, 0])).tolist() == [0.0, 0.0]
    assert kth_nearest_image(query, bank[:1], 3, torch.tensor([0, -1])).tolist() == [0.0, 4.0]
    assert kth_nearest_image(query[:0], bank, 1, torch.zeros(0)).shape == (0,)


def test_a_defect_of_a_few_images_is_far_from_the_kth(monkeypatch):
    monkeypatch.setattr("anomalib_comet.models.fun_ad.neighbours.CHUNK_VALUES", 100)
    bank = torch.randn(20, 6, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    bank[[3, 8, 11], 0] += 10.0  # the same defect three times
    query, own = bank.flatten(0, 1), torch.arange(20).repeat_interleave(6)
    by_first, by_tenth = (kth_nearest_image(query, bank, k, own).view(20, 6) for k in (1, 10))
    assert by_first[[3, 8, 11], 0].max() < 1.0
    assert by_tenth[[3, 8, 11], 0].min() > 100.0
    rest = by_tenth.clone()
    rest[[3, 8, 11], 0] = 0.0
    assert rest.max() < 1.0


def test_mutual_pairs():
    # 0 and 3 choose each other, 1 chooses 0, 2 nobody, 4 and 5 each other.
    assert mutual_pairs(torch.tensor([3, 0, -1, 0, 5, 4])).tolist() == [[0, 3], [4, 5]]
    assert mutual_pairs(torch.tensor([1, 2, 0])).shape == (0, 2)
    assert mutual_pairs(torch.tensor([], dtype=torch.long)).shape == (0, 2)
    neighbour = torch.randint(50, (50,), generator=torch.Generator().manual_seed(0))
    neighbour = torch.where(neighbour == torch.arange(50), (neighbour + 1) % 50, neighbour)
    by_loop = [[u, int(v)] for u, v in enumerate(neighbour) if u < v and int(neighbour[v]) == u]
    assert mutual_pairs(neighbour).tolist() == by_loop


# ---------------------------------------------------------------------------------------------------- pseudo-labels
def test_min_max():
    assert min_max(torch.tensor([[2.0, 4.0], [3.0, 10.0]])).tolist() == [[0.0, 0.25], [0.125, 1.0]]
    assert min_max(torch.full((3,), 2.0)).tolist() == [0.0, 0.0, 0.0]
    assert min_max(torch.zeros(0)).shape == (0,)


def test_fence_is_tukeys():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])  # quartiles 2 and 4
    assert fence(values, 1.5) == 7.0
    many = torch.rand(1001, generator=torch.Generator().manual_seed(0))
    q1, q3 = torch.quantile(many, torch.tensor([0.25, 0.75]))
    assert fence(many, 3.0) == pytest.approx(float(q3 + 3 * (q3 - q1)))


def test_robust_scale_puts_the_fence_at_one_half():
    distances = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 70.0])
    limit = fence(distances, 1.5)
    scaled = robust_scale(distances, 1.5)
    assert scaled[:6].tolist() == pytest.approx((distances[:6] / limit / 2).tolist())
    assert scaled[6] == 1.0
    assert pseudo_labels(scaled).tolist() == [d > limit for d in distances.tolist()]
    assert robust_scale(torch.full((4,), 3.0), 0.0).tolist() == [0.0] * 4
    assert robust_scale(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]), 3.0).tolist() == [0.0] * 5  # the fence lies at 0


def test_published_scopes_call_something_anomalous_and_ours_need_not():
    clean = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    assert pseudo_labels(scale_distances(clean, "batch")).any()
    assert not pseudo_labels(scale_distances(clean, "robust", kappa=3.0)).any()
    assert pseudo_labels(scale_distances(torch.cat([clean, torch.tensor([9.0])]), "robust", kappa=3.0)).sum() == 1
    with pytest.raises(ValueError, match="scope must be one of"):
        scale_distances(clean, "day")


def test_centred_log_by_hand():
    assert centred_log(torch.tensor([1.0, math.e, math.e**5])).tolist() == pytest.approx([-2.0, -1.0, 3.0])
    assert centred_log(torch.zeros(3)).tolist() == [0.0] * 3
    assert centred_log(torch.full((3,), 4.0)).tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert centred_log(torch.zeros(0, 4)).shape == (0, 4)
    duplicate = centred_log(torch.tensor([0.0, 1.0, 1.0]))
    assert float(duplicate[1] - duplicate[0]) == pytest.approx(-math.log(2e-6 / 3), rel=1e-4)


def test_uncertain_lie_between_the_thresholds():
    scaled = torch.tensor([0.5, 0.51, 0.89, 0.9, 1.0])
    assert uncertain(scaled).tolist() == [False, True, True, False, False]


def test_perturbation_is_gaussian_by_channel_and_leaves_the_given_alone():
    descriptors = torch.zeros(2, 20_000, 2)
    chosen = torch.zeros(2, 20_000, dtype=torch.bool)
    chosen[1] = True
    noisy = perturb(descriptors, chosen, torch.tensor([1.0, 3.0]), torch.Generator().manual_seed(0))
    assert not descriptors.any()
    assert not noisy[0].any()
    assert noisy[1].std(0).tolist() == pytest.approx([1.0, 3.0], rel=0.03)
    assert noisy[1].mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.05)


# ------------------------------------------------------------------------------------------------------------- loss
def test_balanced_cross_entropy_by_hand():
    logits = torch.logit(torch.tensor([0.9, 0.6, 0.2, 0.1]))
    labels = torch.tensor([True, False, False, False])
    expected = -math.log(0.9) - (math.log(0.4) + math.log(0.8) + math.log(0.9)) / 3
    assert float(balanced_bce(logits, labels)) == pytest.approx(expected, rel=1e-5)
    assert float(balanced_bce(logits, torch.zeros(4, dtype=torch.bool))) == pytest.approx(
        -(math.log(0.1) + math.log(0.4) + math.log(0.8) + math.log(0.9)) / 4, rel=1e-5
    )
    assert torch.isfinite(balanced_bce(torch.tensor([-900.0, 900.0]), torch.tensor([True, False])))


def test_mutual_smoothness_by_hand():
    probabilities = torch.tensor([0.1, 0.5, 0.9, 0.3])
    assert float(mutual_smoothness(probabilities, torch.tensor([[0, 1], [2, 3]]))) == pytest.approx(0.25)
    nothing = mutual_smoothness(probabilities.requires_grad_(), torch.zeros(0, 2, dtype=torch.long))
    assert float(nothing.detach()) == 0.0
    nothing.backward()
    assert not probabilities.grad.any()


def test_loss_is_cross_entropy_of_the_perturbed_and_smoothness_of_the_clean():
    labels = torch.tensor([True, False])
    logits, clean = torch.tensor([2.0, -1.0]), torch.tensor([0.0, -1.0])
    pairs = torch.tensor([[0, 1]])
    smooth = 0.5 * abs(torch.sigmoid(clean[0]) - torch.sigmoid(clean[1]))
    assert float(FunAdLoss(2.5)(logits, labels, clean, pairs)) == pytest.approx(
        float(balanced_bce(logits, labels) + 2.5 * smooth)
    )
    assert float(FunAdLoss(0.0)(logits, labels, clean, pairs)) == pytest.approx(float(balanced_bce(logits, labels)))


def test_distance_loss_by_hand():
    assert float(distance_loss(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0]))) == 5.0


# ------------------------------------------------------------------------------------------------------------ model
def test_local_net_is_the_published_one_on_the_concatenation():
    net = LocalNet(n_token=3, n_patch=5, hidden_units=(7, 4), seed=1)
    token, patches = torch.randn(2, 3), torch.randn(2, 6, 5)
    x = torch.cat([token[:, None].expand(-1, 6, -1), patches], dim=2)
    whole = torch.cat([net.token_adaptor.weight, net.adaptor.weight], dim=1)
    adapted = F.leaky_relu(x @ whole.T + net.adaptor.bias, 0.2)
    first, _, second, _, third = net.discriminator
    scores = third(F.leaky_relu(second(F.leaky_relu(first(adapted), 0.2)), 0.2))[..., 0]
    found = net(token, patches)
    assert whole.shape == (8, 8)
    assert torch.allclose(found[0], adapted, atol=1e-6)
    assert torch.allclose(found[1], scores, atol=1e-6)


def test_published_sizes():
    net = LocalNet(768, 768)
    assert [tuple(p.shape) for p in net.parameters()] == [
        (1536, 768),
        (1536,),
        (1536, 768),
        (1024, 1536),
        (1024,),
        (128, 1024),
        (128,),
        (1, 128),
        (1,),
    ]
    # The split layer starts with the numbers that a layer for the concatenation would.
    spread = [float(part.weight.detach().std()) for part in (net.adaptor, net.token_adaptor)]
    assert spread[0] == pytest.approx(spread[1], rel=0.01)


def test_norm_input_is_one_more_number_for_the_discriminator():
    net = LocalNet(0, 4, hidden_units=(6, 3), norm_input=True)
    patches = torch.randn(2, 5, 4)
    adapted, scores = net(torch.zeros(2, 0), patches)
    assert adapted.shape == (2, 5, 4)
    norm = 3.0 * (patches.square().mean(2) + 1e-3).log()
    assert torch.allclose(scores, net.discriminator(torch.cat([adapted, norm[..., None]], dim=2))[..., 0])


def test_image_term_is_the_log_mahalanobis_distance_of_large_windows():
    arguments = {"layers": ["scale4"], "image_size": (64, 64), "hidden_units": (8, 4)}
    plain = FunAdModel("gabor", **arguments).eval()
    with_term = FunAdModel("gabor", **arguments, image_weight=0.5).eval()
    images = torch.rand(60, 3, 64, 64)
    maps = plain.descriptors(images)[1]
    (height, width), side = plain.descriptors.grid, with_term.window[0]
    assert (height, width, side) == (4, 4, 3)
    windows = with_term.windows(maps.flatten(1, 2))
    half = side // 2
    assert torch.allclose(windows[:, 0], maps[:, : half + 1, : half + 1].mean((1, 2)), atol=1e-5)  # cut at the border
    with_term.fit_scaling(torch.zeros(60, 0), maps.flatten(0, 2), windows.flatten(0, 1))
    squares = with_term.image_scaling(windows).square().mean(2)
    assert float(squares.mean()) == pytest.approx(1.0, rel=0.25)  # whitened, up to the shrinkage
    expected = squares.topk(round(0.2 * squares.shape[1]), dim=1)[0].mean(1)
    with torch.no_grad():
        difference = with_term(images).pred_score - plain(images).pred_score
        assert torch.allclose(difference, 0.5 * (expected + 1e-3).log(), atol=1e-4)
        assert torch.equal(with_term(images).anomaly_map, plain(images).anomaly_map)


def test_initial_weights_depend_on_the_seed_only():
    first, second, other = (LocalNet(2, 4, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["adaptor.weight"], other["adaptor.weight"])


@pytest.mark.parametrize(
    ("backbone", "size", "n_token", "n_patch", "grid"),
    [
        ("vit_tiny_patch16_224", (64, 48), 192, 192, (4, 3)),
        ("vit_tiny_r_s16_p8_224", (128, 96), 192, 192, (4, 3)),  # a small CNN before it
        ("mobilenetv2_100", (64, 96), 0, 128, (8, 12)),
        ("gabor", (64, 64), 0, 44, (32, 32)),
    ],
)
def test_sizes_are_read_from_the_backbone(backbone, size, n_token, n_patch, grid):
    model = FunAdModel(backbone, pre_trained=False, image_size=size, hidden_units=(8, 4)).eval()
    prediction = model(torch.rand(2, 3, *size))
    assert (model.descriptors.n_token, model.descriptors.n_patch, model.descriptors.grid) == (n_token, n_patch, grid)
    assert prediction.pred_score.shape == (2,)
    assert prediction.anomaly_map.shape == (2, 1, *size)


def test_tokens_are_those_of_timm_after_the_last_norm():
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    torch.manual_seed(0)
    descriptors = PatchDescriptors("vit_tiny_patch16_224", pre_trained=False)
    descriptors.source.network.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 224, 224)
    token, patches = descriptors(images)
    with torch.no_grad():
        expected = network.forward_features(images)
    assert torch.equal(token, expected[:, 0])
    assert torch.equal(patches.flatten(1, 2), expected[:, 1:])


def test_local_weights_of_a_transformer_are_resampled_to_the_image_size(tmp_path):
    import timm

    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    descriptors = PatchDescriptors("vit_tiny_patch16_224", backbone_weights=tmp_path / "vit.pth", image_size=(96, 64))
    assert torch.equal(descriptors.source.network.blocks[3].mlp.fc1.weight, network.blocks[3].mlp.fc1.weight)
    assert descriptors(torch.rand(1, 3, 96, 64))[1].shape == (1, 6, 4, 192)
    with pytest.raises(ValueError, match="do not divide into the patches"):
        PatchDescriptors("vit_tiny_patch16_224", pre_trained=False, image_size=(100, 64))
    with pytest.raises(ValueError, match="layers must not be given"):
        PatchDescriptors("vit_tiny_patch16_224", ["blocks.3"], pre_trained=False)


def test_pooled_descriptor_and_neighbourhoods():
    images = torch.rand(2, 3, 64, 64)
    plain = PatchDescriptors("gabor", ["scale3"], image_size=(64, 64))(images)[1]
    token = PatchDescriptors("gabor", ["scale3"], image_size=(64, 64), image_descriptor="pooled")(images)[0]
    flat = plain.flatten(1, 2)
    pooled = average_neighbours(flat, (8, 8), 3).unflatten(1, (8, 8))
    assert torch.allclose(token, torch.cat([flat.mean(1), flat.std(1, correction=0)], dim=1), atol=1e-5)
    assert torch.allclose(pooled[:, 4, 5], plain[:, 3:6, 4:7].mean((1, 2)), atol=1e-5)
    assert torch.allclose(pooled[:, 0, 0], plain[:, :2, :2].mean((1, 2)), atol=1e-5)  # of the places that there are
    with pytest.raises(ValueError, match="has no class token"):
        PatchDescriptors("gabor", image_descriptor="class")
    with pytest.raises(ValueError, match="image_descriptor must be one of"):
        PatchDescriptors("gabor", image_descriptor="mean")


def test_extreme_scores_stay_apart():
    model = FunAdModel("gabor", ["scale4"], image_size=(32, 32), hidden_units=(8, 4)).eval()
    with torch.no_grad():
        model.local_net.discriminator[-1].weight.mul_(1e4)
        scores = model(torch.rand(3, 3, 32, 32)).pred_score
    assert torch.sigmoid(scores).unique().numel() < 3
    assert scores.unique().numel() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "day"}, "scope must be one of"),
        ({"bank_rule": "best"}, "bank_rule must be one of"),
        ({"exclude": "nobody"}, "exclude must be one of"),
        ({"rebuild_epochs": 0}, "rebuild_epochs must be at least 1"),
        ({"train_patches": 0}, "train_patches must be at least 1"),
        ({"bank_vectors": 0}, "bank_vectors must be at least 1"),
        ({"smoothness": -1.0}, "smoothness must not be negative"),
        ({"synthetic_noise": -1.0}, "synthetic_noise must not be negative"),
        ({"synthetic_noise": 1.0}, "use it with target=labels"),
        ({"bank_vectors": 2.5}, "bank_vectors must be at least 1, a whole number"),
        ({"image_weight": math.nan}, "image_weight must not be negative"),
        ({"image_size": (64,)}, "image_size must be a height and a width"),
        ({"bank_share": 0.0}, "bank_share must be in"),
        ({"neighbour_share": 1.5}, "neighbour_share must be in"),
        ({"exclude": "patch"}, "neighbour_share counts other images"),
        ({"top_share": 1.5}, "top_share must be in"),
        ({"hidden_units": [8]}, "hidden_units must be two numbers"),
        ({"feature_scaling": "log"}, "feature_scaling must be one of"),
        ({"patch_pool": 2}, "patch_pool must be odd"),
        ({"pre_processor": False}, "FunAd needs a pre-processor"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        FunAd(**{**TINY_FUN_AD, **arguments})


# ----------------------------------------------------------------------------------------------- rebuild, degenerate
def prepared(features, **kwargs):
    """A model whose store holds these features, shape (N, P, D), as training images."""
    arguments = {**TINY_FUN_AD, **PUBLISHED, "image_descriptor": "none", **kwargs}
    model = FunAd(**arguments)
    n_patches, n_patch = model.model.n_patches, model.model.descriptors.n_patch
    assert (n_patches, n_patch) == (64, 22)
    store = FeatureStore([f"{k}.png" for k in range(len(features))], n_patches * n_patch, "key", "memory")
    store.write(range(len(features)), features.flatten(1))
    store.finish()
    model.use_features(store)
    return model


def steps(model, n_images):
    """Rebuild and take a step on all images; return the loss."""
    model.rebuild(0)
    loss = model.batch_loss(range(n_images), torch.Generator().manual_seed(0))
    loss.backward()
    return loss


@pytest.mark.parametrize("exclude", ["patch", "image"])
@pytest.mark.parametrize("scope", ["batch", "epoch", "robust"])
@pytest.mark.parametrize("case", ["one", "constant", "duplicates", "few"])
def test_degenerate_training_sets_have_a_finite_loss(case, scope, exclude):
    generator = torch.Generator().manual_seed(0)
    features = {
        "one": torch.randn(1, 64, 22, generator=generator),
        "constant": torch.ones(3, 64, 22),
        "duplicates": torch.randn(1, 64, 22, generator=generator).expand(4, -1, -1),
        "few": torch.randn(3, 64, 22, generator=generator),
    }[case]
    ours = {"feature_scaling": "whiten", "bank_rule": "all", "image_weight": 0.5, "target": "distances"}
    ours["neighbour_share"] = 0.25 if exclude == "image" else 0.0
    for settings in ({}, {"synthetic_noise": 0.5, "feature_scaling": "whiten"}, {**ours, "space": "descriptors"}):
        model = prepared(features, scope=scope, exclude=exclude, **settings)
        assert torch.isfinite(steps(model, len(features)))
        assert all(torch.isfinite(p.grad).all() for p in model.model.local_net.parameters())
        assert torch.isfinite(model.bank.distances).all()
        assert len(model.training_frame()) == len(features)
        if case in {"constant", "duplicates"}:
            assert not model.bank.distances.any()


def test_an_images_own_patches_do_not_count_where_excluded():
    # A defect whose patches are alike: by itself its nearest relatives are in its own image.
    features = torch.randn(6, 64, 22, generator=torch.Generator().manual_seed(0)) * 0.1
    features[2, 10:14] += 30.0
    bank_of_all = {"bank_rule": "quantile", "bank_share": 1.0, "bank_half": False}
    by_patch = prepared(features, exclude="patch", **bank_of_all)
    by_image = prepared(features, exclude="image", **bank_of_all)
    for model in (by_patch, by_image):
        model.rebuild(0)
    assert by_patch.bank.distances[2, 10:14].max() < by_image.bank.distances[2, 10:14].min() / 50


def test_a_bank_without_chance_and_head_is_built_once(monkeypatch):
    features = torch.randn(5, 64, 22, generator=torch.Generator().manual_seed(0))
    ours = {"bank_rule": "all", "space": "descriptors", "bank_half": False, "exclude": "image", "neighbour_share": 0.25}
    searches = []

    def counted(*args, **kwargs):
        searches.append(args)
        return kth_nearest_image(*args, **kwargs)

    monkeypatch.setattr("anomalib_comet.models.fun_ad.iterated_bank.kth_nearest_image", counted)
    for settings, expected in ((ours, 1), ({**ours, "bank_half": True}, 2), ({**ours, "space": "adapted"}, 2)):
        searches.clear()
        model = prepared(features, **settings)
        model.rebuild(0)
        model.rebuild(1)
        assert len(searches) == expected


def test_a_second_fit_on_other_images_keeps_nothing_of_the_first_ones():
    first, second = torch.randn(2, 5, 64, 22, generator=torch.Generator().manual_seed(0))
    settings = {"feature_scaling": "whiten", "norm_input": True, "image_weight": 2.0}
    again, fresh = prepared(first, **settings), prepared(3.0 * second + 1.0, **settings)
    store = FeatureStore([f"{k}.png" for k in range(5)], 64 * 22, "another key", "memory")
    store.write(range(5), (3.0 * second + 1.0).flatten(1))
    store.finish()
    again.use_features(store)
    scalings = [dict(model.model.named_buffers()) for model in (again, fresh)]
    assert all(torch.equal(value, scalings[1][name]) for name, value in scalings[0].items() if "scaling" in name)
    assert any("scaling" in name for name in scalings[0])


def test_what_was_found_by_other_rules_or_before_a_new_fit_is_found_again():
    features = torch.randn(5, 64, 22, generator=torch.Generator().manual_seed(0))
    ours = {"bank_rule": "all", "space": "descriptors", "exclude": "image", "bank_half": False}
    first, other = (prepared(features, **ours, neighbour_share=share) for share in (0.25, 1.0))
    first.rebuild(0)
    state = first.bank.state()
    other.bank.load_state(state)
    other.bank.start(other.training_features, first.bank.settings.partition(")")[2].strip())
    assert other.bank.is_due(1, rebuild_epochs=5)
    assert not other.bank.distances.numel()
    first.bank.start(first.training_features, first.bank.settings.partition(")")[2].strip())
    assert not first.bank.is_due(1, rebuild_epochs=5)
    first.bank.start(first.training_features, first.bank.settings.partition(")")[2].strip(), goes_on=False)
    assert first.bank.is_due(0, rebuild_epochs=5)


def test_distance_to_a_share_of_the_other_images():
    # A defect that two of eight images share: each is the other's nearest, but not a quarter of the images have it.
    features = torch.randn(9, 64, 22, generator=torch.Generator().manual_seed(0)) * 0.1
    features[2, 10:14] += 30.0
    features[5, 20:24] += 30.0
    ours = {"bank_rule": "all", "bank_half": False, "space": "descriptors", "exclude": "image", "patch_pool": 1}
    nearest_vector, quarter = (prepared(features, **ours, neighbour_share=share) for share in (0.0, 0.25))
    for model in (nearest_vector, quarter):
        model.rebuild(0)
    assert nearest_vector.bank.distances[2, 10:14].max() < quarter.bank.distances[2, 10:14].min() / 50
    scaled = quarter.training_features.scaled(range(9))[1]
    others = torch.cat([scaled[:2], scaled[3:]])
    squares = (others - scaled[2, 10]).square().sum(2).amin(1).sort()[0]
    second_of_eight_others = pytest.approx(float(squares[1]), rel=1e-3)
    assert float(quarter.bank.distances[2, 10]) == second_of_eight_others


def test_few_images_of_a_large_training_set_are_counted():
    model = prepared(torch.randn(9, 64, 22), exclude="image", neighbour_share=0.5, bank_vectors=192)
    generator = torch.Generator().manual_seed(0)
    images = bounded(torch.tensor([1, 2, 4, 5, 8]), 64, 192, generator)
    assert len(images) == 3  # 64 patches each
    assert set(images.tolist()) <= {1, 2, 4, 5, 8}
    assert torch.equal(images, images.sort()[0])
    model.rebuild(0)
    assert torch.isfinite(model.bank.distances).all()


def test_bank_is_bounded_and_takes_patches_of_every_image():
    features = torch.randn(8, 64, 22, generator=torch.Generator().manual_seed(0))
    images = torch.tensor([1, 3, 4, 6, 7])
    bank, owners = draw_vectors(images, features.__getitem__, 64, 50, torch.Generator().manual_seed(0))
    assert bank.shape == (50, 22)
    assert (owners // 64).bincount().tolist() == [0, 10, 0, 10, 10, 0, 10, 10]
    assert torch.equal(bank, features[owners // 64, owners % 64])


def test_perturbed_scores_are_used_for_uncertain_pseudo_anomalies_only():
    model = prepared(torch.randn(3, 64, 22), noise_scale=5.0)
    token, patches = model.training_features.scaled(range(3))
    scaled = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    clean = model.model.local_net(token, patches)[1]
    logits = model._perturbed_logits(token, patches, scaled, clean, torch.Generator().manual_seed(0))
    assert torch.equal(logits != clean, uncertain(scaled))


# ------------------------------------------------------------------------------------------------------------- store
def filled(place, key="a" * 64, n=3, **kwargs):
    store = FeatureStore([f"{k}.png" for k in range(n)], 5, key, str(place), **kwargs)
    if not store.is_complete:
        store.write([2, 0, 1], torch.arange(15.0).view(3, 5) + 0.5)
    return store


@pytest.mark.parametrize("place", ["memory", "temporary", "folder", "auto"])
def test_store_gives_back_what_was_written(place, tmp_path):
    store = filled(tmp_path if place == "folder" else place, memory_gib=0.0)
    with pytest.raises(RuntimeError, match="not complete"):
        store.read([0])
    store.finish()
    assert store.read([1, 2]).tolist() == [[10.5, 11.5, 12.5, 13.5, 14.5], [0.5, 1.5, 2.5, 3.5, 4.5]]
    assert store.read([0]).dtype == torch.float16
    assert store.rows(["2.png", "0.png"]) == [2, 0]
    file = store.path
    store.close()
    assert (file is not None and file.exists()) == (place == "folder")


def test_store_is_used_again_only_if_complete_and_of_the_same_images(tmp_path):
    interrupted = filled(tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]  # as a killed process leaves it
    store = FeatureStore(["0.png", "1.png", "2.png"], 5, "a" * 64, str(tmp_path))
    assert not store.is_complete
    store.close()
    interrupted = filled(tmp_path)
    interrupted.finish()
    interrupted.close()
    again = filled(tmp_path)
    assert again.is_complete
    assert again.read([2]).tolist() == [[0.5, 1.5, 2.5, 3.5, 4.5]]
    assert not filled(tmp_path, key="b" * 64).is_complete
    # The same name, cut short or with another header: written anew.
    again.close()
    (file,) = tmp_path.glob("a*.features")
    content = file.read_bytes()
    file.write_bytes(content[:-2])
    assert not filled(tmp_path).is_complete
    file.write_bytes(content.replace(b'"images": 3', b'"images": 4'))
    assert not filled(tmp_path).is_complete


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share nothing")
def test_what_a_killed_process_leaves_is_removed_and_a_running_one_keeps_its_file(tmp_path):
    (tmp_path / "of_another_program.partial").write_text("not ours")
    running = filled(tmp_path, key="b" * 64)
    child = os.fork()
    if not child:
        try:
            filled(tmp_path)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = tmp_path.glob("a*.partial")
    assert left.stat().st_size >= 3 * 5 * 2  # the room that a full disk lacks
    store = filled(tmp_path)
    assert not store.is_complete
    assert not left.exists()
    assert (tmp_path / "of_another_program.partial").exists()
    for written in (running, store):
        written.finish()
        assert written.read([2]).tolist() == [[0.5, 1.5, 2.5, 3.5, 4.5]]


def test_store_refuses_gaps_and_numbers_that_are_none(tmp_path):
    store = FeatureStore(["a", "b"], 2, "k" * 64, str(tmp_path))
    store.write([0], torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="1 of 2 images were never written"):
        store.finish()
    with pytest.raises(ValueError, match="features of 'b' are not finite"):
        store.write([1], torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="features of 'b' are too large for half precision"):
        store.write([1], torch.tensor([[1.0, 1e6]]))
    store.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="occurs twice"):
        FeatureStore(["a", "a"], 2, "k")


@pytest.mark.parametrize("moment", ["at the start", "while writing"])
def test_full_disk_is_one_clear_sentence_and_leaves_nothing(moment, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "at the start":
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"No room for the features of 3 images, 0.00 GiB, in .*feature_store"):
            filled(tmp_path)
    else:
        store = FeatureStore(["0", "1", "2"], 5, "k" * 64, str(tmp_path))
        monkeypatch.setattr("anomalib_comet.models.fun_ad.feature_store._write_all", full)
        with pytest.raises(OSError, match="No room for the features"):
            store.write([0], torch.ones(1, 5))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, torch
from anomalib_comet.models.fun_ad.feature_store import FeatureStore

store = FeatureStore(["a"], 3, "key", "temporary")
store.write([0], torch.ones(1, 3))
store.finish()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_files_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert [path.suffix for path in left.iterdir()] == [".features"]
    in_use = FeatureStore(["a"], 3, "key", "temporary")
    in_use.write([0], torch.ones(1, 3))
    in_use.finish()
    assert not left.exists()
    another = FeatureStore(["a"], 3, "key", "temporary")
    assert torch.equal(in_use.read([0]), torch.ones(1, 3).half())
    assert len(list(tmp_path.iterdir())) == 2
    in_use.close()
    another.close()
    assert not list(tmp_path.iterdir())


def test_store_needs_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is no folder that can be written to"):
        FeatureStore(["a"], 2, "k", str(tmp_path / "file"))


def test_pre_processing_counts_by_what_it_does():
    known, same, other = (
        FunAd(**{**TINY_FUN_AD, "pre_processor": FunAd.configure_pre_processor(size)})
        for size in ((64, 64), (64, 64), (64, 80))
    )
    same.pre_processor.transform.transforms[0].interpolation = InterpolationMode("bilinear")
    assert known._pre_processing_digest() == same._pre_processing_digest()
    assert known._pre_processing_digest() != other._pre_processing_digest()
    same.pre_processor.transform.transforms[1].mean = [0.4, 0.4, 0.4]
    assert known._pre_processing_digest() != same._pre_processing_digest()


def test_fingerprint_changes_with_images_order_and_network(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        with open(path, "w") as file:  # noqa: PTH123
            file.write("x")
    known = fingerprint(paths, {"digest": 1})
    assert fingerprint(paths, {"digest": 1}) == known
    os.utime(paths[0], ns=(5, 5))
    seen = {known, fingerprint(paths, {"digest": 1}), fingerprint(paths, {"digest": 2})}
    seen |= {fingerprint(paths[::-1], {"digest": 1}), fingerprint([*paths, "missing"], {"digest": 1})}
    assert len(seen) == 5
