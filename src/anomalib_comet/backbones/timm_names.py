# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Networks of timm with weights of our choice, for code that builds them by name and insists on a download.

Some of anomalib's detectors build their network with ``timm.create_model(name, pretrained=True)`` and have no argument
for it. timm lets everybody register models: what such a detector is given here is the name of a registered model that
builds the network asked for and takes its weights from a local file, or leaves them to a checkpoint.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import register_model

from .extractor import build_timm_network, keeps_checkpoint_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

_weights_file: contextvars.ContextVar[str | None] = contextvars.ContextVar("_weights_file", default=None)
_registered: dict[str, str] = {}


@contextlib.contextmanager
def timm_name_without_download(backbone: str, weights: str | Path | None = None) -> Iterator[str]:
    """Yield a name by which timm builds a network, within the context, without downloading anything.

    Args:
        backbone: Name of a timm model.
        weights: Path of a state-dict file of the whole network without classifier. It is loaded where pre-trained
            weights are asked for; ``None`` leaves the network at its random weights. Ignored where a checkpoint is
            about to supply weights. Defaults to ``None``.

    Yields:
        The name, to be passed to ``timm.create_model`` with any arguments.

    Raises:
        FileNotFoundError: If ``weights`` does not exist.
        ValueError: If it is not a state dict of the network.
    """
    path = None if weights is None or keeps_checkpoint_weights() else str(weights)
    if path is not None:
        # timm accepts any file where it drops the classifier. The network that this builds is only compared with.
        with torch.random.fork_rng(devices=[]):
            build_timm_network(backbone, pre_trained=False, weights=path)
    token = _weights_file.set(path)
    try:
        yield _registered_name(backbone)
    finally:
        _weights_file.reset(token)


def _registered_name(backbone: str) -> str:
    if backbone not in _registered:
        # The original name is part of it: whoever builds the network may look there for its family.
        name = f"local_{re.sub(r'[^0-9a-zA-Z]', '_', backbone)}"

        def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
            for ours in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
                arguments.pop(ours, None)
            path = _weights_file.get()
            if not pretrained or path is None:
                return timm.create_model(backbone, pretrained=False, **arguments)
            source = {"file": path, "custom_load": False}
            return timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=source, **arguments)

        build.__name__ = name
        register_model(build)
        _registered[backbone] = name
    return _registered[backbone]
