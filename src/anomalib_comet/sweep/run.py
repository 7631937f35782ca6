# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The loop of a sweep: what is missing is run, every finished cell is kept at once, and progress is told."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

from .cells import Results, cells_of
from .configuration import SweepError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .configuration import Sweep
    from .executors import CellFunction, InProcess, OnRay, Outcome

CELLS = "cells"
FAILED = "failed"
LOCK = "sweep.lock"
CONFIGURATION = "sweep.yaml"


@dataclass
class Progress:
    """State of a running sweep.

    Attributes:
        total: Number of cells of the sweep.
        done: Cells with a result.
        failed: Outcomes of cells without one.
        remaining: Estimate of the remaining time in seconds; ``None`` before the first cell is done.
        last: The outcome of the cell that ended last.
    """

    total: int
    done: int
    failed: list[Outcome] = field(default_factory=list)
    remaining: float | None = None
    last: Outcome | None = None


def remaining_seconds(seconds: Mapping[str, Sequence[float]], pending: Sequence[str], parallel: int) -> float | None:
    """Estimate how long the pending cells take, from the cells of the same model that are done.

    Args:
        seconds: Durations of finished cells, by model.
        pending: Models of the cells that are not done.
        parallel: Number of cells that run at once.

    Returns:
        Seconds: the sum of the mean duration of each pending cell's model over ``parallel``, but no less than the
        longest of them; a model of which none is done counts as the mean of all. ``None`` if none is done.

    Example:
        >>> remaining_seconds({"PaDiM": [1.0, 3.0]}, ["PaDiM", "PaDiM"], parallel=1)
        4.0
    """
    known = [value for values in seconds.values() for value in values]
    if not known:
        return None
    mean = sum(known) / len(known)
    each = [sum(seconds[m]) / len(seconds[m]) if seconds.get(m) else mean for m in pending]
    return max(sum(each) / parallel, max(each, default=0.0))


def run_sweep(
    sweep: Sweep,
    output: Path,
    executor: InProcess | OnRay,
    function: CellFunction,
    tell: Callable[[Progress], Any] = lambda _: None,
    configuration: str | None = None,
) -> Progress:
    """Run all cells that have no result yet.

    Args:
        sweep: The sweep.
        output: Its folder.
        executor: Where cells run.
        function: Makes a row of a cell's settings.
        tell: Called at the start and whenever a cell has ended.
        configuration: Text of the sweep's file, kept as ``sweep.yaml`` in the folder; ``None`` to keep none.

    Returns:
        The state at the end.

    Raises:
        SweepError: If another process runs a sweep in the same folder.
        OSError: If a result cannot be kept.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        msg = f"--output: another sweep is running in {output}; wait for it, or choose another folder."
        raise SweepError(msg) from None
    with lock:
        if configuration is not None:  # not before: the one of a running sweep stays
            (output / CONFIGURATION).write_text(configuration, encoding="utf-8")
        results = Results(output / CELLS)
        results.clean()
        cells = cells_of(sweep)
        missing = [cell for cell in cells if results.read(cell) is None]
        progress = Progress(len(cells), len(cells) - len(missing))
        tell(progress)
        pending = {cell.identity: cell for cell in missing}
        seconds: dict[str, list[float]] = defaultdict(list)
        outcomes = executor.run(missing, function)
        try:
            for outcome in outcomes:
                del pending[outcome.cell.identity]
                log = output / FAILED / f"{outcome.cell.identity}.txt"
                if outcome.row is None:
                    progress.failed.append(outcome)
                    log.parent.mkdir(exist_ok=True)
                    log.write_text(f"{outcome.cell}\n{outcome.details or outcome.error}\n", encoding="utf-8")
                else:
                    results.write(outcome.cell, outcome.row)
                    log.unlink(missing_ok=True)
                    progress.done += 1
                    seconds[outcome.cell.model].append(outcome.seconds)  # a failure says nothing of how long one takes
                progress.last = outcome
                progress.remaining = remaining_seconds(
                    seconds, [cell.model for cell in pending.values()], executor.parallel
                )
                tell(progress)
        finally:
            close = getattr(outcomes, "close", None)  # ends what is still running
            if close is not None:
                close()
    return progress


def result_frame(sweep: Sweep, output: Path) -> pd.DataFrame:
    """Return the tidy table of a sweep: a row a finished cell, in the order of the sweep.

    Args:
        sweep: The sweep.
        output: Its folder.

    Returns:
        Columns ``model``, ``data``, ``category``, ``ratio`` (injected images per normal training image), ``share`` (of
        the training set: ratio / (1 + ratio)), ``overlap``, ``seed``, the metrics, counts, times, memory and versions
        of the cell, and ``cell``, its identity. Empty if nothing is done.
    """
    results = Results(output / CELLS)
    rows = []
    for cell in cells_of(sweep):
        row = results.read(cell)
        if row is None:
            continue
        s = cell.settings
        head = {
            "model": cell.model,
            "data": s["data"]["class_path"].rpartition(".")[2],
            "category": s["category"] or s["data"]["init_args"].get("category", ""),
            "ratio": s["ratio"],
            "share": round(s["ratio"] / (1 + s["ratio"]), 6),
            "overlap": s["overlap"],
            "seed": s["seed"],
        }
        rows.append({**head, **row, "cell": cell.identity})
    return pd.DataFrame(rows)
