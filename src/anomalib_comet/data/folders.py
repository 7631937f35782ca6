# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What the errors mean that anomalib's data modules raise over a folder that is not as they expect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .images import NAMED


def explanation(error: BaseException, datamodule: Any) -> str | None:  # noqa: PLR0911
    """Say in one sentence what an error of a data module's setup means, and what would work.

    Args:
        error: The error.
        datamodule: The data module.

    Returns:
        The sentence; ``None`` where the error says it itself.
    """
    said, name = str(error), getattr(datamodule, "name", "The data module")
    if "missing file path(s)" in said:
        broken = _broken_links(getattr(datamodule, "root", None))
        if broken:
            return f"{len(broken)} images of {name} are links to files that are not there: {_listed(broken)}."
        return f"{name} names images that are not there: compare its table or lists with what is in its folder."
    if "boolean array indexing" in said and "mask_dir" in vars(datamodule):
        return (
            f"{name} has another number of masks than of anomalous images: every anomalous image needs one mask of the "
            f"same name in mask_dir ({vars(datamodule)['mask_dir']})."
        )
    if said.startswith("Path contains non-printable characters"):
        return (
            f"anomalib takes no folder whose path has other letters than those of ASCII ({said.partition(': ')[2]}), "
            "links included: rename the folder. Names of files and of folders below it may have any letters."
        )
    if said.startswith("Path is too long"):
        return (
            "anomalib takes no folder whose path is longer than 512 characters: name a folder further up, or move the "
            f"images ({said.partition(': ')[2]})."
        )
    if said.startswith("Found 0 "):
        folder = said.partition(" images in ")[2].partition(" with extensions")[0]
        if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):  # noqa: PTH112
            return f"{name}: the folder {folder} may not be read (permission denied)."
        return f"{name}: there is no image in {folder}; put some there, or leave the folder out."
    if isinstance(error, PermissionError):
        return f"{name}: {error.filename or said} may not be read (permission denied)."
    return None


def _broken_links(root: Any) -> list[str]:
    if not root or not Path(root).is_dir():
        return []
    found = (os.path.join(where, name) for where, _, names in os.walk(root) for name in names)  # noqa: PTH118
    return sorted(path for path in found if os.path.islink(path) and not os.path.exists(path))  # noqa: PTH110, PTH114


def _listed(paths: list[str]) -> str:
    more = len(paths) - NAMED
    return ", ".join(paths[:NAMED]) + (f" and {more} more" if more > 0 else "")
