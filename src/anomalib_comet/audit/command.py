# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-comet audit``: table and page of the training images of a checkpoint."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import sys
import zipfile
from argparse import ArgumentError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import yaml
from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torchvision.datasets.folder import IMG_EXTENSIONS

from .callback import run_title
from .report import Audit, audit_model, check_settings, training_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jsonargparse import Namespace

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
LISTS = ("confidence_weights.csv", "audit.csv")
"""Tables beside a run that name its training images, for a checkpoint that does not."""

RUN_LAYOUT = "results/<Model>/<data>/<category>/vN/weights/lightning/model.ckpt"

DESCRIPTION = """\
List the suspicious images of a training set: writes audit.csv and audit.html.

The images are those of --images or --data; else those of the data in the run's config.yaml, or in --config; else those
that the checkpoint knows, or a table beside the run. Where the model kept a table of its training images (CoMet's do),
scores and weights are taken from there; any other model of anomalib scores the images itself.
"""


class AuditError(Exception):
    """Something that the user can put right; the message is one sentence."""


def parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = ArgumentParser(prog="anomalib-comet audit", description=DESCRIPTION, exit_on_error=False)
    arguments.add_argument(
        "--ckpt_path", type=str, required=True, help=f"Checkpoint of a trained model, usually {RUN_LAYOUT}."
    )
    arguments.add_argument(
        "--images",
        type=str | None,
        default=None,
        help="Folder whose images are audited, with its subfolders. Nothing is known of the truth.",
    )
    arguments.add_argument(
        "--config",
        type=str | None,
        default=None,
        help="Configuration of a run, of which `data` and `model.class_path` are used. By default the config.yaml in "
        "the run's folder, if there is one.",
    )
    arguments.add_subclass_arguments(
        AnomalibDataModule,
        "data",
        required=False,
        help="Data module whose training images are audited, as in `anomalib train`: a class name and --data.ARGUMENT. "
        "With ContaminatedDataModule the page says how well the list finds the injected images.",
    )
    arguments.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="Class of the model, as in `anomalib train`: CoMetDifferNet, Padim, package.module.Class. By default from "
        "the configuration, or from the checkpoint's path.",
    )
    arguments.add_argument(
        "--output", type=str | None, default=None, help="Folder to write to. By default the run's folder."
    )
    arguments.add_argument(
        "--limit",
        type=int | None,
        default=None,
        help="Number of most suspicious images in the page. The table has all images, and so does the page by default.",
    )
    arguments.add_argument("--thumbnail_size", type=int, default=144, help="Longest side of a thumbnail, in pixels.")
    arguments.add_argument("--batch_size", type=int, default=16, help="Images in one pass through the model.")
    arguments.add_argument(
        "--maps",
        type=int,
        default=300,
        help="Number of most suspicious images with a heat map where the scores are known from training: maps take a "
        "pass through the model. Images that the model scores itself all have one. 0 for no heat maps at all.",
    )
    arguments.add_argument(
        "--device", type=str, default="auto", help="Device of the model: cpu, cuda, cuda:1, xpu, mps; auto chooses."
    )
    return arguments


