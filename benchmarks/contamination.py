# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What contamination costs a detector, and what each part of CoMet brings back: one CSV row a training.

    python benchmarks/contamination.py --data tiles --root DIR --backbone-weights FILE --detectors DifferNet
    python benchmarks/contamination.py --data woven --detectors SimpleNet --ratios 0 .1 .2

``tiles`` are magnetic tiles in MVTec-style folders, ``woven`` and the other materials are the built-in surfaces. The
protocol: anomalies are added to the normal images and leave the test set (unless ``--overlap``), one test set for all
ratios of a seed, last epoch, nothing chosen by test labels within a run. ``PatchCore`` and ``PaDiM`` are anomalib's
own, on the same layers of the same network. Frozen features of an image are the same in every run; they are computed
once and kept in ``--work``. Cells that are in the CSV already are not repeated, so an interrupted table goes on. The
largest ratio decides the test set (column ``test_images``): rows of two runs with different ones are not comparable.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml
from anomalib.data import Folder
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.engine import Engine
from anomalib.models import Fastflow, Padim, Patchcore, Stfpm, Supersimplenet
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from anomalib_comet import models
from anomalib_comet.backbones import FeatureCache, timm_name_without_download
from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
from anomalib_comet.models.differnet.torch_model import IMAGE_SCORES
from anomalib_comet.models.frozen_features import resizing_pre_processor

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
MATERIALS = ("woven", "brushed", "granular", "wood", "print")
OFF = {"use_weights": False, "use_meta": False, "use_adaptive_l2": False}
PUBLISHED = {"kappa": 1.5, "weight_power": 1.0}
RECOMMENDED = {"kappa": 0.0, "weight_power": 2.0}
CROSS_FITTED = {"cross_fit_folds": 4, "cross_fit_epochs": 0, "cross_fit_rounds": 3}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "base": None,
    "+ weights": {**OFF, "use_weights": True},
    "+ meta": {**OFF, "use_meta": True},
    "+ adaptive L2": {**OFF, "use_adaptive_l2": True},
    "all": {},
    "all, published weights": PUBLISHED,
    "all, not cross-fitted": {"cross_fit_folds": 0, "cross_fit_rounds": 1},
    "all, cross-fitted by training": {"cross_fit_folds": 2, "cross_fit_epochs": 5, "cross_fit_rounds": 1},
    "all, power 4": {"weight_power": 4.0},
    "all, power 8": {"weight_power": 8.0},
    "all, no warm-up": {"warmup_epochs": 0},
    "all, long warm-up": {"warmup_epochs": 10},
    "all, second order": {"second_order": True},
    "all, inner steps 5, lr x 10": {"inner_steps": 5, "inner_lr": 0.1, "inner_clip": 10.0},
    "all, lambda0 x 1000": {"lambda0": 1e-3},
    "all, raw determinant": {"uncertainty_scale": "raw"},
}
"""Arguments of the strategy on top of :data:`STRATEGY`; ``None`` is the detector without the strategy."""

RULES = (
    *("patch_pool", "feature_scaling", "norm_input", "top_share", "image_weight", "target", "scope", "space"),
    *("bank_rule", "bank_half", "neighbour_share", "exclude"),
)
PRESET = Path(__file__).parent.parent / "configs" / "fun_ad.yaml"
PUBLISHED_RULES = {rule: yaml.safe_load(PRESET.read_text())["model"]["init_args"][rule] for rule in RULES}
FUN_AD: dict[str, dict[str, Any]] = {
    "base": {},
    "no image term": {"image_weight": 0.0},
    "nearest vector": {"neighbour_share": 0.0},
    "nearest vector, bank of a random half": {"neighbour_share": 0.0, "bank_rule": "quantile", "bank_half": True},
    "pseudo-labels by fence": {"target": "labels", "label_kappa": 1.5},
    "published rules": {**PUBLISHED_RULES, "lr_decay": False},
    "published rules, epoch scope": {**PUBLISHED_RULES, "lr_decay": False, "scope": "epoch"},
    "published rules, robust scope": {**PUBLISHED_RULES, "lr_decay": False, "scope": "robust", "label_kappa": 1.5},
}
"""Arguments of FunAd on top of those in :func:`settings`."""

