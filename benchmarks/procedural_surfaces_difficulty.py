# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""How much stock PatchCore loses on the procedural surfaces when a tenth of its training images is defective.

    python benchmarks/procedural_surfaces_difficulty.py --backbone-weights FILE

Protocol: no overlap, one test set for both ratios of a seed, at least three seeds (of images, draw and coreset). The
embedding, the nearest neighbours and the scores are those of anomalib's ``PatchcoreModel``; the features of an image
are the same for both ratios, so they are computed once. Without ``--backbone-weights`` the published weights are
downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from anomalib.models import Patchcore
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from sklearn.metrics import roc_auc_score

from anomalib_comet.backbones import FrozenBackbone
from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
from anomalib_comet.data.procedural_surfaces import MATERIALS

if TYPE_CHECKING:
    import pandas as pd
    from anomalib.data import AnomalibDataset

RATIOS = (0.0, 0.1)


class NamedFeatures(torch.nn.Module):
    """A frozen backbone as the feature extractor that PatchCore expects: maps by the names of their layers."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the feature maps of normalised images by layer."""
        return dict(zip(self.backbone.layers, self.backbone(images), strict=True))


def build_patchcore(arguments: argparse.Namespace) -> PatchcoreModel:
    """Return PatchCore with the chosen frozen features."""
    features = FrozenBackbone(arguments.backbone, arguments.layers, backbone_weights=arguments.backbone_weights)
    # The network that the constructor builds is a small placeholder.
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False)
    model.feature_extractor, model.layers = NamedFeatures(features), features.layers
    return model


def embed(model: PatchcoreModel, data: AnomalibDataset, known: dict[str, torch.Tensor]) -> None:
    """Add the patch embeddings, shape (patches, channels), of all images of a data set that are not known yet."""
    transform = Patchcore.configure_pre_processor().transform
    model.train()  # in this mode the forward pass returns embeddings
    for index, path in enumerate(data.samples.image_path):
        if path not in known:
            known[path] = model(transform(data[index].image[None]))
    model.embedding_store.clear()


def coreset(patches: torch.Tensor, ratio: float, seed: int) -> torch.Tensor:
    """Greedy k-centre choice of patches, as PatchCore's, on the features themselves.

    anomalib's class first projects the features at random, to more dimensions than a small backbone has (288 for the
    128 channels of the default one): that multiplies the time and brings nothing.

    Args:
        patches: All embeddings, shape (N, C).
        ratio: Share to keep, in (0, 1].
        seed: Seed of the first choice.

    Returns:
        The chosen embeddings, shape (int(N * ratio), C).
    """
    squares = (patches * patches).sum(1)
    nearest = torch.full_like(squares, torch.inf)
    latest = int(torch.randint(len(patches), (1,), generator=torch.Generator().manual_seed(seed)))
    chosen = []
    for _ in range(int(len(patches) * ratio)):
        chosen.append(latest)
        torch.minimum(nearest, squares - 2.0 * (patches @ patches[latest]) + squares[latest], out=nearest)
        latest = int(nearest.argmax())
    return patches[chosen]


def fit_and_score(
    model: PatchcoreModel,
    train: pd.DataFrame,
    test: pd.DataFrame,
    known: dict[str, torch.Tensor],
    ratio: float,
    seed: int,
) -> np.ndarray:
    """Return the image scores, shape (images,), of a memory bank made of the training images."""
    model.memory_bank = coreset(torch.cat([known[path] for path in train.image_path]), ratio, seed)
    model.eval()
    scores = []
    for path in test.image_path:
        distances, places = model.nearest_neighbors(known[path], n_neighbors=1)
        scores.append(float(model.compute_anomaly_score(distances[None], places[None], known[path])))
    return np.array(scores)


@torch.inference_mode()
def measure(
    model: PatchcoreModel, category: str, seed: int, arguments: argparse.Namespace
) -> dict[float, dict[str, float]]:
    """Return image AUROC by ratio, for all defects together and for each type."""
    known: dict[str, torch.Tensor] = {}
    result: dict[float, dict[str, float]] = {}
    for ratio in RATIOS:
        surfaces = ProceduralSurfaces(
            root=arguments.root,
            category=category,
            n_train=arguments.n_train,
            severity=arguments.severity,
            seed=seed,
            val_split_mode="same_as_test",
        )
        datamodule = ContaminatedDataModule(surfaces, ratio=ratio, max_ratio=max(RATIOS), seed=seed)
        datamodule.setup()
        train, test = datamodule.train_data, datamodule.test_data
        embed(model, train, known)
        embed(model, test, known)
        scores = fit_and_score(model, train.samples, test.samples, known, arguments.coreset_ratio, seed)
        normal = test.samples.label_index.to_numpy() == 0
        types = test.samples.image_path.map(lambda path: Path(path).parent.name).to_numpy()
        result[ratio] = {"all": float(roc_auc_score(~normal, scores))}
        for name in sorted(set(types[~normal])):
            chosen = normal | (types == name)
            result[ratio][name] = float(roc_auc_score(~normal[chosen], scores[chosen]))
        print(
            f"{category} seed {seed} r {ratio:g}: {int(datamodule.contamination.injected.sum())} injected among "
            f"{len(train)}, test {int(normal.sum())} + {int((~normal).sum())}: "
            + ", ".join(f"{name} {value:.3f}" for name, value in result[ratio].items()),
            flush=True,
        )
    return result


def parse() -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/ProceduralSurfaces"), help="folder of images")
    parser.add_argument("--categories", nargs="+", default=list(MATERIALS), choices=list(MATERIALS))
    parser.add_argument("--severity", type=float, default=0.7, help="contrast of the defects, (0, 1]")
    parser.add_argument("--n-train", type=int, default=150, help="normal training images")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--coreset-ratio", type=float, default=0.01, help="share of the patches that is kept")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm or torchvision name, or gabor")
    parser.add_argument("--layers", nargs="+", default=None, help="layers of the features; none: its usual ones")
    parser.add_argument("--backbone-weights", type=Path, default=None, help="state-dict file of the backbone")
    return parser.parse_args()


def main() -> None:
    """Measure and print the table in Markdown."""
    arguments = parse()
    model = build_patchcore(arguments)
    rows = []
    for category in arguments.categories:
        runs = [measure(model, category, seed, arguments) for seed in range(arguments.seeds)]
        clean, dirty = (np.array([run[ratio]["all"] for run in runs]) for ratio in RATIOS)
        types = ", ".join(
            f"{name} {np.mean([run[RATIOS[0]][name] for run in runs]):.2f} / "
            f"{np.mean([run[RATIOS[1]][name] for run in runs]):.2f}"
            for name in runs[0][RATIOS[0]]
            if name != "all"
        )
        rows.append(
            f"| {category} | {clean.mean():.3f} ± {clean.std():.3f} | {dirty.mean():.3f} ± {dirty.std():.3f} "
            f"| {100 * (clean - dirty).mean():.1f} ± {100 * (clean - dirty).std():.1f} | {types} |"
        )
    print("\n| category | r = 0 | r = .1 | loss in points | by defect type, r = 0 / r = .1 |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
