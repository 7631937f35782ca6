# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The wrapped data module: built from a configuration, refused if it cannot work, split reproducibly."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anomalib.data
import numpy as np
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.datamodules.base.video import AnomalibVideoDataModule
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeAlias

    from anomalib.data.utils import TestSplitMode

    Wrappable: TypeAlias = AnomalibDataModule | dict[str, Any]
else:
    # The command line reads annotations at run time. With "or a dict" in this one, a misspelt argument of the wrapped
    # data module would turn the whole of it into a dict, and the message would be about that.
    Wrappable = AnomalibDataModule

SPLIT_SEED = 0
"""Seed of every random choice that the wrapped data module makes while it splits its images.

It does not depend on the seed of the draw, so that runs with several seeds share their normal images.
"""


@dataclass
class Splits:
    """What the wrapped data module serves, and the images that it found before it split them.

    Args:
        train (AnomalibDataset): Training set.
        test (AnomalibDataset): The set that the wrapped test loader serves.
        val (AnomalibDataset | None): Validation set, if there is one.
        found (list[AnomalibDataset]): Test and validation sets as read from disk, or, where the data module left
            anomalies out of its own training split (``anomaly_pool``), these: what may be drawn.
        temporary_folders (list[Path]): Folders with synthetic images, to be removed by whoever uses the splits.
    """

    train: AnomalibDataset
    test: AnomalibDataset
    val: AnomalibDataset | None
    found: list[AnomalibDataset]
    temporary_folders: list[Path] = field(default_factory=list)


def build(config: Mapping[str, Any]) -> AnomalibDataModule:
    """Make a data module from its configuration.

    Args:
        config (Mapping[str, Any]): ``class_path`` (a short name such as ``MVTecAD``, or a dotted path) and
            ``init_args``, as in a configuration file.

    Returns:
        AnomalibDataModule: The data module.

    Raises:
        ValueError: If the configuration does not describe a data module.
    """
    plain = _plain(config)
    unknown = sorted(set(plain) - {"class_path", "init_args"})
    if not isinstance(plain.get("class_path"), str) or unknown:
        msg = (
            "datamodule as a dict needs a 'class_path' and may have 'init_args', for instance "
            "{'class_path': 'MVTecAD', 'init_args': {'category': 'bottle'}}; "
            f"got the keys {sorted(plain)}."
        )
        raise ValueError(msg)
    datamodule_class = _class_named(plain["class_path"])
    # jsonargparse checks names and types, and builds nested classes such as augmentations.
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(datamodule_class, "init_args", fail_untyped=False)
    try:
        parsed = parser.parse_object({"init_args": plain.get("init_args") or {}})
    except Exception as error:
        # The class of this error differs between versions of jsonargparse; what it says is what the user needs.
        msg = f"The wrapped {datamodule_class.__name__} cannot be built: {error}"
        raise ValueError(msg) from error
    datamodule: AnomalibDataModule = parser.instantiate_classes(parsed).init_args
    return datamodule


def _class_named(class_path: str) -> type[AnomalibDataModule]:
    """Find a data module by its short name (anomalib's, or any imported one) or its dotted path."""
    module_name, _, name = class_path.rpartition(".")
    found = None
    if module_name:
        try:
            found = getattr(importlib.import_module(module_name), name, None)
        except ImportError:
            found = None
    else:
        found = getattr(anomalib.data, name, None) or _subclasses(AnomalibDataModule).get(name)
    if not isinstance(found, type) or not issubclass(found, AnomalibDataModule):
        msg = (
            f"{class_path!r} is no anomalib data module; use a name such as 'MVTecAD' or 'Folder', or the dotted path "
            "of a data module that can be imported."
        )
        raise ValueError(msg)  # noqa: TRY004 - the name is wrong, whatever it stands for
    return found


def _subclasses(parent: type) -> dict[str, type]:
    """All imported subclasses by name."""
    children: list[type] = type.__subclasses__(parent)
    found: dict[str, type] = {}
    for child in children:
        found |= {child.__name__: child, **_subclasses(child)}
    return found


