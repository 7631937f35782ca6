# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""FunAd's schedule against a plain transcription of the published one: time, agreement of pseudo-labels, AUROC.

    python benchmarks/fun_ad_speed.py --data tiles --root DIR --backbone-weights FILE
    python benchmarks/fun_ad_speed.py --growth 100 200 400 800

The published schedule, transcribed by us from the paper and its description: at every step all training images are
scored, the bank is drawn anew from half of the candidates, all patches of the batch are searched in all of it, exactly,
and mutually nearest pairs of the batch, found by exact search too, are collected by a loop. Every search of it goes
through the same ``nearest`` as ours, so that schedules are compared and not programs. Ours: ``FunAd`` with the
published rules and our schedule. All have the same features, the same initial head, the same batches in the same order
and min-max by batch. No image is decoded while the clock runs. Where ``--limit`` ends the published schedule early, its
time is that of the steps it made, and its AUROC that of a head with fewer steps: the table says how many.

Agreement is the Jaccard index of pseudo-anomalies, on every ``--check``-th batch at our head as it is: of the labels
that we train on with those that the published rule gives at this moment, and of two random draws of the published rule
at this moment, which is what the published schedule agrees with itself.

``--growth`` times steps on random features of so many images instead, without AUROC.
"""

from __future__ import annotations

import argparse
import contextlib
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

import contamination
from anomalib_comet.models import FunAd
from anomalib_comet.models.fun_ad.feature_store import FeatureStore
from anomalib_comet.models.fun_ad.loss import balanced_bce, mutual_smoothness
from anomalib_comet.models.fun_ad.neighbours import nearest
from anomalib_comet.models.fun_ad.pseudo_labels import min_max, perturb, uncertain

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBLISHED: dict[str, Any] = contamination.PUBLISHED_RULES

OURS: dict[str, Any] = {
    "patch_pool": 7,
    "feature_scaling": "whiten",
    "top_share": 0.05,
    "target": "distances",
    "space": "descriptors",
    "bank_rule": "all",
    "neighbour_share": 0.25,
    "bank_half": False,
    "exclude": "image",
    "norm_input": True,
    "image_weight": 2.0,
    "lr": 5e-4,
}
"""FunAd's defaults, with the learning rate of the small presets: bank and distances are made once."""


def model(arguments: argparse.Namespace, **kwargs: Any) -> FunAd:
    """Return a FunAd with the published rules."""
    side = arguments.image_size
    gabor = arguments.backbone == "gabor"
    return FunAd(
        backbone=arguments.backbone,
        layers=["scale3", "scale2", "scale4"] if gabor else ["blocks.2", "blocks.4"],
        backbone_weights=None if gabor or arguments.backbone_weights is None else str(arguments.backbone_weights),
        image_size=(side, side),
        visualizer=False,
        **{**PUBLISHED, "feature_scaling": "standardize", "lr": arguments.lr, **kwargs},
    )


