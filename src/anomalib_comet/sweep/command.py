# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-comet sweep``: what contamination costs any model, as a table, curves and a page."""

from __future__ import annotations

import argparse
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .cells import Results, cells_of
from .configuration import Sweep, SweepError, read_sweep_and_text
from .executors import InProcess, OnRay, has_ray
from .run import CELLS, CONFIGURATION, FAILED, Progress, result_frame, run_sweep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .cells import Cell

DESCRIPTION = """\
Train models on contaminated images over a grid of models, ratios, protocols, seeds and categories, and report what it
costs them: results.csv, curves, degradation.csv and report.html. Cells that are done are not repeated: the same command
goes on after an interruption.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(prog="anomalib-comet sweep", description=DESCRIPTION, allow_abbrev=False)
    arguments.add_argument("--config", type=Path, required=True, help="YAML file of the sweep, see docs/sweep.md.")
    arguments.add_argument(
        "--output", type=Path, help="Folder for the results. Default: results/sweeps/<config's name>."
    )
    arguments.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="Replace a value of the configuration, as in data.init_args.root=/data/mvtec or seeds=[0]; repeatable.",
    )
    where = arguments.add_mutually_exclusive_group()
    where.add_argument("--address", help="Address of a running Ray cluster, or auto. Default: Ray on this machine.")
    where.add_argument(
        "--in_process", action="store_true", help="Run one cell after another without Ray. Default if it is missing."
    )
    arguments.add_argument(
        "--dry_run",
        action="store_true",
        help="Only check what can be checked without a training, the images included, and list the cells.",
    )
    arguments.add_argument("--report", action="store_true", help="Only write the report of the cells that are done.")
    return arguments


def main(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: Command line after ``sweep``.

    Returns:
        Exit status: 0, 1 if cells failed, 2 for what the user can put right, 130 after an interruption.
    """
    options = parser().parse_args(list(args))
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    previous = signal.getsignal(signal.SIGTERM)
    output = options.output or Path("results/sweeps") / options.config.stem
    try:
        return _run(options, output, console)
    except SweepError as error:
        errors.print(f"anomalib-comet sweep: {error}", markup=False)
        return 2
    except OSError as error:
        errors.print(
            f"anomalib-comet sweep: {output}: {error.strerror or error}; finished cells are kept.", markup=False
        )
        return 2
    except KeyboardInterrupt:
        errors.print("anomalib-comet sweep: interrupted; finished cells are kept, the same command goes on.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, output: Path, console: Console) -> int:
    sweep, text = read_sweep_and_text(options.config, options.set)
    cells = cells_of(sweep)
    if options.report:
        return _report(sweep, output, console, failed=0)
    executor: InProcess | OnRay
    if options.in_process or not (options.address or has_ray()):
        executor = InProcess()
    else:
        executor = OnRay(options.address, sweep.retries)
    # A batch system ends a job by SIGTERM: that is an interruption too. Ray sets a handler of its own when it starts.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what anomalib imports
            # imports anomalib: seconds
            from .measuring import check_model, check_trainer, measure_cell  # noqa: PLC0415

        check_trainer(sweep.trainer, "trainer")
        for label, entry in sweep.models.items():
            check_trainer(entry.trainer, f"models.{label}.trainer")
        for label, cell in {cell.model: cell for cell in cells}.items():
            check_model(cell.settings["model"], f"models.{label}")
        console.print(f"{len(cells)} cells {executor.description}; results in {output}", markup=False)
        results = Results(output / CELLS)
        executor.check([cell for cell in cells if results.read(cell) is None])
        _check_files(cells, executor, console)
        if options.dry_run:
            for cell in cells:
                console.print(f"{cell.identity}  {cell}", markup=False)
            return 0
        kept = None if options.config.resolve() == (output / CONFIGURATION).resolve() else text
        progress = run_sweep(sweep, output, executor, measure_cell, lambda state: _tell(state, console), kept)
    finally:
        executor.close()
    return _report(sweep, output, console, failed=len(progress.failed))


def _check_files(cells: Sequence[Cell], executor: InProcess | OnRay, console: Console) -> None:
    from .measuring import check_data, check_weights  # noqa: PLC0415

    for path in dict.fromkeys(cell.settings["model"]["backbone_weights"] for cell in cells):
        if path is not None:
            executor.call(check_weights, path)
    smallest = min((cell.settings["ratio"] for cell in cells if cell.settings["ratio"] > 0), default=0.0)
    seen: dict[tuple[Any, bool], Mapping[str, Any]] = {}
    for cell in cells:
        seen.setdefault((cell.settings["category"], cell.settings["overlap"]), cell.settings)
    for (category, overlap), settings in seen.items():
        counts = executor.call(partial(check_data, smallest=smallest), settings)
        natural = counts.get("train_anomalous_by_nature", 0)
        console.print(
            f"{category or settings['data']['class_path'].rpartition('.')[2]}{', overlap' if overlap else ''}: "
            f"{counts['train_images'] - counts['train_injected'] - natural} normal training images"
            f"{f', {natural} anomalous by nature' if natural else ''}, up to "
            f"{counts['train_injected']} injected; test set of {counts['test_normal']} normal and "
            f"{counts['test_anomalous']} anomalous images",
            markup=False,
        )


def _tell(state: Progress, console: Console) -> None:
    ended = state.done + len(state.failed)
    if state.last is None:
        if state.done:
            console.print(f"{state.done} of {state.total} cells are done already.")
        return
    outcome = state.last
    left = "" if state.remaining is None or ended == state.total else f"; about {duration(state.remaining)} left"
    if outcome.row is None:
        said = f"failed: {outcome.error}"
    else:
        metrics = {name: outcome.row.get(name) for name in ("image_auroc", "aupro")}
        said = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if value is not None) or "done"
    console.print(f"[{ended}/{state.total}] {outcome.cell}: {said}{left}", markup=False)


def duration(seconds: float) -> str:
    """Return a duration in words.

    Args:
        seconds: 0 or more.

    Example:
        >>> duration(4000)
        '1 h 7 min'
    """
    minutes = round(seconds / 60)
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"  # noqa: PLR2004


def _report(sweep: Sweep, output: Path, console: Console, failed: int) -> int:
    from .report import published_lines, write_report  # noqa: PLC0415  # imports matplotlib
    from .statistics import beside_published  # noqa: PLC0415  # imports SciPy

    frame = result_frame(sweep, output)
    if frame.empty and failed:
        msg = f"All {failed} cells failed, see {output / FAILED}; the same command tries them again."
        console.print(msg, markup=False)
        return 1
    if frame.empty:
        msg = f"--output: {output} has no finished cell of this sweep."
        raise SweepError(msg)
    for path in write_report(sweep, frame, output):
        console.print(f"Written: {path}", markup=False)
    for line in published_lines(beside_published(frame, sweep.published, max(1, len(sweep.categories)))):
        console.print(line, markup=False)
    if failed:
        console.print(f"{failed} cells failed; the same command tries them again.")
    return 1 if failed else 0
