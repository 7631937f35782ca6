# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""FunAd's schedule against a plain transcription of the published one: time, agreement of pseudo-labels, AUROC.

    python benchmarks/fun_ad_speed.py

The published schedule, transcribed by us from the paper and its description: at every step all training images are
scored, the bank is drawn anew from half of the candidates, all patches of the batch are searched in all of it, exactly,
and mutually nearest pairs are found by a loop over the patches of the batch. Ours: ``FunAd`` with the given settings.
Both have the same features, the same initial head, the same optimiser steps and min-max by batch. No image is decoded
while the clock runs.

Agreement is measured at our head, on every ``--check``-th batch: Jaccard index between the labels that we train on and
those that the published rule gives at this very moment, and, for comparison, between two random draws of the published
rule at this moment.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
from anomalib_comet.models import FunAd
from anomalib_comet.models.fun_ad.feature_store import FeatureStore
from anomalib_comet.models.fun_ad.loss import balanced_bce, mutual_smoothness
from anomalib_comet.models.fun_ad.pseudo_labels import min_max, perturb, uncertain

PUBLISHED: dict[str, Any] = {
    "patch_pool": 1,
    "top_share": 0.0,
    "target": "labels",
    "scope": "batch",
    "space": "adapted",
    "bank_rule": "min_max",
    "bank_half": True,
    "exclude": "patch",
    "norm_input": False,
    "image_weight": 0.0,
}


def model(arguments: argparse.Namespace, **kwargs: Any) -> FunAd:
    """Return a FunAd with the published rules on Gabor features."""
    side = arguments.image_size
    return FunAd(
        backbone="gabor",
        layers=["scale3", "scale2", "scale4"],
        image_size=(side, side),
        **{**PUBLISHED, "feature_scaling": "standardize"},
        lr=arguments.lr,
        visualizer=False,
        **kwargs,
    )


def features(arguments: argparse.Namespace, detector: FunAd) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return records of training images, records of test images and the labels of these."""
    data = ContaminatedDataModule(
        ProceduralSurfaces(
            root=arguments.data,
            category=arguments.category,
            n_train=arguments.images,
            image_size=arguments.image_size,
            num_workers=0,
        ),
        ratio=arguments.ratio,
    )
    data.prepare_data()
    data.setup()
    parts: list[list[torch.Tensor]] = []
    for loader in (data.train_dataloader(), data.test_dataloader()):
        rows, labels = [], []
        for batch in loader:
            images, _ = detector.pre_processor.transform(batch.image, None)
            rows.append(detector._records(images))  # noqa: SLF001
            labels.append(batch.gt_label)
        parts.append([torch.cat(rows), torch.cat(labels)])
    return parts[0][0], parts[1][0], parts[1][1]


def with_features(detector: FunAd, records: torch.Tensor) -> FunAd:
    """Give a model these features of its training images."""
    store = FeatureStore([f"{k:06}" for k in range(len(records))], records.shape[1], "benchmark", "memory")
    store.write(range(len(records)), records)
    store.finish()
    detector.use_features(store)
    return detector


@torch.no_grad()
def published_distances(detector: FunAd, rows: list[int], generator: torch.Generator) -> torch.Tensor:
    """Score everything, draw the bank anew, and return the batch's min-max distances: one step's share of the work."""
    net, everything = detector.model.local_net, range(len(detector._paths))  # noqa: SLF001
    token, patches = detector._features(everything)  # noqa: SLF001
    adapted, logits = net(token, patches)
    candidates = (min_max(logits.sigmoid().amax(dim=1)) < 0.5).nonzero().flatten()
    half = candidates[torch.randperm(len(candidates), generator=generator)[: max(1, len(candidates) // 2)]]
    bank = adapted[half].flatten(0, 1)
    n_patches = patches.shape[1]
    owner = (half[:, None] * n_patches + torch.arange(n_patches)).flatten()
    distances = []
    for row in rows:
        squared = torch.cdist(adapted[row], bank).square()
        own = (row * n_patches + torch.arange(n_patches))[:, None] == owner
        distances.append(squared.masked_fill(own, torch.inf).amin(dim=1))
    return min_max(torch.stack(distances))


def published_pairs(adapted: torch.Tensor) -> torch.Tensor:
    """Find mutually nearest patches of a batch by a loop."""
    nearest = []
    for k in range(len(adapted)):
        squared = (adapted - adapted[k]).square().sum(1)
        squared[k] = torch.inf
        nearest.append(int(squared.argmin()))
    pairs = [(u, v) for u, v in enumerate(nearest) if u < v and nearest[v] == u]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def train_published(detector: FunAd, batches: list[list[int]], limit: float) -> tuple[float, int]:
    """Train by the published schedule until ``limit`` seconds have passed; return seconds a step and steps."""
    optimizer = torch.optim.RMSprop(detector.model.local_net.parameters(), lr=detector.lr, momentum=0.2)
    generator = torch.Generator().manual_seed(1)
    start, steps = time.perf_counter(), 0
    for rows in batches:
        scaled = published_distances(detector, rows, generator)
        token, patches = detector._features(rows)  # noqa: SLF001
        n_token = token.shape[1]
        labels = scaled > 0.5
        adapted, clean = detector.model.local_net(token, patches)
        noisy = perturb(patches, uncertain(scaled), detector._spread[n_token:], generator)  # noqa: SLF001
        logits = detector.model.local_net(token, noisy)[1]
        pairs = published_pairs(adapted.detach().flatten(0, 1))
        loss = balanced_bce(logits, labels) + 2.5 * mutual_smoothness(clean.flatten().sigmoid(), pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if time.perf_counter() - start > limit:
            break
    return (time.perf_counter() - start) / steps, steps


def jaccard(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the Jaccard index of two sets of labels, 1 where both are empty."""
    union = float((first | second).sum())
    return float((first & second).sum()) / union if union else 1.0


