# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""FunAd on magnetic tiles beside anomalib's PatchCore and PaDiM on the same features, clean to heavily contaminated.

    python benchmarks/fun_ad_quality.py --root DIR --backbone-weights FILE --normal 150 --ratios 0 0.1 0.2

``DIR`` is in MVTec-style folders. The protocol: no overlap (``--overlap`` for the other one), one test set for all
ratios of a seed, last epoch, no choice by test labels. All models see layers ``blocks.2`` and ``blocks.4`` of the same
network on images of 224 pixels. Cells that are in the CSV already are not computed again.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from magnetic_tiles import DEFECTS, keep_decoded_images
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import binary_auroc

from anomalib_comet.backbones import timm_name_without_download
from anomalib_comet.data import ContaminatedDataModule
from anomalib_comet.models import FunAd

LAYERS = ["blocks.2", "blocks.4"]
SIZE = (224, 224)
PUBLISHED: dict[str, Any] = {
    "patch_pool": 1,
    "feature_scaling": "none",
    "top_share": 0.0,
    "target": "labels",
    "scope": "batch",
    "space": "adapted",
    "bank_rule": "min_max",
    "bank_half": True,
    "exclude": "patch",
    "norm_input": False,
    "image_weight": 0.0,
    "lr_decay": False,
}
FUN_AD: dict[str, dict[str, Any]] = {
    "FunAd": {},
    "FunAd, no image term": {"image_weight": 0.0},
    "FunAd, bank of a random half": {"bank_rule": "quantile", "bank_half": True},
    "FunAd, pseudo-labels by fence": {"target": "labels", "label_kappa": 1.5},
    "FunAd, published rules": PUBLISHED,
    "FunAd, published rules, epoch scope": {**PUBLISHED, "scope": "epoch"},
    "FunAd, published rules, robust scope": {**PUBLISHED, "scope": "robust", "label_kappa": 1.5},
}


def tiles(arguments: argparse.Namespace, ratio: float, seed: int) -> ContaminatedDataModule:
    """Return contaminated tiles, of whose normal training images ``--normal`` are drawn by the seed."""
    normal = arguments.root / "train" / "good"
    if arguments.normal:
        chosen = random.Random(seed).sample(sorted(normal.iterdir()), arguments.normal)
        normal = arguments.work / f"normal_{arguments.normal}_{seed}"
        normal.mkdir(parents=True, exist_ok=True)
        for path in chosen:
            link = normal / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
    data = Folder(
        name="magnetic_tiles",
        root=arguments.root,
        normal_dir=normal.resolve(),
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{defect}" for defect in DEFECTS],
        mask_dir=[f"ground_truth/{defect}" for defect in DEFECTS],
        train_batch_size=32,
        eval_batch_size=32,
        num_workers=0,
        val_split_mode="none",
        seed=seed,
    )
    largest = max(arguments.ratios)
    return ContaminatedDataModule(data, ratio=ratio, max_ratio=largest, overlap=arguments.overlap, seed=seed)


def detector(name: str, arguments: argparse.Namespace, seed: int) -> Any:
    """Return an untrained model by its name in the table."""
    weights = None if arguments.backbone_weights is None else str(arguments.backbone_weights)
    if name in FUN_AD:
        settings = {
            "backbone": arguments.backbone,
            "layers": LAYERS,
            "backbone_weights": weights,
            "image_size": SIZE,
            "hidden_units": [512, 128],
            "bank_vectors": arguments.bank_vectors,
            "train_patches": 256,
            "lr": arguments.lr,
            "lr_decay": True,
            "seed": seed,
            "visualizer": False,
        }
        return FunAd(**{**settings, **FUN_AD[name]})
    torch.manual_seed(seed)
    with timm_name_without_download(arguments.backbone, weights) as backbone:
        common = {"backbone": backbone, "layers": LAYERS, "pre_trained": True, "visualizer": False}
        if name == "PaDiM":
            return Padim(**common, pre_processor=Padim.configure_pre_processor(SIZE))
        pre_processor = Patchcore.configure_pre_processor(SIZE)
        return Patchcore(**common, coreset_sampling_ratio=0.01, pre_processor=pre_processor)


