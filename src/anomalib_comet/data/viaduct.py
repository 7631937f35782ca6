# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""VIADUCT: objects of several branches of industry, in folders like those of MVTec AD.

Description:
    One folder a category, with ``train/good``, ``test/good``, ``test/<defect>`` and ``ground_truth/<defect>``; normal
    images for validation may be in ``val/good``. A mask has the name of its image, with or without ``_mask``.

License:
    It stands where the data set is: `Fordatis, the research data repository of Fraunhofer
    <https://fordatis.fraunhofer.de/handle/fordatis/363>`_. A public catalogue of data sets lists it as CC BY 4.0. It is
    not downloaded from here.

Reference:
    "AD3: Introducing a score for Anomaly Detection Dataset Difficulty assessment using VIADUCT dataset", ECCV 2024.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.base import AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform  # noqa: TC002  # the command line reads the types of arguments

logger = logging.getLogger(__name__)

PAGE = "https://fordatis.fraunhofer.de/handle/fordatis/363"
NORMAL = "good"
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class VIADUCTDataset(AnomalibDataset):
    """One split of a category of VIADUCT.

    Args:
        root (Path | str | None): Folder with a folder for each category. ``None`` for anomalib's cache folder.
            Defaults to ``"./datasets/VIADUCT"``.
        category (str): Name of the category's folder. Defaults to ``"05_cable_end_sleeve"``.
        split (Split | str): ``train``, ``val`` or ``test``. Defaults to ``Split.TRAIN``.
        augmentations (Transform | None): Augmentations of the images. Defaults to ``None``.

    Raises:
        ValueError: If the split has no images, or an anomaly has no mask.
        FileNotFoundError: If the category is not there.

    Example:
        >>> VIADUCTDataset(category="05_cable_end_sleeve", split="test")[0].gt_label  # doctest: +SKIP
        tensor(1)
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/VIADUCT",
        category: str = "05_cable_end_sleeve",
        split: Split | str = Split.TRAIN,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self.root = resolve_dataset_root(root, "VIADUCT")
        self.category = category
        self.split = Split(split)
        self.samples = make_viaduct_dataset(self.root, category, self.split)


class VIADUCT(AnomalibDataModule):
    """VIADUCT: objects of several branches of industry, with masks.

    Args:
        root (Path | str | None): Folder with a folder for each category. ``None`` for anomalib's cache folder.
            Defaults to ``"./datasets/VIADUCT"``.
        category (str): Name of the category's folder. Defaults to ``"05_cable_end_sleeve"``.
        train_batch_size (int): Training batch size. Defaults to ``32``.
        eval_batch_size (int): Validation and test batch size. Defaults to ``32``.
        num_workers (int): Number of workers of each data loader. Defaults to ``8``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations for every split that has none of its own.
            Defaults to ``None``.
        test_split_mode (TestSplitMode | str): How the test set is obtained. Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio (float): Share of the training images that becomes normal test images where the category has
            none. Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): How the validation set is obtained; ``from_dir`` for the category's own
            ``val`` folder. Defaults to ``ValSplitMode.SAME_AS_TEST``.
        val_split_ratio (float): Share of the images that ``from_test``, ``from_train`` and ``synthetic`` move to the
            validation set. Defaults to ``0.5``.
        seed (int | None): Seed of random splits. Defaults to ``None``.

    Example:
        >>> datamodule = VIADUCT(root="./datasets/VIADUCT", category="05_cable_end_sleeve")  # doctest: +SKIP
        >>> datamodule.setup()  # doctest: +SKIP
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/VIADUCT",
        category: str = "05_cable_end_sleeve",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root = Path(resolve_dataset_root(root, "VIADUCT"))
        self.category = category

    def _setup(self, _stage: str | None = None) -> None:
        """Build training and test set, and the validation set where it has a folder of its own."""
        self.train_data = VIADUCTDataset(self.root, self.category, Split.TRAIN)
        self.test_data = VIADUCTDataset(self.root, self.category, Split.TEST)
        if self.val_split_mode == ValSplitMode.FROM_DIR:
            self.val_data = VIADUCTDataset(self.root, self.category, Split.VAL)

    def prepare_data(self) -> None:
        """Check that the category is there: the data set's terms have to be accepted by whoever downloads it.

        Raises:
            FileNotFoundError: If it is not; the message says where it is from.
        """
        _check_there(self.root, self.category)
        logger.info("Found the dataset.")


def make_viaduct_dataset(root: Path | str, category: str, split: Split | str) -> pd.DataFrame:
    """Read the images of one split of a category.

    Args:
        root (Path | str): Folder with a folder for each category.
        category (str): Name of the category's folder.
        split (Split | str): ``train``, ``val`` or ``test``.

    Returns:
        pd.DataFrame: One row for each image: ``path``, ``split``, ``label`` (the folder's name), ``image_path``,
        ``mask_path`` (empty for normal images, and where the category has no masks) and ``label_index``.

    Raises:
        ValueError: If the split has no images, or an anomaly has no mask though the category has masks.
        FileNotFoundError: If the category is not there.
    """
    root = Path(root).expanduser().resolve()
    _check_there(root, category)
    folder, part = root / category, Split(split).value
    found = (path for path in folder.glob(f"{part}/*/*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    images = sorted(found)
    if not images:
        own = " It has no validation images of its own: use another val_split_mode." if part == Split.VAL.value else ""
        msg = f"{folder / part} has no images in folders such as {NORMAL}.{own}"
        raise ValueError(msg)
    labels = [path.parent.name for path in images]
    masked = (folder / "ground_truth").is_dir()
    wanted = [masked and part != Split.TRAIN.value and label != NORMAL for label in labels]
    samples = pd.DataFrame(
        {
            "path": str(folder),
            "split": part,
            "label": labels,
            "image_path": [str(path) for path in images],
            "mask_path": [_mask_of(path, folder) if it else "" for path, it in zip(images, wanted, strict=True)],
            "label_index": [int(LabelName.NORMAL if label == NORMAL else LabelName.ABNORMAL) for label in labels],
        }
    )
    samples.attrs["task"] = "segmentation" if masked else "classification"
    return samples


def _mask_of(image: Path, folder: Path) -> str:
    masks = folder / "ground_truth" / image.parent.name
    for stem in (image.stem, f"{image.stem}_mask"):
        for suffix in dict.fromkeys((image.suffix, *EXTENSIONS)):
            if (masks / f"{stem}{suffix}").is_file():
                return str(masks / f"{stem}{suffix}")
    msg = f"{image} has no mask: {masks} needs {image.stem}{image.suffix} or {image.stem}_mask{image.suffix}."
    raise ValueError(msg)


def _check_there(root: Path, category: str) -> None:
    if category and (root / category / "train").is_dir() and (root / category / "test").is_dir():
        return
    categories = sorted(path.parent.name for path in root.glob("*/train"))
    if categories:
        msg = f"VIADUCT in {root} has no category {category!r} with the folders train and test; it has {categories}."
    else:
        msg = (
            f"VIADUCT is not in {root}, which needs a folder with train and test for each category: get it from {PAGE} "
            "(its licence stands there) and unpack it there, or set root to where it is."
        )
    raise FileNotFoundError(msg)
