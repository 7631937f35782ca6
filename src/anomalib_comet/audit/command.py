# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-comet audit``: table and page of the training images of a checkpoint."""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from anomalib.data import AnomalibDataModule
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anomalib_comet.parsing import innermost, sentence

from .callback import run_title
from .images import images_below, images_known_to, images_listed_beside, images_of
from .report import Audit, audit_model, check_settings
from .restoring import (
    RUN_LAYOUT,
    AuditError,
    device_of,
    model_class_of,
    on_device,
    restored,
    run_folder,
    without_memory,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from jsonargparse import Namespace

CONFIG_NAME = "config.yaml"

DESCRIPTION = """\
List the suspicious images of a training set: writes audit.csv and audit.html.

The images are those of --images or --data; else those of the data in the run's config.yaml, or in --config; else those
that the checkpoint knows, or a table beside the run. Where the model kept a table of its training images (CoMet's do),
scores and weights are taken from there; any other model of anomalib scores the images itself.
"""


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
    if options.images is not None and options.data is not None:
        msg = "--images and --data both say which images are audited: leave one of them out."
        raise AuditError(msg)
    _check_numbers(options)
    checkpoint = _checkpoint(options.ckpt_path)
    # An unknown folder or model is reported before anything heavy is loaded.
    folder_images = None if options.images is None else images_below(Path(options.images))
    model_class = model_class_of(options.model, config, checkpoint, config_path)
    device = device_of(options.device)
    run = run_folder(checkpoint)
    datamodule = None
    if folder_images is None and options.data is not None:
        datamodule = _datamodule(command, options, data_from)
    output = _writable(Path(options.output or run))

    model = on_device(device, restored(model_class, checkpoint))
    truth: pd.DataFrame | None = None
    if folder_images is not None:
        paths = folder_images
    elif datamodule is not None:
        paths, truth = images_of(datamodule)
    else:
        paths = images_known_to(model) or images_listed_beside(run, console)
    with _progress(console) as progress:
        task = progress.add_task("Images", total=len(paths))
        try:
            return audit_model(
                model,
                paths,
                output,
                truth=truth,
                title=run_title(run.resolve()),
                limit=options.limit,
                thumbnail_size=options.thumbnail_size,
                batch_size=options.batch_size,
                maps=options.maps,
                advance=lambda done: progress.advance(task, done),
            )
        except RuntimeError as error:
            msg = f"{model_class.__name__} fails on these images: {sentence(error)}"
            raise AuditError(without_memory(error, device) or msg) from error
        except (ValueError, TypeError, OSError) as error:
            raise AuditError(sentence(error)) from error


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
        msg = f"{path} is no configuration in YAML: {sentence(error)}"
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
        msg = f"{data_from}: {name} is no data module that is known here: {innermost(error, root='data')}"
        raise AuditError(msg) from error
    try:
        return command.parse_args(list(args))
    except ArgumentError as error:
        of_data = 'key "data' in str(error).partition("\n")[0]
        said = f"{data_from}: {innermost(error, root='data')}" if of_data else innermost(error, prefix="--")
        raise AuditError(said) from error


def _datamodule(command: ArgumentParser, options: Namespace, data_from: str) -> AnomalibDataModule:
    try:
        return command.instantiate_classes(options).data
    except Exception as error:
        msg = (
            f"{data_from}: {options.data.class_path.rpartition('.')[2]} cannot be made: {innermost(error, root='data')}"
        )
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


def _writable(folder: Path) -> Path:
    """Make the folder and write to it, so that nobody waits for scores that cannot be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        msg = f"--output: {folder} is a file; name a folder."
        raise AuditError(msg) from error
    except OSError as error:
        msg = f"--output: {folder} cannot be written to ({error.strerror or error}); name another folder."
        raise AuditError(msg) from error
    return folder


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty())


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