def main(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: Command line after ``audit``.

    Returns:
        Exit status: 0, 2 for what the user can put right, 130 after an interruption.
    """
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        result = _run(args, console)
    except AuditError as error:
        errors.print(f"anomalib-comet audit: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print("anomalib-comet audit: interrupted; nothing was written.")
        return 130
    for path, problem in result.unreadable.items():
        console.print(f"unreadable: {_printable(path)} ({problem})", markup=False)
    console.print(result.source, markup=False)
    if result.evaluation is not None:
        console.print(result.evaluation.summary(), markup=False)
    console.print(f"Table: {result.csv_path}", markup=False)
    console.print(f"Page:  {result.page_path}", markup=False)
    return 0


def _run(args: Sequence[str], console: Console) -> Audit:
    command = parser()
    config_path, config = _configuration(_early_options(args))
    data_from = f"data in {config_path}" if config.get("data") else "--data"
    options = _options(command, args, config.get("data"), data_from)
    _check_numbers(options)
    checkpoint = _checkpoint(options.ckpt_path)
    # An unknown folder or model is reported before anything heavy is loaded.
    folder_images = None if options.images is None else images_below(Path(options.images))
    model_class = _model_class(options, config, checkpoint, config_path)
    device = _device(options.device)
    run = run_folder(checkpoint)
    datamodule = None
    if folder_images is None and options.data is not None:
        datamodule = _datamodule(command, options, data_from)

    model = _on(device, _restored(model_class, checkpoint))
    truth: pd.DataFrame | None = None
    if folder_images is not None:
        paths = folder_images
    elif datamodule is not None:
        paths, truth = _of_datamodule(datamodule)
    else:
        paths = _known_to(model) or _listed_beside(run, console)
    with _progress(console) as progress:
        task = progress.add_task("Images", total=len(paths))
        try:
            return audit_model(
                model,
                paths,
                Path(options.output or run),
                truth=truth,
                title=run_title(run.resolve()),
                limit=options.limit,
                thumbnail_size=options.thumbnail_size,
                batch_size=options.batch_size,
                maps=options.maps,
                advance=lambda done: progress.advance(task, done),
            )
        except RuntimeError as error:
            msg = f"{model_class.__name__} fails on these images: {_sentence(error)}"
            raise AuditError(_without_memory(error, device) or msg) from error
        except (ValueError, TypeError, OSError) as error:
            raise AuditError(_sentence(error)) from error


def images_below(folder: Path) -> list[str]:
    """Return the absolute paths of all image files below a folder, in order.

    Links to folders are followed; a folder with several names is read once, by a name without links if it has one.

    Args:
        folder: The folder.

    Raises:
        AuditError: If it does not exist or holds no image.
    """
    if not folder.is_dir():
        msg = f"--images: there is no folder {folder}."
        raise AuditError(msg)
    found = [
        os.path.join(os.path.abspath(where), name)  # noqa: PTH100, PTH118  # links stay as the training saw them
        for where, names in _folders_below(folder)
        for name in names
        if Path(name).suffix.lower() in IMG_EXTENSIONS
    ]
    if not found:
        msg = f"--images: there is no image below {folder} ({', '.join(sorted(IMG_EXTENSIONS))})."
        raise AuditError(msg)
    return sorted(found)


def _folders_below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Give all folders with the names in them, each once, whatever loops their links make."""
    seen: set[str] = set()
    waiting = [str(folder)]
    for top in waiting:  # which grows: links come after everything that is reached without them
        for where, folders, names in os.walk(top):
            real = os.path.realpath(where)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            inside = (os.path.join(where, name) for name in sorted(folders))  # noqa: PTH118
            waiting += [path for path in inside if os.path.islink(path)]  # noqa: PTH114
            yield where, names


def run_folder(checkpoint: Path) -> Path:
    """Return the folder of the run that wrote a checkpoint; that of the file where the layout is another.

    Args:
        checkpoint: Path of the checkpoint.
    """
    parent = checkpoint.parent
    return parent.parent.parent if parent.parts[-2:] == ("weights", "lightning") else parent


def _early_options(args: Sequence[str]) -> Namespace:
    """Return what has to be known before the data's arguments can be parsed: which configuration gives their defaults.

    Everything else, errors and help included, is left to the parser.
    """
    from argparse import ArgumentParser as PlainParser  # noqa: PLC0415  # one that knows no data modules

    plain = PlainParser(add_help=False, allow_abbrev=False)
    for name in ("--ckpt_path", "--config", "--images", "--data"):
        plain.add_argument(name)
    return plain.parse_known_args([arg for arg in args if arg not in {"-h", "--help"}])[0]


def _configuration(options: Any) -> tuple[Path | None, dict[str, Any]]:
    path = None if options.config is None else Path(options.config)
    if path is None and options.ckpt_path is not None:
        beside = run_folder(Path(options.ckpt_path)) / CONFIG_NAME
        path = beside if beside.is_file() else None
    if path is None:
        return None, {}
    if not path.is_file():
        msg = f"--config: there is no file {path}."
        raise AuditError(msg)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path} is no configuration in YAML: {_sentence(error)}"
        raise AuditError(msg) from error
    if not isinstance(config, dict):
        msg = f"{path} is no configuration of a run: it has no `data` and no `model`."
        raise AuditError(msg)
    # The data of a run do not matter to somebody who names others.
    if options.images is not None or options.data is not None:
        config = {**config, "data": None}
    return path, config


