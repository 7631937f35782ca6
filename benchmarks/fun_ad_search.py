# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Ways to find the nearest neighbours of FunAd: time and agreement of what they find, own image excluded.

    python benchmarks/fun_ad_search.py --data tiles --root DIR --backbone-weights FILE --images 150

Patches of all training images, as they lie in the space of ``--scaling``, are searched in a random bank. ``torch``
masks the own image in a matrix of all distances, ``faiss`` searches in the two parts of the bank beside it, exactly.
``selector`` hands faiss the own image as something to leave out. ``PCA`` searches in so many principal components and
computes the distances of the best ``--keep`` exactly; its Jaccard index is that of pseudo-anomalies (min-max by batches
of 32 images, above one half) with those of the exact search. Calls of all ways alternate, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import pandas as pd
import torch

import contamination
import fun_ad_speed
from anomalib_comet.models.fun_ad.neighbours import nearest
from anomalib_comet.models.fun_ad.pseudo_labels import min_max

if TYPE_CHECKING:
    from collections.abc import Callable

    Search = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def by_engine(engine: str) -> Search:
    """Return the package's exact search."""

    def search(query: torch.Tensor, bank: torch.Tensor, own: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        return nearest(query, bank, exclude=(own, owners), engine=engine)[0].flatten()

    return search


def by_selector(query: torch.Tensor, bank: torch.Tensor, own: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """Search once an image with a selector of everything but its range; ``owners`` ascend."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.numpy())
    distances = torch.empty(len(query))
    for image in own.unique().tolist():
        members = own == image
        inside = (owners == image).nonzero().flatten()
        limits = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        selector = faiss.IDSelectorNot(faiss.IDSelectorRange(*limits))
        found = index.search(query[members].numpy(), 1, params=faiss.SearchParameters(sel=selector))[0]
        distances[members] = torch.from_numpy(found[:, 0])
    return distances


def by_components(n_components: int, keep: int) -> Search:
    """Return a coarse search in principal components of the bank with exact distances of the best few."""

    def search(query: torch.Tensor, bank: torch.Tensor, own: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        mean = bank.mean(0)
        directions = torch.linalg.eigh((bank - mean).T @ (bank - mean))[1][:, -n_components:]
        coarse_query, coarse_bank = (query - mean) @ directions, (bank - mean) @ directions
        where = nearest(coarse_query, coarse_bank, keep, (own, owners))[1]
        best = query.new_full((len(query),), torch.inf)
        for column in where.unbind(1):
            best = torch.minimum(best, (query - bank[column]).square().sum(1))
        return best

    return search


def labels(distances: torch.Tensor, n_patches: int) -> torch.Tensor:
    """Return the published pseudo-labels by batches of 32 images."""
    return torch.cat([min_max(part) > 0.5 for part in distances.view(-1, n_patches).split(32)])


@torch.no_grad()
def main() -> None:
    """Search in every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("tiles", *contamination.MATERIALS), default="woven")
    parser.add_argument("--root", type=Path, help="magnetic tiles in MVTec-style folders")
    parser.add_argument("--backbone", help="frozen network (default: mobilenetv2_100 for tiles, gabor elsewhere)")
    parser.add_argument("--backbone-weights", type=Path, help="local state dict")
    parser.add_argument("--work", type=Path, default=Path("results/benchmarks"), help="folder of the images")
    parser.add_argument("--images", type=int, default=100, help="normal training images (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels (default: %(default)s)")
    parser.add_argument("--scaling", default="whiten", help="feature_scaling (default: %(default)s)")
    parser.add_argument("--pool", type=int, default=7, help="patch_pool (default: %(default)s)")
    parser.add_argument("--bank-vectors", type=int, default=20_000, help="vectors of the bank (default: %(default)s)")
    parser.add_argument("--components", type=int, nargs="+", default=[8, 16, 32], help="of PCA (default: %(default)s)")
    parser.add_argument("--keep", type=int, default=8, help="exact distances a patch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="calls of every way (default: %(default)s)")
    parser.add_argument("--selector", action="store_true", help="time faiss's selector too, which is slow")
    arguments = parser.parse_args()
    contamination.complete(parser, arguments)
    arguments.ratio, arguments.ratios, arguments.lr = 0.1, [0.1], 2e-5
    warnings.filterwarnings("ignore")

    detector = fun_ad_speed.model(arguments, feature_scaling=arguments.scaling, patch_pool=arguments.pool)
    fun_ad_speed.with_features(detector, fun_ad_speed.features(arguments, detector, test=False)[0])
    features = detector.training_features
    vectors = torch.cat([features.scaled(chunk)[1] for chunk in features.chunks()])
    n_images, n_patches, width = vectors.shape
    own = torch.arange(n_images).repeat_interleave(n_patches)
    vectors = vectors.flatten(0, 1)
    drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    drawn = drawn[: arguments.bank_vectors].sort()[0]
    bank, owners = vectors[drawn].contiguous(), own[drawn]
    print(f"{n_images} images, {len(vectors)} patches of {width} values, {len(bank)} in the bank", flush=True)

    ways: dict[str, Search] = {"torch": by_engine("torch"), "faiss": by_engine("faiss")}
    if arguments.selector:
        ways["selector"] = by_selector
    ways |= {
        f"PCA {count}, exact best {arguments.keep}": by_components(count, arguments.keep)
        for count in arguments.components
        if count < width
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, torch.Tensor] = {}
    for _ in range(arguments.repeats):
        for name, search in ways.items():
            start = time.perf_counter()
            found[name] = search(vectors, bank, own, owners)
            times[name].append(time.perf_counter() - start)
    exact = found["torch"]
    expected = labels(exact, n_patches)
    rows = [
        {
            "search": name,
            "seconds": statistics.median(times[name]),
            "torch / it": statistics.median(a / b for a, b in zip(times["torch"], times[name], strict=True)),
            "same nearest": float(torch.isclose(found[name], exact, rtol=1e-3, atol=1e-4).float().mean()),
            "largest excess": float((found[name] / exact.clamp(min=1e-6) - 1).max()),
            "Jaccard": fun_ad_speed.jaccard(labels(found[name], n_patches), expected),
        }
        for name in ways
    ]
    print(pd.DataFrame(rows).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
