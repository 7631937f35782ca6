# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints that say who wrote them, and sentences where one is damaged, foreign or not to be trusted."""

from __future__ import annotations

import contextlib
import errno
import pickle
import zipfile
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anomalib.models.components import AnomalibModule

    _Base = AnomalibModule
else:
    _Base = object

KEY = "anomalib_comet"
FORMAT = 1
"""Raised whenever what our models keep in a checkpoint changes so that an earlier version could not read it."""

_NAMED = 3


def written_by() -> dict[str, Any]:
    """Return what a checkpoint says about its writer: our format and version, and those of anomalib and torch."""
    return {"format": FORMAT, **{name: _version(name) for name in ("anomalib-comet", "anomalib", "torch")}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # not installed, only on the path
        return "unknown"


def told(writer: Mapping[str, Any] | None) -> str:
    """Say who wrote a checkpoint.

    Args:
        writer: What :func:`written_by` returned then; ``None`` for a checkpoint that does not say.

    Example:
        >>> told({"format": 1, "anomalib-comet": "0.1.0", "anomalib": "2.7.0", "torch": "2.13.0"})
        'anomalib-comet 0.1.0 (anomalib 2.7.0, torch 2.13.0)'
    """
    if writer is None:
        return "a version of anomalib-comet that does not say which, or another package"
    known = {name: writer.get(name, "unknown") for name in ("anomalib-comet", "anomalib", "torch")}
    return f"anomalib-comet {known['anomalib-comet']} (anomalib {known['anomalib']}, torch {known['torch']})"


class CheckpointWriter(_Base):
    """A mixin for Lightning modules: versions in every checkpoint, and a sentence where one does not fit.

    Place it before ``AnomalibModule``.
    """

    _read_from: dict[str, Any] | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the versions to a checkpoint.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] = written_by()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of a later format.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.

        Raises:
            RuntimeError: If a later version has written it in a format that this one does not know.
        """
        self._read_from = checkpoint.get(KEY)
        if self._read_from is not None and self._read_from["format"] > FORMAT:
            msg = (
                f"The checkpoint is of {told(self._read_from)}, in a format that this {told(written_by())} does not "
                "know yet: update anomalib-comet."
            )
            raise RuntimeError(msg)
        super().on_load_checkpoint(checkpoint)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters and buffers; where they do not fit, say so in one sentence.

        Args:
            state_dict (Mapping[str, Any]): Parameters and buffers by name.
            strict (bool): Whether the names have to be the same. Defaults to ``True``.
            assign (bool): Whether tensors are taken over instead of copied. Defaults to ``False``.

        Returns:
            Any: Missing and unexpected names.

        Raises:
            RuntimeError: If they do not fit.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            differences = _differences(self.state_dict(), state_dict) or str(error)
            msg = (
                f"The checkpoint does not fit this {type(self).__name__}: {differences}. "
                f"It was written by {told(self._read_from)}, and this is {told(written_by())}: give the model the "
                "arguments that it was trained with, or use the version that wrote the checkpoint."
            )
            raise RuntimeError(msg) from error

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> AnomalibModule:  # type: ignore[override]
        """Restore a model from plain data; a file with anything else in it is refused.

        Args:
            checkpoint_path (str | Path): Path of the checkpoint.
            *args: See :meth:`lightning.pytorch.LightningModule.load_from_checkpoint`.
            **kwargs: See there.

        Returns:
            AnomalibModule: The model.

        Raises:
            pickle.UnpicklingError: If the file holds more than plain data.
            ValueError: If it is no checkpoint, or a part of one.
            RuntimeError: If parameters do not fit.
            TypeError: If the model does not know an argument that is kept in the checkpoint.
        """
        with explained_loading(checkpoint_path):
            try:
                return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
            except TypeError as error:
                writer = _writer_of(checkpoint_path)
                if writer == written_by():
                    raise
                msg = (
                    f"{cls.__name__} cannot be made with the arguments in '{checkpoint_path}': {error}. It was written "
                    f"by {told(writer)}, and this is {told(written_by())}: use the version that wrote it."
                )
                raise TypeError(msg) from error


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Say in what two state dicts differ; empty if names and shapes are the same."""
    shapes = [
        f"{name} is {tuple(theirs[name].shape)} and not {tuple(ours[name].shape)}"
        for name in ours
        if name in theirs and getattr(theirs[name], "shape", None) != getattr(ours[name], "shape", None)
    ]
    parts = {
        "other shapes": shapes,
        "missing": [name for name in ours if name not in theirs],
        "unknown": [name for name in theirs if name not in ours],
    }
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for what, names in parts.items()
        if names
    )


def _writer_of(path: str | Path) -> dict[str, Any] | None:
    with contextlib.suppress(Exception):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(KEY)
    return None


@contextlib.contextmanager
def explained_loading(path: str | Path) -> Iterator[None]:
    """Say in one sentence why a checkpoint cannot be loaded.

    Args:
        path: The checkpoint.

    Raises:
        pickle.UnpicklingError: If it holds more than plain data, which could run code of whoever made it.
        ValueError: If it is no checkpoint, or a part of one.
    """
    try:
        yield
    except OSError as error:
        # torch looks for the end of a zip file before the start of a short one.
        if error.errno != errno.EINVAL or zipfile.is_zipfile(path):
            raise
        msg = f"'{path}' is a part of a checkpoint, or damaged: use an earlier one, or a whole copy."
        raise ValueError(msg) from error
    except (pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
        with contextlib.suppress(OSError):
            if not zipfile.is_zipfile(path):
                msg = f"'{path}' is no checkpoint, or a part of one: use an earlier one, or a whole copy."
                raise ValueError(msg) from error
        msg = (
            f"'{path}' is refused: it holds more than tensors and plain data, and could run code of whoever made it. "
            f"What anomalib writes is plain data. ({_named_global(error)})"
        )
        raise pickle.UnpicklingError(msg) from error
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):
            raise
        msg = f"'{path}' is a part of a checkpoint, or damaged: use an earlier one, or a whole copy."
        raise ValueError(msg) from error


def _named_global(error: BaseException) -> str:
    """Return the line of torch's message that names what was refused."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")[:200]
