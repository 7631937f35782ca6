# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Writing checkpoints so that the one before survives a full disk. Imports anomalib's engine: import it late."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.engine.plugins import AnomalibCheckpointIO

from .checkpoints import explained_loading
from .files import whole_file

if TYPE_CHECKING:
    from lightning.fabric.utilities.types import _MAP_LOCATION_TYPE, _PATH


class WholeCheckpointIO(AnomalibCheckpointIO):
    """Anomalib's reading and writing of checkpoints, with the unfinished file beside its place.

    Lightning writes into the folder for temporary files and moves the result. From one file system to another that is a
    copy over the checkpoint before, which a full disk or the end of the process then destroys.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all.

        Args:
            checkpoint (dict[str, Any]): The checkpoint.
            path (str | Path): The file; any other storage than a folder is left to Lightning.
            storage_options (Any | None): Not used. Defaults to ``None``.

        Raises:
            OSError: If it cannot be written; what was there before is whole.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with whole_file(path) as file:
                file.write(buffer.getbuffer())
        except OSError as error:
            kept = "The one before it is whole" if Path(path).exists() else "None was written before it"
            msg = (
                f"The checkpoint '{path}' of {len(buffer.getbuffer()) / 1024**2:.1f} MiB could not be written "
                f"({error.strerror or error}). {kept}; make room and go on from the last one by ckpt_path."
            )
            raise OSError(error.errno, msg) from error

    def load_checkpoint(
        self, path: _PATH, map_location: _MAP_LOCATION_TYPE = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; say in one sentence where that cannot be.

        Args:
            path (str | Path): The file.
            map_location (Any): Where its tensors go. Defaults to ``None``.
            weights_only (bool | None): Whether only plain data is read; ``None`` is yes. Defaults to ``True``.

        Returns:
            dict[str, Any]: The checkpoint.
        """
        with explained_loading(path):
            return super().load_checkpoint(path, map_location=map_location, weights_only=weights_only is not False)
