# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Exact nearest neighbours: through faiss on GPUs, through torch everywhere; both on request."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

ENGINES = ("auto", "faiss", "torch")
CHUNK_VALUES = 2**24
"""Distances that the torch search holds at a time: 64 MiB."""

FILTERED = 8
"""Up to so many excluded bank vectors a query are filtered out of a longer list of faiss; beyond, every group of
queries searches in the bank without its own part."""

BLOCK = 2**16
"""Queries of one search under faiss, so that its lists stay small."""


def nearest(
    query: torch.Tensor,
    bank: torch.Tensor,
    k: int = 1,
    exclude: tuple[torch.Tensor, torch.Tensor] | None = None,
    engine: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared Euclidean distances to the k nearest bank vectors, and where in the bank these are.

    A query's own entry in the bank is excluded by its index, never by a small distance: in low precision the distance
    to oneself is far from zero, and a duplicate's is zero with good reason.

    Args:
        query: Shape ``(Q, D)``.
        bank: Shape ``(M, D)``.
        k: Number of neighbours. Defaults to ``1``.
        exclude: Group of every query, shape ``(Q,)``, and of every bank vector, shape ``(M,)``, integers: the bank
            vectors of a query's own group do not count. Groups are numbers of vectors to exclude the vector itself, or
            of images to exclude everything of its own image. ``None`` excludes nothing. Defaults to ``None``.
        engine: ``"faiss"`` (its exact search, that of ``IndexFlatL2`` without the index's copy of the bank, on the GPU
            where the installed faiss has GPUs and there is one), ``"torch"``, or ``"auto"``: faiss wherever it has a
            GPU, else torch, whose matrix products were more than twice as fast on the CPU that we measured on
            (docs/fun_ad.md). Both find by matrix products; the distances themselves are then computed from
            differences, so that they are equal, and that of a duplicate is exactly zero. Defaults to ``"auto"``.

    Returns:
        Distances of shape ``(Q, k)``, ascending, in single precision, and indices of shape ``(Q, k)``, on the device
        of ``query``. Infinity and -1 where the bank has fewer than k vectors left.

    Raises:
        ValueError: If the engine is unknown, the shapes do not fit, k is below 1 or a value is not finite.

    Example:
        >>> bank = torch.tensor([[0.0], [1.0], [5.0]])
        >>> nearest(bank, bank, exclude=(torch.arange(3), torch.arange(3)))[0].flatten()
        tensor([ 1.,  1., 16.])
    """
    if engine not in ENGINES:
        msg = f"engine must be one of {ENGINES}, got '{engine}'."
        raise ValueError(msg)
    if query.ndim != 2 or bank.ndim != 2 or query.shape[1] != bank.shape[1] or k < 1:  # noqa: PLR2004
        msg = f"query and bank must be (Q, D) and (M, D) and k >= 1, got {query.shape}, {bank.shape} and k = {k}."
        raise ValueError(msg)
    query, bank = query.detach().float(), bank.detach().float().to(query.device)
    if not (torch.isfinite(query).all() and torch.isfinite(bank).all()):
        msg = "Features are not finite (NaN or infinite): no neighbours can be found among them."
        raise ValueError(msg)
    if exclude is not None:
        exclude = (exclude[0].to(query.device), exclude[1].to(query.device))
    # Matrix products lose what tells far vectors apart; around their mean they are near.
    middle = bank.mean(0) if len(bank) else 0.0
    search = _nearest_torch
    if (engine == "faiss" or (engine == "auto" and faiss_gpus() > 0)) and len(bank) and len(query):
        search = _nearest_faiss
    found = search(query - middle, bank - middle, k, exclude)[1]
    return _exact(query, bank, found), found


def kth_nearest_image(query: torch.Tensor, bank: torch.Tensor, k: int, own: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of vectors to the k-th nearest image other than their own (ours).

    The distance to an image is that to its nearest vector. A defect that occurs in a few training images has near
    neighbours in these; with k larger than their number, it is compared with a sound image all the same.

    Args:
        query: Shape ``(Q, D)``.
        bank: Vectors of every image, shape ``(N, m, D)``.
        k: Rank of the image, from 1; at most the number of other images is used.
        own: Position of every query's own image in the bank, shape ``(Q,)``; -1 for none.

    Returns:
        Shape ``(Q,)``; zeros where there is no other image.

    Example:
        >>> bank = torch.tensor([[[0.0], [9.0]], [[2.0], [8.0]], [[5.0], [6.0]]])
        >>> kth_nearest_image(torch.tensor([[0.0]]), bank, k=2, own=torch.tensor([0]))
        tensor([25.])
    """
    query, flat = query.detach().float(), bank.detach().float().to(query.device).reshape(-1, bank.shape[2])
    own = own.to(query.device)
    # Matrix products lose what tells far vectors apart; around their mean they are near.
    middle = flat.mean(0) if len(flat) else 0.0
    query, flat = query - middle, flat - middle
    size = max(1, CHUNK_VALUES // max(1, len(flat)))
    bank = flat.view(bank.shape)
    parts = [_kth_of_chunk(q, bank, k, o) for q, o in zip(query.split(size), own.split(size), strict=True)]
    return torch.cat(parts) if parts else query.new_zeros(0)


def _kth_of_chunk(query: torch.Tensor, bank: torch.Tensor, k: int, own: torch.Tensor) -> torch.Tensor:
    """The same for as many queries as give :data:`CHUNK_VALUES` distances; these are let go of before the next ones."""
    n_images, n_vectors, width = bank.shape
    flat = bank.view(-1, width)
    itself = own[:, None] == torch.arange(n_images, device=query.device)
    # Of the query alone: who has no image in the bank has one more to be compared with.
    rank = (n_images - itself.sum(1)).clamp(max=k)
    if not len(query) or not int(rank.max()):
        return torch.zeros(len(query), device=query.device)
    distances = torch.addmm(flat.square().sum(1)[None], query, flat.T, alpha=-2.0).view(-1, n_images, n_vectors)
    of_images = distances.amin(2).masked_fill_(itself, torch.inf)
    ordered = of_images.topk(int(rank.max()), dim=1, largest=False, sorted=True)[1]
    image = ordered.gather(1, (rank - 1).clamp(min=0)[:, None])[:, 0]
    vector = image * n_vectors + distances[torch.arange(len(query), device=query.device), image].argmin(1)
    # From differences, so that the distance of a duplicate is exactly zero.
    return (query - flat[vector]).square().sum(1).masked_fill_(rank == 0, 0.0)


def mutual_pairs(neighbour: torch.Tensor) -> torch.Tensor:
    """Return the pairs (u, v) of which each is the other's nearest neighbour.

    Args:
        neighbour: Index of everybody's nearest neighbour, shape ``(N,)``; -1 for nobody.

    Returns:
        Shape ``(n_pairs, 2)``, every pair once, u < v.

    Example:
        >>> mutual_pairs(torch.tensor([1, 0, 1, -1]))
        tensor([[0, 1]])
    """
    own = torch.arange(len(neighbour), device=neighbour.device)
    mutual = (neighbour >= 0) & (neighbour > own) & (neighbour[neighbour.clamp(min=0)] == own)
    return torch.stack([own[mutual], neighbour[mutual]], dim=1)


def faiss_gpus() -> int:
    """Return the number of GPUs that the installed faiss can use."""
    return _gpus_of_faiss() if torch.cuda.is_available() else 0


@functools.cache
def _gpus_of_faiss() -> int:
    import faiss  # noqa: PLC0415  # a second of import that inference does not need

    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def _largest_group(groups: torch.Tensor) -> int:
    return int(groups.unique(return_counts=True)[1].max()) if len(groups) else 0


@functools.cache
def _gpu_resources() -> Any:
    import faiss  # noqa: PLC0415

    return faiss.StandardGpuResources()


@contextlib.contextmanager
def _same_threads() -> Iterator[None]:
    """Let faiss use as many threads as torch, not all cores: who has limited torch means it."""
    import faiss  # noqa: PLC0415

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _nearest_faiss(
    query: torch.Tensor,
    bank: torch.Tensor,
    k: int,
    exclude: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Search through faiss, whose search knows no exclusion of many vectors at full speed."""
    excluded = 0 if exclude is None else _largest_group(exclude[1])
    with _same_threads():
        if exclude is None or not excluded:
            return _search(query, bank, k)
        if excluded <= FILTERED:
            distances, indices = _search(query, bank, k + excluded)
            own = (exclude[1][indices] == exclude[0][:, None]) & (indices >= 0)
            return _smallest(distances.masked_fill(own, torch.inf), indices, k)
        return _search_by_group(query, bank, k, exclude)


def _search_by_group(
    query: torch.Tensor,
    bank: torch.Tensor,
    k: int,
    exclude: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort the bank by group: what a group may be compared with are the slices before and after its own."""
    groups, order = exclude[1].sort(stable=True)
    bank = bank[order]
    below, above = (torch.searchsorted(groups, exclude[0].contiguous(), right=right) for right in (False, True))
    # Queries that have nothing of their own in the bank search all of it together.
    below = torch.where(below == above, -1, below)
    distances = query.new_full((len(query), k), torch.inf)
    indices = torch.full((len(query), k), -1, dtype=torch.long, device=query.device)
    for start in below.unique().tolist():
        members = (below == start).nonzero().flatten()
        first, last = (0, 0) if start < 0 else (start, int(above[members[0]]))
        found = [
            (*_search(query[members], part, k), offset) for part, offset in ((bank[:first], 0), (bank[last:], last))
        ]
        positions = torch.cat([torch.where(i < 0, i, i + offset) for _, i, offset in found], dim=1)
        nearest_of_both = _smallest(torch.cat([d for d, _, _ in found], dim=1), positions, k)
        distances[members] = nearest_of_both[0]
        where = nearest_of_both[1]
        indices[members] = torch.where(where < 0, where, order[where.clamp(min=0)])
    return distances, indices


def _search(query: torch.Tensor, bank: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances and indices of the k nearest by faiss, ascending; infinity and -1 where there are no more."""
    import faiss  # noqa: PLC0415

    wanted = min(k, len(bank))
    distances = query.new_full((len(query), k), torch.inf)
    indices = torch.full((len(query), k), -1, dtype=torch.long, device=query.device)
    if not wanted:
        return distances, indices
    vectors = bank.cpu().contiguous().numpy()
    gpu = faiss_gpus() > 0
    for start in range(0, len(query), BLOCK):
        part = query[start : start + BLOCK].cpu().contiguous().numpy()
        found = faiss.knn_gpu(_gpu_resources(), part, vectors, wanted) if gpu else faiss.knn(part, vectors, wanted)
        distances[start : start + BLOCK, :wanted] = torch.from_numpy(found[0])
        indices[start : start + BLOCK, :wanted] = torch.from_numpy(found[1])
    return distances, indices


def _nearest_torch(
    query: torch.Tensor,
    bank: torch.Tensor,
    k: int,
    exclude: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by matrix products, as many queries at a time as give :data:`CHUNK_VALUES` distances."""
    size = max(1, CHUNK_VALUES // max(1, len(bank)))
    squares = bank.square().sum(1)
    parts = []
    for start in range(0, len(query), size):
        part = query[start : start + size]
        distances = torch.addmm(squares[None], part, bank.T, alpha=-2.0)
        if exclude is not None:
            own = exclude[1][None] == exclude[0][start : start + size, None]
            distances = distances.masked_fill_(own, torch.inf)
        parts.append(_smallest(distances, None, k))
    if not parts:
        return query.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long, device=query.device)
    return torch.cat([d for d, _ in parts]), torch.cat([i for _, i in parts])


def _exact(query: torch.Tensor, bank: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the squared distances to bank vectors by their positions, infinity for -1."""
    distances = query.new_full(where.shape, torch.inf)
    if not len(bank) or not query.shape[1]:
        return distances if query.shape[1] else distances.masked_fill(where >= 0, 0.0)
    size = max(1, CHUNK_VALUES // query.shape[1])
    for start in range(0, len(query), size):
        part = slice(start, start + size)
        for column in range(where.shape[1]):
            found = where[part, column]
            squares = (query[part] - bank[found.clamp(min=0)]).square().sum(1)
            distances[part, column] = squares.masked_fill(found < 0, torch.inf)
    return distances


def _smallest(distances: torch.Tensor, indices: torch.Tensor | None, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k smallest of every row and their indices; infinity and -1 where there are no more."""
    if k == 1 and distances.shape[1]:
        smallest, columns = distances.min(dim=1, keepdim=True)
    else:
        smallest, columns = distances.topk(min(k, distances.shape[1]), dim=1, largest=False, sorted=True)
    where = columns if indices is None else indices.gather(1, columns)
    where = where.masked_fill(torch.isinf(smallest), -1)
    lacking = k - smallest.shape[1]
    if lacking:
        smallest = torch.nn.functional.pad(smallest, (0, lacking), value=torch.inf)
        where = torch.nn.functional.pad(where, (0, lacking), value=-1)
    return smallest, where
