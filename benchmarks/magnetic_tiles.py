# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Ablation of CoMetDifferNet against DifferNet on magnetic tiles: every switch, several seeds, r = 0 and .1.

    python benchmarks/magnetic_tiles.py --root DIR --backbone-weights FILE --out docs/results

``DIR`` is in MVTec-style folders. The protocol: no overlap, one test set for all ratios of a seed, last epoch, no
choice by test labels. The features of an image are the same in every run, so they are computed once and kept in
``--work``; nothing else is shared. Runs that are in the CSV already are not repeated.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from anomalib.data import Folder
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.engine import Engine
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_comet.backbones import FeatureCache
from anomalib_comet.data import ContaminatedDataModule
from anomalib_comet.models import CoMetDifferNet, DifferNet

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule
    from anomalib.models import AnomalibModule

OFF = {"use_weights": False, "use_meta": False, "use_adaptive_l2": False}
STRONG = {"kappa": 0.0, "weight_power": 4.0}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "DifferNet": None,
    "+ weights": {**OFF, "use_weights": True},
    "+ meta-learning": {**OFF, "use_meta": True},
    "+ adaptive L2": {**OFF, "use_adaptive_l2": True},
    "CoMetDifferNet, published weights": {},
    "CoMetDifferNet, kappa 0, power 4": STRONG,
}
DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")


class KeptFeatures(FeatureCache):
    """A feature cache that outlives a fit and a process: the backbone is frozen and the same in every run."""

    def clear(self) -> None:
        """Keep everything."""

    def fill(self, file: Path, detector: Any, data: Any) -> None:
        """Take the features of all images from ``file``, or compute them and write it."""
        if file.exists():
            self._features = {path: (tensor,) for path, tensor in torch.load(file, weights_only=True).items()}
            return
        data.setup()
        for loader in (data.train_dataloader(), data.test_dataloader()):
            for batch in loader:
                images, _ = detector.pre_processor.transform(batch.image, None)
                self.get(batch.image_path, images, lambda x: detector.model.turned_features(x)[:1])
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({path: tensors[0] for path, tensors in self._features.items()}, file)


def keep_decoded_images() -> None:
    """Decode and resize every image once a process."""
    items: dict[tuple[str, int], Any] = {}
    load = AnomalibDataset.__getitem__

    def get(self: AnomalibDataset, index: int) -> Any:
        row = self.samples.iloc[index]
        key = (row.image_path, int(row.label_index))
        if key not in items:
            items[key] = load(self, index)
        return items[key]

    AnomalibDataset.__getitem__ = get  # type: ignore[method-assign]


def datamodule(root: Path, ratio: float, max_ratio: float, seed: int) -> AnomalibDataModule:
    """Return the contaminated tiles; the test set depends on the seed only."""
    tiles = Folder(
        name="magnetic_tiles",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{defect}" for defect in DEFECTS],
        train_batch_size=32,
        eval_batch_size=32,
        num_workers=0,
        val_split_mode="none",
        seed=seed,
    )
    return ContaminatedDataModule(tiles, ratio=ratio, max_ratio=max_ratio, seed=seed)


def model(variant: str, weights: Path | None, seed: int, backbone: str) -> AnomalibModule:
    """Return the model of a variant, with the settings of ``configs/comet_differnet_magnetic_tiles.yaml``."""
    settings: dict[str, Any] = {
        "backbone": backbone,
        "layers": ["blocks.2", "blocks.4"] if backbone.startswith("mobilenetv2") else None,
        "backbone_weights": None if weights is None else str(weights),
        "image_size": (256, 256),
        "coupling_blocks": 4,
        "hidden_units": 128,
        "n_windows": 0,  # image scores only: the map's flow shares nothing with the image's
        "train_rotations": "quarter",
        "visualizer": False,
        "seed": seed,
    }
    strategy = VARIANTS[variant]
    return DifferNet(**settings) if strategy is None else CoMetDifferNet(**settings, **strategy)


