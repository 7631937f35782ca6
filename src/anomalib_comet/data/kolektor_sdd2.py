# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""KolektorSDD2, whose training split is contaminated by nature.

Description:
    Surfaces of production items, some with a defect, in a training and a test split of fixed images. Both splits hold
    defective images: 246 of 2331 training images, 110 of 1004 test images.

License:
    Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0); other uses are the authors' to allow.
    It is on `the authors' page <https://www.vicos.si/resources/kolektorsdd2/>`_, and not downloaded from here.

Reference:
    Bozic, Tabernik, Skocaj: "Mixed supervision for surface-defect detection: From weakly to fully supervised
    learning", Computers in Industry 129, 2021.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pandas as pd
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.base import AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.v2 import Transform  # noqa: TC002  # the command line reads the types of arguments

from .contamination import frames

logger = logging.getLogger(__name__)

PAGE = "https://www.vicos.si/resources/kolektorsdd2/"
NORMAL, DEFECT = "good", "defect"
"""Labels of images: the data set tells no types of defects apart."""

# The published archive holds `10301 (copy).png` and `10301_GT (copy).png` beside their originals, and the latter would
# pass for an image of its own: only numbered files are read.
_IMAGE = re.compile(r"\d+\.png")


class KolektorSDD2Dataset(AnomalibDataset):
    """One split of KolektorSDD2.

    Args:
        root (Path | str | None): Folder with ``train`` and ``test``. ``None`` for anomalib's cache folder.
            Defaults to ``"./datasets/KolektorSDD2"``.
        split (Split | str): ``train`` or ``test``. Defaults to ``Split.TRAIN``.
        anomalies (str): What becomes of the split's anomalies: ``labelled`` as they are, ``hidden`` with label and mask
            of a normal image, ``removed``, or ``only`` them. Defaults to ``"labelled"``.
        augmentations (Transform | None): Augmentations of the images. Defaults to ``None``.

    Raises:
        ValueError: If an argument is wrong, or an image has no mask that can be read.
        FileNotFoundError: If the data set is not there.

    Example:
        >>> dataset = KolektorSDD2Dataset(split="train", anomalies="hidden")  # doctest: +SKIP
        >>> dataset[0].gt_label  # doctest: +SKIP
        tensor(0)
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/KolektorSDD2",
        split: Split | str = Split.TRAIN,
        anomalies: str = "labelled",
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        if anomalies not in {"labelled", "hidden", "removed", "only"}:
            msg = f"anomalies must be 'labelled', 'hidden', 'removed' or 'only', got {anomalies!r}."
            raise ValueError(msg)
        self.root = resolve_dataset_root(root, "KolektorSDD2")
        self.split = Split(split)
        samples = make_kolektor_sdd2_dataset(self.root, self.split)
        anomalous = samples["label_index"] == LabelName.ABNORMAL
        if anomalies == "hidden":
            samples = frames.with_natural_anomalies_hidden(samples, normal_label=NORMAL)
        elif anomalies != "labelled":
            samples = _part(samples, anomalous if anomalies == "only" else ~anomalous)
        self.samples = samples


class KolektorSDD2(AnomalibDataModule):
    """KolektorSDD2: surfaces, some of them defective, with a training split that is contaminated by nature.

    By default the training split is served as it comes, its 246 defective images labelled as normal: that is what
    training on images nobody has sorted means. What they are is kept in :attr:`contamination`, for the evaluation of an
    audit only. With ``clean`` they are left out by their labels; a :class:`.ContaminatedDataModule` around it then
    takes its anomalies from them and leaves the test set whole.

    Args:
        root (Path | str | None): Folder with ``train`` and ``test``, each with ``NNNNN.png`` and ``NNNNN_GT.png``.
            ``None`` for anomalib's cache folder. Defaults to ``"./datasets/KolektorSDD2"``.
        clean (bool): Whether the defective training images are left out. Defaults to ``False``.
        train_batch_size (int): Training batch size. Defaults to ``32``.
        eval_batch_size (int): Validation and test batch size. Defaults to ``32``.
        num_workers (int): Number of workers of each data loader. Defaults to ``8``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations for every split that has none of its own.
            Defaults to ``None``.
        test_split_mode (TestSplitMode | str): How the test set is obtained. Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio (float): Not used by the data set's own test split. Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): How the validation set is obtained; the data set has none of its own.
            Defaults to ``ValSplitMode.SAME_AS_TEST``.
        val_split_ratio (float): Share of the images that ``from_test``, ``from_train`` and ``synthetic`` move to the
            validation set. Defaults to ``0.5``.
        seed (int | None): Seed of random splits. Defaults to ``None``.

    Example:
        >>> datamodule = KolektorSDD2(root="./datasets/KolektorSDD2")  # doctest: +SKIP
        >>> datamodule.setup()  # doctest: +SKIP
        >>> datamodule.contamination["injected"].sum()  # doctest: +SKIP
        246
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/KolektorSDD2",
        clean: bool = False,
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
        self.root = Path(resolve_dataset_root(root, "KolektorSDD2"))
        self.clean = clean
        self.anomaly_pool: KolektorSDD2Dataset | None = None
        """Anomalies of the training split that were left out of it, which a contamination draws from."""

    @property
    def name(self) -> str:  # type: ignore[override]  # a property in anomalib too
        """Name of the data module, another one for the cleaned training split, so that runs stay apart."""
        return "KolektorSDD2_clean" if self.clean else "KolektorSDD2"

    @property
    def contamination(self) -> pd.DataFrame:
        """True state of every training image, those that ``from_train`` holds out for validation included.

        It is for the evaluation of an audit only: whatever trains or sets thresholds must not look at it.

        Returns:
            pd.DataFrame: One row for each image with the columns of ``ContaminatedDataModule.contamination``.

        Raises:
            RuntimeError: If :meth:`setup` was not called yet.
        """
        if not hasattr(self, "train_data"):
            msg = "The images are not read yet; call setup() first."
            raise RuntimeError(msg)
        held_out = [self.val_data.samples.assign(split="val")] if self.val_split_mode == ValSplitMode.FROM_TRAIN else []
        samples = pd.concat([self.train_data.samples, *held_out], ignore_index=True)
        return frames.truth_of(frames.normal_training_rows(samples))

    def _setup(self, _stage: str | None = None) -> None:
        """Build training and test set."""
        treatment = "removed" if self.clean else "hidden"
        self.train_data = KolektorSDD2Dataset(self.root, Split.TRAIN, treatment)
        self.test_data = KolektorSDD2Dataset(self.root, Split.TEST)
        pool = KolektorSDD2Dataset(self.root, Split.TRAIN, "only") if self.clean else None
        self.anomaly_pool = pool if pool is not None and len(pool) else None

    def prepare_data(self) -> None:
        """Check that the data set is there: its licence has to be accepted by whoever downloads it.

        Raises:
            FileNotFoundError: If it is not; the message says where it is from.
        """
        _check_there(self.root)
        logger.info("Found the dataset.")


