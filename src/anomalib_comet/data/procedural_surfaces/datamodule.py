# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The procedural surfaces as an anomalib datamodule."""

import shutil
from pathlib import Path

from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform

from .dataset import ProceduralSurfacesDataset, defect_specs, height_and_width
from .files import image_path, mask_path
from .rendering import SurfaceSpec


class ProceduralSurfaces(AnomalibDataModule):
    """Inspection images of five materials with exact defect masks, rendered instead of downloaded.

    An image is determined by seed, category, split, defect type, index, severity and size, in every process and on
    every platform. Images are rendered at their first use and kept as PNG files under ``root``. Training, validation
    and test images are all different, and more images can be asked for without changing those that exist.

    Args:
        root (Path | str | None): Folder that keeps the rendered images. ``None`` for anomalib's cache folder.
            Defaults to ``"./datasets/ProceduralSurfaces"``.
        category (str): Material: ``woven``, ``brushed``, ``granular``, ``wood`` or ``print``.
            Defaults to ``"woven"``.
        n_train (int): Number of training images, all normal, at least 1. Defaults to ``200``.
        n_test_normal (int): Number of normal test images, at least 1. Defaults to ``60``.
        n_test_anomalous (int): Number of defective test images, all defect types together and spread evenly over
            them, at least 1. Contamination draws from them. Defaults to ``100``.
        n_val_normal (int): Number of normal validation images, at least 1; only used with
            ``val_split_mode="from_dir"``. Defaults to ``20``.
        n_val_anomalous (int): Number of defective validation images, at least 1; only used with
            ``val_split_mode="from_dir"``. Defaults to ``20``.
        defect_types (list[str] | None): Defect types to use, for instance ``["scratch", "stain"]``. ``None`` for all
            of the category. Defaults to ``None``.
        severity (float): Contrast of the defects, in (0, 1]: 1 is obvious, 0.1 barely visible. Shape and mask of a
            defect do not depend on it. Defaults to ``0.7``.
        image_size (int | tuple[int, int]): Side of a square image, or height and width, in pixels, at least 32. It
            changes the resolution, not the scene. Defaults to ``256``.
        seed (int): Seed of all images and of random splits. Defaults to ``0``.
        train_batch_size (int): Training batch size. Defaults to ``32``.
        eval_batch_size (int): Validation and test batch size. Defaults to ``32``.
        num_workers (int): Number of workers of each data loader. Defaults to ``8``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations for every split that has none of its own.
            Defaults to ``None``.
        test_split_mode (TestSplitMode | str): ``from_dir`` for the rendered test set, ``synthetic`` for anomalib's
            synthetic anomalies on its normal images, ``none`` for none but the defective images.
            Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio (float): Not used by the rendered test set. Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): ``from_dir`` for a rendered validation set that shares no image with the
            test set; ``same_as_test``, ``from_test``, ``from_train`` and ``synthetic`` as in every anomalib
            datamodule. Defaults to ``ValSplitMode.FROM_DIR``.
        val_split_ratio (float): Share of the images that ``from_test``, ``from_train`` and ``synthetic`` move to the
            validation set. Defaults to ``0.5``.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> datamodule = ProceduralSurfaces(category="brushed", severity=0.3)
        >>> datamodule.setup()
        >>> batch = next(iter(datamodule.train_dataloader()))
        >>> batch.image.shape
        torch.Size([32, 3, 256, 256])
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/ProceduralSurfaces",
        category: str = "woven",
        n_train: int = 200,
        n_test_normal: int = 60,
        n_test_anomalous: int = 100,
        n_val_normal: int = 20,
        n_val_anomalous: int = 20,
        defect_types: list[str] | None = None,
        severity: float = 0.7,
        image_size: int | tuple[int, int] = 256,
        seed: int = 0,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_DIR,
        val_split_ratio: float = 0.5,
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
        counts = {
            "n_train": n_train,
            "n_test_normal": n_test_normal,
            "n_test_anomalous": n_test_anomalous,
            "n_val_normal": n_val_normal,
            "n_val_anomalous": n_val_anomalous,
        }
        for name, count in counts.items():
            if count < 1:
                msg = f"{name} must be at least 1, not {count}."
                raise ValueError(msg)
        # Whatever is wrong with the rest is said here, before a run starts.
        template = SurfaceSpec(category, severity=severity, image_size=height_and_width(image_size), seed=seed)
        defect_specs(template, defect_types, n_test_anomalous)

        self.root = resolve_dataset_root(root, "ProceduralSurfaces")
        self.category = category
        self.n_train = n_train
        self.n_test_normal = n_test_normal
        self.n_test_anomalous = n_test_anomalous
        self.n_val_normal = n_val_normal
        self.n_val_anomalous = n_val_anomalous
        self.defect_types = defect_types
        self.severity = severity
        self.image_size = template.image_size
        self._surface_seed = seed

    def _dataset(self, split: Split, n_normal: int, n_anomalous: int) -> ProceduralSurfacesDataset:
        return ProceduralSurfacesDataset(
            root=self.root,
            category=self.category,
            split=split,
            n_normal=n_normal,
            n_anomalous=n_anomalous,
            defect_types=self.defect_types,
            severity=self.severity,
            image_size=self.image_size,
            seed=self._surface_seed,
        )

    def _datasets(self) -> dict[str, ProceduralSurfacesDataset]:
        datasets = {
            "train_data": self._dataset(Split.TRAIN, self.n_train, 0),
            "test_data": self._dataset(Split.TEST, self.n_test_normal, self.n_test_anomalous),
        }
        if self.val_split_mode == ValSplitMode.FROM_DIR:
            datasets["val_data"] = self._dataset(Split.VAL, self.n_val_normal, self.n_val_anomalous)
        return datasets

    def _setup(self, _stage: str | None = None) -> None:
        """Build the datasets; images that are not there yet are rendered."""
        for name, dataset in self._datasets().items():
            setattr(self, name, dataset)

    def prepare_data(self) -> None:
        """Render all images once, before several processes of one training ask for them."""
        self._datasets()

    def export(self, folder: Path | str) -> Path:
        """Copy the training and test images into a folder of MVTec AD's layout, for use with any other tool.

        Args:
            folder (Path | str): Where to write. ``<folder>/<category>`` must not exist yet.

        Returns:
            Path: ``<folder>/<category>``, which holds ``train/good``, ``test/<defect>`` and
            ``ground_truth/<defect>``. Validation images have no place in that layout and are left out.

        Raises:
            FileExistsError: If ``<folder>/<category>`` exists.
        """
        target = Path(folder) / self.category
        if target.exists():
            msg = f"{target} exists already; export into another folder, or remove it first."
            raise FileExistsError(msg)
        for dataset in self._datasets().values():
            if dataset.split == Split.VAL:
                continue
            for spec in dataset.specs:
                for path in (image_path(dataset.root, spec), mask_path(dataset.root, spec)):
                    if path is not None:
                        copy = target / path.relative_to(path.parents[2])
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, copy)
        return target
