# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""CoMetSupersimplenet: anomalib's SuperSimpleNet under the strategy of Confident Meta-Learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.models.components import AnomalibModule
from anomalib.models.image.supersimplenet import Supersimplenet

from anomalib_comet.confident_meta_learning import (
    ConfidentMetaLearning,
    given_outputs,
    recorded_outputs,
    sample_by_sample,
    standing_in,
)
from anomalib_comet.models.local_backbone import LocalBackbone, backbone_name, rename_backbone

if TYPE_CHECKING:
    from anomalib.models.image.supersimplenet.loss import SSNLoss
    from anomalib.models.image.supersimplenet.torch_model import SupersimplenetModel

COPIES = 2
"""SuperSimpleNet takes every image twice, each time with anomalies of its own."""


# AnomalibModule is named again because anomalib's list_models() and get_model() see direct subclasses only.
class CoMetSupersimplenet(ConfidentMetaLearning, LocalBackbone, Supersimplenet, AnomalibModule):  # type: ignore[misc]
    """SuperSimpleNet trained by Confident Meta-Learning, for training sets that hold some unlabelled defects.

    Under the strategy it sees no label and no mask of a training image. With all switches off it is SuperSimpleNet
    itself, which reads both: let ``ContaminatedDataModule`` hide them.

    See :class:`anomalib_comet.confident_meta_learning.ConfidentMetaLearning` and
    :class:`anomalib.models.image.supersimplenet.Supersimplenet`, whose arguments it takes.

    Args:
        backbone (str): Frozen network, a timm name; use weights of torchvision's first version, whose names end on
            ``.tv_in1k``. Defaults to ``"wide_resnet50_2.tv_in1k"``.
        supervised (bool): Must be ``False``: labels are what this training does without. Defaults to ``False``.
        pre_trained (bool): Whether to load the published weights of the backbone. Defaults to ``True``.
        backbone_weights (str | None): Path of a local state-dict file of the backbone without its classifier, loaded
            strictly, for machines without a network. Defaults to ``None``.
        **kwargs: Arguments of the strategy and of the detector.

    Raises:
        ValueError: If an argument is out of range, ``supervised`` is ``True``, or ``backbone_weights`` does not fit the
            network.
        FileNotFoundError: If ``backbone_weights`` does not exist.
        RuntimeError: If published weights cannot be downloaded.
    """

    scores_start_at_zero = False
    model: SupersimplenetModel
    loss: SSNLoss

    def __init__(
        self,
        *,
        backbone: str = "wide_resnet50_2.tv_in1k",
        supervised: bool = False,
        pre_trained: bool = True,
        backbone_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        if supervised:
            msg = "CoMetSupersimplenet trains without labels: use anomalib's Supersimplenet for supervised=True."
            raise ValueError(msg)
        with backbone_name(backbone, pre_trained, backbone_weights) as name:
            super().__init__(backbone=name, supervised=supervised, **kwargs)
        rename_backbone(self.model, backbone)
        # anomalib runs it without gradients, but leaves its parameters asking for some.
        self.model.feature_extractor.requires_grad_(requires_grad=False)

    def training_inputs(self, batch: Any) -> dict[str, torch.Tensor]:
        """Return the images of a batch, the frozen features, and one draw of synthetic anomalies.

        SuperSimpleNet's generator adds masked noise to what it is given; given zeros, it returns the noise alone.

        Args:
            batch (ImageBatch): Training batch, pre-processed. Its labels and masks are not looked at.

        Returns:
            dict[str, torch.Tensor]: ``images`` of shape ``(B, 3, H, W)``, ``features`` of shape ``(B, C, h, w)``, and
            of both copies of each image ``noise`` ``(B, 2, C, h, w)``, ``masks`` ``(B, 2, 1, h, w)``, ``labels``
            ``(B, 2)``; ``shares`` of shape ``(B, 2)``: how many normal and how many anomalous cells an image has,
            relative to the average image of the batch.
        """
        images = batch.image
        features = self.model.feature_extractor(images)
        nothing = features.new_zeros((len(images), 1, *features.shape[-2:]), dtype=torch.float32)
        _, noise, masks, labels = self.model.anomaly_generator(
            input_features=None,
            adapted_features=torch.zeros_like(features),
            masks=nothing,
            labels=nothing[:, 0, 0, 0],
        )
        noise, masks, labels = (_by_image(tensor) for tensor in (noise, masks, labels))
        anomalous = (masks > 0).flatten(1).sum(dim=1)
        cells = torch.stack([masks[0].numel() - anomalous, anomalous], dim=1).float()
        return {
            "images": images,
            "features": features,
            "noise": noise,
            "masks": masks,
            "labels": labels,
            "shares": cells / cells.mean(dim=0).clamp(min=1.0 / len(cells)),
        }

    def sample_losses(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return SuperSimpleNet's loss of every image, over both of its copies.

        Its truncated L1 loss is a mean over the normal cells of the batch plus a mean over the anomalous ones, of which
        images have different numbers: that of an image counts by its share of these cells in the batch.

        Args:
            inputs (dict[str, torch.Tensor]): What :meth:`training_inputs` returned.

        Returns:
            torch.Tensor: Losses of shape ``(B,)``; their mean over the batch is SuperSimpleNet's loss.
        """
        noise = inputs["noise"].unbind(dim=1)
        masks, labels = (torch.cat(inputs[name].unbind(dim=1)) for name in ("masks", "labels"))

        def same_anomalies(
            input_features: torch.Tensor | None,
            adapted_features: torch.Tensor,
            **_: torch.Tensor,
        ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
            adapted = torch.cat([adapted_features + added for added in noise])
            if input_features is None:
                return None, adapted, masks, labels
            return torch.cat([input_features + added for added in noise]), adapted, masks, labels

        with (
            given_outputs(self.model.feature_extractor, inputs["features"]),
            standing_in(self.model.anomaly_generator, same_anomalies),
        ):
            maps, scores, _, _ = self.model(inputs["images"], labels=torch.zeros_like(inputs["labels"][:, 0]))
        return sample_by_sample(
            self._image_loss,
            _by_image(maps),
            _by_image(scores),
            inputs["masks"],
            inputs["labels"],
            inputs["shares"],
        )

    def _image_loss(
        self,
        maps: torch.Tensor,
        scores: torch.Tensor,
        masks: torch.Tensor,
        labels: torch.Tensor,
        shares: torch.Tensor,
    ) -> torch.Tensor:
        """SuperSimpleNet's loss of one image, with means over its own cells turned into its part of the batch's."""
        maps, scores, masks, labels = maps[0], scores[0], masks[0], labels[0]
        loss = self.loss(pred_map=maps, pred_score=scores, target_mask=masks, target_label=labels)
        for share, cells in zip(shares[0], (masks == 0, masks > 0), strict=True):
            loss = loss + (share - 1) * self.loss.trunc_l1_loss(maps[cells], masks[cells])
        return loss

    def sample_scores(self, batch: Any) -> torch.Tensor:
        """Return the logits of the image scores, which do not saturate as SuperSimpleNet's probabilities do.

        Args:
            batch (ImageBatch): Batch of training images, pre-processed.

        Returns:
            torch.Tensor: Scores of shape ``(B,)``, of any sign.
        """
        with recorded_outputs(self.model.segdec) as outputs:
            self.model(batch.image)
        _, logits = outputs[0]
        return logits


def _by_image(copies: torch.Tensor) -> torch.Tensor:
    """Turn the first dimension, all first copies and then all second ones, into ``(B, 2)``."""
    return copies.unflatten(0, (COPIES, -1)).transpose(0, 1)
