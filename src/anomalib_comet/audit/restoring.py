# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The model of a checkpoint, which no checkpoint of anomalib names, on a device."""

from __future__ import annotations

import inspect
import logging
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from anomalib.models import AnomalibModule

from anomalib_comet.parsing import accepted_arguments, sentence

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

RUN_LAYOUT = "results/<Model>/<data>/<category>/vN/weights/lightning/model.ckpt"


class AuditError(Exception):
    """Something that the user can put right; the message is one sentence."""


def run_folder(checkpoint: Path) -> Path:
    """Return the folder of the run that wrote a checkpoint; that of the file where the layout is another.

    Args:
        checkpoint: Path of the checkpoint.
    """
    parent = checkpoint.parent
    return parent.parent.parent if parent.parts[-2:] == ("weights", "lightning") else parent


def device_of(name: str) -> torch.device:
    """Return a device by its name; ``auto`` is the accelerator, if there is one.

    Args:
        name: As torch calls it.

    Raises:
        AuditError: If it cannot be used.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        msg = f"--device: {name!r} cannot be used here; cpu always can."
        raise AuditError(msg) from error
    return device


def model_class_of(
    name: str | None,
    config: dict[str, Any],
    checkpoint: Path,
    config_path: Path | None,
) -> type[AnomalibModule]:
    """Return the class of the model, which no checkpoint of anomalib names.

    Args:
        name: What ``--model`` says, if it is given.
        config: Configuration of the run; may be empty.
        checkpoint: Path of the checkpoint, which names the class where the layout is anomalib's.
        config_path: Where the configuration is from.

    Raises:
        AuditError: If the class is not known.
    """
    section = config.get("model")
    configured = section.get("class_path") if isinstance(section, dict) else section
    if name is not None:
        return _class_of(name, "--model")
    if isinstance(configured, str):
        return _class_of(configured, f"model in {config_path}")
    parts = checkpoint.resolve().parts
    known = _models()
    for part in reversed(parts):
        if part in known:
            return known[part]
    msg = f"Which model wrote {checkpoint} is not known, its path is not like {RUN_LAYOUT}: name the class by --model."
    raise AuditError(msg)


def _class_of(name: str, where: str) -> type[AnomalibModule]:
    known = _models()
    short = name.rpartition(".")[2]
    if "." in name:
        from importlib import import_module  # noqa: PLC0415

        try:
            found = getattr(import_module(name.rpartition(".")[0]), short)
        except (ImportError, AttributeError) as error:
            msg = f"{where}: {name} cannot be imported: {sentence(error)}"
            raise AuditError(msg) from error
    else:
        found = known.get(name)
    if not (isinstance(found, type) and issubclass(found, AnomalibModule)):
        from difflib import get_close_matches  # noqa: PLC0415

        close = get_close_matches(short, known, n=3) or sorted(known)
        msg = f"{where}: {name} is no model of anomalib; did you mean {', '.join(close)}?"
        raise AuditError(msg)
    return found


def _models() -> dict[str, type[AnomalibModule]]:
    """Return all models that are imported, by name, as the command line knows them."""
    found: dict[str, type[AnomalibModule]] = {}
    waiting: list[type[AnomalibModule]] = list(AnomalibModule.__subclasses__())
    while waiting:
        model_class = waiting.pop()
        waiting += model_class.__subclasses__()
        if not inspect.isabstract(model_class):
            found[model_class.__name__] = model_class
    return found


def restored(model_class: type[AnomalibModule], checkpoint: Path) -> AnomalibModule:
    """Return the model of a checkpoint, on the CPU.

    Args:
        model_class: Its class.
        checkpoint: Path of the checkpoint.

    Raises:
        AuditError: If the file is none of that class.
    """
    # Weights of a backbone are in the checkpoint: none need be downloaded only to be overwritten.
    overrides: dict[str, Any] = {"pre_trained": False} if "pre_trained" in accepted_arguments(model_class) else {}
    try:
        return model_class.load_from_checkpoint(checkpoint, map_location="cpu", **overrides)
    except Exception as error:
        logger.debug("%s as %s", checkpoint, model_class.__name__, exc_info=True)
        raise AuditError(_misfit(model_class, checkpoint, error)) from error


def _misfit(model_class: type[AnomalibModule], checkpoint: Path, error: Exception) -> str:
    """Say why a model cannot be made from a file."""
    if isinstance(error, PermissionError):
        return f"--ckpt_path: {checkpoint} may not be read."
    name = model_class.__name__
    if not zipfile.is_zipfile(checkpoint):
        return f"{checkpoint} is no checkpoint of {name}: it is no file that torch saves, or a part of one."
    if isinstance(error, pickle.UnpicklingError):
        return f"{checkpoint} cannot be loaded safely, as plain data: is it a checkpoint of anomalib's engine?"
    if isinstance(error, (TypeError, KeyError, IndexError, AttributeError)):
        # These come from deep within, of settings or parameters that the model does not know, and say nothing.
        return f"{checkpoint} is no checkpoint of {name}: name the class of the model that wrote it by --model."
    return f"{checkpoint} is no checkpoint of {name}, or of another version of it: {sentence(error)}"


def on_device(device: torch.device, model: AnomalibModule) -> AnomalibModule:
    """Return the model on a device, for inference.

    Args:
        device: The device.
        model: The model.

    Raises:
        AuditError: If it cannot be moved there.
    """
    try:
        return model.to(device).eval()
    except RuntimeError as error:
        msg = f"--device: {type(model).__name__} cannot be moved to {device}: {sentence(error)}"
        raise AuditError(without_memory(error, device) or msg) from error


def without_memory(error: RuntimeError, device: torch.device) -> str | None:
    """Return what helps against an error if the device has no memory left, ``None`` for any other error.

    Args:
        error: The error.
        device: The device.
    """
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return f"{device} has too little memory: lower --batch_size, or choose another --device. ({sentence(error)})"
    return None
