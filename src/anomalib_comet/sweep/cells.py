# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The cells of a sweep, and the folder that keeps their results: one small file a finished cell."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from .configuration import Resources, SweepError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .configuration import Sweep

FORMAT = 2
"""Raised whenever the numbers of a cell would change though its settings do not."""


@dataclass(frozen=True)
class Cell:
    """One training and its measurement.

    Attributes:
        model: Label of the model in the sweep.
        settings: Everything that the result depends on, as plain data; the label does not.
        resources: What the cell occupies.
    """

    model: str
    settings: dict[str, Any]
    resources: Resources

    @property
    def identity(self) -> str:
        """Hash of the settings, 16 hexadecimal digits: the same settings are the same cell in every sweep."""
        return identity(self.settings)

    def __str__(self) -> str:
        s = self.settings
        parts = [self.model, s["category"] or "", f"r={s['ratio']:g}", "overlap" if s["overlap"] else ""]
        return " ".join([*filter(None, parts), f"seed {s['seed']}"])


def identity(settings: Mapping[str, Any]) -> str:
    """Return the hash of a cell's settings.

    Args:
        settings: Plain data.

    Returns:
        16 hexadecimal digits; the order of the keys does not matter.
    """
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cells_of(sweep: Sweep) -> list[Cell]:
    """Return all cells, seed after seed, so that an unfinished sweep has whole curves of the first seeds.

    Args:
        sweep: The sweep.

    Raises:
        SweepError: If two models are the same but for their label.
    """
    cells = []
    categories: list[str | None] = list(sweep.categories) or [None]
    labels: dict[str, str] = {}
    for seed, category, (label, model), overlap, ratio in product(
        sweep.seeds, categories, sweep.models.items(), sweep.overlap, sweep.ratios
    ):
        init_args = dict(sweep.data.init_args) | ({} if category is None else {"category": category})
        if model.train_batch_size is not None:
            init_args["train_batch_size"] = model.train_batch_size
        settings = {
            "model": {
                "class_path": model.class_path,
                "init_args": model.init_args,
                "image_size": model.image_size,
                "backbone_weights": model.backbone_weights,
            },
            "max_epochs": model.max_epochs or sweep.max_epochs,
            "trainer": {**sweep.trainer, **model.trainer},
            "data": {"class_path": sweep.data.class_path, "init_args": init_args},
            "category": category,
            "ratio": float(ratio),
            # One test set for all ratios: the anomalies for the largest one leave it for every one.
            "max_ratio": float(max(sweep.ratios)),
            "overlap": overlap,
            "seed": seed,
            "val_split_ratio": float(sweep.val_split_ratio),
            "resample_dir": sweep.resample_dir,
        }
        cell = Cell(label, settings, model.resources or sweep.resources)
        other = labels.setdefault(cell.identity, label)
        if other != label:
            msg = f"models: {other} and {label} are the same; leave one of them out."
            raise SweepError(msg)
        cells.append(cell)
    return cells


class Results:
    """Finished cells of a folder, one JSON file each, which appears whole or not at all.

    Args:
        folder: The folder; made if missing when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        """Return the file of a cell's result."""
        return self.folder / f"{cell.identity}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Return the row of a finished cell; ``None`` if there is none, or its file is damaged or of another cell."""
        try:
            content = json.loads(self.path(cell).read_text(encoding="utf-8"))
            settings, row = content["settings"], content["row"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = isinstance(settings, dict) and isinstance(row, dict) and identity(settings) == cell.identity
        return row if whole else None

    def write(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """Keep the row of a finished cell.

        Args:
            cell: The cell.
            row: Plain numbers and text.

        Raises:
            OSError: If it cannot be written; then no file is left.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(suffix=".partial", dir=self.folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                content = {"settings": cell.settings, "resources": asdict(cell.resources), "row": dict(row)}
                json.dump(content, file, indent=1, default=str)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.path(cell))  # noqa: PTH105
        except BaseException:
            os.unlink(unfinished)  # noqa: PTH108
            raise

    def clean(self) -> None:
        """Remove what an interrupted writing left."""
        for path in self.folder.glob("*.partial"):
            path.unlink(missing_ok=True)
