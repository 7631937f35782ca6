# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What an inner step does to anomalib's detectors under CoMet: does theta' judge better than theta?

    python benchmarks/inner_steps.py --detectors CoMetStfpm --inner-lr 0.01 0.1 --backbone-weights mobilenetv2_100.pth

Trains each detector on the built-in data with a tenth as many hidden anomalies as normal images, once for every inner
learning rate. The table gives the training loss of the first and the last epoch (at theta' and with the regulariser, so
not to be compared with the detector's own); by how much an inner step lowered the loss of the other part of its task in
the last epoch; the average precision with which the final scores find the injected images; and the image
AUROC on test images, measured on raw scores. ``own`` is the detector's own training, all switches off. Without
``--backbone-weights`` (a state dict of MobileNetV2) backbones are random, which says nothing about accuracy.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from typing import Any

import torch
from anomalib.engine import Engine
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from anomalib_comet import models
from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces
from anomalib_comet.models.frozen_features import resizing_pre_processor
from anomalib_comet.training_set import evaluating

OFF = {"use_weights": False, "use_meta": False, "use_adaptive_l2": False}
SMALL: dict[str, dict[str, Any]] = {
    "CoMetFastflow": {"backbone": "resnet18", "flow_steps": 4},
    "CoMetStfpm": {"backbone": "mobilenetv2_100", "layers": ["blocks.1", "blocks.2", "blocks.4"]},
    "CoMetSupersimplenet": {"backbone": "mobilenetv2_100", "layers": ["blocks.2", "blocks.4"]},
}


def train(name: str, settings: dict[str, Any], size: int, epochs: int, root: str) -> dict[str, float]:
    """Train one detector and return the columns of its row."""
    torch.manual_seed(0)
    detector = getattr(models, name)(**settings, pre_processor=resizing_pre_processor((size, size)))
    surfaces = {"category": "woven", "image_size": size, "n_train": 64, "train_batch_size": 16, "num_workers": 0}
    data = ContaminatedDataModule(ProceduralSurfaces(root=root, **surfaces), ratio=0.1)
    curve: list[tuple[float, float]] = []
    update = detector.on_train_epoch_end

    def note() -> None:
        update()
        metrics = detector.trainer.callback_metrics
        loss = metrics.get("train_loss_epoch", metrics.get("train_loss"))
        curve.append((float(loss), float(metrics.get("inner_improvement", 0.0))))

    detector.on_train_epoch_end = note
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    engine = Engine(max_epochs=epochs, default_root_dir=root, limit_val_batches=0, **quiet)
    engine.fit(detector, datamodule=data)
    frame = detector.confidence.frame()
    injected = frame.image_path.isin(data.contamination.query("injected").image_path).to_numpy()
    scores, labels = [], []
    with torch.no_grad(), evaluating(detector):
        for batch in data.test_dataloader():
            batch.image = detector.pre_processor(batch.image)
            scores.append(detector.sample_scores(batch))
            labels.append(batch.gt_label)
    return {
        "first": curve[0][0],
        "last": curve[-1][0],
        "inner_improvement": curve[-1][1],
        "ap": float(
            binary_average_precision(torch.tensor(frame.anomaly_score.to_numpy()), torch.tensor(injected).int())
        ),
        "auroc": float(binary_auroc(torch.cat(scores), torch.cat(labels).int())),
    }


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", default=list(SMALL), choices=list(SMALL), help="which to train")
    parser.add_argument("--inner-lr", nargs="+", type=float, default=[0.01, 0.1], help="rates (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="height and width of images (default: %(default)s)")
    parser.add_argument("--backbone-weights", help="state dict of mobilenetv2_100 without its classifier")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(f"{'detector':20} {'inner_lr':>8} {'first':>10} {'last':>10} {'improved by':>12} {'AP':>6} {'AUROC':>6}")
    with tempfile.TemporaryDirectory() as root:
        for name in arguments.detectors:
            weights = None if SMALL[name]["backbone"] == "resnet18" else arguments.backbone_weights
            source = {"backbone_weights": weights} if weights else {"pre_trained": False}
            runs: list[tuple[str, dict[str, Any]]] = [("own", OFF)]
            runs += [(f"{rate:g}", {"inner_lr": rate}) for rate in arguments.inner_lr]
            for label, strategy in runs:
                row = train(name, {**SMALL[name], **source, **strategy}, arguments.size, arguments.epochs, root)
                print(
                    f"{name:20} {label:>8} {row['first']:10.4g} {row['last']:10.4g} {row['inner_improvement']:12.4g} "
                    f"{row['ap']:6.3f} {row['auroc']:6.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
