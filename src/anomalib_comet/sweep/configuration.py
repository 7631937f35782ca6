# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""A sweep as it stands in a YAML file, and what is wrong with it: nothing heavy is imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from anomalib_comet.arguments import is_whole

from .places import named_outside

METRICS = (
    "image_auroc",
    "image_ap",
    "f1",
    "precision",
    "recall",
    "pixel_auroc",
    "aupro",
    "f1_max",
    "audit_ap",
)
"""Columns of the result that have curves and may be published values, in the order of the report."""

LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""

RESERVED = {
    "max_epochs": "max_epochs of the sweep or of a model",
    "default_root_dir": "--output",
    "logger": "no logger, as the report has all numbers",
}
"""Arguments of Lightning's trainer that a sweep sets itself, and what there is instead."""

LARGEST_TREE = 100_000
DEEPEST_TREE = 50
"""Values and levels that a sweep's file may have: a small one can stand for any number, by anchors and aliases."""

T = TypeVar("T")


class SweepError(Exception):
    """Something that the user can put right; the message is one sentence."""


@dataclass(frozen=True)
class Resources:
    """What one cell occupies of a machine. Only Ray looks at it.

    Attributes:
        cpus: CPU cores, above 0. May be a share.
        gpus: GPUs, 0 or more. A share such as 0.5 lets two cells run on one GPU.
        memory_gib: Memory in GiB that is kept for the cell; ``None`` to keep none.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gib: float | None = None


@dataclass(frozen=True)
class ModelEntry:
    """One model of a sweep.

    Attributes:
        class_path: Any anomalib model: a short name such as ``Patchcore`` or a dotted path.
        init_args: Its arguments. ``seed`` is set to the seed of the cell where the model has one and none is given.
        max_epochs: Training epochs; ``None`` for those of the sweep.
        trainer: Arguments of Lightning's trainer on top of the sweep's.
        image_size: Height and width of the model's own default pre-processing; ``None`` for the model's default.
        train_batch_size: Images in a training batch; ``None`` for what ``data`` says.
        backbone_weights: Local weights of a timm backbone for a model of anomalib that would download them.
        resources: What one cell occupies; ``None`` for the sweep's.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    max_epochs: int | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    image_size: list[int] | None = None
    train_batch_size: int | None = None
    backbone_weights: str | None = None
    resources: Resources | None = None


@dataclass(frozen=True)
class DataEntry:
    """The data module that is contaminated.

    Attributes:
        class_path: Any anomalib image data module: a short name such as ``MVTecAD`` or a dotted path.
        init_args: Its arguments, without ``category`` where the sweep has categories.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A published value, printed beside the mean of the cells that it stands for.

    Attributes:
        model: Label of the model.
        metric: Column of the result, one of :data:`METRICS`.
        value: The value as a fraction of 1.
        source: Where it is published.
        ratio: Contamination ratio; ``None`` if the sweep has one only.
        overlap: Protocol; ``None`` if the sweep has one only.
        category: One category; ``None`` for the mean over all.
    """

    model: str
    metric: str
    value: float
    source: str
    ratio: float | None = None
    overlap: bool | None = None
    category: str | None = None


@dataclass(frozen=True)
class Sweep:
    """Models x categories x overlap x ratios x seeds.

    Attributes:
        models: The models by the label that they have in the result.
        data: The data module.
        categories: Categories of the data module, each a data set of its own; empty for the one that ``data`` names.
            In a file ``all`` stands for the folders with training images below ``data.init_args.root``.
        ratios: Injected anomalies per normal training image, each in [0, 1].
        overlap: Protocols: ``false`` if injected images leave the test set, ``true`` if they stay in it too.
        seeds: Seeds of draw, initial weights and order of the images.
        max_epochs: Training epochs, at least 1. The last one is measured.
        trainer: Arguments of Lightning's trainer, such as ``accelerator`` and ``precision``.
        val_split_ratio: Share of the contaminated training set that is held out for validation, for models that need
            it (EfficientAd), in [0, 1). With 0 nothing is validated. Test images are never used.
        resample_dir: Folder for rotated copies of anomalies where there are too few; ``None`` makes that an error.
        resources: What one cell occupies.
        retries: How often a cell is tried again whose worker has died.
        published: Published values.
    """

    models: dict[str, ModelEntry]
    data: DataEntry
    categories: list[str] = field(default_factory=list)
    ratios: list[float] = field(default_factory=lambda: [0.0, 0.05, 0.1, 0.2])
    overlap: list[bool] = field(default_factory=lambda: [False])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    max_epochs: int = 20
    trainer: dict[str, Any] = field(default_factory=dict)
    val_split_ratio: float = 0.0
    resample_dir: str | None = None
    resources: Resources = field(default_factory=Resources)
    retries: int = 2
    published: list[Published] = field(default_factory=list)


