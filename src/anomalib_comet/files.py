# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Write a file beside its place, and move it there when all of it is on the disk.

    A full disk, an exception or the end of the process leaves what was there before.

    Args:
        path: The file; its folder is made if missing.

    Yields:
        The file to write to.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> with whole_file("notes/today.txt") as file:  # doctest: +SKIP
        ...     file.write(b"whole")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{uuid.uuid4().hex[:12]}.partial")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def may_fail(name: str) -> Iterator[None]:
    """Go on with a warning where a file beside a run cannot be written: the training is worth more.

    Args:
        name: Name of the file, for the warning.
    """
    try:
        yield
    except OSError as error:
        logger.warning("%s was not written (%s); training goes on.", name, error.strerror or error)
