# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Peak memory and time of FunAd's store, rebuild and steps against the number of training images.

    python benchmarks/fun_ad_memory.py --images 1250 2500 5000 10000
    python benchmarks/fun_ad_memory.py --images 1000 --image-size 64 128 256

Every size runs in a process of its own, on random features of the sizes of a Gabor backbone (256 patches of 44 values
at 128 pixels, 1024 at 256), in memory or in a temporary file. The peak is what the process had resident at most, less
what it had before the store was opened (the program itself).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

PATCH_VALUES = 44


def resident(peak: bool) -> float:
    """Return resident memory of this process in MiB, at its peak or now (Linux)."""
    field = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")


def one(n_images: int, place: str, bank_vectors: int, side: int) -> dict[str, float]:
    """Store features of so many images, rebuild the bank and take steps on all of them once."""
    from anomalib_comet.models import FunAd
    from anomalib_comet.models.fun_ad.feature_store import FeatureStore

    warnings.filterwarnings("ignore")
    model = FunAd(
        backbone="gabor",
        layers=["scale3", "scale2", "scale1", "scale4"],
        image_size=(side, side),
        feature_scaling="standardize",
        scope="robust",
        train_patches=64,
        bank_vectors=bank_vectors,
        visualizer=False,
    )
    before = resident(peak=False)
    generator = torch.Generator().manual_seed(0)
    n_values = model.model.n_patches * PATCH_VALUES
    store = FeatureStore([f"{k:06}" for k in range(n_images)], n_values, "benchmark", place)
    times = {"write": time.perf_counter()}
    for start in range(0, n_images, 32):
        rows = range(start, min(start + 32, n_images))
        store.write(rows, torch.randn(len(rows), n_values, generator=generator))
    store.finish()
    model.use_features(store)
    times["rebuild"] = time.perf_counter()
    model.rebuild(0)
    times["steps"] = time.perf_counter()
    optimizer = torch.optim.RMSprop(model.model.local_net.parameters(), lr=model.lr, momentum=model.momentum)
    for part in torch.randperm(n_images, generator=generator).split(32):
        optimizer.zero_grad()
        model.batch_loss(part.tolist(), generator).backward()
        optimizer.step()
    end = time.perf_counter()
    result = {
        "images": n_images,
        "patches": model.model.n_patches,
        "features_mib": round(store.n_bytes / 2**20, 1),
        "peak_mib": round(resident(peak=True) - before, 1),
        "write_s": round(times["rebuild"] - times["write"], 1),
        "rebuild_s": round(times["steps"] - times["rebuild"], 1),
        "steps_s": round(end - times["steps"], 1),
    }
    store.close()
    return result


def main() -> None:
    """Run all sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1250, 2500, 5000, 10000], help="training images")
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[128], help="side in pixels (default: %(default)s)"
    )
    parser.add_argument("--places", nargs="+", default=["temporary", "memory"], help="feature_store")
    parser.add_argument("--bank-vectors", type=int, default=5_000, help="bound of the bank (default: %(default)s)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        n_images, place, side = arguments.one
        print(json.dumps(one(int(n_images), place, arguments.bank_vectors, int(side))))
        return
    for place in arguments.places:
        for side, n_images in itertools.product(arguments.image_size, arguments.images):
            command = [sys.executable, __file__, "--one", str(n_images), place, str(side)]
            command += ["--bank-vectors", str(arguments.bank_vectors)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            print(place, done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
