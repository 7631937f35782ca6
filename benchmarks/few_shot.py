# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What a few labelled anomalies are worth on defect types that nobody labelled: ours beside what people do today.

    python benchmarks/few_shot.py --data tiles --root DIR --backbone-weights FILE --csv cells.csv
    python benchmarks/few_shot.py --data woven --csv cells.csv
    python benchmarks/few_shot.py --csv cells.csv --print

Every defect type is held out in turn; ``shots`` images of each other type are labelled, by the draw of
``FewShotDataModule``, and leave the test set. All methods see the same frozen features of the same images, whitened by
the same normal training images. Seen types are tested on their other images. Last step, no choice by test labels.
Cells that are in the CSV already are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import Folder
from anomalib.data.utils import read_image
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_comet.backbones import FeatureScaling
from anomalib_comet.data import ProceduralSurfaces
from anomalib_comet.data.contamination import frames, protocol
from anomalib_comet.models import MultidirectionalMeta
from anomalib_comet.multidirectional_meta import MultidirectionalDetector
from anomalib_comet.multidirectional_meta.network import Perceptron

if TYPE_CHECKING:
    from collections.abc import Callable

DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
STEPS, BATCH, LR = 600, 24, 1e-3
"""Of the comparators: optimiser steps, normal samples and anomalies in a step, learning rate of AdamW."""

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, no supervised part": {"supervised": False},
    "ours, inner phases only": {},
    "published parts": {"encoder": "mlp", "head": "linear", "lr": 1e-3, "inner_epochs": 10},
    "perceptron, radial head": {"encoder": "mlp", "lr": 1e-3, "inner_epochs": 10},
    "linear head": {"head": "linear"},
    "ours, PCGrad": {"pcgrad": True},
    "ours, ODIN 0.01": {"odin": 0.01},
}
METHODS = (*OURS, "Mahalanobis", "BCE", "DevNet", "PReNet")
MAIN = (
    "ours",
    "ours, no supervised part",
    "ours, inner phases only",
    "published parts",
    "Mahalanobis",
    "BCE",
    "DevNet",
    "PReNet",
)
KEYS = ["data", "pooling", "held_out", "shots", "seed", "method"]


class Data:
    """Features of all images, their types (empty for normal ones) and whether they are training images."""

    def __init__(self, features: np.ndarray, types: np.ndarray, train: np.ndarray, keys: list[str]) -> None:
        self.features = features
        self.types = types
        self.train = train
        self.keys = keys
        self.names = sorted(set(types) - {""})


def load(arguments: argparse.Namespace) -> Data:
    """Return the features of a data set, computed once and kept in ``--work``."""
    source = hashlib.sha256(f"{arguments.root}{arguments.backbone_weights}".encode()).hexdigest()[:8]
    file = arguments.work / f"{arguments.data}_{arguments.pooling}_{source}.npz"
    if not file.exists():
        warnings.simplefilter("ignore")
        backbone: dict[str, Any] = {"backbone": "gabor", "layers": ["scale3", "scale2", "scale1", "scale4"]}
        size = (256, 256)
        if arguments.data == "tiles":
            defects = {
                "abnormal_dir": [f"test/{t}" for t in DEFECTS],
                "mask_dir": [f"ground_truth/{t}" for t in DEFECTS],
            }
            data: Any = Folder(
                "tiles", "train/good", arguments.root, normal_test_dir="test/good", val_split_mode="none", **defects
            )
            backbone = {"backbone": "mobilenetv2_100", "layers": ["blocks.2", "blocks.4"]}
            backbone["backbone_weights"] = arguments.backbone_weights
            size = (224, 224)
        else:
            counts = {"n_train": 300, "n_test_normal": 150, "n_test_anomalous": 250, "n_val_normal": 1}
            root = arguments.work / "surfaces"
            data = ProceduralSurfaces(root, category=arguments.data, n_val_anomalous=1, **counts)
        data.prepare_data()
        data.setup()
        table = pd.concat([frames.cleaned(part.samples) for part in (data.train_data, data.test_data)])
        table = table.drop_duplicates("image_path").sort_values("image_path", ignore_index=True)
        bad = table["label_index"] == 1
        types = np.full(len(table), "", dtype=object)
        types[bad.to_numpy()] = frames.defect_types_of(table[bad], [data.test_data])
        model = MultidirectionalMeta(**backbone, image_size=size, pooling=arguments.pooling, visualizer=False).eval()
        rows = []
        for k, path in enumerate(table["image_path"]):
            image = model.pre_processor.transform(read_image(path, as_tensor=True)[None])
            rows.append(model.model.features(image)[0].numpy())
            if k % 50 == 49 or k + 1 == len(table):
                print(f"{k + 1}/{len(table)} images", flush=True)
        arguments.work.mkdir(parents=True, exist_ok=True)
        folder = frames.common_folder(table["image_path"])
        keys = [frames.key_of(path, folder) for path in table["image_path"]]
        train = (table["split"].astype(str).str.lower().str.endswith("train")).to_numpy()
        np.savez(file, features=np.stack(rows), types=types.astype(str), train=train, keys=np.array(keys))
    content = np.load(file)
    return Data(content["features"], content["types"], content["train"], content["keys"].tolist())


