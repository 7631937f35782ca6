# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Speed and accuracy of exported models on the CPU, as ratios to torch within one run.

    python benchmarks/deployment.py --data tiles --root DIR --backbone-weights FILE

A model is trained (see ``benchmarks/contamination.py``, whose settings are used), exported to OpenVINO in several
precisions, and asked about the same test images as the torch model: one image at a time for the latency, 16 at a time
for the throughput. Calls of torch and of the exported model alternate, and the median of the ratios of every pair is
given, so that a machine that slows down slows both. AUROC is of raw scores, without a post-processor. ``FP32 (f32)``
tells OpenVINO to compute in 32 bits, the others leave it its choice. ``INT8`` is what anomalib's INT8_PTQ does
(post-training quantization, preset MIXED), calibrated on training images; ``INT8, convolutions`` leaves matrix
products, which hold the detector's head, in floating point. ``FunAd`` is the project's preset for these data;
``PatchCore`` is anomalib's, with a coreset of 1 %, on the same layers, network and image size. Sizes are of the
exported files, bank included. A graph that takes a fixed number of images, as PatchCore's does, is asked about one
image by repeating it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nncf
import numpy as np
import openvino as ov
import pandas as pd
import torch
import yaml
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from anomalib.models import Patchcore
from sklearn.metrics import roc_auc_score
from torch import nn

import contamination
from anomalib_comet.backbones import timm_name_without_download
from anomalib_comet.models import FunAd
from anomalib_comet.models.frozen_features import resizing_pre_processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH = 16
DETECTORS = ("DifferNet", "SimpleNet", "FunAd", "PatchCore")
CONFIGS = Path(__file__).parent.parent / "configs"


class Raw(nn.Module):
    """Pre-processing and model, without post-processing: what the exported graph computes."""

    def __init__(self, trained: Any) -> None:
        super().__init__()
        self.trained = trained

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the image scores of raw images in [0, 1]."""
        return self.trained.model(self.trained.pre_processor(images)).pred_score


def model(detector: str, arguments: argparse.Namespace) -> Any:
    """Return an untrained model."""
    if detector in {"DifferNet", "SimpleNet"}:
        return contamination.model(detector, "all", arguments, seed=0)
    preset = CONFIGS / ("fun_ad_magnetic_tiles.yaml" if arguments.data == "tiles" else "fun_ad_small.yaml")
    settings = yaml.safe_load(preset.read_text(encoding="utf-8"))["model"]["init_args"]
    weights = None if arguments.backbone_weights is None else str(arguments.backbone_weights)
    if detector == "FunAd":
        return FunAd(**settings, backbone_weights=weights, visualizer=False)
    with timm_name_without_download(settings["backbone"], weights) as backbone:
        size = resizing_pre_processor(tuple(settings["image_size"]))
        common = {"layers": settings["layers"], "pre_processor": size, "visualizer": False}
        return Patchcore(backbone=backbone, coreset_sampling_ratio=0.01, **common)


def fixed_batch(graph: Any) -> int | None:
    """Return the number of images that a graph takes, or ``None`` if it takes any."""
    batch = graph.inputs[0].partial_shape[0]
    return None if batch.is_dynamic else batch.get_length()


def megabytes(path: Path) -> float:
    """Return the size of an OpenVINO model, both files."""
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin"))) / 1e6


def exports(trained: Any, folder: Path, calibration: np.ndarray, threads: int) -> Iterator[tuple[str, Any, float]]:
    """Yield names, compiled models and sizes."""
    engine = Engine(default_root_dir=folder, accelerator="cpu")
    core = ov.Core()
    paths = {}
    for name, kind in (
        ("FP32", None),
        ("FP16", CompressionType.FP16),
        ("INT8 weights", CompressionType.INT8),
    ):
        paths[name] = engine.export(trained, ExportType.OPENVINO, export_root=folder / name, compression_type=kind)
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    yield "FP32 (f32)", core.compile_model(str(paths["FP32"]), "CPU", f32), megabytes(paths["FP32"])
    for name, path in paths.items():
        yield name, core.compile_model(str(path), "CPU"), megabytes(path)
    count = fixed_batch(core.read_model(str(paths["FP32"]))) or 1
    for name, kept in (("INT8", []), ("INT8, convolutions", ["MatMul"])):
        quantized = nncf.quantize(
            core.read_model(str(paths["FP32"])),
            nncf.Dataset([np.repeat(image[None], count, axis=0) for image in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(types=kept, validate=False),
        )
        saved = folder / f"{name}.xml"
        ov.save_model(quantized, saved)
        yield name, core.compile_model(quantized, "CPU"), megabytes(saved)


def seconds(function: Callable[[], Any]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(torch_call: Callable[[], Any], other_call: Callable[[], Any], pairs: int) -> tuple[float, float]:
    """Return the median of torch / other over alternating calls, and the other's median time in seconds."""
    times = [(seconds(torch_call), seconds(other_call)) for _ in range(pairs + 2)][2:]
    return statistics.median(a / b for a, b in times), statistics.median(b for _, b in times)


