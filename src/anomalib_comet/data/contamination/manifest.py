# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The manifest of a draw: written beside each run, and read back to repeat it exactly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .protocol import Anomaly, Draw, check_count, check_fraction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = "anomalib_comet.contamination"
VERSION = 1

_HIDDEN, _WITHHELD, _WITH_LABELS = "injected", "withheld", "labelled"


@dataclass(frozen=True)
class Settings:
    """Settings that fix which anomalies are drawn.

    Args:
        ratio (float): Injected anomalies per normal training image, in [0, 1].
        max_ratio (float): Ratio that the pool is sized for, in [``ratio``, 1].
        overlap (bool): Whether the drawn images stay in the test set.
        seed (int): Seed of the draw.
        labelled (int): Number of anomalies that enter training with their labels.
        max_draw (float): Largest share of the anomalies that may be drawn, in (0, 1].
        shots (int): Number of anomalies of each defect type that enter training with their labels.
        held_out (tuple[str, ...]): Defect types that stay in the test set.
    """

    ratio: float
    max_ratio: float
    overlap: bool
    seed: int
    labelled: int
    max_draw: float
    shots: int = 0
    held_out: tuple[str, ...] = ()


def checked_settings(
    *,
    ratio: float,
    max_ratio: float | None,
    overlap: bool,
    seed: int,
    labelled: int,
    shots: int,
    held_out: Sequence[str],
    max_draw: float,
) -> Settings:
    """Return settings, checked as far as that is possible without the images; arguments as in :class:`Settings`.

    Raises:
        ValueError: If a value is out of range or two contradict each other.
        TypeError: If ``held_out`` is no list of texts or ``seed`` no whole number.
    """
    ratio = check_fraction("ratio", ratio)
    max_ratio = ratio if max_ratio is None else check_fraction("max_ratio", max_ratio)
    if max_ratio < ratio:
        msg = (
            f"max_ratio={max_ratio:g} is smaller than ratio={ratio:g}; it has to be the largest ratio of the sweep, "
            f"so set it to {ratio:g} or more."
        )
        raise ValueError(msg)
    if labelled and shots:
        msg = f"Give labelled (in total) or shots (of each defect type), not both; got {labelled} and {shots}."
        raise ValueError(msg)
    if isinstance(seed, bool) or not isinstance(seed, int):
        msg = f"seed must be a whole number, got {seed!r}."
        raise TypeError(msg)
    return Settings(
        ratio=ratio,
        max_ratio=max_ratio,
        overlap=overlap,
        seed=seed,
        labelled=check_count("labelled", labelled),
        shots=check_count("shots", shots),
        held_out=checked_held_out(held_out),
        max_draw=check_fraction("max_draw", max_draw, zero=False),
    )


def checked_held_out(held_out: Sequence[str]) -> tuple[str, ...]:
    """Return held-out defect types without repetitions, sorted.

    Args:
        held_out (Sequence[str]): Names of defect types.

    Raises:
        TypeError: If it is a text, or holds something else than texts.
    """
    if isinstance(held_out, str):
        msg = f"held_out must be a list of defect types, e.g. [{held_out}], got the text {held_out!r}."
        raise TypeError(msg)
    other = [name for name in held_out if not isinstance(name, str)]
    if other:
        msg = f"held_out must be a list of defect types as text, e.g. ['{other[0]}'], got {other[0]!r} in it."
        raise TypeError(msg)
    return tuple(sorted(set(held_out)))


@dataclass(frozen=True)
class Manifest:
    """A recorded draw.

    Args:
        settings (Settings): How it was drawn.
        normal_count (int): Number of normal training images that the ratio refers to.
        draw (Draw): What was drawn.
    """

    settings: Settings
    normal_count: int
    draw: Draw


def to_json(manifest: Manifest, description: Mapping[str, Any]) -> str:
    """Write a draw as text.

    Args:
        manifest (Manifest): The draw.
        description (Mapping[str, Any]): Further facts for the reader (names, shares, counts), ignored when the
            manifest is read back.

    Returns:
        str: JSON with one line for each image.
    """
    draw = manifest.draw
    images = [
        {**_image(anomaly), "use": _HIDDEN if place < draw.hidden else _WITHHELD}
        for place, anomaly in enumerate(draw.pool)
    ]
    images += [{**_image(anomaly), "use": _WITH_LABELS} for anomaly in draw.labelled]
    header = {
        "format": FORMAT,
        "version": VERSION,
        **description,
        **asdict(manifest.settings),
        "normal_count": manifest.normal_count,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in header.items()]
    rows = ",\n".join(f"    {json.dumps(image)}" for image in images)
    lines.append(f'  "images": [\n{rows}\n  ]' if images else '  "images": []')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _image(anomaly: Anomaly) -> dict[str, Any]:
    """One image as plain data."""
    return {"image_path": anomaly.key, "defect_type": anomaly.defect_type, "copy": anomaly.copy}