def _plain(value: Any) -> Any:
    """Turn nested mappings and sequences of a configuration library into dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value


def check_wrappable(datamodule: object) -> AnomalibDataModule:
    """Refuse what cannot be contaminated.

    Args:
        datamodule (object): What is to be wrapped.

    Returns:
        AnomalibDataModule: The same object.

    Raises:
        TypeError: If it is not an anomalib data module.
        ValueError: If it serves video clips.
    """
    if not isinstance(datamodule, AnomalibDataModule):
        msg = (
            "datamodule must be an anomalib data module or a dict with class_path and init_args, "
            f"got {type(datamodule).__name__}."
        )
        raise TypeError(msg)
    if isinstance(datamodule, AnomalibVideoDataModule):
        msg = (
            f"{type(datamodule).__name__} serves video clips, whose frames cannot be moved one by one from test to "
            "training; wrap an image data module."
        )
        raise ValueError(msg)  # noqa: TRY004 - it is a data module, only one of the wrong kind
    return datamodule


@contextmanager
def fixed_random_state(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's CPU generators, and put them back afterwards.

    Args:
        seed (int): Seed of all three generators.

    Yields:
        None: Control, while the generators are seeded.
    """
    with isolate_rng(include_cuda=False):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - pandas and anomalib draw from the global generator
        # torch.manual_seed would reseed the accelerators too, which isolate_rng was asked to leave alone.
        torch.default_generator.manual_seed(seed)
        yield


def split_reproducibly(datamodule: AnomalibDataModule, test_split_mode: TestSplitMode | None = None) -> Splits:
    """Split the images of a data module the same way in every process.

    With no seed of its own a data module splits differently in each process: training images of the ``fit`` process
    then turn up in the test set of the ``test`` process. The data module itself is left as it was; the work is done on
    a copy of it.

    Args:
        datamodule (AnomalibDataModule): The data module.
        test_split_mode (TestSplitMode | None): Replaces the data module's own mode. Defaults to ``None``.

    Returns:
        Splits: Its data sets.
    """
    inner = copy.copy(datamodule)
    inner._is_setup = False  # noqa: SLF001 - a data module that was trained on would keep its random split
    if test_split_mode is not None:
        inner.test_split_mode = test_split_mode
    with fixed_random_state(SPLIT_SEED):
        if type(inner).setup is AnomalibDataModule.setup:
            inner._setup(None)  # noqa: SLF001
            found = _distinct([inner.test_data, getattr(inner, "val_data", None), _served_test_set(inner)])
            inner._create_test_split()  # noqa: SLF001
            inner._create_val_split()  # noqa: SLF001
        else:
            inner.setup()
            found = _distinct([inner.test_data, getattr(inner, "val_data", None), _served_test_set(inner)])
    pool = getattr(inner, "anomaly_pool", None)
    if isinstance(pool, AnomalibDataset):
        found = [pool]
    splits = Splits(
        train=inner.train_data,
        test=_served_test_set(inner),
        val=getattr(inner, "val_data", None),
        found=[dataset for dataset in found if not isinstance(dataset, SyntheticAnomalyDataset)],
    )
    for dataset in _distinct([splits.test, splits.val]):
        if isinstance(dataset, SyntheticAnomalyDataset):
            # The data set removes its images when it is deleted, and so does each of its copies and each spawned
            # worker's; here the images have one owner.
            dataset._cleanup = False  # noqa: SLF001
            splits.temporary_folders.append(dataset.root)
    return splits


def _served_test_set(datamodule: AnomalibDataModule) -> AnomalibDataset:
    """Data set behind the test loader, which for MVTec AD 2 is not ``test_data``."""
    if type(datamodule).test_dataloader is not AnomalibDataModule.test_dataloader:
        loader = datamodule.test_dataloader()
        if isinstance(loader, DataLoader) and isinstance(loader.dataset, AnomalibDataset):
            return loader.dataset
    return datamodule.test_data


def _distinct(datasets: Sequence[AnomalibDataset | None]) -> list[AnomalibDataset]:
    """Leave out missing data sets and repetitions of the same object."""
    present = [dataset for dataset in datasets if dataset is not None]
    return [dataset for place, dataset in enumerate(present) if all(dataset is not other for other in present[:place])]
