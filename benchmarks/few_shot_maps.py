# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Patch level of MultidirectionalMeta: maps of defect types that nobody labelled, through anomalib's engine.

    python benchmarks/few_shot_maps.py --root DIR --backbone-weights FILE --csv maps.csv
    python benchmarks/few_shot_maps.py --csv maps.csv --print

Magnetic tiles in MVTec-style folders. Every defect type is held out in turn; ``shots`` images of each other type are
labelled, with their masks. Three scores of the same patches of the same trained model, all logarithms of distances: the
model's, that before the last outer phase, and the Mahalanobis distance, for which no label was used. Tested: normal
images and the unseen type. Last episode, no choice by test labels. Cells that are in the CSV already are not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_comet.data import FewShotDataModule
from anomalib_comet.models import MultidirectionalMeta
from contamination import pixel_metrics

DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
KEYS = ["held_out", "shots", "batch_size", "seed", "score"]
VALUES = ["image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pro"]


def trained(arguments: argparse.Namespace, held_out: str, seed: int) -> tuple[MultidirectionalMeta, FewShotDataModule]:
    """Return a trained model and its data."""
    tiles = Folder(
        "tiles",
        "train/good",
        arguments.root,
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{name}" for name in DEFECTS],
        mask_dir=[f"ground_truth/{name}" for name in DEFECTS],
        val_split_mode="none",
        num_workers=0,
    )
    data = FewShotDataModule(tiles, shots=arguments.shots, held_out=[held_out], seed=seed)
    model = MultidirectionalMeta(
        backbone="mobilenetv2_100",
        layers=["blocks.2", "blocks.4"],
        backbone_weights=arguments.backbone_weights,
        level="patch",
        batch_size=arguments.batch_size,
        seed=seed,
        visualizer=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        engine = Engine(max_epochs=20, accelerator="cpu", devices=1, default_root_dir=folder, **quiet)
        engine.fit(model, datamodule=data)
    return model.eval(), data


@torch.no_grad()
def measure(model: MultidirectionalMeta, data: FewShotDataModule, held_out: str) -> dict[str, dict[str, float]]:
    """Return metrics on the unseen type by score."""
    network = model.model.network
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    labels, masks = [], []
    for batch in data.test_dataloader():
        kept = [k for k, p in enumerate(batch.image_path) if not batch.gt_label[k] or held_out in Path(p).parts]
        if not kept:
            continue
        images, truth = model.pre_processor.transform(batch.image[kept], batch.gt_mask[kept])
        labels.append(batch.gt_label[kept])
        masks.append(truth)
        features = torch.cat([model.model.features(image[None]) for image in images])
        others = network.compared_scores(features)
        scores = {
            "model": network.logarithmic(network(features)),
            "before the last outer phase": others["inner"],
            "Mahalanobis": others["mahalanobis"],
        }
        for name, values in scores.items():
            maps = model.model.anomaly_map(values, tuple(images.shape[-2:]))
            found.setdefault(name, []).append((model.model.image_scores(values), maps.flatten(1)))
    label = torch.cat(labels).numpy()
    result = {}
    for name, parts in found.items():
        image, maps = (torch.cat(column) for column in zip(*parts, strict=True))
        result[name] = {
            "image_auroc": float(roc_auc_score(label, image)),
            "image_ap": float(average_precision_score(label, image)),
            **pixel_metrics(maps, torch.cat(masks)),
        }
    return result


def table(cells: pd.DataFrame) -> str:
    """Return mean and, over seeds, standard deviation of each score by shots and batch size."""
    groups = ["shots", "batch_size", "score"]
    by_seed = cells.groupby([*groups, "seed"])[VALUES].mean()
    return by_seed.groupby(groups).agg(["mean", "std", "size"]).round(3).to_string()


def main() -> None:
    """Measure what is missing and write the CSV after every training."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the tiles")
    parser.add_argument("--backbone-weights", help="state dict of mobilenetv2_100")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=2048, help="patches in a step (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--csv", type=Path, default=Path("few_shot_maps.csv"))
    parser.add_argument("--print", action="store_true", help="print the table of a CSV and end")
    arguments = parser.parse_args()
    if arguments.print and not arguments.csv.exists():
        parser.error(f"there is no {arguments.csv} to print: leave --print away to measure, or give another --csv")
    cells = pd.read_csv(arguments.csv) if arguments.csv.exists() else pd.DataFrame(columns=[*KEYS, *VALUES])
    known = set(map(tuple, cells[KEYS[:4]].itertuples(index=False)))
    for seed in [] if arguments.print else arguments.seeds:
        for held_out in DEFECTS:
            if (held_out, arguments.shots, arguments.batch_size, seed) in known:
                continue
            start = time.perf_counter()
            model, data = trained(arguments, held_out, seed)
            seconds = round(time.perf_counter() - start, 1)
            base: dict[str, Any] = {
                "held_out": held_out,
                "shots": arguments.shots,
                "batch_size": arguments.batch_size,
                "seed": seed,
                "fit_seconds": seconds,
            }
            rows = [
                {**base, "score": name, **{key: round(value, 4) for key, value in values.items()}}
                for name, values in measure(model, data, held_out).items()
            ]
            cells = pd.concat([cells, pd.DataFrame(rows)], ignore_index=True)
            cells.to_csv(arguments.csv, index=False)
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
