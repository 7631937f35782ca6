# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Which images an audit is about: those of a folder, of a data module, of a checkpoint, or of a table beside a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_comet.parsing import sentence

from .report import training_frame
from .restoring import AuditError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anomalib.data import AnomalibDataModule
    from anomalib.models import AnomalibModule
    from rich.console import Console

LISTS = ("confidence_weights.csv", "audit.csv")
"""Tables beside a run that name its training images, for a checkpoint that does not."""


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


def images_of(datamodule: AnomalibDataModule) -> tuple[list[str], pd.DataFrame | None]:
    """Return the training images of a data module, and its table of what is contaminated where it has one.

    Args:
        datamodule: The data module.

    Raises:
        AuditError: If it cannot read its images.
    """
    try:
        datamodule.prepare_data()
        datamodule.setup("fit")
        paths = [str(path) for path in datamodule.train_data.samples["image_path"]]
    except Exception as error:
        msg = f"--data: {type(datamodule).__name__} cannot read its images: {sentence(error)}"
        raise AuditError(msg) from error
    return paths, getattr(datamodule, "contamination", None)


def images_known_to(model: AnomalibModule) -> list[str]:
    """Return the images of a model's own table of training images; empty where it keeps none.

    Args:
        model: The model.
    """
    frame = training_frame(model)
    return [] if frame is None else frame["image_path"].tolist()


def images_listed_beside(run: Path, console: Console) -> list[str]:
    """Return the images of a table beside the run: a training that was stopped early left none in its checkpoint.

    Args:
        run: Folder of the run.
        console: Where to say which table it is.

    Raises:
        AuditError: If there is none.
    """
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
