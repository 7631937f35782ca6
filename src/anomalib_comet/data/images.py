# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Image files that would stop a training, or spoil it silently, found before it starts.

Headers and the last bytes of all files are read, which costs little; whole images are decoded only where these leave a
doubt. What only decoding shows (damage in the middle of a file) is found by the first pass over the images: then
``problems_in(datasets, decode=True)`` says which ones they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from anomalib.data import AnomalibDataset
from anomalib.data.datasets.base.depth import AnomalibDepthDataset
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from PIL.Image import Image as OpenedImage

logger = logging.getLogger(__name__)

READERS = 8
"""Files that are looked at at once: on a network drive the time goes into waiting."""

NAMED = 5
"""Files that a message names; of the others it gives the number."""

_CLIPPED = ("I", "F")
"""Pillow's modes of more than 8 bits a channel (``I;16``, ``I``, ``F``), whose values a conversion to RGB clips."""

_BRIGHTEST = 255


class UnreadableImagesError(ValueError):
    """Images that cannot be trained or tested on.

    Args:
        message (str): The sentence shown to the user.
        problems (dict[str, str] | None): What is wrong, by path of the image. Defaults to ``None``.
    """

    def __init__(self, message: str, problems: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or {}


def problem_of(path: str, *, decode: bool = False, is_mask: bool = False) -> str:  # noqa: PLR0911
    """Return what is wrong with an image file, by its header and last bytes; empty if nothing is.

    Args:
        path: The file.
        decode: Whether the whole image is decoded. Defaults to ``False``.
        is_mask: Whether it is a mask, of which only zero and not zero count. Defaults to ``False``.
    """
    try:
        size = os.stat(path).st_size  # noqa: PTH116
        if not size:
            return "the file is empty"
        with Image.open(path) as image:
            if image.mode.startswith(_CLIPPED) and not is_mask:
                return _clipping(image)
            if decode or not _is_long_enough(path, size, image):
                image.load()
    except UnidentifiedImageError:
        return _what_else(path)
    except FileNotFoundError:
        return "it is a link to a file that is not there" if os.path.islink(path) else "there is no such file"  # noqa: PTH114
    except PermissionError:
        return "it may not be read (permission denied)"
    except Image.DecompressionBombError:
        return "it has more pixels than Pillow opens by default (a decompression bomb?)"
    except Exception as error:  # noqa: BLE001  # whatever a broken file makes its decoder raise
        if isinstance(error, OSError) and error.strerror:
            return f"it cannot be opened ({error.strerror})"
        return f"it is damaged ({' '.join(str(error).split()) or type(error).__name__})"
    return ""


def _clipping(image: OpenedImage) -> str:
    """Say that anomalib's reader would lose what is in an image; empty if all values are within 8 bits."""
    low, high = image.getextrema()
    if low >= 0 and high <= _BRIGHTEST and not image.mode.startswith("F"):  # type: ignore[operator]
        return ""
    kind = "floating-point" if image.mode == "F" else "16-bit" if image.mode.startswith("I;16") else "32-bit"
    return (
        f"it is a {kind} greyscale image with values from {low:g} to {high:g}, of which anomalib's reader keeps only "
        "0 to 255: convert it to 8 bits, with one scale for all images"
    )


def _is_long_enough(path: str, size: int, image: OpenedImage) -> bool:
    """Whether a file ends where its format says. ``False`` is a doubt only: some writers append something."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        offsets, counts = (tags.get(strips) or tags.get(tiles) or () for strips, tiles in ((273, 324), (279, 325)))
        return bool(offsets) and max(map(sum, zip(offsets, counts, strict=False)), default=size + 1) <= size
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(12)
        file.seek(max(0, size - 32))
        tail = file.read()
    if image.format == "PNG":
        return tail.endswith(b"IEND\xaeB`\x82")
    if image.format == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if image.format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return image.format == "BMP" and 0 < int.from_bytes(head[2:6], "little") <= size


def _what_else(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, whose image was not fetched (git lfs pull)"
    if not head.strip(b"\0"):
        return "it holds nothing but zeros"
    if head.lstrip()[:1] in {b"<", b"{"} and head.isascii():
        return "it is text and no image, in spite of its name"
    return "it is no image that Pillow reads, in spite of its name"


def problems_of(paths: Iterable[str], judge: Callable[[str], str] = problem_of) -> dict[str, str]:
    """Return what is wrong with image files, by path; files without a problem are left out.

    Args:
        paths: The files.
        judge: Gives what is wrong with a file. Defaults to :func:`problem_of`.
    """
    distinct = list(dict.fromkeys(map(str, paths)))
    with ThreadPoolExecutor(READERS) as readers:  # decoders let go of the interpreter's lock
        found = dict(zip(distinct, readers.map(judge, distinct), strict=True))
    return {path: problem for path, problem in found.items() if problem}


def problems_in(datasets: Iterable[Any], *, decode: bool = False) -> dict[str, str]:
    """Return what is wrong with images and masks of data sets, by path.

    Args:
        datasets: Data sets of anomalib. One that reads its images in a way of its own is not looked at.
        decode: Whether all of them are decoded, which takes as long as an epoch's reading. Defaults to ``False``.
    """
    usual = [dataset for dataset in datasets if _reads_as_usual(dataset)]
    images = [str(path) for dataset in usual for path in dataset.samples["image_path"]]
    masks = [mask for dataset in usual for _, mask in _masked(dataset)]
    return problems_of(images, partial(problem_of, decode=decode)) | problems_of(
        masks, partial(problem_of, decode=decode, is_mask=True)
    )


def sentence(problems: dict[str, str], total: int, what: str, remedy: str = "") -> str:
    """Say which images cannot be used.

    Args:
        problems: What is wrong, by path.
        total: Number of all images looked at.
        what: What they are, as in ``"training images"``.
        remedy: What to do, in place of the usual advice. Defaults to none.
    """
    named = "; ".join(f"{path}: {problem}" for path, problem in list(problems.items())[:NAMED])
    others = len(problems) - NAMED
    more = f"; and {others} others" if others > 0 else ""
    advice = remedy or "Mend or remove them."
    return f"{len(problems)} of {total} {what} cannot be used: {named}{more}. {advice}"


def check_images(datasets: Sequence[Any], what: str) -> None:
    """Refuse data sets with images or masks that cannot be read.

    Args:
        datasets: Data sets of anomalib.
        what: What the images are, as in ``"training images"``.

    Raises:
        UnreadableImagesError: If there are such images.
    """
    problems = problems_in(datasets)
    if problems:
        raise UnreadableImagesError(sentence(problems, sum(map(len, datasets)), what), problems)


def resized_masks(datasets: Iterable[Any]) -> dict[str, str]:
    """Return masks that are not as large as their image, by path: anomalib stretches them to it.

    Args:
        datasets: Data sets of anomalib.
    """

    def size(path: str) -> tuple[int, int] | None:
        with contextlib.suppress(Exception), Image.open(path) as image:
            return image.size
        return None

    pairs = [pair for dataset in datasets if _reads_as_usual(dataset) for pair in _masked(dataset)]
    with ThreadPoolExecutor(READERS) as readers:
        sizes = dict(zip(pairs, readers.map(lambda pair: (size(pair[0]), size(pair[1])), pairs), strict=True))
    return {
        mask: f"{of_mask[0]} x {of_mask[1]} pixels, the image {of_image[0]} x {of_image[1]}"
        for (_, mask), (of_image, of_mask) in sizes.items()
        if of_image and of_mask and of_image != of_mask
    }


def unreadable_folders(paths: Iterable[str]) -> list[str]:
    """Return folders beside images, or beside the folders of images, that may not be read.

    Whatever looks for images passes over such folders in silence, and theirs are missing from the data set.

    Args:
        paths: The images.
    """
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}  # noqa: PTH100, PTH120
    try:
        top = os.path.commonpath(folders)
    except ValueError:  # no images, or on several drives
        return []
    if len(folders) == 1:  # other classes of images would lie beside it
        folders.add(os.path.dirname(top))  # noqa: PTH120
    for folder in list(folders):
        while len(folder) > len(top):
            folder = os.path.dirname(folder)  # noqa: PTH120, PLW2901
            folders.add(folder)
    found = set()
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            found |= {e.path for e in entries if e.is_dir() and not os.access(e.path, os.R_OK | os.X_OK)}
    return sorted(found)


def check_stage(datamodule: Any, stage: str | None) -> None:
    """Refuse images that cannot be read before a stage; warn of what else will make its results doubtful.

    Args:
        datamodule: A data module of anomalib after its setup; any other object is not looked at.
        stage: Lightning's stage.

    Raises:
        UnreadableImagesError: If images that the stage needs cannot be read.
    """
    training, testing = ("train_data", "val_data"), ("test_data",)
    stage = getattr(stage, "value", stage)  # Lightning's enumeration
    if stage in {"test", "validate"}:
        check_images(data_sets(datamodule, testing if stage == "test" else training[1:]), "test images")
        return
    if stage != "fit":
        return
    trained_on = data_sets(datamodule, training)
    check_images(trained_on, "training and validation images")
    tested_on = data_sets(datamodule, testing)
    problems = problems_in(tested_on)
    if problems:
        logger.warning(
            sentence(problems, sum(map(len, tested_on)), "test images", "Training goes on; a test will not.")
        )
    stretched = resized_masks([*trained_on, *tested_on])
    if stretched:
        mask, said = next(iter(stretched.items()))
        logger.warning(
            "%d masks have another size than their image and are stretched to it, for instance %s: %s. Metrics of "
            "pixels are wrong if they show another part of the image.",
            len(stretched),
            mask,
            said,
        )
    closed = unreadable_folders(path for dataset in trained_on for path in dataset.samples["image_path"])
    if closed:
        logger.warning(
            "%d folders beside the training images may not be read, and what is in them is left out: %s",
            len(closed),
            ", ".join(closed[:NAMED]),
        )


def data_sets(datamodule: Any, names: Sequence[str] = ("train_data", "val_data", "test_data")) -> list[Any]:
    """Return the data sets of a data module that have a table of images.

    Args:
        datamodule: A data module after its setup; any other object has none.
        names: Attributes that hold them. Defaults to those of training, validation and test.
    """
    found = [getattr(datamodule, name, None) for name in names]
    return [dataset for dataset in found if hasattr(dataset, "samples")]


def _masked(dataset: Any) -> list[tuple[str, str]]:
    """Pairs of image and mask of a data set whose masks are read."""
    samples = dataset.samples
    if "mask_path" not in samples or samples.attrs.get("task") != "segmentation":
        return []
    anomalous: Sequence[tuple[Any, Any]] = samples.loc[
        samples["label_index"] == 1, ["image_path", "mask_path"]
    ].to_numpy()
    return [(str(image), mask) for image, mask in anomalous if isinstance(mask, str) and mask]


def _reads_as_usual(dataset: Any) -> bool:
    if not hasattr(dataset, "samples"):
        return False
    return type(dataset).__getitem__ in {AnomalibDataset.__getitem__, AnomalibDepthDataset.__getitem__} and (
        "image_path" in dataset.samples
    )