@torch.no_grad()
def measure(model: Any, data: Any) -> dict[str, float]:
    """Return image AUROC and average precision, pixel AUROC, and how well the injected images are found."""
    model.eval()
    scores, labels, maps, masks = [], [], [], []
    for batch in data.test_dataloader():
        images, mask = model.pre_processor.transform(batch.image, batch.gt_mask)
        prediction = model.model(images)
        scores.append(prediction.pred_score.flatten())
        labels.append(batch.gt_label)
        maps.append(prediction.anomaly_map.flatten().half())
        masks.append(mask.flatten())
    score, label = torch.cat(scores).numpy(), torch.cat(labels).numpy()
    pixels = torch.cat(maps).float()
    # The method of torchmetrics with thresholds: exact ranks of 25 million pixels would take minutes.
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-9)
    result = {
        "image_auroc": float(roc_auc_score(label, score)),
        "image_ap": float(average_precision_score(label, score)),
        "pixel_auroc": float(binary_auroc(pixels, torch.cat(masks).long(), thresholds=1000)),
    }
    frame = model.training_frame() if hasattr(model, "training_frame") else None
    injected = data.contamination
    if frame is not None and injected.injected.any():
        table = frame.merge(injected[["image_path", "injected"]], on="image_path")
        result["audit_ap"] = float(average_precision_score(table.injected.astype(int), table.anomaly_score))
        result["head_ap"] = float(average_precision_score(table.injected.astype(int), table.head_score))
    return result


def run(name: str, ratio: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one cell of the table."""
    torch.manual_seed(seed)
    data = tiles(arguments, ratio, seed)
    model = detector(name, arguments, seed)
    epochs = arguments.epochs if name in FUN_AD else 1
    engine = Engine(
        max_epochs=epochs,
        default_root_dir=arguments.work,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    engine.fit(model, datamodule=data)
    seconds = time.perf_counter() - start
    data.setup()
    return {
        "model": name,
        "ratio": ratio,
        "share": round(ratio / (1 + ratio), 4),
        "seed": seed,
        "train_images": len(data.train_data),
        "test_images": len(data.test_data),
        "overlap": arguments.overlap,
        "epochs": epochs,
        "fit_seconds": round(seconds, 1),
        **{key: round(value, 4) for key, value in measure(model, data).items()},
    }


def main() -> None:
    """Run the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="magnetic tiles in MVTec-style folders")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="frozen network (default: %(default)s)")
    parser.add_argument("--backbone-weights", type=Path, help="local state dict; without it weights are downloaded")
    parser.add_argument("--normal", type=int, default=0, help="normal training images, 0 for all (default)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.4], help="contamination")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of draw and model")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of FunAd (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate of FunAd (default: %(default)s)")
    parser.add_argument("--bank-vectors", type=int, default=20_000, help="bound of FunAd's bank (default: %(default)s)")
    parser.add_argument("--overlap", action="store_true", help="injected images stay in the test set")
    names = ["PaDiM", "PatchCore", *FUN_AD]
    parser.add_argument("--models", nargs="+", default=names, choices=names, help="rows")
    parser.add_argument("--csv", type=Path, default=Path("results/benchmarks/fun_ad_quality.csv"), help="table")
    parser.add_argument("--work", type=Path, default=Path("results/benchmarks/runs"), help="folder of the runs")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric", "anomalib"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    keep_decoded_images()
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(arguments.csv).to_dict("records") if arguments.csv.exists() else []
    done = {(row["model"], row["ratio"], row["seed"], row["overlap"]) for row in rows}
    for seed in arguments.seeds:
        for ratio in arguments.ratios:
            for name in arguments.models:
                if (name, ratio, seed, arguments.overlap) in done:
                    continue
                rows.append(run(name, ratio, seed, arguments))
                pd.DataFrame(rows).to_csv(arguments.csv, index=False)
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    table = frame.pivot_table(index="model", columns="ratio", values="image_auroc", aggfunc=np.mean, sort=False)
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