def measure(data: Data, held_out: str, shots: int, seed: int, method: str) -> list[dict[str, Any]]:
    """Train one method in one setting; ours gives two rows, before and after the last outer phase."""
    pool = {k: t for k, t in zip(data.keys, data.types, strict=True) if t and t != held_out}
    position = {key: k for k, key in enumerate(data.keys)}
    few = np.array([position[key] for key in protocol.few_of_each(pool, shots, seed)])
    normal = (data.types == "") & data.train
    start = time.perf_counter()
    if method in OURS:
        told = few[:0] if method == "ours, inner phases only" else few
        rows = np.concatenate([np.flatnonzero(normal), told])
        detector = MultidirectionalDetector(normal_label="", random_state=seed, **OURS[method])
        detector.fit(data.features[rows], data.types[rows])
        everything = torch.from_numpy(data.features).double()
        found = {"": detector.network_(everything).detach().numpy()}
        if len(told):
            found[" (before the last outer phase)"] = detector.network_.inner_scores(everything).numpy()
    else:
        scaled = whitened(data.features, normal)
        types = [scaled[few[data.types[few] == name]] for name in data.names if name != held_out]
        found = {"": COMPARATORS[method](scaled[normal], types, scaled, seed)}
    seconds = time.perf_counter() - start
    base = {"held_out": held_out, "shots": shots, "seed": seed}
    tested = (data.types != "") | ~data.train
    tested[few] = False
    result = []
    for phase, scores in found.items():
        row = {**base, "method": method + phase, "seconds": round(seconds, 2)}
        for name, wanted in (
            ("unseen", data.types == held_out),
            ("seen", (data.types != held_out) & (data.types != "")),
        ):
            # A seen type at a time, as unseen ones are, so that large types do not count more.
            parts = [name_of for name_of in data.names if bool((wanted & (data.types == name_of)).any())]
            values = []
            for part in parts:
                rows = tested & ((data.types == "") | (data.types == part))
                truth = data.types[rows] == part
                values.append((roc_auc_score(truth, scores[rows]), average_precision_score(truth, scores[rows])))
            row[f"{name}_auroc"], row[f"{name}_ap"] = np.round(np.mean(values, axis=0), 4)
        result.append(row)
    return result


def whitened(features: np.ndarray, normal: np.ndarray) -> torch.Tensor:
    """Return features scaled as ours are."""
    vectors = torch.from_numpy(features)
    scaling = FeatureScaling(features.shape[1], "pca")
    scaling.fit(vectors[torch.from_numpy(normal)], torch.ones(int(normal.sum())))
    return scaling(vectors)


def mahalanobis(normals: torch.Tensor, types: list[torch.Tensor], everything: torch.Tensor, seed: int) -> np.ndarray:
    """No label is used."""
    del normals, types, seed
    return everything.square().sum(dim=1).numpy()