def make_kolektor_sdd2_dataset(root: Path | str, split: Split | str) -> pd.DataFrame:
    """Read which images a split has, and from their masks which of them are defective.

    Args:
        root (Path | str): Folder with ``train`` and ``test``.
        split (Split | str): ``train`` or ``test``.

    Returns:
        pd.DataFrame: One row for each image: ``path``, ``split``, ``label`` (``good`` or ``defect``), ``image_path``,
        ``mask_path`` (empty for normal images) and ``label_index``.

    Raises:
        ValueError: If an image has no mask that can be read, or the split has no images.
        FileNotFoundError: If the data set is not there.
    """
    root = Path(root).expanduser().resolve()
    _check_there(root)
    folder = root / Split(split).value
    images = sorted(path for path in folder.iterdir() if _IMAGE.fullmatch(path.name))
    if not images:
        msg = f"{folder} has no images named like 10000.png; unpack KolektorSDD2 ({PAGE}) so that they lie there."
        raise ValueError(msg)
    masks = [path.with_name(f"{path.stem}_GT.png") for path in images]
    labels = [LabelName.ABNORMAL if _shows_a_defect(mask) else LabelName.NORMAL for mask in masks]
    defective = [label == LabelName.ABNORMAL for label in labels]
    samples = pd.DataFrame(
        {
            "path": str(root),
            "split": Split(split).value,
            "label": [DEFECT if bad else NORMAL for bad in defective],
            "image_path": [str(path) for path in images],
            "mask_path": [str(mask) if bad else "" for mask, bad in zip(masks, defective, strict=True)],
            "label_index": [int(label) for label in labels],
        }
    )
    samples.attrs["task"] = "segmentation"
    return samples


def _part(samples: pd.DataFrame, wanted: pd.Series) -> pd.DataFrame:
    part = samples[wanted].reset_index(drop=True)
    part.attrs.update(samples.attrs)
    return part


def _shows_a_defect(mask: Path) -> bool:
    try:
        with Image.open(mask) as picture:
            return picture.convert("L").getbbox() is not None
    except FileNotFoundError as error:
        msg = f"{mask} is missing: every image of KolektorSDD2 has a mask of that name beside it; unpack it again."
        raise ValueError(msg) from error
    except (UnidentifiedImageError, OSError) as error:
        msg = f"{mask} is no mask that can be read; unpack KolektorSDD2 again."
        raise ValueError(msg) from error


def _check_there(root: Path) -> None:
    if not ((root / "train").is_dir() and (root / "test").is_dir()):
        msg = (
            f"KolektorSDD2 is not in {root}, which needs the folders train and test: get it from {PAGE} "
            "(CC BY-NC-SA 4.0, no commercial use) and unpack it there, or set root to where it is."
        )
        raise FileNotFoundError(msg)
