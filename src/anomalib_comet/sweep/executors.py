# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Where cells run: in this process, or as tasks of Ray."""

from __future__ import annotations

import importlib.util
import os
import socket
import traceback
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .configuration import SweepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .cells import Cell
    from .configuration import Resources

    CellFunction = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: The cell.
        row: Its result; ``None`` if it failed.
        error: One sentence that says why it failed; empty if it did not.
        details: Traceback of what failed, for the log.
        seconds: How long it took where it ran.
    """

    cell: Cell
    row: dict[str, Any] | None = None
    error: str = ""
    details: str = ""
    seconds: float = 0.0


def attempt(function: CellFunction, settings: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str, str, float]:
    """Run a cell; what it raises is a result too, so that one bad cell does not end a sweep.

    Args:
        function: Makes a row of settings.
        settings: Settings of the cell.

    Returns:
        Row or ``None``, sentence of the error, traceback, seconds.
    """
    start = perf_counter()
    try:
        return function(settings), "", "", perf_counter() - start
    except Exception as error:  # noqa: BLE001  # whatever a model raises
        lines = " ".join(str(error).split())
        text = lines if isinstance(error, SweepError) else f"{type(error).__name__}: {lines}"
        return None, text[:400], traceback.format_exc(), perf_counter() - start


class InProcess:
    """Cells run one after another in this process."""

    parallel = 1
    description = "in this process, one cell at a time"

    def run(self, cells: Sequence[Cell], function: CellFunction) -> Iterator[Outcome]:
        """Yield the outcome of each cell, in order.

        Args:
            cells: The cells.
            function: Makes a row of a cell's settings.
        """
        for cell in cells:
            yield Outcome(cell, *attempt(function, cell.settings))

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call a function where the cells run."""
        return function(argument)

    def check(self, cells: Sequence[Cell]) -> None:
        """Accept all cells: their resources are not looked at."""

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def has_ray() -> bool:
    """Return whether the extra is installed."""
    return importlib.util.find_spec("ray") is not None


