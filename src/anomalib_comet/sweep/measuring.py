# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""One cell: contaminate, train to the last epoch, measure on the test set. Labels of the test set choose nothing."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import logging
import math
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from anomalib_comet import plugin
from anomalib_comet.audit.evaluation import average_precision
from anomalib_comet.audit.report import training_frame
from anomalib_comet.backbones import timm_name_without_download
from anomalib_comet.data import ContaminatedDataModule
from anomalib_comet.data.contamination.protocol import injected_count
from anomalib_comet.parsing import accepted_arguments, innermost, sentence

from .configuration import SweepError
from .metrics import image_metrics, metrics_at, pixel_metrics
from .predicting import predictions_of_test_set, threshold_without_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

QUIET = {"visualizer": False, "audit": False}
"""Arguments that a model gets where it has them and the sweep does not set them: nothing is drawn or listed."""


def measure_cell(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model on contaminated images and measure it.

    Args:
        settings: Those of a :class:`.cells.Cell`.

    Returns:
        One row of the result: counts, metrics, times in seconds, memory in MiB and versions.

    Raises:
        SweepError: If settings are wrong or the training diverged.
    """
    seed = settings["seed"]
    with isolate_rng(), _quiet():
        data = contaminated_data(settings)
        data.prepare_data()
        _seed(seed)
        model = build_model(settings["model"], seed)
        _reset_peak_memory()
        folder = Path(tempfile.mkdtemp(prefix="sweep_"))
        try:
            _seed(seed)
            start = time.perf_counter()
            engine = _trained(model, data, settings, folder)
            trained = time.perf_counter()
            scores = predictions_of_test_set(model, data, engine.trainer.strategy.root_device)
            threshold = threshold_without_labels(model, data, engine.trainer.strategy.root_device)
            tested = time.perf_counter()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        row = {
            **_counts(data),
            **image_metrics(scores["score"], scores["label"]),
            **metrics_at(threshold, scores["score"], scores["label"]),
            "threshold": threshold,
            "threshold_images": "validation" if settings["val_split_ratio"] else "training",
            **pixel_metrics(scores["map"], scores["mask"]),
            **_audit(model, data),
            "epochs": engine.trainer.current_epoch,
            "fit_seconds": round(trained - start, 2),
            "test_seconds": round(tested - trained, 2),
            **_peak_memory(),
        }
    return row | {
        "device": str(engine.trainer.strategy.root_device),
        **{name.replace("-", "_"): version(name) for name in ("anomalib-comet", "anomalib", "torch")},
        "python": platform.python_version(),
    }


def check_model(entry: Mapping[str, Any], where: str) -> None:
    """Refuse a model that cannot be built, without building it.

    Args:
        entry: ``model`` of a cell's settings.
        where: What the message starts with.

    Raises:
        SweepError: If the class or an argument is unknown or wrong, or it does not train on the images.
    """
    _, model_class = _parsed(AnomalibModule, entry["class_path"], entry["init_args"], where)
    if entry.get("backbone_weights") is not None and "backbone_weights" not in accepted_arguments(model_class):
        _backbone_of(model_class, entry["init_args"], where)
    with contextlib.suppress(AttributeError):  # of some it depends on the arguments: build_model looks again
        kind = inspect.getattr_static(model_class, "learning_type")
        _refuse_untrained(kind.fget(None) if isinstance(kind, property) and kind.fget else kind, model_class, where)


def check_trainer(trainer: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that Lightning's trainer does not have.

    Args:
        trainer: ``trainer`` of a sweep or of one of its models.
        where: What the message starts with.

    Raises:
        SweepError: If there is one.
    """
    known = set(inspect.signature(Trainer).parameters)
    for name in trainer:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            msg = f"{where}.{name}: Lightning's trainer has no such argument{hint}"
            raise SweepError(msg)


def check_weights(path: str) -> None:
    """Refuse a file of weights that is not there.

    Args:
        path: ``backbone_weights`` of a model.

    Raises:
        SweepError: If there is no such file.
    """
    if not Path(path).is_file():
        msg = f"backbone_weights: there is no file {path}."
        raise SweepError(msg)


def _backbone_of(model_class: type, given: Mapping[str, Any], where: str) -> str:
    """Return the name of the backbone whose weights come from a file: the one given, else the model's default."""
    parameter = inspect.signature(model_class).parameters.get("backbone")
    name = given.get("backbone", None if parameter is None else parameter.default)
    if parameter is None or not isinstance(name, str):
        msg = (
            f"{where}: backbone_weights are for a model that takes the name of a timm model as its backbone, and "
            f"{model_class.__name__} does not: leave them out."
        )
        raise SweepError(msg)
    return name


def _refuse_untrained(kind: Any, model_class: type, where: str) -> None:
    if kind in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}:
        msg = f"{where}: {model_class.__name__} does not train on the images, so contamination cannot change it."
        raise SweepError(msg)