STRATEGY: dict[str, dict[str, Any]] = {
    # The folds are scored by distances in whitened features, without training: it costs next to nothing.
    "DifferNet": {**RECOMMENDED, **CROSS_FITTED},
    "SimpleNet": RECOMMENDED,
    "Fastflow": RECOMMENDED,
    "Stfpm": RECOMMENDED,
    "Supersimplenet": RECOMMENDED,
}
COLUMNS = (
    *("image_auroc", "global_auroc", "local_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pro"),
    *("audit_ap", "audit_recall_k", "audit_recall_2k", "weight_injected", "weight_normal"),
)
"""Columns that are printed as tables."""

STOCK = {"Fastflow": Fastflow, "Stfpm": Stfpm, "Supersimplenet": Supersimplenet}
NO_STRATEGY = {"PatchCore": Patchcore, "PaDiM": Padim}
EPOCHS = {
    "DifferNet": 20,
    "SimpleNet": 20,
    "Fastflow": 20,
    "Stfpm": 20,
    "Supersimplenet": 20,
    "FunAd": 30,
    **dict.fromkeys(NO_STRATEGY, 1),
}


class KeptFeatures(FeatureCache):
    """A feature cache that outlives a fit and a process: the backbone is frozen and the same in every run."""

    def clear(self) -> None:
        """Keep everything."""

    def read(self, file: Path) -> None:
        """Take the features of ``file``, if it is there."""
        if file.exists():
            self._features = torch.load(file, weights_only=True)

    def write(self, file: Path) -> None:
        """Write all features to ``file``, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(self._features, partial)
        partial.replace(file)


def keep_decoded_images() -> None:
    """Decode and resize every image once a process."""
    items: dict[tuple[str, int, str], Any] = {}
    load = AnomalibDataset.__getitem__

    def get(self: AnomalibDataset, index: int) -> Any:
        row = self.samples.iloc[index]
        key = (row.image_path, int(row.label_index), str(self.augmentations))
        if key not in items:
            items[key] = load(self, index)
        return items[key]

    AnomalibDataset.__getitem__ = get  # type: ignore[method-assign]


def subset_of_tiles(root: Path, n_images: int, seed: int, work: Path) -> Path:
    """Return a folder of links to ``n_images`` random normal training images and to the whole test set."""
    if not n_images:
        return root
    folder = work / f"tiles_{n_images}_seed{seed}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "train" / "good").mkdir(parents=True)
        images = sorted((root / "train" / "good").iterdir())
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        for k in order[:n_images].tolist():
            (folder / "train" / "good" / images[k].name).symlink_to(images[k].resolve())
        for name in ("test", "ground_truth"):
            (folder / name).symlink_to((root / name).resolve())
        (folder / "complete").touch()
    return folder


def datamodule(arguments: argparse.Namespace, ratio: float, seed: int, overlap: bool) -> ContaminatedDataModule:
    """Return the contaminated data; the test set depends on the seed only."""
    common: dict[str, Any] = {"train_batch_size": 32, "eval_batch_size": 32, "num_workers": 0}
    if arguments.data == "tiles":
        inner: Any = Folder(
            name="magnetic_tiles",
            root=subset_of_tiles(arguments.root, arguments.images, seed, arguments.work),
            normal_dir="train/good",
            normal_test_dir="test/good",
            abnormal_dir=[f"test/{defect}" for defect in DEFECTS],
            mask_dir=[f"ground_truth/{defect}" for defect in DEFECTS],
            val_split_mode="none",
            seed=seed,
            **common,
        )
    else:
        sizes = {"n_train": arguments.images} if arguments.images else {}
        inner = ProceduralSurfaces(
            root=arguments.work / "surfaces", category=arguments.data, seed=seed, **sizes, **common
        )
    largest = None if overlap else max(arguments.ratios)
    return ContaminatedDataModule(inner, ratio=ratio, max_ratio=largest, overlap=overlap, seed=seed)


def settings(detector: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the detector's own arguments, the same in every variant."""
    learned = arguments.backbone != "gabor"
    weights = str(arguments.backbone_weights) if learned and arguments.backbone_weights else None
    features: dict[str, Any] = {"backbone": arguments.backbone, "visualizer": False}
    if detector in {"DifferNet", "SimpleNet"}:
        features |= {"image_size": (256, 256), "backbone_weights": weights, "seed": seed}
        features |= {"layers": ["blocks.2", "blocks.4"] if arguments.backbone.startswith("mobilenetv2") else None}
    if detector == "DifferNet":
        return {
            **features,
            "n_scales": 3 if learned else 2,
            "n_transforms": 2,
            "train_rotations": "quarter",
            "pooling": "mean_std",
            "feature_scaling": "whiten",
            "identity_start": True,
            "coupling_blocks": 4,
            "hidden_units": 128,
            "n_windows": 0 if arguments.image_score == "global" else 8,
            "local_coupling_blocks": 4,
            "local_hidden_units": 64,
            "train_windows": 4,
            "image_score": arguments.image_score,
            "local_share": 0.05,
        }
    if detector == "SimpleNet":
        return {
            **features,
            "aggregation": "average",
            "hidden_units": 256,
            "feature_scaling": "standardize",
            "noise_scale": 0.5,
            "lr": 1e-3,
            "adaptor_lr": 1e-3,
            "train_patches": 256,
        }
    if detector == "FunAd":
        return {
            **features,
            "image_size": (224, 224) if learned else (256, 256),
            "layers": {"mobilenetv2_100": LAYERS["FunAd"]["layers"], "gabor": GABOR_LAYERS}.get(arguments.backbone),
            "backbone_weights": weights,
            "hidden_units": [512, 128],
            "bank_vectors": 20_000,
            "train_patches": 256,
            "lr": 5e-4,
            "lr_decay": True,
            "seed": seed,
            "feature_store": str(arguments.work / "fun_ad"),
        }
    if detector in STOCK:
        return {**features, "pre_processor": resizing_pre_processor((128, 128)), **LAYERS[detector]}
    own = {"PatchCore": {"coreset_sampling_ratio": 0.01}, "PaDiM": {"n_features": PADIM_FEATURES}}.get(detector, {})
    size = resizing_pre_processor((224, 224) if learned else (256, 256))
    layers = LAYERS["FunAd"]["layers"] if learned else None
    return {**features, "layers": layers, "pre_processor": size, **own}