class OnRay:
    """Each cell is a task of Ray with the resources of the cell.

    Workers serve one cell after another, as importing takes longer than a small cell; Ray itself gives a cell with a
    GPU a process of its own, so that no memory of the GPU is kept.
    A task whose worker or node dies is tried again. Rows come back to the process that called, so the machines need no
    common folder for results; data and weights have to be where the paths say, on all of them. When the caller dies,
    Ray ends its tasks.

    Args:
        address: Address of a cluster, as in ``ray.init``; ``None`` starts Ray on this machine and ends it at
            :meth:`close`.
        retries: How often a task is tried again whose worker has died.

    Raises:
        SweepError: If Ray is not installed or there is no cluster at the address.
    """

    def __init__(self, address: str | None = None, retries: int = 2) -> None:
        if not has_ray():
            msg = "Ray is not installed: run `pip install anomalib-comet[ray]`, or the sweep with --in_process."
            raise SweepError(msg)
        import ray  # noqa: PLC0415  # the extra

        self._ray = ray
        self._address, self._retries = address, retries
        self._owner = not ray.is_initialized()
        if self._owner:
            _check_answers(address)
            options: dict[str, Any] = {"include_dashboard": False} if address is None else {"address": address}
            try:
                ray.init(**options, configure_logging=False, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
                msg = f"--address: Ray does not answer at {address}: {' '.join(str(error).split())[:200]}"
                raise SweepError(msg) from error
        available, nodes = ray.cluster_resources(), len(self._nodes())
        cpus, gpus = (available.get(name, 0) for name in ("CPU", "GPU"))
        self.description = f"on Ray: {nodes} node{'s' * (nodes != 1)}, {cpus:g} CPUs, {gpus:g} GPUs"
        self.parallel = 1

    def _options(self, cell: Cell) -> dict[str, Any]:
        r, wanted = cell.resources, _wanted(cell.resources)
        memory = {} if r.memory_gib is None else {"memory": wanted["memory"]}
        return {"num_cpus": r.cpus, "num_gpus": r.gpus, **memory, "max_retries": self._retries}

    def run(self, cells: Sequence[Cell], function: CellFunction) -> Iterator[Outcome]:
        """Yield the outcome of each cell as it ends.

        Args:
            cells: The cells.
            function: Makes a row of a cell's settings.

        Raises:
            SweepError: If a cell asks for more than any node has.
        """
        ray = self._ray
        self.check(cells)
        # As if all cells asked for as much as the one that asks for most: what runs at once is only an estimate.
        wanted = [_wanted(cell.resources) for cell in cells]
        most = {name: max(each[name] for each in wanted) for name in (wanted[0] if wanted else ())}
        self.parallel = max(1, sum(_times(most, node) for node in self._nodes()))
        task = ray.remote(_remote_attempt)
        where = os.getcwd()  # noqa: PTH109
        pending = {task.options(**self._options(c)).remote(function, dict(c.settings), where): c for c in cells}
        try:
            while pending:
                done, _ = ray.wait(list(pending), timeout=1.0)  # returns now and then, so that Ctrl+C is heard
                for reference in done:
                    cell = pending.pop(reference)
                    try:
                        outcome = Outcome(cell, *ray.get(reference))
                    except ray.exceptions.RayError as error:
                        tries = f"after {self._retries + 1} tries" if self._retries else "at the first try"
                        said = " ".join(str(error).split())[:200]
                        outcome = Outcome(cell, None, f"Its worker died {tries}: {said}", str(error))
                    yield outcome
        finally:
            for reference in pending:
                with suppress(Exception):  # the cluster may be gone
                    ray.cancel(reference, force=True)

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse a cell for which Ray would wait for ever, as it fits no node.

        Args:
            cells: The cells.

        Raises:
            SweepError: If a cell asks for more than any node has.
        """
        nodes = self._nodes()
        for model, resources in dict.fromkeys((cell.model, cell.resources) for cell in cells):
            if not any(_times(_wanted(resources), node) for node in nodes):
                has = "; ".join(sorted({_in_words(node) for node in nodes}))
                msg = (
                    f"resources: {model} asks for {_in_words(_wanted(resources))} a cell, and no node of Ray has all "
                    f"of that; they have {has}."
                )
                raise SweepError(msg)

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call a function on a machine of the cluster, and raise what it raises."""
        if self._address is None:
            return function(argument)
        task = self._ray.remote(_remote_call).options(num_cpus=1, max_retries=self._retries)
        result, error = self._ray.get(task.remote(function, argument, os.getcwd()))  # noqa: PTH109
        if error:
            raise SweepError(error)
        return result

    def close(self) -> None:
        """Leave the cluster, or end the one that was started here."""
        if self._owner:
            self._ray.shutdown()


def _wanted(resources: Resources) -> dict[str, float]:
    """Return what a cell asks for, by the names that Ray has for it."""
    memory = int((resources.memory_gib or 0) * 2**30)
    return {"CPU": resources.cpus, "GPU": resources.gpus, "memory": memory}


def _times(wanted: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Return how often a node has what is wanted."""
    return int(min((node.get(name, 0) / value + 1e-9 for name, value in wanted.items() if value), default=0))


def _in_words(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(name, 0) for name in ("CPU", "GPU", "memory"))
    return f"{cpus:g} CPUs, {gpus:g} GPUs and {memory / 2**30:.3g} GiB"


def _check_answers(address: str | None) -> None:
    """Refuse an address where nothing listens: Ray itself would wait for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if not colon:
        return  # this machine, or "auto", which Ray looks up at once
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            pass
    except (OSError, ValueError) as error:
        msg = f"--address: Ray does not answer at {address}: {error}"
        raise SweepError(msg) from error


def _enter(folder: str) -> None:
    """Make relative paths mean on a worker what they mean to the caller."""
    with suppress(OSError):
        os.chdir(folder)


def _remote_attempt(
    function: CellFunction, settings: dict[str, Any], folder: str
) -> tuple[dict[str, Any] | None, str, str, float]:
    _enter(folder)
    return attempt(function, settings)


def _remote_call(function: Callable[[Any], Any], argument: Any, folder: str) -> tuple[Any, str]:
    _enter(folder)
    result, error, *_ = attempt(function, argument)
    return result, error