@torch.no_grad()
def measure(detector: Any, data: Any) -> dict[str, float]:
    """Return image AUROC and AP on the test set, and how well training scores find the injected images."""
    detector.eval()
    scores, labels = [], []
    for batch in data.test_dataloader():
        batch.image, _ = detector.pre_processor.transform(batch.image, None)
        scores.append(detector.sample_scores(batch))
        labels.append(batch.gt_label)
    score, label = torch.cat(scores).numpy(), torch.cat(labels).numpy()
    result = {
        "image_auroc": float(roc_auc_score(label, score)),
        "image_ap": float(average_precision_score(label, score)),
    }
    table = getattr(detector, "confidence", None)
    if table is not None and data.contamination.injected.any():
        frame = table.frame(data.contamination[["image_path", "injected"]])
        truth = frame.injected.astype(int)
        result["audit_ap"] = float(average_precision_score(truth, frame.anomaly_score))
        result["weight_injected"] = float(frame.confidence_weight[truth == 1].mean())
        result["weight_normal"] = float(frame.confidence_weight[truth == 0].mean())
    return result


def run(variant: str, ratio: float, seed: int, cache: KeptFeatures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one cell of the table and measure it."""
    torch.manual_seed(seed)
    data = datamodule(arguments.root, ratio, max(arguments.ratios), seed)
    detector: Any = model(variant, arguments.backbone_weights, seed, arguments.backbone)
    detector._cache = cache  # noqa: SLF001
    engine = Engine(
        max_epochs=arguments.epochs,
        default_root_dir=arguments.work,
        accelerator="cpu",
        barebones=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    engine.fit(detector, datamodule=data)
    seconds = time.perf_counter() - start
    data.setup()
    row = {
        "model": variant,
        "ratio": ratio,
        "share": round(ratio / (1 + ratio), 4),
        "seed": seed,
        "train_images": len(data.train_data),
        "test_images": len(data.test_data),
        "epochs": arguments.epochs,
        "fit_seconds": round(seconds, 1),
        **{name: round(value, 4) for name, value in measure(detector, data).items()},
    }
    logged = engine.trainer.callback_metrics
    for name in ("inner_improvement", "model_uncertainty", "l2_strength", "confidence_threshold"):
        if name in logged:
            row[name] = float(logged[name])
    return row


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation of the image AUROC over seeds, a row a model and a column a ratio."""
    cells = frame.groupby(["model", "ratio"], sort=False).image_auroc
    mean, spread, count = cells.mean(), cells.std(ddof=0), cells.count()
    text = pd.Series(
        {
            key: f"{mean[key]:.3f} ± {spread[key]:.3f}" + ("" if count[key] == count.max() else f" (n={count[key]})")
            for key in mean.index
        }
    )
    text.index = pd.MultiIndex.from_tuples(text.index)
    return text.unstack().reindex(  # noqa: PD010  # a series has no pivot_table
        [name for name in VARIANTS if name in set(frame.model)]
    )


def main() -> None:
    """Run the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="magnetic tiles in MVTec-style folders")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="frozen network (default: %(default)s)")
    parser.add_argument("--backbone-weights", type=Path, help="local state dict; without it weights are downloaded")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.1], help="contamination ratios")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of draw and model")
    parser.add_argument("--epochs", type=int, default=20, help="training epochs (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="rows")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the CSV")
    parser.add_argument("--csv", default="magnetic_tiles.csv", help="name of the CSV (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("results/benchmarks/runs"), help="folder of the runs")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "anomalib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    keep_decoded_images()
    cache = KeptFeatures(gib=8)
    largest = max(arguments.ratios)
    any_model = model("DifferNet", arguments.backbone_weights, 0, arguments.backbone)
    everything = datamodule(arguments.root, largest, largest, 0)
    cache.fill(arguments.work / f"features_{arguments.backbone}.pt", any_model, everything)
    path = arguments.out / arguments.csv
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["model"], row["ratio"], row["seed"], row["epochs"]) for row in rows}
    cells = [(v, r, s) for s in arguments.seeds for r in arguments.ratios for v in arguments.variants]
    for number, (variant, ratio, seed) in enumerate(cells, 1):
        if (variant, ratio, seed, arguments.epochs) in done:
            continue
        row = run(variant, ratio, seed, cache, arguments)
        rows.append(row)
        pd.DataFrame(rows).to_csv(path, index=False)
        print(f"[{number}/{len(cells)}] {row}", flush=True)
    frame = pd.DataFrame(rows)
    print(summary(frame[frame.epochs == arguments.epochs]).to_string())


if __name__ == "__main__":
    main()
