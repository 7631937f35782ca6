# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Cost of a CoMet epoch against its base detector's, and of remembering features, as ratios within one run.

    python benchmarks/epoch_cost.py

Every detector is trained a few epochs on the built-in data, base and CoMet in turn, and the ratio of their last epochs'
CPU time is taken, pair by pair; the table gives the median. A CoMet epoch holds the meta-steps and the pass over the
training images that refreshes the weights. ``features`` says whether frozen features are computed in every epoch or
remembered from the first. Networks have random weights, which cost the same.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.engine import Engine
from anomalib.models import Fastflow, Stfpm, Supersimplenet
from lightning.pytorch import Callback

from anomalib_comet import models
from anomalib_comet.backbones import timm_name_without_download
from anomalib_comet.data import ProceduralSurfaces
from anomalib_comet.models.frozen_features import resizing_pre_processor

OURS = {
    "DifferNet": {
        "backbone": "mobilenetv2_100",
        "pre_trained": False,
        "image_size": (256, 256),
        "coupling_blocks": 4,
        "hidden_units": 128,
        "n_windows": 16,
        "local_hidden_units": 64,
        "train_rotations": "quarter",
    },
    "SimpleNet": {
        "backbone": "mobilenetv2_100",
        "pre_trained": False,
        "image_size": (256, 256),
        "aggregation": "average",
        "hidden_units": 256,
        "feature_scaling": "standardize",
    },
}
THEIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Fastflow": (Fastflow, {"backbone": "resnet18", "pre_trained": False}),
    "Stfpm": (Stfpm, {"backbone": "resnet18"}),
    "Supersimplenet": (Supersimplenet, {"backbone": "resnet18", "layers": ["layer2", "layer3"]}),
}


class EpochTime(Callback):
    """Remembers the CPU time of the last epoch, which a busy machine does not change."""

    seconds = 0.0
    _start = 0.0

    def on_train_epoch_start(self, *_args: Any) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_train_epoch_end(self, *_args: Any) -> None:
        """Stop it."""
        self.seconds = time.process_time() - self._start


def build(detector: str, comet: bool, remembered: bool) -> Any:
    """Return a fresh model."""
    torch.manual_seed(0)
    strategy = {"warmup_epochs": 0, "audit": False} if comet else {}
    if detector in OURS:
        cls = getattr(models, f"CoMet{detector}" if comet else detector)
        return cls(**OURS[detector], **strategy, cache_gib=4.0 if remembered else 0.0, visualizer=False)
    base, arguments = THEIRS[detector]
    arguments = {**arguments, "pre_processor": resizing_pre_processor((256, 256)), "visualizer": False}
    if comet:
        return getattr(models, f"CoMet{detector}")(**{**arguments, "pre_trained": False}, **strategy)
    if "pre_trained" in arguments:  # builds its network without weights itself, and under this name only
        return base(**arguments)
    with timm_name_without_download(arguments["backbone"]) as name:
        return base(**{**arguments, "backbone": name})


def epoch_seconds(model: Any, data: Any, epochs: int) -> float:
    """Train, and return the CPU time of the last epoch."""
    clock = EpochTime()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(max_epochs=epochs, default_root_dir=folder, accelerator="cpu", callbacks=[clock], **quiet)
        engine.fit(model, datamodule=data)
    return clock.seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*OURS, *THEIRS]
    parser.add_argument("--detectors", nargs="+", default=known, choices=known, help="rows")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of trainings (default: %(default)s)")
    parser.add_argument("--images", type=int, default=64, help="training images (default: %(default)s)")
    parser.add_argument("--csv", type=Path, default=Path("results/epoch_cost.csv"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "anomalib", "anomalib_comet"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)  # CPU time of several threads would count their waiting
    rows = []
    with tempfile.TemporaryDirectory() as root:
        few = dict.fromkeys(("n_test_normal", "n_test_anomalous", "n_val_normal", "n_val_anomalous"), 2)
        data = ProceduralSurfaces(root=root, n_train=arguments.images, **few, train_batch_size=32, num_workers=0)
        for detector in arguments.detectors:
            for remembered in (True, False) if detector in OURS else (False,):
                times = [
                    tuple(epoch_seconds(build(detector, comet, remembered), data, 3) for comet in (False, True))
                    for _ in range(arguments.pairs)
                ]
                ratios = [comet / base for base, comet in times]
                rows.append(
                    {
                        "detector": detector,
                        "features": "remembered" if remembered else "computed",
                        "base_s": statistics.median(base for base, _ in times),
                        "comet_s": statistics.median(comet for _, comet in times),
                        "comet_over_base": statistics.median(ratios),
                        "lowest": min(ratios),
                        "highest": max(ratios),
                    }
                )
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows).round(3)
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(arguments.csv, index=False)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