def _options(command: ArgumentParser, args: Sequence[str], data: Any, data_from: str) -> Namespace:
    """Return the parsed command line, with the data of a configuration as defaults."""
    try:
        if data:
            command.set_defaults({"data": data})
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        name = data.get("class_path", data) if isinstance(data, dict) else data
        msg = f"{data_from}: {name} is no data module that is known here: {innermost(error)}"
        raise AuditError(msg) from error
    try:
        return command.parse_args(list(args))
    except ArgumentError as error:
        of_data = 'key "data' in str(error).partition("\n")[0]
        raise AuditError(f"{data_from}: {innermost(error)}" if of_data else innermost(error)) from error


def _datamodule(command: ArgumentParser, options: Namespace, data_from: str) -> AnomalibDataModule:
    try:
        return command.instantiate_classes(options).data
    except Exception as error:
        msg = f"{data_from}: {options.data.class_path.rpartition('.')[2]} cannot be made: {innermost(error)}"
        raise AuditError(msg) from error


def _check_numbers(options: Namespace) -> None:
    try:
        check_settings(options.limit, options.thumbnail_size, options.maps)
    except ValueError as error:
        msg = f"--{error}"
        raise AuditError(msg) from error
    if options.batch_size < 1:
        msg = f"--batch_size must be at least 1, got {options.batch_size}."
        raise AuditError(msg)


def _checkpoint(path: str) -> Path:
    checkpoint = Path(path)
    if not checkpoint.is_file():
        msg = f"--ckpt_path: there is no file {checkpoint}."
        raise AuditError(msg)
    return checkpoint


def _device(name: str) -> torch.device:
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        msg = f"--device: {name!r} cannot be used here; cpu always can."
        raise AuditError(msg) from error
    return device


def _model_class(
    options: Namespace,
    config: dict[str, Any],
    checkpoint: Path,
    config_path: Path | None,
) -> type[AnomalibModule]:
    """Return the class of the model, which no checkpoint of anomalib names."""
    section = config.get("model")
    configured = section.get("class_path") if isinstance(section, dict) else section
    if options.model is not None:
        return _class_of(options.model, "--model")
    if isinstance(configured, str):
        return _class_of(configured, f"model in {config_path}")
    parts = checkpoint.resolve().parts
    known = _models()
    for part in reversed(parts):
        if part in known:
            return known[part]
    msg = f"Which model wrote {checkpoint} is not known, its path is not like {RUN_LAYOUT}: name the class by --model."
    raise AuditError(msg)


def _class_of(name: str, where: str) -> type[AnomalibModule]:
    known = _models()
    short = name.rpartition(".")[2]
    if "." in name:
        from importlib import import_module  # noqa: PLC0415

        try:
            found = getattr(import_module(name.rpartition(".")[0]), short)
        except (ImportError, AttributeError) as error:
            msg = f"{where}: {name} cannot be imported: {_sentence(error)}"
            raise AuditError(msg) from error
    else:
        found = known.get(name)
    if not (isinstance(found, type) and issubclass(found, AnomalibModule)):
        from difflib import get_close_matches  # noqa: PLC0415

        close = get_close_matches(short, known, n=3) or sorted(known)
        msg = f"{where}: {name} is no model of anomalib; did you mean {', '.join(close)}?"
        raise AuditError(msg)
    return found


def _models() -> dict[str, type[AnomalibModule]]:
    """Return all models that are imported, by name, as the command line knows them."""
    found: dict[str, type[AnomalibModule]] = {}
    waiting: list[type[AnomalibModule]] = list(AnomalibModule.__subclasses__())
    while waiting:
        model_class = waiting.pop()
        waiting += model_class.__subclasses__()
        if not inspect.isabstract(model_class):
            found[model_class.__name__] = model_class
    return found


