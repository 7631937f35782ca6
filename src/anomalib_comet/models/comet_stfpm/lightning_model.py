# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetStfpm: anomalib's student-teacher feature pyramid matching under the strategy of Confident Meta-Learning."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from anomalib.models.components import AnomalibModule
from anomalib.models.image.stfpm import Stfpm

from anomalib_comet.confident_meta_learning import ConfidentMetaLearning, given_outputs, sample_by_sample
from anomalib_comet.models.local_backbone import LocalBackbone, backbone_name, rename_backbone

if TYPE_CHECKING:
    import torch
    from anomalib.models.image.stfpm.torch_model import STFPMModel


# AnomalibModule is named again because anomalib's list_models() and get_model() see direct subclasses only.
class CoMetStfpm(ConfidentMetaLearning, LocalBackbone, Stfpm, AnomalibModule):  # type: ignore[misc]
    """STFPM trained by Confident Meta-Learning, for training sets that hold some unlabelled defects.

    See :class:`anomalib_comet.confident_meta_learning.ConfidentMetaLearning` and
    :class:`anomalib.models.image.stfpm.Stfpm`, whose arguments it takes.

    Args:
        backbone (str): Network of teacher and student, a timm name. Defaults to ``"resnet18"``.
        pre_trained (bool): Whether to load the published weights of the teacher. Defaults to ``True``.
        backbone_weights (str | None): Path of a local state-dict file of the teacher without its classifier, loaded
            strictly, for machines without a network. Defaults to ``None``.
        inner_lr (float): Learning rate alpha of the inner steps: that of STFPM's optimizer, because the loss has small
            gradients. Defaults to ``0.4``.
        lambda0 (float): Base strength of the adaptive regulariser, which replaces the weight decay of STFPM's
            optimizer; it is half of that, which is the same pull. Defaults to ``5e-4``.
        **kwargs: Arguments of the strategy and of the detector.

    Raises:
        ValueError: If an argument is out of range, or ``backbone_weights`` does not fit the network.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """

    model: STFPMModel

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        pre_trained: bool = True,
        backbone_weights: str | None = None,
        inner_lr: float = 0.4,
        lambda0: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        with backbone_name(backbone, pre_trained, backbone_weights) as name:
            super().__init__(backbone=name, inner_lr=inner_lr, lambda0=lambda0, **kwargs)
        rename_backbone(self.model, backbone)

    def training_inputs(self, batch: Any) -> dict[str, Any]:
        """Return the images of a batch and what the teacher makes of them.

        Args:
            batch (ImageBatch): Training batch, pre-processed.

        Returns:
            dict[str, Any]: Images of shape ``(B, 3, H, W)``, the teacher's features by layer, each of shape
            ``(B, C, h, w)``, and the number of images in the batch, of shape ``(B,)``.
        """
        images = batch.image
        inputs = {"images": images, "batch_size": images.new_full((len(images),), len(images))}
        if self.model.tiler is None:  # tiles are no rows of a batch: the teacher then runs in every pass
            inputs["teacher"] = self.model.teacher_model(images)
        return inputs

    def sample_losses(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the distance between student and teacher of every image, times the number of images in the batch.

        STFPM's loss is a sum over the batch, and the mean of ours has to be that. The factor is the batch's, in its
        parts too: every image has the same loss whichever part of the batch it is judged in.

        Args:
            inputs (dict[str, Any]): What :meth:`training_inputs` returned.

        Returns:
            torch.Tensor: Losses of shape ``(B,)``.
        """
        teacher = inputs.get("teacher")
        with given_outputs(self.model.teacher_model, teacher) if teacher is not None else contextlib.nullcontext():
            outputs = self.model(inputs["images"])
        return inputs["batch_size"] * sample_by_sample(self.loss, *outputs)

    def sample_scores(self, batch: Any) -> torch.Tensor:
        """Return STFPM's own image scores: products of distances, which start at zero and do not saturate.

        Args:
            batch (ImageBatch): Batch of training images, pre-processed.

        Returns:
            torch.Tensor: Scores of shape ``(B,)``.
        """
        return self.model(batch.image).pred_score.flatten()
