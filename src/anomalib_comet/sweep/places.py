# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Places that a sweep's file may name: it may come from somebody else."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def named_outside(content: Mapping[str, Any], commanded: Collection[str] = ()) -> str:
    """Say which place outside its root a file names: one to write to, or a category.

    Places to read from are left alone: data sets and weights lie anywhere.

    Args:
        content: The file's content.
        commanded: Keys whose values come from the command line instead, which is the user's own word.

    Returns:
        One sentence; empty if there is none.
    """
    written = {"resample_dir": content.get("resample_dir")}
    models = content.get("models")
    for label, entry in models.items() if isinstance(models, dict) else ():
        written[f"models.{label}.init_args.feature_store"] = _argument(entry, "feature_store")
    for key, value in written.items():
        if key not in commanded and leads_out(value):
            return (
                f"{key}: {value} lies outside the working folder, and a sweep's file may only name folders below it to "
                f"write to; if it is yours, say so on the command line: --set {key}={value}"
            )
    named = content.get("categories")
    categories = {
        "categories": named if isinstance(named, list) else [named],
        "data.init_args.category": [_argument(content.get("data"), "category")],
    }
    for key, values in categories.items():
        for value in values:
            if key not in commanded and leads_out(value):
                return f"{key}: {value} leads out of the data set's folder; a category is the name of a folder in it."
    return ""


def leads_out(place: Any) -> bool:
    """Whether a path is absolute, or has a step upwards, on any system.

    Args:
        place: The path; anything but text leads nowhere.
    """
    if not isinstance(place, str):
        return False
    windows = PureWindowsPath(place)
    absolute = PurePosixPath(place).is_absolute() or windows.is_absolute() or bool(windows.drive)
    return absolute or place.startswith("~") or ".." in windows.parts


def _argument(entry: Any, name: str) -> Any:
    arguments = entry.get("init_args") if isinstance(entry, dict) else None
    return arguments.get(name) if isinstance(arguments, dict) else None