def read_sweep(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """Read a sweep from a YAML file.

    Args:
        path: The file.
        changes: Values to replace, each ``dotted.key=value`` with the value in YAML, as in ``seeds=[0]``.

    Raises:
        SweepError: If the file or a change does not describe a sweep.
    """
    return read_sweep_and_text(path, changes)[0]


def read_sweep_and_text(path: Path, changes: Sequence[str] = ()) -> tuple[Sweep, str]:
    """Read a sweep from a YAML file, and say in YAML what it is after the changes.

    Args:
        path: The file.
        changes: Values to replace, as in :func:`read_sweep`.

    Returns:
        The sweep, and the text of the file; with changes, what it would be with them in it, without its comments.

    Raises:
        SweepError: If the file or a change does not describe a sweep.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = _loaded(text)
    except OSError as error:
        msg = f"--config: {path} cannot be read: {error.strerror or error}."
        raise SweepError(msg) from error
    except ValueError as error:
        msg = f"--config: {path} is no YAML: {' '.join(str(error).split())}"
        raise SweepError(msg) from error
    if not isinstance(content, dict):
        msg = f"--config: {path} is no sweep: it needs at least `models` and `data`."
        raise SweepError(msg)
    content = _unshared(content, f"--config: {path}")
    categories = content.get("categories")
    outside = named_outside(content, {change.partition("=")[0] for change in changes})
    if outside:
        raise SweepError(outside)
    for change in changes:
        _change(content, change)
    sweep = sweep_from(content, part=bool(changes))
    if content.get("categories") != categories:  # a mean over others is not the published one
        sweep = replace(sweep, published=[entry for entry in sweep.published if entry.category is not None])
    if changes:
        content["published"] = [asdict(entry) for entry in sweep.published]
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return sweep, text


def _unshared(value: Any, where: str) -> Any:
    """Copy plain data so that what a YAML file writes once and uses twice can be changed in one place.

    Args:
        value: Mappings, lists and what is in them.
        where: What the message starts with.

    Raises:
        SweepError: If it is no plain tree: a key is no text, something contains itself, or it is too large or too deep.
    """
    left = LARGEST_TREE

    def copied(value: Any, above: tuple[int, ...]) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            msg = f"{where} has more than {LARGEST_TREE} values: a sweep has far fewer."
            raise SweepError(msg)
        if not isinstance(value, (dict, list)):
            return value
        if id(value) in above:
            msg = f"{where} has a part that contains itself, by an anchor and its alias: write it out."
            raise SweepError(msg)
        if len(above) >= DEEPEST_TREE:
            msg = f"{where} is nested more than {DEEPEST_TREE} levels deep: a sweep has a few."
            raise SweepError(msg)
        inner = (*above, id(value))
        if isinstance(value, list):
            return [copied(entry, inner) for entry in value]
        for key in value:
            if not isinstance(key, str):
                msg = f"{where} has a key that is no text, {key!r}: put it in quotes if it is a name."
                raise SweepError(msg)
        return {key: copied(entry, inner) for key, entry in value.items()}

    return copied(value, ())


def _loaded(text: str) -> Any:
    """Return what a YAML text says; a ValueError says why it is none."""
    try:
        return yaml.safe_load(text)
    except RecursionError:
        msg = "it is nested too deeply, or contains itself."
        raise ValueError(msg) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _change(content: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    *parents, last = key.split(".")
    if not equals or not all((*parents, last)):
        msg = f"--set {change}: it has to be KEY=VALUE, as in seeds=[0] or data.init_args.root=datasets/tiles."
        raise SweepError(msg)
    place = content
    for name in parents:
        outer, place = place, place.setdefault(name, {})
        if isinstance(place, str):  # a class without arguments
            place = outer[name] = {"class_path": place}
        if not isinstance(place, dict):
            msg = f"--set {change}: {name} has nothing below it."
            raise SweepError(msg)
    try:
        value = _loaded(text)
    except ValueError as error:
        msg = f"--set {change}: the value is no YAML."
        raise SweepError(msg) from error
    place[last] = _unshared(value, f"--set {change}: the value")


def sweep_from(content: Mapping[str, Any], part: bool = False) -> Sweep:
    """Make a sweep from plain data, and check everything that can be checked without its models and images.

    Args:
        content: Keys as the attributes of :class:`Sweep`.
        part: Whether it is a part of a larger sweep, such as one category of all: published values of the rest are
            then left out. Otherwise they are an error. Defaults to ``False``.

    Raises:
        SweepError: If a key is unknown or missing, or a value is wrong.
    """
    plain = _unshared(dict(content), "the sweep")
    models = plain.get("models")
    if not isinstance(models, dict) or not models:
        msg = "models: it has to name at least one model, as in `models: {PatchCore: {class_path: Patchcore}}`."
        raise SweepError(msg)
    plain["models"] = {str(name): _model(f"models.{name}", entry) for name, entry in models.items()}
    if isinstance(plain.get("data"), str):
        plain["data"] = {"class_path": plain["data"]}
    plain["data"] = _filled(DataEntry, plain.get("data"), "data")
    plain["resources"] = _resources(plain.get("resources"), "resources") or Resources()
    published = plain.get("published") or []
    if not isinstance(published, list):
        msg = "published: it has to be a list of values."
        raise SweepError(msg)
    plain["published"] = [_filled(Published, entry, f"published[{k}]") for k, entry in enumerate(published)]
    if plain.get("categories") == "all":
        plain["categories"] = _all_categories(plain["data"])
    for name in ("categories", "ratios", "overlap", "seeds"):
        if name in plain and not isinstance(plain[name], list):
            plain[name] = [plain[name]]
    sweep = _filled(Sweep, plain, "")
    if part:
        sweep = replace(sweep, published=[entry for entry in sweep.published if _is_of(entry, sweep)])
    _check(sweep)
    return sweep


def _all_categories(data: DataEntry) -> list[str]:
    root = data.init_args.get("root") if isinstance(data.init_args, dict) else None
    found = sorted(path.parent.name for path in Path(root).expanduser().glob("*/train")) if root else []
    if not found:
        msg = (
            f"categories: all stands for the folders below data.init_args.root that have a folder train, and {root} "
            "has none: set the root to where the data set is."
        )
        raise SweepError(msg)
    return found


def _is_of(entry: Published, sweep: Sweep) -> bool:
    return (
        entry.ratio in [None, *sweep.ratios]
        and entry.overlap in [None, *sweep.overlap]
        and entry.category in [None, *sweep.categories]
    )


def _model(where: str, entry: Any) -> ModelEntry:
    plain = {"class_path": entry} if isinstance(entry, str) else entry
    if isinstance(plain, dict):
        plain = {**plain, "resources": _resources(plain.get("resources"), f"{where}.resources")}
    return _filled(ModelEntry, plain, where)


def _resources(entry: Any, where: str) -> Resources | None:
    return None if entry is None else _filled(Resources, entry, where)


def _filled(kind: type[T], entry: Any, where: str) -> T:
    """Make a dataclass from a mapping; a key whose value is null has its default."""
    if not isinstance(entry, Mapping):
        msg = f"{where}: it has to have keys such as {fields(kind)[0].name}."  # type: ignore[arg-type]
        raise SweepError(msg)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    dot = f"{where}." if where else ""
    for name in entry:
        if name not in known:
            msg = f"{dot}{name}: there is no such key; known are {', '.join(known)}."
            raise SweepError(msg)
    for name, f in known.items():
        if entry.get(name) is None and f.default is MISSING and f.default_factory is MISSING:
            msg = f"{dot}{name} is missing."
            raise SweepError(msg)
    return kind(**{name: value for name, value in entry.items() if value is not None})


def _check(sweep: Sweep) -> None:
    if not sweep.ratios or not all(_number(r) and 0 <= r <= 1 for r in sweep.ratios):
        msg = f"ratios: they have to be numbers from 0 to 1, got {sweep.ratios}."
        raise SweepError(msg)
    if not sweep.seeds or not all(is_whole(seed, 0) and seed <= LARGEST_SEED for seed in sweep.seeds):
        msg = f"seeds: they have to be whole numbers from 0 to {LARGEST_SEED}, got {sweep.seeds}."
        raise SweepError(msg)
    if not sweep.overlap or not all(isinstance(value, bool) for value in sweep.overlap):
        msg = f"overlap: it has to be false, true or [false, true], got {sweep.overlap}."
        raise SweepError(msg)
    if not all(isinstance(category, str) for category in sweep.categories):
        msg = f"categories: they have to be names, got {sweep.categories}."
        raise SweepError(msg)
    for name in ("ratios", "seeds", "overlap", "categories"):
        values = getattr(sweep, name)
        if len(set(values)) < len(values):
            msg = f"{name}: a value occurs twice in {values}."
            raise SweepError(msg)
    _check_rest(sweep)


def _check_rest(sweep: Sweep) -> None:
    if sweep.categories and "category" in sweep.data.init_args:
        msg = "data.init_args.category and categories say the same thing twice: leave one of them out."
        raise SweepError(msg)
    if not _number(sweep.val_split_ratio) or not 0 <= sweep.val_split_ratio < 1:
        msg = f"val_split_ratio: it has to be from 0 to below 1, got {sweep.val_split_ratio}."
        raise SweepError(msg)
    if not is_whole(sweep.retries, 0):
        msg = f"retries: it has to be a whole number of 0 or more, got {sweep.retries}."
        raise SweepError(msg)
    _check_types("data.", sweep.data)
    _check_types("", sweep, "trainer")
    _check_trainer("trainer", sweep.trainer)
    _check_resources("resources", sweep.resources)
    _check_count("max_epochs", sweep.max_epochs)
    for label, entry in sweep.models.items():
        _check_types(f"models.{label}.", entry)
        _check_trainer(f"models.{label}.trainer", entry.trainer)
        _check_count(f"models.{label}.max_epochs", entry.max_epochs)
        _check_count(f"models.{label}.train_batch_size", entry.train_batch_size)
        _check_resources(f"models.{label}.resources", entry.resources)
        size = entry.image_size
        whole = isinstance(size, list) and all(is_whole(side, 1) for side in size)
        if size is not None and not (whole and len(size) == 2):  # noqa: PLR2004
            msg = f"models.{label}.image_size: it has to be [height, width] in pixels, both above 0, got {size}."
            raise SweepError(msg)
    for k, value in enumerate(sweep.published):
        _check_published(f"published[{k}]", value, sweep)


def _check_types(where: str, entry: Any, *names: str) -> None:
    for name in names or ("class_path", "init_args", "trainer"):
        value = getattr(entry, name, None)
        kind = str if name == "class_path" else dict
        if value is not None and not isinstance(value, kind):
            msg = f"{where}{name}: it has to be {'a name' if kind is str else 'arguments by name'}, got {value!r}."
            raise SweepError(msg)


def _check_trainer(where: str, trainer: Mapping[str, Any]) -> None:
    """Refuse what the sweep sets, and what Lightning would start more processes for: each would run the whole sweep."""
    for name, instead in RESERVED.items():
        if name in trainer:
            msg = f"{where}.{name}: a sweep sets it itself: leave it out; there is {instead}."
            raise SweepError(msg)
    devices, nodes, strategy = trainer.get("devices", 1), trainer.get("num_nodes", 1), trainer.get("strategy", "auto")
    one = devices == "1" or (is_whole(devices, 1) and devices == 1) or (isinstance(devices, list) and len(devices) == 1)
    for name, value, right, allowed in (
        ("devices", devices, one, "1, or a list of one such as [0]"),
        ("num_nodes", nodes, is_whole(nodes, 1) and nodes == 1, "1"),
        ("strategy", strategy, strategy in ("auto", "single_device"), "auto or single_device"),
    ):
        if not right:
            msg = f"{where}.{name}: a cell trains on one device, so it has to be {allowed}, got {value}."
            raise SweepError(msg)


def _check_count(where: str, value: int | None) -> None:
    if value is not None and not is_whole(value, 1):
        msg = f"{where}: it has to be a whole number of at least 1, got {value}."
        raise SweepError(msg)


def _check_resources(where: str, value: Resources | None) -> None:
    if value is None:
        return
    numbers = (value.cpus, value.gpus, value.memory_gib or 0)
    if not all(_number(n) and n >= 0 for n in numbers) or value.cpus == 0:
        msg = f"{where}: cpus has to be above 0, gpus and memory_gib 0 or more."
        raise SweepError(msg)
    if value.gpus > 1 and value.gpus != int(value.gpus):
        msg = f"{where}.gpus: above 1 it has to be a whole number, got {value.gpus}."
        raise SweepError(msg)


def _check_published(where: str, entry: Published, sweep: Sweep) -> None:
    known: dict[str, list[Any]] = {
        "model": list(sweep.models),
        "metric": list(METRICS),
        "ratio": [None, *sweep.ratios],
        "overlap": [None, *sweep.overlap],
        "category": [None, *sweep.categories],
    }
    for name, values in known.items():
        if getattr(entry, name) not in values:
            listed = ", ".join(str(value) for value in values if value is not None)
            msg = f"{where}.{name}: {getattr(entry, name)} is not in this sweep, which has {listed or 'none'}."
            raise SweepError(msg)
    if not _number(entry.value) or not 0 <= entry.value <= 1:
        msg = f"{where}.value: it has to be a fraction from 0 to 1, got {entry.value}."
        raise SweepError(msg)
    for name, values in (("ratio", sweep.ratios), ("overlap", sweep.overlap)):
        if getattr(entry, name) is None and len(values) > 1:
            msg = f"{where}.{name} is missing: the sweep has {', '.join(map(str, values))}."
            raise SweepError(msg)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
