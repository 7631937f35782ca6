# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Features of all training images in half precision: in memory, or in a file that is never read stale or half-written.

The file is read and written by position in chunks instead of being mapped into memory: pages of a mapping count as the
process's own memory, which would grow with the training set. What this costs is a copy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"FUNAD-1\n"
ALIGNMENT = 4096
BYTES = 2
"""Of a value in half precision."""

TEMPORARY = "fun_ad_features_"
"""What the names of temporary folders start with."""


def fingerprint(paths: Sequence[str], settings: dict[str, Any]) -> str:
    """Return a digest of everything that features depend on: the files and the network.

    Args:
        paths: Paths of the images; their sizes and times of modification are part of it.
        settings: Plain data that tells what was computed, with a digest of the network's weights.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in paths:
        try:
            state = Path(path).stat()
            entry = f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n"
        except OSError:
            entry = f"{path}\0missing\n"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()


class FeatureStore:
    """One record of half-precision values for every image.

    Args:
        paths: Paths of the images, the keys; no path twice.
        n_values: Number of values of a record.
        key: Digest of what the features depend on, see :func:`fingerprint`.
        place: ``"memory"``, ``"temporary"`` for a file that is deleted on closing, a folder for a file that stays and
            is used again by the same images under the same network, or ``"auto"``: memory where all records fit
            into ``memory_gib``, else a temporary file. Defaults to ``"auto"``.
        memory_gib: Bound of ``"auto"`` in GiB. Defaults to ``2.0``.

    Attributes:
        is_complete: Whether all records are there.
        path: The complete file, or ``None``.

    Raises:
        ValueError: If a path occurs twice.
        OSError: If there is no room for the file.
    """

    def __init__(
        self,
        paths: Sequence[str],
        n_values: int,
        key: str,
        place: str = "auto",
        memory_gib: float = 2.0,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self._row = {path: k for k, path in enumerate(self.paths)}
        if len(self._row) != len(self.paths):
            msg = "An image path occurs twice in the training set: features are kept by path."
            raise ValueError(msg)
        self.n_values = n_values
        self.key = key
        self.path: Path | None = None
        self.is_complete = False
        self._written = torch.zeros(len(self.paths), dtype=torch.bool)
        self._array: np.ndarray | None = None
        self._file: BinaryIO | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._offset = 0
        if place == "auto":
            place = "memory" if self.n_bytes <= memory_gib * 1024**3 else "temporary"
        self.place = place
        if place == "memory":
            self._array = np.empty((len(self.paths), n_values), dtype=np.float16)
        else:
            self._open(place)

    @property
    def n_bytes(self) -> int:
        """Size of all records in bytes."""
        return len(self.paths) * self.n_values * BYTES

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, paths: Sequence[str]) -> list[int]:
        """Return the positions of images.

        Raises:
            KeyError: If the store does not hold one.
        """
        return [self._row[str(path)] for path in paths]

    def write(self, rows: Sequence[int], records: torch.Tensor) -> None:
        """Keep records, rounded to half precision.

        Args:
            rows: Positions, any order.
            records: Shape ``(len(rows), n_values)``.

        Raises:
            ValueError: If a value is not finite, or too large for half precision.
            OSError: If the disk is full.
        """
        half = records.detach().cpu().half()
        finite = torch.isfinite(half).all(dim=1)
        if not bool(finite.all()):
            image = self.paths[rows[int((~finite).nonzero()[0])]]
            reason = "not finite (NaN or infinite)"
            if bool(torch.isfinite(records).all()):
                reason = "too large for half precision (above 65504)"
            msg = f"The features of '{image}' are {reason}: check the image, the backbone and its weights."
            raise ValueError(msg)
        values = half.contiguous().numpy()
        for row, record in zip(rows, values, strict=True):
            if self._array is not None:
                self._array[row] = record
            else:
                with self._clear_errors():
                    self._opened.seek(self._position(row))
                    _write_all(self._opened, _bytes_of(record))
            self._written[row] = True

    def finish(self) -> None:
        """Declare the store complete; a file gets its final name only now, after everything is on the disk.

        Raises:
            RuntimeError: If a record is missing.
            OSError: If the disk is full.
        """
        missing = int((~self._written).sum())
        if missing:
            msg = f"The features of {missing} of {len(self)} images were never written."
            raise RuntimeError(msg)
        if self._file is not None and self.path is not None:
            with self._clear_errors():
                os.fsync(self._file.fileno())
                if fcntl is None:  # Windows renames no open file
                    self._file.close()
                self._partial.replace(self.path)
                if fcntl is None:
                    self._file = self.path.open("rb", buffering=0)
        self.is_complete = True

    def read(self, rows: Sequence[int]) -> torch.Tensor:
        """Return records, shape ``(len(rows), n_values)``, half precision, on the CPU.

        Raises:
            RuntimeError: If the store is not complete, or the file was cut short meanwhile.
        """
        if not self.is_complete:
            msg = "The store of features is not complete."
            raise RuntimeError(msg)
        if self._array is not None:
            return torch.from_numpy(self._array[list(rows)])
        out = np.empty((len(rows), self.n_values), dtype=np.float16)
        for record, row in zip(out, rows, strict=True):
            self._opened.seek(self._position(row))
            if not _read_all(self._opened, _bytes_of(record)):
                msg = (
                    f"The file of features '{self.path}' was cut short while it was in use: delete it and start again."
                )
                raise RuntimeError(msg)
        return torch.from_numpy(out)

    def close(self) -> None:
        """Let go of memory and file; a temporary or incomplete file is deleted."""
        self._array = None
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self.is_complete and self.path is not None:
            self._partial.unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        self.is_complete = False

    # ------------------------------------------------------------------------------------------------------- the file
    @property
    def _opened(self) -> BinaryIO:
        if self._file is None:
            msg = "The store of features is closed."
            raise RuntimeError(msg)
        return self._file

    def _position(self, row: int) -> int:
        return self._offset + row * self.n_values * BYTES

    def _header(self) -> bytes:
        content = json.dumps(
            {"key": self.key, "images": len(self), "values": self.n_values, "dtype": "float16"}
        ).encode()
        text = MAGIC + len(content).to_bytes(8, "little") + content
        return text + b"\0" * (-len(text) % ALIGNMENT)

    def _open(self, place: str) -> None:
        if place == "temporary":
            self._folder = tempfile.TemporaryDirectory(prefix=TEMPORARY)
            folder = Path(self._folder.name)
            for other in folder.parent.glob(f"{TEMPORARY}*"):
                _remove_abandoned(other, "*", and_folder=True)
        else:
            folder = Path(place).expanduser()
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                msg = f"feature_store '{place}' is no folder that can be written to ({error.strerror})."
                raise OSError(msg) from error
        _remove_abandoned(folder)
        self.path = folder / f"{self.key[:32]}.features"
        # Of this store alone: two runs that start at once do not write into each other's file.
        self._partial = self.path.with_suffix(f".{uuid.uuid4().hex[:12]}.partial")
        header = self._header()
        self._offset = len(header)
        if self.path.exists() and self._is_ours(header):
            self._file = self.path.open("rb", buffering=0)
            self.is_complete = True
            self._written.fill_(value=True)
            return
        with self._clear_errors():
            self._file = self._partial.open("w+b", buffering=0)
            _lock(self._file)
            _write_all(self._file, memoryview(header))
            # All room now: an error after hours of computing features would be a worse one.
            if hasattr(os, "posix_fallocate") and self.n_bytes:
                os.posix_fallocate(self._file.fileno(), self._offset, self.n_bytes)

    def _is_ours(self, header: bytes) -> bool:
        """Whether the file is complete and holds these images under this network; the name alone proves nothing."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:  # type: ignore[union-attr]
            return file.read(len(header)) == header and os.fstat(file.fileno()).st_size == self._offset + self.n_bytes
        return False

    @contextlib.contextmanager
    def _clear_errors(self) -> Any:
        try:
            yield
        except OSError as error:
            self.close()
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            msg = (
                f"No room for the features of {len(self)} images, {self.n_bytes / 1024**3:.2f} GiB, in "
                f"'{self.path.parent if self.path else self.place}': free some, or name another folder with "
                "feature_store (TMPDIR moves temporary ones)."
            )
            raise OSError(error.errno, msg) from error


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed or its process ends, however it ends; tell whether it was not locked before."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(folder: Path, pattern: str = "*.partial", and_folder: bool = False) -> None:
    """Remove what killed processes have left: files of ours that no process holds.

    A file is locked before its header is written: one with a header and without a lock has lost its process. So has a
    complete temporary one, which stays locked as long as it is in use.
    """
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC and _lock(file):
                path.unlink()
                if and_folder:
                    folder.rmdir()  # which fails where anything else is in it


def _bytes_of(record: Any) -> memoryview:
    return memoryview(record).cast("B")


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data.nbytes:
        data = data[file.write(data) :]


def _read_all(file: BinaryIO, into: memoryview) -> bool:
    """Fill a buffer; tell whether the file had that much."""
    while into.nbytes:
        count = file.readinto(into)  # type: ignore[attr-defined]
        if not count:
            return False
        into = into[count:]
    return True
