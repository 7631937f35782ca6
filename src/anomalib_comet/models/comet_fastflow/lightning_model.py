# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetFastflow: anomalib's FastFlow under the strategy of Confident Meta-Learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.models.components import AnomalibModule
from anomalib.models.image.fastflow import Fastflow
from timm.models.cait import Cait
from timm.models.vision_transformer import VisionTransformer

from anomalib_comet.backbones.extractor import keeps_checkpoint_weights
from anomalib_comet.confident_meta_learning import (
    ConfidentMetaLearning,
    given_outputs,
    recorded_outputs,
    sample_by_sample,
)
from anomalib_comet.models.local_backbone import LocalBackbone, downloads, explained_download, load_backbone

if TYPE_CHECKING:
    from anomalib.models.image.fastflow.torch_model import FastflowModel
    from torch import nn


# AnomalibModule is named again because anomalib's list_models() and get_model() see direct subclasses only.
class CoMetFastflow(ConfidentMetaLearning, LocalBackbone, Fastflow, AnomalibModule):  # type: ignore[misc]
    """FastFlow trained by Confident Meta-Learning, for training sets that hold some unlabelled defects.

    See :class:`anomalib_comet.confident_meta_learning.ConfidentMetaLearning` and
    :class:`anomalib.models.image.fastflow.Fastflow`, whose arguments it takes.

    Args:
        backbone (str): Frozen network: ``"resnet18"``, ``"wide_resnet50_2"``, ``"cait_m48_448"`` or
            ``"deit_base_distilled_patch16_384"``. Defaults to ``"resnet18"``.
        pre_trained (bool): Whether to load the published weights of the backbone. Defaults to ``True``.
        backbone_weights (str | None): Path of a local state-dict file of the backbone without its classifier, loaded
            strictly, for machines without a network. Defaults to ``None``.
        lambda0 (float): Base strength of the adaptive regulariser, which replaces the weight decay of FastFlow's
            optimizer; it is half of that, which is the same pull. Defaults to ``5e-6``.
        **kwargs: Arguments of the strategy and of the detector.

    Raises:
        ValueError: If an argument is out of range, or ``backbone_weights`` does not fit the network.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """

    model: FastflowModel

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        pre_trained: bool = True,
        backbone_weights: str | None = None,
        lambda0: float = 5e-6,
        **kwargs: Any,
    ) -> None:
        with explained_download(backbone):
            super().__init__(
                backbone=backbone,
                pre_trained=downloads(pre_trained, backbone_weights),
                lambda0=lambda0,
                **kwargs,
            )
        if backbone_weights is not None and not keeps_checkpoint_weights():
            load_backbone(self.model.feature_extractor, backbone, backbone_weights)

    def training_inputs(self, batch: Any) -> dict[str, Any]:
        """Return the images of a batch and what the frozen network makes of them.

        Args:
            batch (ImageBatch): Training batch, pre-processed.

        Returns:
            dict[str, Any]: Images of shape ``(B, 3, H, W)``, and features: maps of shape ``(B, C, h, w)``.
        """
        module, method = self._frozen_part()
        self.model.feature_extractor.eval()  # as its forward pass does, which our passes skip
        with torch.no_grad():
            return {"images": batch.image, "features": getattr(module, method)(batch.image)}

    def sample_losses(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the negative log-likelihood of every image.

        Args:
            inputs (dict[str, Any]): What :meth:`training_inputs` returned.

        Returns:
            torch.Tensor: Losses of shape ``(B,)``.
        """
        module, method = self._frozen_part()
        with given_outputs(module, inputs["features"], method):
            hidden_variables, jacobians = self.model(inputs["images"])
        return sample_by_sample(self.loss, hidden_variables, jacobians)

    def sample_scores(self, batch: Any) -> torch.Tensor:
        """Return the largest ``mean z^2`` over the cells of each latent map, averaged over the maps.

        FastFlow's own image score, the largest ``-exp(-mean z^2 / 2)``, saturates: beyond a certain strangeness all
        images score the same. This is the quantity within, which starts at zero and has no upper bound.

        Args:
            batch (ImageBatch): Batch of training images, pre-processed.

        Returns:
            torch.Tensor: Scores of shape ``(B,)``.
        """
        with recorded_outputs(*self.model.fast_flow_blocks) as outputs:
            self.model(batch.image)
        energies = [latent.square().mean(dim=1).amax(dim=(-2, -1)) for latent, _ in outputs]
        return torch.stack(energies).mean(dim=0)

    def _frozen_part(self) -> tuple[nn.Module, str]:
        """Return a module and the name of its method that computes all that is frozen."""
        network = self.model.feature_extractor
        if isinstance(network, VisionTransformer):
            return self.model, "_get_vit_features"
        if isinstance(network, Cait):
            return self.model, "_get_cait_features"
        return network, "forward"