PADIM_FEATURES = 100
"""anomalib's choice for the smallest network that it has one for."""

GABOR_LAYERS = ["scale3", "scale2", "scale1", "scale4"]
"""Of FunAd's small preset: patches lie on the grid of the first."""

LAYERS: dict[str, dict[str, Any]] = {
    "Fastflow": {"backbone": "resnet18", "flow_steps": 4, "pre_trained": False},
    "Stfpm": {"layers": ["blocks.1", "blocks.2", "blocks.4"]},
    "Supersimplenet": {"layers": ["blocks.2", "blocks.4"]},
    "FunAd": {"layers": ["blocks.2", "blocks.4"]},
}


def model(detector: str, variant: str, arguments: argparse.Namespace, seed: int) -> Any:
    """Return the model of a cell."""
    own = settings(detector, arguments, seed)
    if detector == "FunAd":
        return models.FunAd(**{**own, **FUN_AD[variant]})
    strategy = VARIANTS[variant]
    torch.manual_seed(seed)  # the stock detectors draw their initial weights from the global generator
    ours = getattr(models, f"CoMet{detector}", None)
    if strategy is not None and ours is not None:
        if detector in STOCK:
            own["backbone_weights"] = arguments.backbone_weights
        return ours(**own, **{**STRATEGY[detector], **strategy, "audit": False})
    if detector in {"DifferNet", "SimpleNet"}:
        return getattr(models, detector)(**own)
    if detector == "Fastflow":  # knows its networks by their names; this one has no weights
        return Fastflow(**own)
    with timm_name_without_download(own["backbone"], arguments.backbone_weights) as name:
        return {**STOCK, **NO_STRATEGY}[detector](**{**own, "backbone": name})