def trained(
    network: nn.Module,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    normals: torch.Tensor,
    anomalies: torch.Tensor,
    seed: int,
) -> None:
    """Train on as many normal samples as anomalies a step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
    network.train()
    for _ in range(STEPS):
        good = normals[torch.randint(len(normals), (BATCH,), generator=generator)]
        bad = anomalies[torch.randint(len(anomalies), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        loss(good, bad).backward()
        optimizer.step()
    network.eval()


@torch.no_grad()
def _scores(network: nn.Module, everything: torch.Tensor) -> np.ndarray:
    return network(everything)[:, 0].numpy()


def bce(normals: torch.Tensor, types: list[torch.Tensor], everything: torch.Tensor, seed: int) -> np.ndarray:
    """Plain supervised binary cross-entropy."""
    torch.manual_seed(seed)
    network = nn.Sequential(Perceptron(normals.shape[1], 256, 128, 0.1), nn.Linear(128, 1))

    def loss(good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        return F.softplus(network(good)).mean() + F.softplus(-network(bad)).mean()

    trained(network, loss, normals, torch.cat(types), seed)
    return _scores(network, everything)


def devnet(normals: torch.Tensor, types: list[torch.Tensor], everything: torch.Tensor, seed: int) -> np.ndarray:
    """Deviation loss (Pang et al., KDD 2019): normal |z|, anomalies max(0, 5 - z), z by 5000 draws of N(0, 1)."""
    torch.manual_seed(seed)
    network = nn.Sequential(Perceptron(normals.shape[1], 256, 128, 0.1), nn.Linear(128, 1))

    def loss(good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        reference = torch.randn(5000)
        good, bad = ((network(x) - reference.mean()) / reference.std() for x in (good, bad))
        return good.abs().mean() + F.relu(5.0 - bad).mean()

    trained(network, loss, normals, torch.cat(types), seed)
    return _scores(network, everything)


def prenet(normals: torch.Tensor, types: list[torch.Tensor], everything: torch.Tensor, seed: int) -> np.ndarray:
    """Ordinal regression of pairs (Pang et al., KDD 2023): two anomalies 8, one 4, none 0; 30 partners of each kind."""
    torch.manual_seed(seed)
    encoder, head = Perceptron(normals.shape[1], 256, 128, 0.1), nn.Linear(256, 1)
    anomalies = torch.cat(types)

    def pair(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return head(torch.cat([encoder(a), encoder(b)], dim=1))[:, 0]

    def loss(good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        none, one, two = pair(good, good.roll(1, 0)), pair(bad, good), pair(bad, bad.roll(1, 0))
        return none.abs().mean() + (one - 4.0).abs().mean() + (two - 8.0).abs().mean()

    trained(nn.ModuleList([encoder, head]), loss, normals, anomalies, seed)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(everything))
    with torch.no_grad():
        for partners in (anomalies, normals):
            for k in torch.randint(len(partners), (30,), generator=generator).tolist():
                other = partners[k].expand(len(everything), -1)
                total += pair(other, everything) if partners is anomalies else pair(everything, other)
    return (total / 60).numpy()


COMPARATORS = {"Mahalanobis": mahalanobis, "BCE": bce, "DevNet": devnet, "PReNet": prenet}


def table(cells: pd.DataFrame) -> str:
    """Return mean and, over seeds, standard deviation of each method by data, features and shots."""
    columns = ["unseen_auroc", "unseen_ap", "seen_auroc", "seen_ap"]
    by_seed = cells.groupby([*KEYS[:2], "shots", "method", "seed"])[columns].mean().reset_index()
    grouped = by_seed.groupby([*KEYS[:2], "shots", "method"], sort=False)[columns]
    mean, std, count = grouped.mean(), grouped.std(ddof=1), grouped.size()
    lines = ["| data | features | shots | method | seeds | AUROC unseen | AP unseen | AUROC seen | AP seen |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for index in sorted(mean.index, key=lambda i: (i[0], i[1], i[2], -mean.loc[i, "unseen_auroc"])):
        values = [f"{mean.loc[index, c]:.3f}" for c in columns]
        if count[index] > 1:
            values = [f"{value} ± {std.loc[index, c]:.3f}" for value, c in zip(values, columns, strict=True)]
        lines.append("| " + " | ".join([*map(str, index), str(count[index]), *values]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and write the CSV after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="woven", help="tiles, or a material of the built-in surfaces")
    parser.add_argument("--root", type=Path, help="folder of the tiles")
    parser.add_argument("--backbone-weights", help="state dict of mobilenetv2_100, for tiles")
    parser.add_argument("--pooling", default="windows", help="see MultidirectionalMeta")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(MAIN))
    parser.add_argument("--work", type=Path, default=Path("few_shot"), help="folder of features")
    parser.add_argument("--csv", type=Path, default=Path("few_shot.csv"))
    parser.add_argument("--print", action="store_true", help="print the table of a CSV and end")
    arguments = parser.parse_args()
    if arguments.print and not arguments.csv.exists():
        parser.error(f"there is no {arguments.csv} to print: leave --print away to measure, or give another --csv")
    cells = pd.read_csv(arguments.csv) if arguments.csv.exists() else pd.DataFrame(columns=KEYS)
    if not arguments.print:
        data = load(arguments)
        known = set(map(tuple, cells[KEYS].itertuples(index=False)))
        for shots in arguments.shots:
            for seed in arguments.seeds:
                for held_out in data.names:
                    for method in arguments.methods:
                        key = (arguments.data, arguments.pooling, held_out, shots, seed, method)
                        if key in known:
                            continue
                        rows = [
                            {"data": arguments.data, "pooling": arguments.pooling, **row}
                            for row in measure(data, held_out, shots, seed, method)
                        ]
                        cells = pd.concat([cells, pd.DataFrame(rows)], ignore_index=True)
                        cells.to_csv(arguments.csv, index=False)
    print(table(cells))


if __name__ == "__main__":
    main()
