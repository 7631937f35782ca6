# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Rendered images as files: where they lie, and how they get there.

anomalib reads images through their paths in many places: the sample frame and the items check that the file exists,
synthetic anomalies and the visualizer open it, models and reports keep their results by it. So every image is a PNG
file. It is rendered when a data set first asks for it and read from then on. The path names all that determines the
pixels, so an existing file is always the right one, and processes that share a folder cannot disagree.
"""

import logging
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from .arrays import ByteArray
from .rendering import NORMAL, RENDERING_VERSION, SurfaceSpec, render

logger = logging.getLogger(__name__)

# Fast compression: sensor noise does not compress anyway.
_PNG_COMPRESSION = 1


def variant_name(spec: SurfaceSpec) -> str:
    """Name of the folder of all images of one size, seed and severity, such as ``v1-256x256-seed0-severity0.7``."""
    height, width = spec.image_size
    return f"v{RENDERING_VERSION}-{height}x{width}-seed{spec.seed}-severity{float(spec.severity)!r}"


def image_path(root: Path, spec: SurfaceSpec) -> Path:
    """Path of an image: ``<root>/<variant>/<category>/<split>/<defect>/<index>.png``."""
    return root / variant_name(spec) / spec.category / spec.split / spec.defect / f"{spec.index:03d}.png"


def mask_path(root: Path, spec: SurfaceSpec) -> Path | None:
    """Path of the mask of a defective image, ``None`` for a normal one.

    Test masks lie where MVTec AD has them (``ground_truth/<defect>/<index>_mask.png``), those of the other splits in a
    folder with the name of the split in between.
    """
    if spec.defect == NORMAL:
        return None
    folder = root / variant_name(spec) / spec.category / "ground_truth"
    if spec.split != "test":
        folder /= spec.split
    return folder / spec.defect / f"{spec.index:03d}_mask.png"


def render_missing(root: Path, specs: Sequence[SurfaceSpec]) -> int:
    """Render those images (and masks) that are not there yet.

    Any number of threads, workers and processes may do so in the same folder at the same time.

    Args:
        root (Path): Root folder of the data set.
        specs (Sequence[SurfaceSpec]): The images.

    Returns:
        int: How many images had to be rendered.
    """
    missing = [spec for spec in specs if not _is_rendered(root, spec)]
    if missing:
        logger.info("Rendering %d %s images into %s", len(missing), missing[0].category, root)
        # NumPy and the PNG encoder release the interpreter lock while they work.
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda spec: _render_file(root, spec), missing))
    return len(missing)


def _is_rendered(root: Path, spec: SurfaceSpec) -> bool:
    mask = mask_path(root, spec)
    return image_path(root, spec).exists() and (mask is None or mask.exists())


def _render_file(root: Path, spec: SurfaceSpec) -> None:
    image, mask = render(spec)
    target = mask_path(root, spec)
    if target is not None:
        write_png(target, mask.astype("uint8") * 255)
    write_png(image_path(root, spec), image)


def write_png(path: Path, pixels: ByteArray) -> None:
    """Write a PNG file that appears at once and complete, or not at all.

    Args:
        path (Path): Where to write; missing folders are made.
        pixels (ByteArray): Grey levels, shape (H, W), or RGB, shape (H, W, 3), uint8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=_PNG_COMPRESSION)
        try:
            temporary.replace(path)
        except PermissionError:
            # Windows does not replace a file that another process is reading. That file has the same content.
            if not path.exists():
                raise
    finally:
        temporary.unlink(missing_ok=True)