def scores_of(call: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int) -> np.ndarray:
    """Return the scores of images, a batch at a time."""
    return np.concatenate([call(part).reshape(-1) for part in np.split(images, range(batch, len(images), batch))])


def measure(detector: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train a detector and return a row for torch and for each exported model."""
    data = contamination.datamodule(arguments, 0.1, seed=0, overlap=False)
    trained = model(detector, arguments)
    trained.post_processor = None
    torch.manual_seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    with tempfile.TemporaryDirectory() as folder:
        epochs = 1 if detector == "PatchCore" else arguments.epochs
        engine = Engine(max_epochs=epochs, default_root_dir=folder, accelerator="cpu", **quiet)
        engine.fit(trained, datamodule=data)
        reference = Raw(trained.eval()).eval()

        def in_torch(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return reference(torch.from_numpy(images)).numpy()

        data.setup()
        batches = list(data.test_dataloader())
        images = np.concatenate([batch.image.numpy() for batch in batches])[:: arguments.every]
        labels = np.concatenate([batch.gt_label.numpy() for batch in batches])[:: arguments.every]
        training = data.train_data
        some = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[: arguments.calibration]
        calibration = np.stack([training[k].image.numpy() for k in some.tolist()])
        scores = scores_of(in_torch, images, BATCH)
        rows = [{"detector": detector, "model": "torch", "image_auroc": roc_auc_score(labels, scores)}]
        for name, compiled, size in exports(trained, Path(folder), calibration, arguments.threads):
            compared = compare(in_torch, compiled, images, scores, labels, arguments.pairs)
            row = {"detector": detector, "model": name, "megabytes": size, **compared}
            rows.append(row)
            print(row, flush=True)
    return rows


def compare(
    in_torch: Callable[[np.ndarray], np.ndarray],
    compiled: Any,
    images: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    pairs: int,
) -> dict[str, float]:
    """Return speed and accuracy of a compiled model beside torch's scores."""
    output = next(o for o in compiled.outputs if "pred_score" in o.get_names())
    size = fixed_batch(compiled)

    def exported(part: np.ndarray) -> np.ndarray:
        if size is None:
            return compiled(part)[output]
        full = np.concatenate([part, np.repeat(part[-1:], -len(part) % size, axis=0)])
        parts = np.split(full, range(size, len(full), size))
        return np.concatenate([compiled(some)[output] for some in parts])[: len(part)]

    one, many = images[:1], images[:BATCH]
    latency, per_image = ratio(lambda: in_torch(one), lambda: exported(one), pairs)
    throughput, per_batch = ratio(lambda: in_torch(many), lambda: exported(many), pairs)
    theirs = scores_of(exported, images, 1)
    auroc = roc_auc_score(labels, theirs)
    return {
        "latency_ms": 1000 * per_image,
        "latency_ratio": latency,
        "images_per_second": len(many) / per_batch,
        "throughput_ratio": throughput,
        "image_auroc": auroc,
        "auroc_lost": roc_auc_score(labels, scores) - auroc,
        "largest_difference": float(np.abs(theirs - scores).max() / np.abs(scores).max()),
    }


def main() -> None:
    """Train, export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("tiles", *contamination.MATERIALS), default="woven")
    parser.add_argument("--root", type=Path, help="magnetic tiles in MVTec-style folders")
    parser.add_argument("--backbone", help="frozen network (default: mobilenetv2_100 for tiles, gabor elsewhere)")
    parser.add_argument("--backbone-weights", type=Path, help="local state dict")
    parser.add_argument("--images", type=int, default=150, help="normal training images (default: %(default)s)")
    parser.add_argument("--detectors", nargs="+", default=["DifferNet", "SimpleNet"], choices=DETECTORS)
    parser.add_argument("--epochs", type=int, default=10, help="training epochs (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of calls (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=100, help="training images that calibrate INT8")
    parser.add_argument("--csv", type=Path, default=Path("results/deployment.csv"), help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("results/contamination"), help="(default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="use every so many test images (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and OpenVINO (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.data != "tiles" and "PatchCore" in arguments.detectors:
        parser.error("PatchCore takes networks of timm, and the built-in surfaces have gabor here: take --data tiles")
    torch.set_num_threads(arguments.threads)
    contamination.complete(parser, arguments)
    arguments.ratios = [0.1]
    arguments.image_score = "both"
    warnings.filterwarnings("ignore")
    contamination.keep_decoded_images()
    rows = []
    for detector in arguments.detectors:
        rows += measure(detector, arguments)
    frame = pd.DataFrame(rows).round(4)
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(arguments.csv, index=False)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
