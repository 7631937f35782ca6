# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Cost of a CoMet training step against its base detector's, as ratios within one run.

    python benchmarks/training_cost.py

Steps of both models alternate on the same batch (forward, backward, optimizer), and the ratio of every pair is taken;
the table gives their median and quartiles. ``features`` says whether the frozen features are computed in the step, or
remembered from an earlier epoch (``train_rotations="quarter"``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from anomalib_comet.models import CoMetDifferNet, DifferNet

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = {
    "backbone": "gabor",
    "image_size": (256, 256),
    "n_scales": 2,
    "coupling_blocks": 4,
    "hidden_units": 128,
    "n_windows": 16,
    "local_coupling_blocks": 4,
    "local_hidden_units": 64,
    "train_rotations": "quarter",
}
PRESETS: dict[str, tuple[dict[str, Any], int]] = {
    "small": (SMALL, 32),
    "published": ({"pre_trained": False}, 16),
}


def stepper(model: Any, batch: Any, remembered: bool) -> Callable[[], None]:
    """Return a function that does one training step."""
    model.log = lambda *_args, **_kwargs: None  # there is no trainer here
    model.train()
    optimizer = model.configure_optimizers()
    if remembered:
        inputs = model.training_inputs(batch)
        model.training_inputs = lambda _batch: inputs

    def step() -> None:
        optimizer.zero_grad()
        model.training_step(batch, 0)["loss"].backward()
        optimizer.step()

    return step


def seconds(function: Callable[[], None]) -> float:
    """Return the CPU time of one call, which a busy machine does not change."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS), help="sizes to measure")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of steps (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # CPU time of several threads would count their waiting
    print(f"{'preset':10} {'features':10} {'batch':>5} {'base, ms':>9} {'CoMet / base':>13} {'quartiles':>12}")
    for preset in arguments.presets:
        settings, batch_size = PRESETS[preset]
        for remembered in (True, False):
            base, ours = DifferNet(**settings), CoMetDifferNet(**settings)
            size = base.input_size or (256, 256)
            batch = SimpleNamespace(
                image=torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(0)),
                image_path=[f"{k}.png" for k in range(batch_size)],
            )
            steps = stepper(base, batch, remembered), stepper(ours, batch, remembered)
            pairs = []
            for number in range(arguments.pairs + 2):
                pair = seconds(steps[0]), seconds(steps[1])
                if number > 1:  # the first two warm up
                    pairs.append(pair)
            ratios = [b / a for a, b in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            base_ms = 1000 * statistics.median(a for a, _ in pairs)
            features = "remembered" if remembered else "computed"
            print(
                f"{preset:10} {features:10} {batch_size:5} {base_ms:9.0f} {middle:13.2f} {low:6.2f}-{high:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
