# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Data sets with other images than before, rows of drawn anomalies, and warnings about what became of the sets."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset

from . import frames
from .resampling import resampled_copy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anomalib.data import AnomalibDataset

    from . import protocol
    from .datamodule import ContaminatedDataModule
    from .wrapped import Splits

logger = logging.getLogger(__name__)


def with_samples(dataset: AnomalibDataset, samples: pd.DataFrame) -> AnomalibDataset:
    """Return a data set like another one, with other images.

    Args:
        dataset: The data set.
        samples: Rows of the images.
    """
    # A shallow copy: Real-IAD's metadata is large, and the images of a synthetic set have one owner.
    result = copy.copy(dataset)
    result.samples = samples
    return result


def without_images(dataset: AnomalibDataset, withdrawn: set[str], task: TaskType | None) -> AnomalibDataset:
    """Return a copy of a test or validation set without some images.

    Args:
        dataset: The set.
        withdrawn: Paths of the images.
        task: The task that the masks of all anomalies allow; ``None`` without anomalies.
    """
    samples = frames.cleaned(dataset.samples)
    samples = samples[~samples["image_path"].isin(withdrawn)].reset_index(drop=True)
    samples.attrs.update(dataset.samples.attrs)
    if task == TaskType.CLASSIFICATION and not isinstance(dataset, SyntheticAnomalyDataset):
        samples.attrs["task"] = task.value
    return with_samples(dataset, samples)


def images_of_types(splits: Splits, held_out: Sequence[str], known: Mapping[str, str]) -> set[str]:
    """Return the paths of all test and validation images of some defect types.

    Types are told apart by all anomalies together: where they are named by folders, those of one set alone may all lie
    in the folder of a single type.

    Args:
        splits: The sets.
        held_out: Names of the types.
        known: Defect type of each anomaly that might be drawn, by path.
    """
    if not held_out:
        return set()
    datasets = [
        dataset
        for dataset in (splits.test, splits.val)
        if dataset is not None and not isinstance(dataset, SyntheticAnomalyDataset)
    ]
    anomalies = [frames.anomalous(frames.cleaned(dataset.samples)) for dataset in datasets]
    types = dict(known)
    # Where anomalies are drawn from a pool of their own, those of the evaluation are not among them.
    others = [frame for frame in (frame[~frame["image_path"].isin(types)] for frame in anomalies) if len(frame)]
    if others:
        rows = pd.concat(others, ignore_index=True)
        types |= dict(zip(rows["image_path"], frames.defect_types_of(rows, datasets), strict=True))
    return {path for frame in anomalies for path in frame["image_path"] if types[path] in held_out}


def rows_of(
    anomalies: Sequence[protocol.Anomaly],
    candidates: pd.DataFrame,
    has_depth: bool,
    resample_dir: Path | None,
    seed: int,
) -> pd.DataFrame:
    """Return rows of drawn anomalies, in the order of the draw, with copies written where they are asked for.

    Args:
        anomalies: The anomalies.
        candidates: Rows of all anomalies that might be drawn, by key.
        has_depth: Whether a depth image belongs to each image.
        resample_dir: Folder of the copies.
        seed: Seed of the copies.

    Raises:
        ValueError: If copies are asked for and there is no folder for them, or they have depth images.
    """
    rows = candidates.loc[[anomaly.key for anomaly in anomalies]].reset_index(drop=True)
    rows[frames.SOURCE_PATH] = rows["image_path"]
    if any(anomaly.copy for anomaly in anomalies):
        if resample_dir is None:
            msg = "The manifest holds re-sampled copies; set resample_dir to a folder to write them to."
            raise ValueError(msg)
        if has_depth:
            msg = "Depth images cannot be re-sampled; lower the ratio or leave resample_dir out."
            raise ValueError(msg)
        rows["image_path"] = [
            resampled_copy(source, resample_dir, seed=seed, key=anomaly.key, copy=anomaly.copy)
            if anomaly.copy
            else source
            for anomaly, source in zip(anomalies, rows["image_path"], strict=True)
        ]
    return rows


def task_of(draw: protocol.Draw, candidates: pd.DataFrame, task: TaskType | None) -> dict[str, str]:
    """Return the task of the training set where it is not the wrapped one's, as attributes of its samples.

    Masks count if every labelled anomaly has one.

    Args:
        draw: The draw.
        candidates: Rows of all anomalies that might be drawn, by key.
        task: The task that their masks allow; ``None`` without anomalies.
    """
    masked = [frames.has_mask(candidates.loc[anomaly.key, "mask_path"]) for anomaly in draw.labelled]
    if any(masked) and not all(masked):
        logger.warning(
            "%d of %d labelled anomalies have no mask: the masks of the others are left out of training too.",
            masked.count(False),
            len(masked),
        )
    if task == TaskType.CLASSIFICATION or (masked and task is not None):
        return {"task": (task if all(masked) else TaskType.CLASSIFICATION).value}
    return {}


def warn_about_sets(datamodule: ContaminatedDataModule, splits: Splits) -> None:
    """Say what will make the results of a run worthless, before it starts.

    Args:
        datamodule: The data module, with its sets.
        splits: The sets of the wrapped one.
    """
    labels = set(datamodule.test_data.samples["label_index"])
    if LabelName.UNKNOWN not in labels and LabelName.NORMAL not in labels:
        logger.warning(
            "The test set has no normal images (test_split_mode=%s), so AUROC means nothing; "
            "set test_split_mode: from_dir.",
            datamodule.test_split_mode.value,
        )
    if LabelName.UNKNOWN not in labels and LabelName.ABNORMAL not in labels:
        settings = datamodule.settings
        levers = [name for name in ("shots", "labelled") if getattr(settings, name)]
        levers += ["max_ratio" if settings.max_ratio > settings.ratio else "ratio"] if settings.max_ratio else []
        if levers:
            logger.warning("All anomalies were drawn and none is left to test on; lower %s.", " or ".join(levers))
        else:
            logger.warning("The test set has no anomalies, so AUROC means nothing.")
    samples = datamodule.train_data.samples
    evaluated = [dataset.samples["image_path"] for dataset in (splits.test, splits.val) if dataset is not None]
    shared = set(samples.loc[samples[frames.TRUE_DEFECT_TYPE] == "", "image_path"]) & set(pd.concat(evaluated))
    if shared:
        logger.warning(
            "%d images are both in the training set and in the test or validation set of %s, for instance %s.",
            len(shared),
            datamodule.datamodule.name,
            min(shared),
        )
    if type(datamodule.datamodule).train_dataloader is not AnomalibDataModule.train_dataloader:
        logger.warning(
            "%s has a training loader of its own, which does not know of the injected images; "
            "anomalib's usual one is used.",
            type(datamodule.datamodule).__name__,
        )