def train_ours(
    detector: FunAd, batches: list[list[int]], per_epoch: int, check: int
) -> tuple[float, list[float], list[float]]:
    """Train by our schedule; return seconds a step, agreement with the published rule and that of its own redraws."""
    optimizer = torch.optim.RMSprop(detector.model.local_net.parameters(), lr=detector.lr, momentum=0.2)
    generator = torch.Generator().manual_seed(1)
    ours, redraws, seconds = [], [], 0.0
    for step, rows in enumerate(batches):
        start = time.perf_counter()
        if step % (per_epoch * detector.rebuild_epochs) == 0:
            detector.rebuild(step // per_epoch)
        loss = detector.batch_loss(rows, generator)
        seconds += time.perf_counter() - start
        if check and step % check == check - 1:
            known = detector._scaled_of(rows) > 0.5  # noqa: SLF001
            fresh, again = (
                published_distances(detector, rows, torch.Generator().manual_seed(s + step)) > 0.5 for s in (5, 99_999)
            )
            ours.append(jaccard(known, fresh))
            redraws.append(jaccard(fresh, again))
        start = time.perf_counter()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.perf_counter() - start
    return seconds / len(batches), ours, redraws


@torch.no_grad()
def auroc(detector: FunAd, records: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the image AUROC on test features."""
    n_token = detector.model.descriptors.n_token
    token, patches = records[:, :n_token], records[:, n_token:].unflatten(1, (detector.model.n_patches, -1))
    scores = [
        detector.model.image_scores(detector.model.local_net(*detector.model.scale(t, p))[1], p)
        for t, p in zip(token.split(32), patches.split(32), strict=True)
    ]
    return float(roc_auc_score(labels, torch.cat(scores)))


def main() -> None:
    """Run the comparison and print one line a schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("results/benchmarks/surfaces"), help="folder of the images")
    parser.add_argument("--category", default="woven", help="procedural surface (default: %(default)s)")
    parser.add_argument("--images", type=int, default=100, help="normal training images (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.1, help="contamination ratio (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-5, help="learning rate (default: %(default)s)")
    parser.add_argument("--rebuild-epochs", type=int, nargs="+", default=[1, 5], help="ours (default: %(default)s)")
    parser.add_argument("--bank-vectors", type=int, default=100_000, help="ours (default: %(default)s)")
    parser.add_argument("--pair-patches", type=int, default=2048, help="ours (default: %(default)s)")
    parser.add_argument("--train-patches", type=int, help="ours (default: all)")
    parser.add_argument("--check", type=int, default=10, help="measure agreement once in so many steps")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for the published schedule")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    records, test, labels = features(arguments, model(arguments))
    n_images, per_epoch = len(records), -(-len(records) // 32)
    generator = torch.Generator().manual_seed(0)
    batches = [
        part.tolist()
        for _ in range(arguments.epochs)
        for part in torch.randperm(n_images, generator=generator).split(32)
    ]
    detector = with_features(model(arguments), records)
    shape = (detector.model.n_patches, detector.model.local_net.n_features)
    print(
        f"{n_images} images, {shape[0]} patches of {shape[1]} values, {len(batches)} steps, {torch.get_num_threads()}"
        f" threads; untrained AUROC {auroc(detector, test, labels):.3f}",
        flush=True,
    )
    for rebuild_epochs in arguments.rebuild_epochs:
        ours = model(
            arguments,
            rebuild_epochs=rebuild_epochs,
            bank_vectors=arguments.bank_vectors,
            pair_patches=arguments.pair_patches,
            train_patches=arguments.train_patches,
        )
        seconds, agreement, redraws = train_ours(with_features(ours, records), batches, per_epoch, arguments.check)
        print(
            f"ours, rebuilt every {rebuild_epochs} epochs: {seconds:.3f} s a step, Jaccard {np.mean(agreement):.3f} "
            f"(two redraws of the published rule: {np.mean(redraws):.3f}), AUROC {auroc(ours, test, labels):.3f}",
            flush=True,
        )
    seconds, steps = train_published(detector, batches, arguments.limit)
    print(f"published: {seconds:.3f} s a step, {steps} steps, AUROC {auroc(detector, test, labels):.3f}")


if __name__ == "__main__":
    main()