def read_manifest(path: str | Path) -> Manifest:
    """Read a draw back.

    Args:
        path (str | Path): File written by :meth:`ContaminatedDataModule.write_manifest`.

    Returns:
        Manifest: The draw.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no manifest, is damaged, or names an image outside the data set's folder.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no manifest at {path}; leave 'manifest' out to draw anew."
        raise FileNotFoundError(msg)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            msg = f"it has the format {content['format']!r}, version {content['version']!r}"
            raise ValueError(msg)  # noqa: TRY301 - all that is wrong with a manifest is told in one place
        if not isinstance(content["overlap"], bool):
            msg = f"overlap must be true or false, got {content['overlap']!r}"
            raise TypeError(msg)  # noqa: TRY301
        settings = checked_settings(
            ratio=content["ratio"],
            max_ratio=check_fraction("max_ratio", content["max_ratio"]),
            overlap=content["overlap"],
            seed=content["seed"],
            labelled=content["labelled"],
            max_draw=content["max_draw"],
            shots=content.get("shots", 0),  # of an earlier version, which had no shots
            held_out=content.get("held_out", ()),
        )
        uses: dict[str, list[Anomaly]] = {_HIDDEN: [], _WITHHELD: [], _WITH_LABELS: []}
        for image in content["images"]:
            anomaly = Anomaly(
                _checked_key(image["image_path"]), str(image["defect_type"]), check_count("copy", image["copy"])
            )
            uses[image["use"]].append(anomaly)
        normal_count = check_count("normal_count", content["normal_count"])
        _check_images(uses, content.get("injected_count", len(uses[_HIDDEN])))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing or unknown" if isinstance(error, KeyError) else str(error)
        msg = f"{path} is no readable contamination manifest: {reason}"
        raise ValueError(msg) from error
    draw = Draw(pool=(*uses[_HIDDEN], *uses[_WITHHELD]), hidden=len(uses[_HIDDEN]), labelled=tuple(uses[_WITH_LABELS]))
    return Manifest(settings, normal_count, draw)


def _check_images(uses: Mapping[str, Sequence[Anomaly]], injected_count: object) -> None:
    """Refuse a list of images that contradicts itself, or the count of injected ones."""
    seen: set[tuple[str, int]] = set()
    for anomaly in (anomaly for anomalies in uses.values() for anomaly in anomalies):
        if (anomaly.key, anomaly.copy) in seen:
            msg = f"it lists {anomaly.key!r} twice"
            raise ValueError(msg)
        seen.add((anomaly.key, anomaly.copy))
    if injected_count != len(uses[_HIDDEN]):
        msg = f"it lists {len(uses[_HIDDEN])} injected images and says that there are {injected_count}"
        raise ValueError(msg)


def _checked_key(key: object) -> str:
    """Refuse image paths that lead out of the data set's folder."""
    if not isinstance(key, str):
        msg = f"an image path must be text, got {key!r}"
        raise TypeError(msg)
    absolute = PurePosixPath(key).is_absolute() or PureWindowsPath(key).is_absolute() or PureWindowsPath(key).drive
    if absolute or ".." in PurePosixPath(key).parts or ".." in PureWindowsPath(key).parts:
        msg = f"it names {key!r}, which lies outside the data set's folder"
        raise ValueError(msg)
    return key


def check_against(
    manifest: Manifest, defect_types: Mapping[str, str], normal_count: int, folder: Path, source: Path
) -> Draw:
    """Check that a manifest fits the data set at hand.

    Args:
        manifest (Manifest): A draw that was read from a file.
        defect_types (Mapping[str, str]): Defect type of each anomaly of the data set, by key.
        normal_count (int): Number of normal training images.
        folder (Path): The data set's folder.
        source (Path): The manifest's file, for the message.

    Returns:
        Draw: The manifest's draw.

    Raises:
        ValueError: If it names an image that is no anomaly of this data set, or is of another defect type in it or of a
            type that the manifest holds out, or the number of normal training images differs.
    """
    anomalies = (*manifest.draw.pool, *manifest.draw.labelled)
    for anomaly in anomalies:
        if anomaly.key not in defect_types:
            msg = (
                f"{source} names {anomaly.key!r}, which is no anomalous test or validation image below {folder}; "
                "use it with the data set that it was written for."
            )
            raise ValueError(msg)
        found = defect_types[anomaly.key]
        if found in manifest.settings.held_out:
            msg = (
                f"{source} draws {anomaly.key!r}, which is of the type '{found}' that it holds out: repeat a manifest "
                "as it was written, or draw anew without it."
            )
            raise ValueError(msg)
        if found != anomaly.defect_type:
            msg = (
                f"{source} calls {anomaly.key!r} '{anomaly.defect_type}', and in {folder} it is of the type '{found}'; "
                "use it with the data set that it was written for."
            )
            raise ValueError(msg)
    if normal_count != manifest.normal_count:
        msg = (
            f"{source} was written for {manifest.normal_count} normal training images, this data set has "
            f"{normal_count}; its ratio of {manifest.settings.ratio:g} would no longer be true."
        )
        raise ValueError(msg)
    return manifest.draw
