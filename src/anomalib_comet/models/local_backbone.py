# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Building anomalib's own detectors on machines without a network: from a local file, or from a checkpoint."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from anomalib_comet.backbones import keep_checkpoint_weights, timm_name_without_download
from anomalib_comet.backbones.extractor import build_timm_network, keeps_checkpoint_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anomalib.models.components import AnomalibModule
    from torch import nn

    _Base = AnomalibModule
else:
    _Base = object


class LocalBackbone(_Base):
    """A mixin for anomalib's detectors on a pre-trained network: checkpoints are restored without that network's file.

    Place it before the detector.
    """

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> AnomalibModule:  # type: ignore[override]
        """Restore a model; the backbone's weights come from the checkpoint, nothing is downloaded.

        Args:
            checkpoint_path (str | Path): Path of the checkpoint.
            *args: See :meth:`lightning.pytorch.LightningModule.load_from_checkpoint`.
            **kwargs: See there.

        Returns:
            AnomalibModule: The model.
        """
        with keep_checkpoint_weights():
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)


def downloads(pre_trained: bool, backbone_weights: str | Path | None) -> bool:
    """Tell whether published weights are wanted: not where a local file or a checkpoint supplies them."""
    return pre_trained and backbone_weights is None and not keeps_checkpoint_weights()


@contextlib.contextmanager
def explained_download(backbone: str) -> Iterator[None]:
    """Say in one sentence what to do where published weights cannot be downloaded.

    Args:
        backbone: Name of the network.

    Raises:
        RuntimeError: If the download fails.
    """
    try:
        yield
    except OSError as error:
        msg = (
            f"The pre-trained weights of backbone '{backbone}' could not be downloaded ({type(error).__name__}): give "
            "a local state-dict file with `backbone_weights`, or random weights with `pre_trained=False`."
        )
        raise RuntimeError(msg) from error


@contextlib.contextmanager
def backbone_name(backbone: str, pre_trained: bool, backbone_weights: str | Path | None) -> Iterator[str]:
    """Yield the name of a network for a detector that always asks for pre-trained weights and takes no other argument.

    Args:
        backbone: Name of a timm model.
        pre_trained: Whether pre-trained weights are wanted at all.
        backbone_weights: Path of a local state-dict file with them, or ``None``.

    Yields:
        ``backbone`` itself where its published weights are wanted, otherwise a name that downloads nothing.
    """
    if downloads(pre_trained, backbone_weights):
        with explained_download(backbone):
            yield backbone
    else:
        with timm_name_without_download(backbone, backbone_weights) as name:
            yield name


def rename_backbone(model: nn.Module, backbone: str) -> None:
    """Let every part of a model that notes the name of its network note the one that the user gave."""
    for part in model.modules():
        if isinstance(getattr(part, "backbone", None), str):
            part.backbone = backbone  # type: ignore[assignment]


def load_backbone(network: nn.Module, backbone: str, weights: str | Path) -> None:
    """Load a local file into a network that is part of a detector: into as many of its layers as the detector has.

    Args:
        network: The network, with or without its classifier and last layers, its parts named as timm's are.
        backbone: Its name in timm.
        weights: Path of a state-dict file of the whole network without classifier.

    Raises:
        FileNotFoundError: If ``weights`` does not exist.
        ValueError: If it is not a state dict of the network.
    """
    with torch.random.fork_rng(devices=[]):  # a seeded run has the same initial weights with any backbone_weights
        state = build_timm_network(backbone, pre_trained=False, weights=weights).state_dict()
    network.load_state_dict(
        {name: value for name, value in state.items() if name in network.state_dict()}, strict=False
    )