def check_data(settings: Mapping[str, Any], smallest: float = 0.0) -> dict[str, Any]:
    """Read the folders of a cell's images, or download or render them, and draw for the largest ratio.

    Args:
        settings: Those of a cell.
        smallest: Smallest ratio above 0 of the sweep, which has to give an anomaly; 0 if there is none.

    Returns:
        Counts as in the result.

    Raises:
        SweepError: If the data module cannot be made, or has too few anomalies or too few normal images.
    """
    largest = {**settings, "ratio": settings["max_ratio"]}
    data = contaminated_data(largest)
    try:
        data.prepare_data()
        data.setup()
    except (ValueError, TypeError, OSError, RuntimeError, KeyError) as error:
        name = settings["category"] or settings["data"]["class_path"]
        msg = f"data: {name}: {sentence(error)}"
        raise SweepError(msg) from error
    counts = _counts(data)
    if not counts["test_normal"] or not counts["test_anomalous"]:
        name = settings["category"] or settings["data"]["class_path"]
        left = f"{counts['test_normal']} normal and {counts['test_anomalous']} anomalous"
        msg = (
            f"ratios: with r = {settings['max_ratio']:g} the test set of {name} has {left} images; it needs both kinds."
        )
        raise SweepError(msg)
    truth = data.contamination
    normal = int((~truth["injected"] | truth["natural"]).sum())  # the images that a ratio is of
    if smallest and not injected_count(smallest, normal):
        name = settings["category"] or settings["data"]["class_path"]
        msg = (
            f"ratios: {smallest:g} of the {normal} normal training images of {name} is less than one anomaly; use 0, "
            f"or at least {math.ceil(10_000 / normal) / 10_000:g}."
        )
        raise SweepError(msg)
    return counts


def contaminated_data(settings: Mapping[str, Any]) -> ContaminatedDataModule:
    """Return the contaminated data of a cell; the test set depends on data, overlap, largest ratio and seed only.

    Args:
        settings: Those of a cell.

    Raises:
        SweepError: If the data module cannot be made.
    """
    share = settings["val_split_ratio"]
    inner, _ = _parsed(AnomalibDataModule, settings["data"]["class_path"], settings["data"]["init_args"], "data")
    try:
        return ContaminatedDataModule(
            inner(),
            ratio=settings["ratio"],
            max_ratio=settings["max_ratio"],
            overlap=settings["overlap"],
            seed=settings["seed"],
            resample_dir=settings["resample_dir"],
            **({"val_split_mode": "from_train", "val_split_ratio": share} if share else {}),
        )
    except (ValueError, TypeError, OSError) as error:
        msg = f"data: {sentence(error)}"
        raise SweepError(msg) from error


def build_model(entry: Mapping[str, Any], seed: int) -> AnomalibModule:
    """Build the model of a cell.

    Args:
        entry: ``model`` of a cell's settings.
        seed: Seed, for a model that has an argument of that name.

    Raises:
        SweepError: If the class or an argument is wrong.
    """
    given = dict(entry["init_args"])
    _, model_class = _parsed(AnomalibModule, entry["class_path"], given, "models")
    accepted = accepted_arguments(model_class)
    for name, value in {**QUIET, "seed": seed}.items():
        if name in accepted:
            given.setdefault(name, value)
    weights = entry.get("backbone_weights")
    if weights is not None and "backbone_weights" in accepted:
        given["backbone_weights"], weights = weights, None
    if entry.get("image_size") and given.get("pre_processor") is None:
        given["pre_processor"] = model_class.configure_pre_processor(image_size=tuple(entry["image_size"]))
    try:
        if weights is None:
            model = _parsed(AnomalibModule, entry["class_path"], given, "models")[0]()
        else:
            backbone = _backbone_of(model_class, given, "models")
            with timm_name_without_download(backbone, weights) as name:
                model = _parsed(AnomalibModule, entry["class_path"], {**given, "backbone": name}, "models")[0]()
    except (ValueError, TypeError, OSError, KeyError) as error:
        msg = f"models: {model_class.__name__} cannot be built: {sentence(error)}"
        raise SweepError(msg) from error
    _refuse_untrained(model.learning_type, model_class, "models")
    return model