@torch.no_grad()
def measure(detector: Any, data: Any, pixels: bool = False) -> dict[str, float]:
    """Return metrics on the test set, of maps too if asked, and how well training scores find the injected images."""
    detector.eval()
    scores: dict[str, list[torch.Tensor]] = {}
    labels, maps, masks = [], [], []
    for batch in data.test_dataloader():
        batch.image, mask = detector.pre_processor.transform(batch.image, batch.gt_mask)
        labels.append(batch.gt_label)
        output = detector.model(batch.image) if pixels else None
        if output is not None:
            maps.append(output.anomaly_map.flatten(1).half())
            masks.append(mask)
        for name, score in raw_scores(detector, batch, output):
            scores.setdefault(name, []).append(score)
    truth = torch.cat(labels).numpy()
    result = {}
    for name, parts in scores.items():
        score = torch.cat(parts).numpy()
        result[f"{name}auroc"] = float(roc_auc_score(truth, score))
        result[f"{name}ap"] = float(average_precision_score(truth, score))
    if pixels:
        result |= pixel_metrics(torch.cat(maps).float(), torch.cat(masks))
    found = detector.training_frame() if hasattr(detector, "training_frame") else None
    if found is not None and data.contamination.injected.any():
        frame = found.merge(data.contamination[["image_path", "injected"]], on="image_path")
        frame = frame.sort_values("anomaly_score", ascending=False)
        truth = frame.injected.astype(int)
        count = int(truth.sum())
        result["audit_ap"] = float(average_precision_score(truth, frame.anomaly_score))
        result["audit_recall_k"] = float(truth.head(count).mean())
        result["audit_recall_2k"] = float(truth.head(2 * count).sum() / count)
        result["weight_injected"] = float(frame.confidence_weight[truth == 1].mean())
        result["weight_normal"] = float(frame.confidence_weight[truth == 0].mean())
    return result


