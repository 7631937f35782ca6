# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Miniature data sets in the folder format of each anomalib data module: 32 x 32 pixels, a few dozen images.

Each writer fills a folder and returns the configuration of the data module that reads it, together with what it holds.
"""

from __future__ import annotations

import csv
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 32
TRAIN, TEST = 20, 6
"""Normal images for training and for testing, where the format has separate folders for them."""
TYPES = {"crack": 6, "cut": 3, "stain": 3}
"""Anomalies by defect type."""
ANOMALIES = sum(TYPES.values())


@dataclass
class Miniature:
    """A data set on disk."""

    class_path: str
    init_args: dict[str, Any]
    types: dict[str, int]
    """Anomalies of the test and validation sets by defect type."""
    normals: int = TRAIN
    """Normal training images after the data module's own splits."""
    prepare: bool = True
    """Whether prepare_data works without a download."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        loading = {"train_batch_size": 5, "eval_batch_size": 5, "num_workers": 0}
        return {"class_path": self.class_path, "init_args": {**loading, **self.init_args}}


def write_image(path: Path, *, defect: bool = False) -> None:
    """Write a noisy grey image, with a bright patch if it is defective. The content depends on the name only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    pixels = generator.integers(90, 120, size=(SIZE, SIZE, 3), dtype=np.uint8)
    if defect:
        pixels[_patch()] = 250
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, *, defect: bool = True) -> None:
    """Write the mask of the bright patch, or an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    if defect:
        pixels[_patch()] = 255
    Image.fromarray(pixels).save(path)


def _patch() -> tuple[slice, slice]:
    return slice(10, 18), slice(12, 20)


def _images(folder: Path, count: int, *, defect: bool = False, suffix: str = ".png") -> list[Path]:
    paths = [folder / f"{number:03}{suffix}" for number in range(count)]
    for path in paths:
        write_image(path, defect=defect)
    return paths


def _mvtec_like(
    root: Path, *, good: str = "good", types: dict[str, int] | None = None, mask: str = "{stem}_mask.png"
) -> None:
    _images(root / "train" / good, TRAIN)
    _images(root / "test" / good, TEST)
    for name, count in (types or TYPES).items():
        for path in _images(root / "test" / name, count, defect=True):
            write_mask(root / "ground_truth" / name / mask.format(stem=path.stem))


def mvtecad(root: Path) -> Miniature:
    _mvtec_like(root / "bottle")
    return Miniature("MVTecAD", {"root": str(root), "category": "bottle"}, TYPES)


def mvtecad_from_test(root: Path) -> Miniature:
    """Validation images from the test set, and no seed."""
    _mvtec_like(root / "bottle")
    return Miniature("MVTecAD", {"root": str(root), "category": "bottle", "val_split_mode": "from_test"}, TYPES)


def mvtecad_synthetic_val(root: Path) -> Miniature:
    _mvtec_like(root / "bottle")
    arguments = {"root": str(root), "category": "bottle", "val_split_mode": "synthetic", "val_split_ratio": 0.2}
    return Miniature("MVTecAD", arguments, TYPES, normals=16)


def mvtecad_synthetic_test(root: Path) -> Miniature:
    _mvtec_like(root / "bottle")
    arguments = {"root": str(root), "category": "bottle", "test_split_mode": "synthetic"}
    return Miniature("MVTecAD", arguments, TYPES, extra={"synthetic_test": True})


def mvtecad_without_val(root: Path) -> Miniature:
    _mvtec_like(root / "bottle")
    return Miniature("MVTecAD", {"root": str(root), "category": "bottle", "val_split_mode": "none"}, TYPES)


def mvtecad2(root: Path) -> Miniature:
    folder = root / "sheet_metal"
    _images(folder / "train" / "good", TRAIN)
    _images(folder / "validation" / "good", 4)
    _images(folder / "test_public" / "good", TEST)
    for path in _images(folder / "test_public" / "bad", ANOMALIES, defect=True):
        write_mask(folder / "test_public" / "ground_truth" / "bad" / f"{path.stem}_mask.png")
    _images(folder / "test_private", 5)
    _images(folder / "test_private_mixed", 5)
    return Miniature("MVTecAD2", {"root": str(root), "category": "sheet_metal"}, {"bad": ANOMALIES})


def mvtecad2_private(root: Path) -> Miniature:
    """The test loader serves images without labels, which are not ``test_data``."""
    miniature = mvtecad2(root)
    miniature.init_args["test_type"] = "private"
    miniature.extra["unlabelled_test"] = True
    return miniature


def mvtec_loco(root: Path) -> Miniature:
    folder = root / "breakfast_box"
    types = {"logical_anomalies": 8, "structural_anomalies": 4}
    _images(folder / "train" / "good", TRAIN)
    _images(folder / "validation" / "good", 4)
    _images(folder / "test" / "good", TEST)
    for name, count in types.items():
        for path in _images(folder / "test" / name, count, defect=True):
            for part in range(2):
                write_mask(folder / "ground_truth" / name / path.stem / f"{part:03}.png")
    return Miniature("MVTecLOCO", {"root": str(root), "category": "breakfast_box"}, types, prepare=False)


def mpdd(root: Path) -> Miniature:
    _mvtec_like(root / "bracket_black")
    return Miniature("MPDD", {"root": str(root), "category": "bracket_black"}, TYPES)


def vad(root: Path) -> Miniature:
    _mvtec_like(root / "vad", types={"bad": ANOMALIES}, mask="{stem}.png")
    return Miniature("VAD", {"root": str(root)}, {"bad": ANOMALIES})


def autovi(root: Path) -> Miniature:
    folder = root / "engine_wiring"
    _images(folder / "train" / "good", TRAIN)
    _images(folder / "test" / "good", TEST)
    for name, count in TYPES.items():
        for path in _images(folder / "test" / name, count, defect=True):
            write_mask(folder / "ground_truth" / name / path.stem / "0000.png")
    return Miniature("AutoVI", {"root": str(root), "category": "engine_wiring"}, TYPES)


def btech(root: Path) -> Miniature:
    folder = root / "01"
    _images(folder / "train" / "ok", TRAIN, suffix=".bmp")
    _images(folder / "test" / "ok", TEST, suffix=".bmp")
    for path in _images(folder / "test" / "ko", ANOMALIES, defect=True, suffix=".bmp"):
        write_mask(folder / "ground_truth" / "ko" / f"{path.stem}.png")
    return Miniature("BTech", {"root": str(root), "category": "01"}, {"ko": ANOMALIES})


def bmad(root: Path) -> Miniature:
    folder = root / "Brain"
    _images(folder / "train" / "good", TRAIN)
    for part, anomalies in (("valid", 4), ("test", 8)):
        for path in _images(folder / part / "good" / "img", TEST):
            write_mask(folder / part / "good" / "label" / path.name, defect=False)
        for path in _images(folder / part / "Ungood" / "img", anomalies, defect=True):
            write_mask(folder / part / "Ungood" / "label" / path.name)
    return Miniature("BMAD", {"root": str(root), "category": "Brain"}, {"Ungood": 12})


def bmad_without_masks(root: Path) -> Miniature:
    """Every entry of ``mask_path`` is ``None``, and anomalib calls the task segmentation all the same."""
    folder = root / "Chest"
    _images(folder / "train" / "good", TRAIN)
    for part, anomalies in (("valid", 4), ("test", 8)):
        _images(folder / part / "good" / "img", TEST)
        _images(folder / part / "Ungood" / "img", anomalies, defect=True)
    return Miniature("BMAD", {"root": str(root), "category": "Chest"}, {"Ungood": 12}, extra={"masks": False})


def kolektor(root: Path) -> Miniature:
    for number in range(37):
        item = root / f"kos{number // 4:02}"
        defect = number % 3 == 0 and number < 36
        write_image(item / f"Part{number % 4}.jpg", defect=defect)
        write_mask(item / f"Part{number % 4}_label.bmp", defect=defect)
    # Of 25 good images 80 % train.
    return Miniature("Kolektor", {"root": str(root)}, {"Bad": 12})


def kolektor_sdd2(root: Path) -> Miniature:
    """Anomalies in both splits, masks of all images beside them, and the stray copies of the published archive."""
    for split, first, good, bad in (("train", 10000, TRAIN, ANOMALIES), ("test", 20000, TEST, ANOMALIES)):
        total = good + bad
        for number in range(total):
            defect = (number + 1) * bad // total > number * bad // total  # evenly spread
            write_image(root / split / f"{first + number}.png", defect=defect)
            write_mask(root / split / f"{first + number}_GT.png", defect=defect)
    for name in ("10001 (copy).png", "10001_GT (copy).png"):
        write_image(root / "train" / name)
    return Miniature("KolektorSDD2", {"root": str(root)}, {"defect": ANOMALIES})


def kolektor_sdd2_clean(root: Path) -> Miniature:
    """Without the anomalies of the training split, from which a contamination then draws."""
    miniature = kolektor_sdd2(root)
    return Miniature("KolektorSDD2", {**miniature.init_args, "clean": True}, miniature.types, extra={"own_pool": True})


def viaduct(root: Path) -> Miniature:
    """Normal validation images of its own, and masks by both rules for their names."""
    folder = root / "05_cable_end_sleeve"
    _images(folder / "train" / "good", TRAIN)
    _images(folder / "val" / "good", 4)
    _images(folder / "test" / "good", TEST)
    for name, count in TYPES.items():
        for path in _images(folder / "test" / name, count, defect=True):
            write_mask(folder / "ground_truth" / name / (path.name if name == "cut" else f"{path.stem}_mask.png"))
    return Miniature("VIADUCT", {"root": str(root), "category": folder.name}, TYPES)


def visa(root: Path) -> Miniature:
    rows = []
    for split, label, count in (("train", "normal", TRAIN), ("test", "normal", TEST), ("test", "anomaly", ANOMALIES)):
        for number in range(count):
            name = f"{split}_{label}_{number:03}"
            image, mask = Path(f"capsules/Data/Images/{label}/{name}.JPG"), ""
            write_image(root / image, defect=label == "anomaly")
            if label == "anomaly":
                mask = f"capsules/Data/Masks/Anomaly/{name}.png"
                write_mask(root / mask)
            rows.append(["capsules", split, label, image.as_posix(), mask])
    (root / "split_csv").mkdir(parents=True)
    with (root / "split_csv" / "1cls.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])
    return Miniature("Visa", {"root": str(root), "category": "capsules"}, {"bad": ANOMALIES})


def realiad(root: Path) -> Miniature:
    """No ``label`` column, and by default a test set without normal images."""
    folder = root / "realiad_256" / "audiojack"
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}

    def add(split: str, name: str, anomaly_class: str) -> None:
        write_image(folder / f"{name}.jpg", defect=anomaly_class != "OK")
        mask = None
        if anomaly_class != "OK":
            mask = f"{name}_mask.png"
            write_mask(folder / mask)
        entries[split].append(
            {"image_path": f"{name}.jpg", "mask_path": mask, "anomaly_class": anomaly_class, "category": "audiojack"}
        )

    for number in range(TRAIN + TEST):
        split = "train" if number < TRAIN else "test"
        add(split, f"OK/S{number // 5:04}/audiojack_{number // 5:04}_OK_C{number % 5 + 1}", "OK")
    for name, count in {"AK": 6, "HS": 3, "ZW": 3}.items():
        for number in range(count):
            stem = f"audiojack_{number // 5:04}_NG_{name}_C{number % 5 + 1}"
            add("test", f"NG/{name}/S{number // 5:04}/{stem}", name)
    jsons = root / "realiad_jsons" / "realiad_jsons"
    jsons.mkdir(parents=True)
    (jsons / "audiojack.json").write_text(json.dumps(entries), encoding="utf-8")
    arguments = {"root": str(root), "category": "audiojack"}
    return Miniature("RealIAD", arguments, {"AK": 6, "HS": 3, "ZW": 3}, extra={"normal_test": False})


def kaputt(root: Path) -> Miniature:
    """Needs pyarrow. The training split holds labelled anomalies of its own, which are no injected ones."""
    counts = {"train": (TRAIN, 3), "validation": (4, 4), "test": (TEST, 8)}
    for split, (good, bad) in counts.items():
        rows: list[dict[str, Any]] = []
        for number in range(good + bad):
            defect = number >= good
            image = f"data/{split}/query-data/image/{split}_{number:03}.png"
            mask = f"data/{split}/query-data/mask/{split}_{number:03}.png"
            write_image(root / "query-image" / image, defect=defect)
            write_mask(root / "query-mask" / mask, defect=defect)
            rows.append(
                {
                    "capture_id": f"{split}{number}",
                    "item_identifier": f"item{number}",
                    "item_material": "book_other",
                    "defect_types": ("penetration", "open")[number % 2] if defect else None,
                    "defect": defect,
                    "query_image": image,
                    "query_mask": mask,
                }
            )
        table = root / "datasets" / f"query-{split}.parquet"
        table.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(table)
    arguments = {"root": str(root), "category": "book_other"}
    return Miniature("Kaputt", arguments, {"open": 6, "penetration": 6})


def folder(root: Path) -> Miniature:
    """Masks, normal test images, and one abnormal folder for each defect type; validation from test, no seed."""
    _mvtec_like(root, mask="{stem}.png")
    arguments = {
        "name": "plates",
        "root": str(root),
        "normal_dir": "train/good",
        "normal_test_dir": "test/good",
        "abnormal_dir": [f"test/{name}" for name in TYPES],
        "mask_dir": [f"ground_truth/{name}" for name in TYPES],
    }
    return Miniature("Folder", arguments, TYPES)


def folder_plain(root: Path) -> Miniature:
    """No masks and no normal test images: a fifth of the normal images goes to the test set at random."""
    _images(root / "good", 25)
    _images(root / "bad", ANOMALIES, defect=True)
    arguments = {"name": "plates", "root": str(root), "normal_dir": "good", "abnormal_dir": "bad"}
    return Miniature("Folder", arguments, {"abnormal": ANOMALIES}, extra={"masks": False})


def datumaro(root: Path) -> Miniature:
    items = []
    for number in range(40 + ANOMALIES):
        name, defect = f"{number:03}.png", number >= 40
        write_image(root / "images" / "default" / name, defect=defect)
        items.append({"id": name, "annotations": [{"label_id": int(defect)}], "image": {"path": name}})
    (root / "annotations").mkdir()
    labels = [{"name": "Normal", "parent": ""}, {"name": "Anomalous", "parent": ""}]
    content = {"categories": {"label": {"labels": labels}}, "items": items}
    (root / "annotations" / "default.json").write_text(json.dumps(content), encoding="utf-8")
    # Half of the normal images goes to the test set at random.
    return Miniature("Datumaro", {"root": str(root)}, {"Anomalous": ANOMALIES}, extra={"masks": False})


def tabular(root: Path) -> Miniature:
    _mvtec_like(root, mask="{stem}.png")
    rows = [
        {"image_path": f"train/good/{number:03}.png", "label_index": 0, "split": "train"} for number in range(TRAIN)
    ]
    rows += [{"image_path": f"test/good/{number:03}.png", "label_index": 0, "split": "test"} for number in range(TEST)]
    table = [{**row, "mask_path": ""} for row in rows]
    for name, count in TYPES.items():
        for number in range(count):
            path = f"{name}/{number:03}.png"
            table.append(
                {
                    "image_path": f"test/{path}",
                    "label_index": 1,
                    "split": "test",
                    "mask_path": f"ground_truth/{path}",
                }
            )
    return Miniature("Tabular", {"name": "plates", "root": str(root), "samples": table}, TYPES)


def _depth_images(rgb: Path, xyz: Path, count: int, *, defect: bool = False) -> list[Path]:
    from tifffile import imwrite

    paths = _images(rgb, count, defect=defect)
    xyz.mkdir(parents=True, exist_ok=True)
    for path in paths:
        imwrite(xyz / f"{path.stem}.tiff", np.ones((SIZE, SIZE, 3), dtype=np.float32))
    return paths


def _mvtec3d_like(root: Path, masks: str) -> None:
    _depth_images(root / "train/good/rgb", root / "train/good/xyz", TRAIN)
    for name, count in {"good": TEST, **TYPES}.items():
        part = root / "test" / name
        for path in _depth_images(part / "rgb", part / "xyz", count, defect=name != "good"):
            write_mask(part / masks / path.name, defect=name != "good")


def mvtec3d(root: Path) -> Miniature:
    _mvtec3d_like(root / "bagel", "gt")
    return Miniature("MVTec3D", {"root": str(root), "category": "bagel"}, TYPES)


def adam3d(root: Path) -> Miniature:
    _mvtec3d_like(root / "1m1", "ground_truth")
    return Miniature("ADAM3D", {"root": str(root), "category": "1m1"}, TYPES)


def folder3d(root: Path) -> Miniature:
    _depth_images(root / "train/rgb", root / "train/xyz", TRAIN)
    _depth_images(root / "good/rgb", root / "good/xyz", TEST)
    for path in _depth_images(root / "bad/rgb", root / "bad/xyz", ANOMALIES, defect=True):
        write_mask(root / "bad/gt" / path.name)
    arguments = {
        "name": "plates",
        "root": str(root),
        "normal_dir": "train/rgb",
        "normal_depth_dir": "train/xyz",
        "normal_test_dir": "good/rgb",
        "normal_test_depth_dir": "good/xyz",
        "abnormal_dir": "bad/rgb",
        "abnormal_depth_dir": "bad/xyz",
        "mask_dir": "bad/gt",
    }
    return Miniature("Folder3D", arguments, {"abnormal": ANOMALIES})


MINIATURES: dict[str, Callable[[Path], Miniature]] = {
    writer.__name__: writer
    for writer in (
        autovi,
        bmad,
        bmad_without_masks,
        btech,
        datumaro,
        folder,
        folder_plain,
        kaputt,
        kolektor,
        kolektor_sdd2_clean,
        mpdd,
        mvtec_loco,
        mvtecad,
        mvtecad_from_test,
        mvtecad_synthetic_test,
        mvtecad_synthetic_val,
        mvtecad_without_val,
        mvtecad2,
        mvtecad2_private,
        realiad,
        tabular,
        vad,
        viaduct,
        visa,
        adam3d,
        folder3d,
        mvtec3d,
    )
}
"""Writers by name: every image and depth data module of anomalib 2.7, two of ours, and variants with traps."""