def _restored(model_class: type[AnomalibModule], checkpoint: Path) -> AnomalibModule:
    # Weights of a backbone are in the checkpoint: none need be downloaded only to be overwritten.
    accepted = inspect.signature(model_class).parameters
    overrides: dict[str, Any] = {"pre_trained": False} if "pre_trained" in accepted else {}
    try:
        return model_class.load_from_checkpoint(checkpoint, map_location="cpu", **overrides)
    except Exception as error:
        logger.debug("%s as %s", checkpoint, model_class.__name__, exc_info=True)
        raise AuditError(_misfit(model_class, checkpoint, error)) from error


def _misfit(model_class: type[AnomalibModule], checkpoint: Path, error: Exception) -> str:
    """Say why a model cannot be made from a file."""
    if isinstance(error, PermissionError):
        return f"--ckpt_path: {checkpoint} may not be read."
    name = model_class.__name__
    if not zipfile.is_zipfile(checkpoint):
        return f"{checkpoint} is no checkpoint of {name}: it is no file that torch saves, or a part of one."
    if isinstance(error, pickle.UnpicklingError):
        return f"{checkpoint} cannot be loaded safely, as plain data: is it a checkpoint of anomalib's engine?"
    if isinstance(error, (TypeError, KeyError, IndexError, AttributeError)):
        # These come from deep within, of settings or parameters that the model does not know, and say nothing.
        return f"{checkpoint} is no checkpoint of {name}: name the class of the model that wrote it by --model."
    return f"{checkpoint} is no checkpoint of {name}, or of another version of it: {_sentence(error)}"


def _on(device: torch.device, model: AnomalibModule) -> AnomalibModule:
    try:
        return model.to(device).eval()
    except RuntimeError as error:
        msg = f"--device: {type(model).__name__} cannot be moved to {device}: {_sentence(error)}"
        raise AuditError(_without_memory(error, device) or msg) from error


def _without_memory(error: RuntimeError, device: torch.device) -> str | None:
    """Say what helps against an error if the device has no memory left."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return f"{device} has too little memory: lower --batch_size, or choose another --device. ({_sentence(error)})"
    return None


def _of_datamodule(datamodule: AnomalibDataModule) -> tuple[list[str], pd.DataFrame | None]:
    try:
        datamodule.prepare_data()
        datamodule.setup("fit")
        paths = [str(path) for path in datamodule.train_data.samples["image_path"]]
    except Exception as error:
        msg = f"--data: {type(datamodule).__name__} cannot read its images: {_sentence(error)}"
        raise AuditError(msg) from error
    return paths, getattr(datamodule, "contamination", None)


def _known_to(model: AnomalibModule) -> list[str]:
    frame = training_frame(model)
    return [] if frame is None else frame["image_path"].tolist()


def _listed_beside(run: Path, console: Console) -> list[str]:
    """Return the images of a table beside the run: a training that was stopped early left none in its checkpoint."""
    for path in (run / name for name in LISTS):
        try:
            table = pd.read_csv(
                path, usecols=["image_path"], dtype=str, keep_default_na=False, encoding_errors="surrogateescape"
            )
        except (OSError, ValueError):
            continue
        if len(table):
            console.print(f"The images are those of {path}; the checkpoint keeps no list of its own.", markup=False)
            return table["image_path"].tolist()
    msg = (
        "Which images to audit is not known: name a folder by --images, or the data by --data or --config "
        "(neither config.yaml nor a table is beside the run, and the checkpoint keeps no list of its training images)."
    )
    raise AuditError(msg)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty())


def _sentence(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."  # noqa: PLR2004


def innermost(error: BaseException) -> str:
    """Return what a parser's error is about, which stands at the bottom of a tree of everything that was tried.

    Args:
        error: Error of jsonargparse.

    Returns:
        One sentence.
    """
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    end = next((k for k, line in enumerate(lines) if line.startswith("Given value")), len(lines))
    tried = [line for line in lines[:end] if line and line != "Expected a <class 'NoneType'>"]
    start = max((k + 1 for k, line in enumerate(tried[:-1]) if line.endswith(":")), default=0)
    return _sentence(ValueError("\n".join(tried[start:]))) if tried else type(error).__name__


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