def pixel_metrics(maps: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    """Return AUROC and average precision of pixels and the area under PRO up to 30 % false positives."""
    masks = masks.long().reshape(len(maps), *masks.shape[-2:])
    flat, truth = maps.flatten(), masks.flatten()
    return {
        "pixel_auroc": float(binary_auroc(flat, truth)),
        "pixel_ap": float(binary_average_precision(flat, truth)),
        "pro": per_region_overlap(flat.reshape(masks.shape), masks),
    }


def per_region_overlap(maps: torch.Tensor, masks: torch.Tensor, limit: float = 0.3) -> float:
    """Return the area under the per-region overlap up to a false-positive rate, normalised.

    The curve is taken at ten thousand thresholds, at equal shares of the sound pixels.
    """
    steps = 10_000
    normal = maps[masks == 0].sort()[0]
    edges = normal[torch.linspace(0, len(normal) - 1, steps, dtype=torch.float64).long()].contiguous()
    level = torch.bucketize(maps, edges)
    sound = torch.bincount(level[masks == 0], minlength=steps + 1).flip(0).cumsum(0).double()
    overlaps = []
    for mask, values in zip(masks.numpy(), level, strict=True):
        regions, count = label(mask)
        for number in range(1, count + 1):
            inside = values[torch.from_numpy(regions == number)]
            overlaps.append(torch.bincount(inside, minlength=steps + 1).flip(0).cumsum(0).double() / len(inside))
    rate, overlap = (sound / sound[-1]).numpy(), torch.stack(overlaps).mean(0).numpy()
    grid = np.linspace(0.0, limit, 301)
    return float(np.trapezoid(np.interp(grid, np.r_[0.0, rate], np.r_[0.0, overlap]), grid) / limit)


def raw_scores(detector: Any, batch: Any, output: Any = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the image scores of a batch: the detector's own first, and those of DifferNet's parts by name.

    Args:
        detector: The detector.
        batch: Pre-processed batch.
        output: What its model returned for the batch, if it has been asked.
    """
    if hasattr(detector, "sample_scores"):
        yield "image_", detector.sample_scores(batch)
    else:
        output = detector.model(batch.image) if output is None else output
        yield "image_", output.pred_score.flatten()
    network = detector.model
    if getattr(network, "image_score", None) == "both":
        features = detector.batch_features(batch)
        for part in ("global", "local"):
            network.image_score = part
            yield f"{part}_", network.score(features)
        network.image_score = "both"


def run(
    detector: str, variant: str, ratio: float, overlap: bool, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train one cell of the table and measure it."""
    data = datamodule(arguments, ratio, seed, overlap)
    trained = model(detector, variant, arguments, seed)
    cache = arguments.caches.get(detector)
    if cache is not None:
        trained._cache = cache  # noqa: SLF001
    torch.manual_seed(seed)
    folder = tempfile.mkdtemp()
    engine = Engine(
        max_epochs=arguments.epochs or EPOCHS[detector],
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    engine.fit(trained, datamodule=data)
    seconds = time.perf_counter() - start
    data.setup()
    row = {
        **key(detector, variant, ratio, overlap, seed, arguments),
        "share": round(ratio / (1 + ratio), 4),
        "train_images": len(data.train_data),
        "test_images": len(data.test_data),
        "fit_seconds": round(seconds, 1),
        **{name: round(value, 4) for name, value in measure(trained, data, arguments.pixels).items()},
    }
    history = getattr(trained, "history", None)
    if history is not None and history.rows:
        names = ("inner_improvement", "inner_distance", "model_uncertainty", "l2_strength", "loss_l2", "loss_detector")
        row |= {name: history.rows[-1][name] for name in names if name in history.rows[-1]}
    shutil.rmtree(folder, ignore_errors=True)
    return row


def known_variants(detector: str) -> list[str]:
    """Return the variants that a detector has."""
    if detector in NO_STRATEGY:
        return ["base"]
    return list(FUN_AD if detector == "FunAd" else VARIANTS)


def key(
    detector: str, variant: str, ratio: float, overlap: bool, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return what identifies a cell."""
    return {
        "data": arguments.data,
        "backbone": arguments.backbone,
        "images": arguments.images,
        "detector": f"{detector}, {arguments.image_score} score" if detector == "DifferNet" else detector,
        "variant": variant,
        "ratio": ratio,
        "overlap": overlap,
        "seed": seed,
        "epochs": arguments.epochs or EPOCHS.get(detector),
    }


def kept(detector: str, arguments: argparse.Namespace) -> Path:
    """Return the file of a detector's kept features."""
    windows = "" if arguments.image_score == "global" or detector != "DifferNet" else "_windows"
    return arguments.work / f"{arguments.data}_{arguments.backbone}_{detector}{windows}.pt"


def summary(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return mean and standard deviation over seeds, a row a model and a column a ratio."""
    index = ["data", "backbone", "images", "detector", "variant"]
    columns = ["overlap", "ratio"]
    cells = frame.dropna(subset=[column]).groupby([*index, *columns], sort=False)[column]
    text = cells.agg(lambda v: f"{v.mean():.3f} ± {v.std(ddof=0):.3f} ({len(v)})")
    return text.unstack(columns).sort_index(axis=1)  # noqa: PD010  # a series has no pivot_table


def complete(parser: argparse.ArgumentParser, arguments: argparse.Namespace, trains: bool = True) -> None:
    """Ask for the folder of the tiles where they are trained on, and name the network if none is named."""
    if trains and arguments.data == "tiles" and arguments.root is None:
        parser.error("--data tiles needs --root, the folder of the magnetic tiles")
    arguments.backbone = arguments.backbone or ("mobilenetv2_100" if arguments.data == "tiles" else "gabor")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("tiles", *MATERIALS), default="woven", help="(default: %(default)s)")
    parser.add_argument("--root", type=Path, help="magnetic tiles in MVTec-style folders")
    parser.add_argument(
        "--images", type=int, default=0, help="normal training images, 0 for all (default: %(default)s)"
    )
    parser.add_argument(
        "--image-score", choices=IMAGE_SCORES, default="both", help="DifferNet's (default: %(default)s)"
    )
    parser.add_argument("--backbone", help="frozen network (default: mobilenetv2_100 for tiles, gabor elsewhere)")
    parser.add_argument("--backbone-weights", type=Path, help="local state dict; without it weights are downloaded")
    detectors = [*STRATEGY, "FunAd", *NO_STRATEGY]
    parser.add_argument("--detectors", nargs="+", choices=detectors, default=["DifferNet"], help="rows")
    variants = list(dict.fromkeys([*VARIANTS, *FUN_AD]))
    parser.add_argument("--variants", nargs="+", choices=variants, default=list(VARIANTS)[:5], help="rows")
    parser.add_argument("--pixels", action="store_true", help="measure maps too: AUROC, average precision, PRO")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2], help="contamination ratios")
    parser.add_argument("--overlap", action="store_true", help="leave injected images in the test set too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of images, draw and model")
    parser.add_argument(
        "--epochs",
        type=int,
        default=0,
        help="training epochs (default: 30 for FunAd, 1 for stock models that do not train, 20 for others)",
    )
    parser.add_argument("--csv", type=Path, default=Path("results/contamination.csv"), help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("results/contamination"), help="(default: %(default)s)")
    parser.add_argument("--print", action="store_true", help="only print the table of the CSV")
    arguments = parser.parse_args()
    stock = sorted({*NO_STRATEGY, "Stfpm", "Supersimplenet"} & set(arguments.detectors))
    if stock and arguments.data != "tiles" and not arguments.backbone and not arguments.print:
        parser.error(f"anomalib builds {stock} on networks of timm: name one, e.g. --backbone mobilenetv2_100")
    complete(parser, arguments, trains=not arguments.print)
    return arguments


def main() -> None:
    """Run the cells that are missing, and print the table."""
    arguments = parse()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "anomalib", "anomalib_comet"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = pd.read_csv(arguments.csv).to_dict("records") if arguments.csv.exists() else []
    if not arguments.print:
        keep_decoded_images()
        arguments.caches = {}
        for detector in set(arguments.detectors) & {"DifferNet", "SimpleNet"}:
            arguments.caches[detector] = KeptFeatures(gib=8)
            arguments.caches[detector].read(kept(detector, arguments))
        cells = [
            (detector, variant, ratio, arguments.overlap, seed)
            for seed in arguments.seeds
            for detector in arguments.detectors
            for variant in arguments.variants
            if variant in known_variants(detector)
            for ratio in arguments.ratios
            if ratio or not arguments.overlap
        ]
        done = [{name: row[name] for name in key("", "", 0, False, 0, arguments)} for row in rows]
        for number, cell in enumerate(cells, 1):
            if key(*cell, arguments) in done:
                continue
            known = {name: len(cache) for name, cache in arguments.caches.items()}
            rows.append(run(*cell, arguments))
            arguments.csv.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(arguments.csv, index=False)
            print(f"[{number}/{len(cells)}] {rows[-1]}", flush=True)
            for name, cache in arguments.caches.items():
                if len(cache) != known[name]:
                    cache.write(kept(name, arguments))
    frame = pd.DataFrame(rows)
    for column in COLUMNS:
        if column in frame:
            print(f"\n{column}\n{summary(frame, column).to_string()}")


if __name__ == "__main__":
    main()
