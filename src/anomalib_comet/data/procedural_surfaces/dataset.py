# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""One split of the procedural surfaces as an anomalib data set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from anomalib import TaskType
from anomalib.data.datasets.base import AnomalibDataset
from anomalib.data.utils import LabelName, Split
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform

from .defects import DEFECT_TYPES
from .files import image_path, mask_path, render_missing
from .rendering import NORMAL, SurfaceSpec


def defect_specs(template: SurfaceSpec, defect_types: Sequence[str] | None, count: int) -> list[SurfaceSpec]:
    """Describe ``count`` defective images, spread over the defect types as evenly as can be.

    Args:
        template (SurfaceSpec): Category, split, severity, size and seed of the images.
        defect_types (Sequence[str] | None): The defect types to use; ``None`` for all of the category.
        count (int): Number of images. A larger count keeps the images of a smaller one and adds to them.

    Returns:
        list[SurfaceSpec]: The images, ordered by type and index.

    Raises:
        ValueError: If ``defect_types`` is empty or holds a type that the category does not have, or one twice.
    """
    types = DEFECT_TYPES[template.category] if defect_types is None else tuple(sorted(defect_types))
    if not types or len(set(types)) < len(types):
        msg = (
            f"defect_types must name at least one type and none twice, not {list(types)}; "
            f"leave it out for all: {', '.join(DEFECT_TYPES[template.category])}."
        )
        raise ValueError(msg)
    first_of_each = [replace(template, defect=defect) for defect in types]
    return [
        replace(first, index=index)
        for place, first in enumerate(first_of_each)
        for index in range((count + len(types) - 1 - place) // len(types))
    ]


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Read an image size: one number for a square, or height and width.

    Raises:
        ValueError: If it is neither.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):  # noqa: PLR2004
        msg = f"image_size must be a whole number of pixels or (height, width), not {image_size!r}."
        raise ValueError(msg)
    return sides[0], sides[1]


class ProceduralSurfacesDataset(AnomalibDataset):
    """Normal and defective images of one material, rendered when they are first needed.

    Args:
        root (Path | str | None): Folder that keeps the rendered images. ``None`` for anomalib's cache folder.
            Defaults to ``"./datasets/ProceduralSurfaces"``.
        category (str): Material: ``woven``, ``brushed``, ``granular``, ``wood`` or ``print``.
            Defaults to ``"woven"``.
        split (Split | str): ``train``, ``val`` or ``test``; no image is in two splits.
            Defaults to ``Split.TRAIN``.
        n_normal (int): Number of normal images, at least 0. Defaults to ``200``.
        n_anomalous (int): Number of defective images, all types together, at least 0. Defaults to ``0``.
        defect_types (list[str] | None): Defect types to use. ``None`` for all of the category.
            Defaults to ``None``.
        severity (float): Contrast of the defects, in (0, 1]. Defaults to ``0.7``.
        image_size (int | tuple[int, int]): Side of a square image, or height and width, in pixels, at least 32.
            Defaults to ``256``.
        seed (int): Seed of all images. Defaults to ``0``.
        augmentations (Transform | None): Augmentations of the images. Defaults to ``None``.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> dataset = ProceduralSurfacesDataset(category="wood", split="test", n_normal=10, n_anomalous=10)
        >>> dataset[0].image.shape
        torch.Size([3, 256, 256])
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/ProceduralSurfaces",
        category: str = "woven",
        split: Split | str = Split.TRAIN,
        n_normal: int = 200,
        n_anomalous: int = 0,
        defect_types: list[str] | None = None,
        severity: float = 0.7,
        image_size: int | tuple[int, int] = 256,
        seed: int = 0,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        if min(n_normal, n_anomalous) < 0 or n_normal + n_anomalous == 0:
            msg = (
                f"A data set needs at least one image, and no count may be negative; "
                f"got {n_normal} normal and {n_anomalous} defective ones."
            )
            raise ValueError(msg)
        template = SurfaceSpec(
            category=category,
            split=Split(split).value,
            severity=severity,
            image_size=height_and_width(image_size),
            seed=seed,
        )
        # Items carry the resolved path: with a relative one, results kept by path would not match the sample frame.
        self.root = resolve_dataset_root(root, "ProceduralSurfaces").expanduser().resolve()
        self.category = category
        self.split = Split(split)
        self.specs = [replace(template, index=index) for index in range(n_normal)]
        self.specs += defect_specs(template, defect_types, n_anomalous)
        render_missing(self.root, self.specs)
        self.samples = make_samples(self.root, self.specs)


def make_samples(root: Path, specs: Sequence[SurfaceSpec]) -> pd.DataFrame:
    """Build anomalib's sample frame, with the columns of MVTec AD's.

    Args:
        root (Path): Root folder of the data set.
        specs (Sequence[SurfaceSpec]): The images.

    Returns:
        pd.DataFrame: One row for each image: ``image_path``, ``label`` (defect type or ``good``), ``label_index``,
        ``mask_path`` (empty for normal images) and ``split``.
    """
    samples = pd.DataFrame(
        {
            "image_path": [str(image_path(root, spec)) for spec in specs],
            "label": [spec.defect for spec in specs],
            "label_index": [int(LabelName.NORMAL if spec.defect == NORMAL else LabelName.ABNORMAL) for spec in specs],
            "mask_path": [str(mask_path(root, spec) or "") for spec in specs],
            "split": [spec.split for spec in specs],
        }
    )
    samples.attrs["task"] = TaskType.SEGMENTATION.value
    return samples