def features(
    arguments: argparse.Namespace, detector: FunAd, test: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return records of training images, records of test images and their labels, none of the test if unasked."""
    data = contamination.datamodule(arguments, arguments.ratio, seed=0, overlap=False)
    data.prepare_data()
    data.setup()
    parts: list[list[torch.Tensor]] = []
    for loader in (data.train_dataloader(), data.test_dataloader())[: 1 + test]:
        rows, labels = [], []
        for batch in loader:
            images, _ = detector.pre_processor.transform(batch.image, None)
            rows.append(detector._records(images))  # noqa: SLF001
            labels.append(batch.gt_label)
        parts.append([torch.cat(rows), torch.cat(labels)])
    return parts[0][0], *(parts[1] if test else (torch.zeros(0), torch.zeros(0)))


def with_features(detector: FunAd, records: torch.Tensor) -> FunAd:
    """Give a model these features of its training images."""
    store = FeatureStore([f"{k:06}" for k in range(len(records))], records.shape[1], "benchmark", "memory")
    store.write(range(len(records)), records)
    store.finish()
    detector.use_features(store)
    return detector


@torch.no_grad()
def published_distances(
    detector: FunAd, rows: list[int], generator: torch.Generator, clock: dict[str, float] | None = None
) -> torch.Tensor:
    """Score everything, draw the bank anew, and return the batch's min-max distances: one step's share of the work."""
    net, n_patches = detector.model.local_net, detector.model.n_patches
    clock = {} if clock is None else clock
    with timed(clock, "scores and bank"):
        parts = [net(*detector.training_features.scaled(chunk)) for chunk in detector.training_features.chunks()]
        adapted = torch.cat([part for part, _ in parts])
        scores = torch.cat([logits.sigmoid().amax(dim=1) for _, logits in parts])
        candidates = (min_max(scores) < 0.5).nonzero().flatten()
        half = candidates[torch.randperm(len(candidates), generator=generator)[: max(1, len(candidates) // 2)]]
        bank = adapted[half].flatten(0, 1)
        owner = (half[:, None] * n_patches + torch.arange(n_patches)).flatten()
    with timed(clock, "search"):
        own = (torch.tensor(rows)[:, None] * n_patches + torch.arange(n_patches)).flatten()
        distances = nearest(adapted[rows].flatten(0, 1), bank, exclude=(own, owner))[0]
    return min_max(distances.view(len(rows), n_patches))


def published_pairs(adapted: torch.Tensor) -> torch.Tensor:
    """Find mutually nearest patches of a batch, all of it, by a loop."""
    own = torch.arange(len(adapted))
    neighbour = nearest(adapted, adapted, exclude=(own, own))[1][:, 0]
    pairs = []
    for u in range(len(adapted)):
        v = int(neighbour[u])
        if u < v and int(neighbour[v]) == u:
            pairs.append((u, v))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


@contextlib.contextmanager
def timed(clock: dict[str, float], part: str) -> Iterator[None]:
    """Add the time of a block to a part's."""
    start = time.perf_counter()
    yield
    clock[part] = clock.get(part, 0.0) + time.perf_counter() - start


def train_published(detector: FunAd, batches: list[list[int]], limit: float) -> tuple[dict[str, float], int]:
    """Train by the published schedule until ``limit`` seconds have passed; return seconds a step by part and steps."""
    optimizer = torch.optim.RMSprop(detector.model.local_net.parameters(), lr=detector.lr, momentum=0.2)
    generator = torch.Generator().manual_seed(1)
    clock: dict[str, float] = {}
    steps = 0
    for rows in batches:
        scaled = published_distances(detector, rows, generator, clock)
        with timed(clock, "forward and backward"):
            token, patches = detector.training_features.scaled(rows)
            n_token = token.shape[1]
            labels = scaled > 0.5
            adapted, clean = detector.model.local_net(token, patches)
            noisy = perturb(patches, uncertain(scaled), detector._spread[n_token:], generator)  # noqa: SLF001
            logits = detector.model.local_net(token, noisy)[1]
        with timed(clock, "pairs"):
            pairs = published_pairs(adapted.detach().flatten(0, 1))
        with timed(clock, "forward and backward"):
            loss = balanced_bce(logits, labels) + 2.5 * mutual_smoothness(clean.flatten().sigmoid(), pairs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        steps += 1
        if sum(clock.values()) > limit:
            break
    return {part: seconds / steps for part, seconds in clock.items()}, steps


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
        if check and detector.target == "labels" and step % check == check - 1:
            known = detector.bank.scaled_distances(detector.scope, detector.label_kappa, rows) > 0.5
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


def schedules(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of our schedules by name, from near to the published one to far from it."""
    bounds = {"bank_vectors": arguments.bank_vectors, "pair_patches": arguments.pair_patches}
    sparse = {**bounds, "train_patches": arguments.train_patches}
    first, last = min(arguments.rebuild_epochs), max(arguments.rebuild_epochs)
    named: dict[str, dict[str, Any]] = {
        f"rebuilt every {first}": {"rebuild_epochs": first, "bank_vectors": None, "pair_patches": None}
    }
    for epochs in arguments.rebuild_epochs:
        named[f"rebuilt every {epochs}, bounded"] = {"rebuild_epochs": epochs, **bounds}
    named[f"rebuilt every {last}, bounded, {arguments.train_patches} patches"] = {"rebuild_epochs": last, **sparse}
    named["our rules"] = {**OURS, **sparse}
    return named


def batches_of(n_images: int, epochs: int) -> list[list[int]]:
    """Return the images of every step."""
    generator = torch.Generator().manual_seed(0)
    return [part.tolist() for _ in range(epochs) for part in torch.randperm(n_images, generator=generator).split(32)]


def compare(arguments: argparse.Namespace) -> pd.DataFrame:
    """Train by every schedule and return a row for each."""
    records, test, labels = features(arguments, model(arguments))
    n_images, per_epoch = len(records), -(-len(records) // 32)
    batches = batches_of(n_images, arguments.epochs)
    detector = with_features(model(arguments), records)
    shape = (detector.model.n_patches, detector.model.local_net.n_features)
    print(
        f"{n_images} images, {shape[0]} patches of {shape[1]} values, {len(batches)} steps, {torch.get_num_threads()}"
        f" threads; untrained AUROC {auroc(detector, test, labels):.3f}",
        flush=True,
    )
    clock, steps = train_published(detector, batches, arguments.limit)
    published = sum(clock.values())
    rows = [{"schedule": "published", "step_s": published, "steps": steps, "auroc": auroc(detector, test, labels)}]
    print(rows[0], {part: round(seconds, 3) for part, seconds in clock.items()}, flush=True)
    for name, settings in schedules(arguments).items():
        ours = with_features(model(arguments, **settings), records)
        seconds, agreement, redraws = train_ours(ours, batches, per_epoch, arguments.check)
        rows.append(
            {
                "schedule": name,
                "step_s": seconds,
                "faster": published / seconds,
                "steps": len(batches),
                "jaccard": np.mean(agreement) if agreement else float("nan"),
                "redraws": np.mean(redraws) if redraws else float("nan"),
                "auroc": auroc(ours, test, labels),
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def growth(arguments: argparse.Namespace) -> pd.DataFrame:
    """Time a step of the published schedule and of ours, its share of rebuilds included, on more and more images."""
    rows = []
    for n_images in arguments.growth:
        detector = model(arguments)
        n_values = detector.model.n_patches * detector.model.descriptors.n_patch
        records = torch.randn(n_images, n_values, generator=torch.Generator().manual_seed(0))
        clock, steps = train_published(with_features(detector, records), batches_of(n_images, 1), arguments.limit)
        published = sum(clock.values())
        row = {"images": n_images, "published_steps": steps, "published_s": published, **clock}
        # Without a bound ours grows with the square of the images, as the published schedule does.
        for name, settings in list(schedules(arguments).items())[-3:]:
            ours = with_features(model(arguments, **settings), records)
            # From one rebuild to the next.
            batches = batches_of(n_images, arguments.epochs if name == "our rules" else ours.rebuild_epochs)
            seconds, _, _ = train_ours(ours, batches, -(-n_images // 32), check=0)
            rows.append({**row, "schedule": name, "ours_s": seconds, "faster": published / seconds})
            print({key: rows[-1][key] for key in ("images", "published_s", "schedule", "ours_s", "faster")}, flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("tiles", *contamination.MATERIALS), default="woven")
    parser.add_argument("--root", type=Path, help="magnetic tiles in MVTec-style folders")
    parser.add_argument("--backbone", help="frozen network (default: mobilenetv2_100 for tiles, gabor elsewhere)")
    parser.add_argument("--backbone-weights", type=Path, help="local state dict")
    parser.add_argument("--work", type=Path, default=Path("results/benchmarks"), help="folder of the images")
    parser.add_argument("--images", type=int, default=100, help="normal training images (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.1, help="contamination ratio (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-5, help="learning rate (default: %(default)s)")
    parser.add_argument("--rebuild-epochs", type=int, nargs="+", default=[1, 5], help="ours (default: %(default)s)")
    parser.add_argument("--bank-vectors", type=int, default=20_000, help="ours (default: %(default)s)")
    parser.add_argument("--pair-patches", type=int, default=2048, help="ours (default: %(default)s)")
    parser.add_argument("--train-patches", type=int, default=64, help="ours, in the last rows (default: %(default)s)")
    parser.add_argument("--check", type=int, default=10, help="measure agreement once in so many steps")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for the published schedule")
    parser.add_argument("--growth", type=int, nargs="+", help="numbers of images, random features")
    arguments = parser.parse_args()
    contamination.complete(parser, arguments, trains=not arguments.growth)
    arguments.ratios = [arguments.ratio]
    warnings.filterwarnings("ignore")
    frame = growth(arguments) if arguments.growth else compare(arguments)
    print(frame.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
