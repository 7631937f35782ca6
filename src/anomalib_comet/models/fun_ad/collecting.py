# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The features of all training images in a store, computed by all processes of a training together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .feature_store import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from anomalib_comet.distributed import Ranks


logger = logging.getLogger(__name__)


class _Opened(NamedTuple):
    """What the first process of a machine has opened."""

    node: int
    place: str
    folder: str
    is_complete: bool


def collected(
    images: Sequence[str],
    n_values: int,
    key: str,
    compute: Callable[[list[int] | None], Iterator[tuple[list[str], torch.Tensor]]],
    ranks: Ranks,
    **store: Any,
) -> FeatureStore:
    """Return the complete store of the features of images: an earlier run's, or a new one.

    Of several processes every one computes the features of a share of the images. A store in memory is every process's
    own; a file is written by the first process of each machine, and the others read it.

    Args:
        images: Paths of the training images in the order of the training set; one may occur twice.
        n_values: Number of values of an image.
        key: Digest of what the features depend on.
        compute: Yields paths and features, shape ``(B, n_values)``, of the images at some positions, or of all in
            order where these are ``None``.
        ranks: The processes.
        **store: Further arguments of :class:`.feature_store.FeatureStore`.

    Returns:
        The store, by path in ascending order. The caller closes it.
    """
    paths = sorted(set(images))
    leads = ranks.local_rank == 0
    own = FeatureStore(paths, n_values, key, **store) if leads else None
    opened = ranks.gather([_describe(own, ranks)] if own is not None else [])
    here = next(found for found in opened if found.node == ranks.node)
    if own is None and here.place == "memory":
        own = FeatureStore(paths, n_values, key, place="memory")
    try:
        if all(found.is_complete for found in opened):
            logger.info("Features of %d training images were taken from %s.", len(paths), here.folder)
        else:
            positions = None if ranks.count == 1 else ranks.share(range(len(images)))
            for found, records in ranks.interleave(compute(positions)):
                if own is not None and not own.is_complete:
                    own.write(own.rows(found), records)
            if own is not None and not own.is_complete:
                own.finish()
        ranks.barrier()  # the file has its name now
        if own is None:
            own = FeatureStore(paths, n_values, key, place=here.folder)
        ranks.barrier()  # all have opened it
    except BaseException:
        if own is not None:
            own.close()
        raise
    return own


def _describe(store: FeatureStore, ranks: Ranks) -> _Opened:
    folder = "" if store.path is None else str(Path(store.path).resolve().parent)
    return _Opened(ranks.node, store.place, folder, store.is_complete)
