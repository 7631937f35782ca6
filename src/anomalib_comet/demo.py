# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The main job from end to end on built-in data: ``python -m anomalib_comet.demo``.

Contaminated training images, CoMetDifferNet, test metrics, OpenVINO export and one inference with the exported model.
Needs no download and no accelerator.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import AnomalibDataModule
    from anomalib.models import AnomalibModule

CATEGORIES = ("woven", "brushed", "granular", "wood", "print")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the demo's arguments."""
    parser = argparse.ArgumentParser(prog="python -m anomalib_comet.demo", description=__doc__)
    parser.add_argument("--category", choices=CATEGORIES, default="woven", help="material (default: %(default)s)")
    parser.add_argument(
        "--ratio",
        type=float,
        default=0.1,
        help="hidden anomalies per normal training image, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument("--epochs", type=int, default=30, help="training epochs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of images, draw and model (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("results"), help="results folder (default: %(default)s)")
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path("datasets/ProceduralSurfaces"),
        help="folder that keeps the rendered images (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {arguments.epochs}")
    return arguments


def build(arguments: argparse.Namespace) -> tuple[AnomalibDataModule, AnomalibModule]:
    """Return the contaminated data and the model."""
    from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces  # noqa: PLC0415  # seconds to import
    from anomalib_comet.models import CoMetDifferNet  # noqa: PLC0415

    datamodule = ContaminatedDataModule(
        ProceduralSurfaces(
            root=arguments.data_root,
            category=arguments.category,
            seed=arguments.seed,
            num_workers=0,
            train_batch_size=32,
            eval_batch_size=16,
        ),
        ratio=arguments.ratio,
        seed=arguments.seed,
    )
    model = CoMetDifferNet(seed=arguments.seed, **SMALL)
    return datamodule, model


SMALL: dict[str, Any] = {
    "backbone": "gabor",
    "image_size": (256, 256),
    "n_scales": 2,
    "coupling_blocks": 4,
    "hidden_units": 128,
    "n_windows": 16,
    "local_coupling_blocks": 4,
    "local_hidden_units": 64,
    "image_score": "local",
    "train_rotations": "quarter",
}
"""The small preset, the same as in ``configs/comet_differnet_small.yaml``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: Command-line arguments; ``None`` takes those of the process.

    Returns:
        Exit status.
    """
    arguments = parse(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, and nothing should be looked for

    import numpy as np  # noqa: PLC0415  # seconds to import, and --help should not wait for them
    import pandas as pd  # noqa: PLC0415
    from anomalib.deploy import ExportType, OpenVINOInferencer  # noqa: PLC0415
    from anomalib.engine import Engine  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from anomalib_comet.confident_meta_learning.strategy import HISTORY_PICTURE, WEIGHTS_FILE  # noqa: PLC0415

    console = Console()
    datamodule, model = build(arguments)
    engine = Engine(
        max_epochs=arguments.epochs,
        default_root_dir=arguments.root,
        accelerator="cpu",
        devices=1,
        enable_model_summary=False,
        check_val_every_n_epoch=arguments.epochs,  # thresholds are wanted at the end only
    )
    console.rule("Training on contaminated images")
    engine.fit(model, datamodule=datamodule)
    console.rule("Test")
    metrics = engine.test(model, datamodule=datamodule)[0]
    run = Path(engine.trainer.default_root_dir)
    console.rule("Export to OpenVINO and one inference with the exported model")
    exported = engine.export(model, ExportType.OPENVINO, export_root=run)
    if exported is None:
        msg = "anomalib's engine gave no exported model."
        raise RuntimeError(msg)
    samples = datamodule.test_data.samples
    defective = samples[samples.label_index == 1].iloc[0]
    prediction: Any = OpenVINOInferencer(exported, device="CPU").predict(defective.image_path)
    score, label = float(np.ravel(prediction.pred_score)[0]), bool(np.ravel(prediction.pred_label)[0])

    weights = pd.read_csv(run / WEIGHTS_FILE)
    table = Table(title=f"CoMetDifferNet on {datamodule.name}", show_header=False)
    injected = weights[weights.injected]
    table.add_row("training images", f"{len(weights)}, {len(injected)} of them hidden anomalies")
    if len(injected):
        found = int(weights.injected.head(len(injected)).sum())
        table.add_row("hidden anomalies found", f"{found} among the {len(injected)} most suspicious training images")
        table.add_row(
            "mean confidence weight",
            f"{injected.confidence_weight.mean():.2f} anomalies, "
            f"{weights[~weights.injected].confidence_weight.mean():.2f} normal images",
        )
    for name, value in metrics.items():
        table.add_row(name, f"{value:.3f}")
    table.add_row(
        "exported model says",
        f"{'anomalous' if label else 'normal'} (score {score:.2f}) of {Path(defective.image_path).name}",
    )
    console.print(table)
    for what, path in {
        "heat-map pictures": run / "images",
        "training images to look through": run / "audit.html",
        "weights of the training images": run / WEIGHTS_FILE,
        "history of the training": run / HISTORY_PICTURE,
        "what was injected": run / "contamination.json",
        "exported model": exported,
    }.items():
        console.print(f"{what}: [bold]{path}[/bold]", soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