def _parsed(base: type, class_path: str, init_args: Mapping[str, Any], where: str) -> tuple[Callable[[], Any], Any]:
    """Check names and types as anomalib's command line does; return a function that makes the object, and its class."""
    plugin.register()  # names of ours are known, whatever process this is
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=base, required=True)
    try:
        parsed = parser.parse_object({"it": {"class_path": class_path, "init_args": dict(init_args)}})
    except Exception as error:  # its class differs between versions of jsonargparse
        said = innermost(error, root="it")
        if "dot import path" in said:
            said = f"there is no such {base.__name__}; a name or a dotted path that can be imported would work."
        msg = f"{where}: {class_path}: {said}"
        raise SweepError(msg) from error
    module, _, name = parsed.it.class_path.rpartition(".")
    return lambda: parser.instantiate_classes(parsed).it, getattr(import_module(module), name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Lightning and anomalib say about every single run off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # models and transforms draw from the global generator
    torch.manual_seed(seed)


def _trained(model: AnomalibModule, data: ContaminatedDataModule, settings: Mapping[str, Any], folder: Path) -> Engine:
    """Train to the last epoch. An interruption is one, and not the end of the training."""
    validation: dict[str, Any] = {} if settings["val_split_ratio"] else {"limit_val_batches": 0}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    arguments = {**quiet, "devices": 1, **validation, **settings["trainer"]}
    engine = Engine(default_root_dir=folder, max_epochs=settings["max_epochs"], **arguments)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        engine.fit(model, datamodule=data)
    except SystemExit as error:  # what Lightning makes of the first Ctrl+C, and it ignores all others from then on
        raise KeyboardInterrupt from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
    if engine.trainer.interrupted:
        raise KeyboardInterrupt
    return engine


def _counts(data: ContaminatedDataModule) -> dict[str, Any]:
    truth = data.contamination
    training = truth[truth["split"] == "train"]
    samples = data.test_data.samples
    # Only names: the folder may be another one on another machine.
    names = sorted("/".join(Path(path).parts[-2:]) for path in samples["image_path"])
    natural = int(training["natural"].sum())
    return {
        "train_images": len(training),
        "train_injected": int(training["injected"].sum()) - natural,
        **({"train_anomalous_by_nature": natural} if natural else {}),
        "validation_images": int((truth["split"] == "val").sum()),
        "test_normal": int((samples["label_index"] == 0).sum()),
        "test_anomalous": int((samples["label_index"] == 1).sum()),
        "test_set": hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:12],
    }


def _audit(model: AnomalibModule, data: ContaminatedDataModule) -> dict[str, float]:
    """Return how well the scores that training kept find the anomalies among its images, where both are known."""
    frame = training_frame(model)
    if frame is None:
        return {}
    truth = data.contamination
    hidden = frame["image_path"].isin(set(truth.loc[truth["injected"], "image_path"])).to_numpy()
    if not hidden.any():
        return {}
    return {
        "audit_ap": average_precision(frame["anomaly_score"], hidden),
        "audit_chance": float(hidden.mean()),
        "weight_anomalous": float(frame["confidence_weight"][hidden].mean()),
        "weight_normal": float(frame["confidence_weight"][~hidden].mean()),
    }


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory() -> dict[str, float]:
    peak: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peak["peak_memory_mib"] = round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    if not peak and sys.platform == "darwin":
        import resource  # noqa: PLC0415  # not on Windows

        peak["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    if torch.cuda.is_available():
        peak["device_peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak
