# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Sample frames: what the contamination protocol reads from, and writes to, anomalib's tables of images.

Every anomalib data set keeps its images in a data frame with one row for each image. The frames of the shipped data
sets agree on ``image_path``, ``mask_path``, ``label_index`` and ``split`` only: Real-IAD has no ``label`` column, masks
are ``None``, ``NaN``, an empty string or a list, and some normal images name a mask file that does not exist.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from anomalib.data.utils import LabelName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anomalib.data import AnomalibDataset

INJECTED = "injected"
"""Column of the training frame: the image is an anomaly that is labelled normal."""
NATURAL = "natural"
"""Column of the training frame: the injected image is one that the data set itself has in its training split."""
LABELLED = "labelled"
"""Column of the training frame: the image is an anomaly that is labelled so."""
TRUE_DEFECT_TYPE = "true_defect_type"
"""Column of the training frame: defect type, an empty string for normal images."""
TRUE_MASK_PATH = "true_mask_path"
"""Column of the training frame: mask of an injected anomaly, which ``mask_path`` must not show."""
SOURCE_PATH = "source_path"
"""Column of the training frame: image of the data set; differs from ``image_path`` for re-sampled copies only."""

_DEFECT_TYPE_COLUMNS = ("defect_type", "defect_types", "anomaly_class")


def has_mask(mask_path: object) -> bool:
    """Tell whether an entry of ``mask_path`` names a mask (a file, or a list of files)."""
    return isinstance(mask_path, str | Path | list | tuple) and str(mask_path) not in {"", "nan", "None", "[]"}


def cleaned(frame: pd.DataFrame) -> pd.DataFrame:
    """Copy a sample frame with plain integer labels, and an empty string wherever there is no mask.

    Args:
        frame (pd.DataFrame): Sample frame of any anomalib data set.

    Returns:
        pd.DataFrame: The copy, with a fresh index and ``attrs`` kept.

    Raises:
        ValueError: If the frame has no labels.
    """
    if "label_index" not in frame.columns:
        msg = (
            "The wrapped data module's samples have no column 'label_index', so anomalies cannot be told from normal "
            "images; wrap a data module whose test images are labelled."
        )
        raise ValueError(msg)
    result = frame.reset_index(drop=True)
    masks = result["mask_path"] if "mask_path" in result.columns else [""] * len(result)
    result["mask_path"] = pd.Series([mask if has_mask(mask) else "" for mask in masks], dtype=object)
    result["label_index"] = result["label_index"].astype("int64")
    result["image_path"] = result["image_path"].astype(str)
    result.attrs.update(frame.attrs)
    return result


def anomalous(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a cleaned frame that are labelled anomalous."""
    return frame[frame["label_index"] == LabelName.ABNORMAL]


def normal(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a cleaned frame that are labelled normal."""
    return frame[frame["label_index"] == LabelName.NORMAL]


def common_folder(paths: Iterable[str]) -> Path:
    """Deepest folder that holds all images.

    Args:
        paths (Iterable[str]): Paths of the images, at least one.

    Returns:
        Path: Absolute path of the folder.

    Raises:
        ValueError: If the images lie on different drives.
    """
    parents = {os.path.dirname(os.path.abspath(path)) for path in paths}  # noqa: PTH100, PTH120
    try:
        return Path(os.path.commonpath(parents))
    except ValueError as error:
        msg = "The images of the wrapped data module lie on different drives; move them to one drive."
        raise ValueError(msg) from error


def key_of(path: str, folder: Path) -> str:
    """Name an image by its path relative to the data set's folder, with forward slashes."""
    return Path(os.path.abspath(path)).relative_to(folder).as_posix()  # noqa: PTH100


def defect_types_of(frame: pd.DataFrame, datasets: Sequence[AnomalibDataset]) -> list[str]:
    """Name the defect type of each anomaly.

    The name comes from the first of these that is there: a column of its own (Kaputt, a user's table), Real-IAD's
    metadata, the ``label`` column (MVTec-like data sets: the folder's name), and, where all anomalies are just
    labelled "abnormal" (Folder), the first folder below the one that holds them all.

    Args:
        frame (pd.DataFrame): Cleaned rows of anomalies, at least one.
        datasets (Sequence[AnomalibDataset]): Data sets that the rows come from.

    Returns:
        list[str]: One name for each row, never empty.
    """
    metadata = {key: value for dataset in datasets for key, value in _anomaly_classes(dataset).items()}
    paths = [Path(path) for path in frame["image_path"]]
    folder = common_folder(frame["image_path"])
    labels = frame["label"].astype(str) if "label" in frame.columns else ["abnormal"] * len(frame)
    # "abnormal" (also as the name of an enumeration's member) says nothing; the type is then in the path, if anywhere.
    names = [
        _first_folder(path, folder) or "abnormal" if label.rpartition(".")[2].lower() == "abnormal" else label
        for path, label in zip(paths, labels, strict=True)
    ]
    if metadata:
        resolved = [metadata.get(str(path), metadata.get(str(path.resolve()))) for path in paths]
        names = [name if known is None else known for known, name in zip(resolved, names, strict=True)]
    for column in _DEFECT_TYPE_COLUMNS:
        if column in frame.columns:
            values = frame[column].fillna("").astype(str)
            names = [value or name for value, name in zip(values, names, strict=True)]
            break
    return names


def _first_folder(path: Path, folder: Path) -> str:
    """Name of the first folder on the way from ``folder`` to a file, empty if the file lies in it directly."""
    parts = key_of(str(path), folder).split("/")
    return parts[0] if len(parts) > 1 else ""


def _anomaly_classes(dataset: AnomalibDataset) -> dict[str, str]:
    """Defect type by image path from Real-IAD's metadata, which its sample frame leaves out."""
    metadata = getattr(dataset, "metadata", None)
    folder = getattr(dataset, "root_category", None)
    if not isinstance(metadata, dict) or folder is None:
        return {}
    entries = [entry for part in metadata.values() if isinstance(part, list) for entry in part]
    return {
        str((Path(folder) / entry["image_path"]).resolve()): str(entry["anomaly_class"])
        for entry in entries
        if isinstance(entry, dict) and "image_path" in entry and "anomaly_class" in entry
    }


def training_rows(
    template: pd.DataFrame,
    anomalies: pd.DataFrame,
    *,
    hide: bool,
) -> pd.DataFrame:
    """Turn rows of test anomalies into rows of a training frame.

    Args:
        template (pd.DataFrame): Cleaned frame of the normal training images.
        anomalies (pd.DataFrame): Cleaned rows of the anomalies, with :data:`TRUE_DEFECT_TYPE` and
            :data:`SOURCE_PATH`.
        hide (bool): Whether the rows look like normal ones: label, mask and every column that has one value in the
            whole template are those of a normal image.

    Returns:
        pd.DataFrame: Rows with the columns of ``template`` and those that keep the truth.
    """
    rows = pd.DataFrame(index=range(len(anomalies)))
    for column in template.columns:
        usual = _usual_value(template[column]) if hide and not column.endswith("_path") else None
        if usual is not None:
            rows[column] = [usual] * len(anomalies)
        elif column in anomalies.columns:
            rows[column] = anomalies[column].to_list()
        else:
            rows[column] = [""] * len(anomalies)
    # As it stands: anomalib's Split.TRAIN equals "train" but is printed in another way.
    rows["split"] = [template["split"].iloc[0] if len(template) else "train"] * len(anomalies)
    rows["label_index"] = int(LabelName.NORMAL if hide else LabelName.ABNORMAL)
    rows["mask_path"] = [""] * len(anomalies) if hide else anomalies["mask_path"].to_list()
    rows[INJECTED] = hide
    rows[NATURAL] = False
    rows[LABELLED] = not hide
    rows[TRUE_DEFECT_TYPE] = anomalies[TRUE_DEFECT_TYPE].to_list()
    rows[TRUE_MASK_PATH] = anomalies["mask_path"].to_list()
    rows[SOURCE_PATH] = anomalies[SOURCE_PATH].to_list()
    return rows


def _usual_value(column: pd.Series) -> Any:
    """Value that says nothing about an image: the only one of a column, or the commonest where types are told."""
    values = column.map(str)
    if column.name in _DEFECT_TYPE_COLUMNS or column.name == "label" or len(set(values)) == 1:
        return column[values == values.mode()[0]].iloc[0]
    return None


def normal_training_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that keep the truth to the rows of normal training images.

    Mask paths are emptied: BTech and Kolektor name a mask even for normal images, next to which the empty one of an
    injected image would tell what it is.

    Args:
        frame (pd.DataFrame): Cleaned rows of normal images, and of anomalies that the data set itself hides among them.

    Returns:
        pd.DataFrame: The same rows with the same columns as :func:`training_rows`.
    """
    rows = frame.reset_index(drop=True)
    rows["mask_path"] = [""] * len(rows)
    # What a data set hides of its own training split stays known: such rows are anomalies labelled normal too.
    rows[NATURAL] = rows[NATURAL].astype(bool) if NATURAL in rows else False
    rows[INJECTED] = rows[NATURAL]
    rows[LABELLED] = False
    for column in (TRUE_DEFECT_TYPE, TRUE_MASK_PATH):
        rows[column] = rows[column].fillna("") if column in rows else ""
    rows[SOURCE_PATH] = rows["image_path"]
    return rows


def with_natural_anomalies_hidden(frame: pd.DataFrame, normal_label: str) -> pd.DataFrame:
    """Make the anomalies of a training split look normal, and keep what they are in the columns of the truth.

    Args:
        frame (pd.DataFrame): Samples with true labels, defect types as ``label`` and masks.
        normal_label (str): ``label`` of a normal image.

    Returns:
        pd.DataFrame: The same images, all labelled normal and without masks; ``attrs`` kept.
    """
    rows = cleaned(frame)
    anomalies = rows["label_index"] == LabelName.ABNORMAL
    rows[NATURAL] = anomalies
    rows[TRUE_DEFECT_TYPE] = rows["label"].where(anomalies, "")
    rows[TRUE_MASK_PATH] = rows["mask_path"].where(anomalies, "")
    rows["label"], rows["label_index"], rows["mask_path"] = normal_label, int(LabelName.NORMAL), ""
    return rows


def truth_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the truth about training images under the names that an evaluation reads.

    Args:
        rows (pd.DataFrame): Training rows of :func:`normal_training_rows` and :func:`training_rows`.

    Returns:
        pd.DataFrame: ``image_path``, ``injected``, ``natural``, ``labelled``, ``defect_type``, ``mask_path``,
        ``source_path`` and ``split``.
    """
    columns = {
        "image_path": "image_path",
        INJECTED: "injected",
        NATURAL: "natural",
        LABELLED: "labelled",
        TRUE_DEFECT_TYPE: "defect_type",
        TRUE_MASK_PATH: "mask_path",
        SOURCE_PATH: "source_path",
        "split": "split",
    }
    return rows[list(columns)].set_axis(list(columns.values()), axis=1)


def joined(frames: Sequence[pd.DataFrame], attrs: Mapping[Any, Any]) -> pd.DataFrame:
    """Put rows with the same columns together and say what task they are for.

    Args:
        frames (Sequence[pd.DataFrame]): Frames with the same columns; empty ones are left out.
        attrs (Mapping[Any, Any]): Attributes of the result, with anomalib's ``task``.

    Returns:
        pd.DataFrame: One frame with a fresh index.
    """
    filled = [frame for frame in frames if len(frame)] or list(frames[:1])
    result = pd.concat(filled, ignore_index=True)
    result.attrs.clear()
    result.attrs.update(attrs)
    return result
