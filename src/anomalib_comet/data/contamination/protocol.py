# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Arithmetic of the contamination protocol: how many anomalies, which ones, and in which order.

Everything here is a pure function of names and numbers; no image, data frame or random generator is involved. Images
are named by a *key*, their path relative to the data set's folder, so that a draw is the same on every machine.

Terms:
    - ratio ``r``: injected anomalies divided by normal training images.
    - share ``eps``: injected anomalies divided by all training images, ``r / (1 + r)``.
    - pool: the anomalies set aside for the largest ratio of a sweep; they leave the test set for every ratio.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class NotEnoughAnomaliesError(ValueError):
    """The data set holds fewer anomalies than the ratio asks for.

    Args:
        needed (int): Number of anomalies that the ratio asks for, labelled ones included.
        available (int): Number of anomalies that may be drawn.
        largest_ratio (float): Largest ratio that ``available`` allows, rounded down to four decimals.
        message (str): The sentence shown to the user.
    """

    def __init__(self, needed: int, available: int, largest_ratio: float, message: str) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.largest_ratio = largest_ratio

    def __reduce__(self) -> tuple[type[NotEnoughAnomaliesError], tuple[int, int, float, str]]:
        """Rebuild from all four arguments, so that the error survives the way back from a worker process."""
        return type(self), (self.needed, self.available, self.largest_ratio, str(self))


@dataclass(frozen=True)
class Anomaly:
    """One drawn anomaly.

    Args:
        key (str): Path relative to the data set's folder, with forward slashes.
        defect_type (str): Name of its defect type.
        copy (int): 0 for the image itself, ``k >= 1`` for its ``k``-th slightly rotated and shifted copy.
    """

    key: str
    defect_type: str
    copy: int = 0


@dataclass(frozen=True)
class Draw:
    """Which anomalies enter the training set, and which ones are only set aside.

    Args:
        pool (tuple[Anomaly, ...]): Anomalies for the largest ratio, in the order of the draw.
        hidden (int): The first ``hidden`` entries of ``pool`` are injected as if they were normal.
        labelled (tuple[Anomaly, ...]): Anomalies that enter training with their labels, in the order of the draw.
    """

    pool: tuple[Anomaly, ...]
    hidden: int
    labelled: tuple[Anomaly, ...] = ()

    @property
    def injected(self) -> tuple[Anomaly, ...]:
        """Anomalies that enter the training set with hidden labels."""
        return self.pool[: self.hidden]

    @property
    def withdrawn_keys(self) -> frozenset[str]:
        """Keys of all images that leave the test set, whatever the ratio of this run."""
        return frozenset(anomaly.key for anomaly in (*self.pool, *self.labelled))


def exact(number: float) -> Fraction:
    """Read a float as the decimal number it was written as.

    ``0.29 * 100`` is ``28.999999999999996`` in binary floating point; a protocol that rounds down must not lose an
    image to that.

    Args:
        number (float): Any finite number.

    Returns:
        Fraction: The decimal shown by ``repr(number)``, exactly.
    """
    return Fraction(repr(float(number)))


def check_fraction(name: str, value: float, *, zero: bool = True, one: bool = True) -> float:
    """Check that an argument is a number in the unit interval.

    Args:
        name (str): Name of the argument, for the message.
        value (float): Its value.
        zero (bool): Whether 0 itself is allowed. Defaults to ``True``.
        one (bool): Whether 1 itself is allowed. Defaults to ``True``.

    Returns:
        float: The value as a float.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If ``value`` is not a number in the interval, NaN included.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"{name} must be a number, got {value!r}."
        raise TypeError(msg)
    number = float(value)
    # NaN fails every comparison, so the test is written for the values that are right.
    inside = 0 < number < 1 or (zero and number == 0) or (one and number == 1)
    if not inside:
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        msg = f"{name} must lie in {interval} (0.1 stands for 10 %), got {value!r}."
        raise ValueError(msg)
    return number


def check_count(name: str, value: int) -> int:
    """Check that an argument is a whole number of at least zero.

    Args:
        name (str): Name of the argument, for the message.
        value (int): Its value.

    Returns:
        int: The value.

    Raises:
        TypeError: If ``value`` is not a whole number.
        ValueError: If ``value`` is negative.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be a whole number, got {value!r}."
        raise TypeError(msg)
    if value < 0:
        msg = f"{name} must be 0 or more, got {value}."
        raise ValueError(msg)
    return value


def injected_count(ratio: float, normal_count: int) -> int:
    """Number of anomalies to inject, ``floor(ratio * normal_count)``.

    Args:
        ratio (float): Injected anomalies per normal training image, in [0, 1].
        normal_count (int): Number of normal training images.

    Returns:
        int: Number of anomalies.
    """
    return math.floor(exact(ratio) * normal_count)


def contamination_share(ratio: float) -> float:
    """Share of anomalies in the training set for a ratio, ``r / (1 + r)``.

    Args:
        ratio (float): Injected anomalies per normal training image, in [0, 1].

    Returns:
        float: Injected anomalies per training image, in [0, 0.5].
    """
    return ratio / (1 + ratio)


def largest_ratio(available: int, normal_count: int) -> float:
    """Largest ratio that a number of anomalies allows, rounded down to four decimals.

    Args:
        available (int): Number of anomalies that may be injected.
        normal_count (int): Number of normal training images, at least 1.

    Returns:
        float: A ratio in [0, 1] for which :func:`injected_count` is at most ``available``.
    """
    return min(available * 10_000 // normal_count / 10_000, 1.0)


def seeded_order(keys: Iterable[str], seed: int) -> list[str]:
    """Shuffle keys by hashing, the same way on every machine and in every library version.

    An image's place depends on its own key and the seed only: adding images to the data set inserts them into the
    order but does not reshuffle the others.

    Args:
        keys (Iterable[str]): Distinct keys, in any order.
        seed (int): Seed of the order.

    Returns:
        list[str]: The keys in shuffled order.
    """
    return sorted(
        keys, key=lambda key: (hashlib.sha256(f"{seed}\0{key}".encode(errors="surrogateescape")).digest(), key)
    )


def stratified_order(defect_types: Mapping[str, str], seed: int) -> list[str]:
    """Order anomalies such that *every* prefix is stratified by defect type.

    Rounding by largest remainder would stratify each size well but not nest: a type may lose a seat when the total
    grows (the Alabama paradox). This is the quota method of apportionment (Balinski and Young, 1975) instead. It hands
    out one place at a time and keeps every type strictly within one image of its proportional share after each place,
    so a smaller draw is always the beginning of a larger one.

    Args:
        defect_types (Mapping[str, str]): Defect type of each anomaly, by key.
        seed (int): Seed of the order within a type and of the order among types with equal claims.

    Returns:
        list[str]: All keys. For each ``n``, the first ``n`` of them hold ``n * N_t / N`` images of type ``t``, up or
            down by less than 1, where ``N_t`` of ``N`` images are of type ``t``.
    """
    members: dict[str, list[str]] = {}
    for key in seeded_order(defect_types, seed):
        members.setdefault(defect_types[key], []).append(key)
    types = seeded_order(members, seed)
    total = len(defect_types)
    taken = dict.fromkeys(types, 0)
    # A type waits until one more image keeps it below its share of the next place, rounded up. Among the types that
    # are ready the one goes first whose share, rounded down, will soonest ask for one more image.
    ready = [(1 / len(members[name]), rank, name) for rank, name in enumerate(types)]
    waiting: list[tuple[int, int, str]] = []
    heapq.heapify(ready)
    order: list[str] = []
    for place in range(1, total + 1):
        while waiting and waiting[0][0] <= place:
            _, rank, name = heapq.heappop(waiting)
            heapq.heappush(ready, ((taken[name] + 1) / len(members[name]), rank, name))
        _, rank, name = heapq.heappop(ready)
        order.append(members[name][taken[name]])
        taken[name] += 1
        if taken[name] < len(members[name]):
            heapq.heappush(waiting, (taken[name] * total // len(members[name]) + 1, rank, name))
    return order


def spread_positions(count: int, ratio: float) -> list[bool]:
    """Mark a share of the positions of a sequence, evenly spread, in a way that does not depend on its length.

    Args:
        count (int): Length of the sequence.
        ratio (float): Share of positions to mark, in [0, 1].

    Returns:
        list[bool]: One flag for each position; among the first ``n`` of them ``floor(n * ratio)`` are true.
    """
    share = exact(ratio)
    return [math.floor((position + 1) * share) > math.floor(position * share) for position in range(count)]


def few_of_each(defect_types: Mapping[str, str], shots: int, seed: int) -> list[str]:
    """Return the same number of anomalies of each defect type, by a seed.

    Args:
        defect_types (Mapping[str, str]): Defect type of each anomaly, by key.
        shots (int): Number of anomalies of each type.
        seed (int): Seed of the order within a type: those of fewer shots are among those of more.

    Returns:
        list[str]: Keys, type by type in alphabetical order.

    Raises:
        ValueError: If a type has fewer anomalies.
    """
    if not shots:
        return []
    members: dict[str, list[str]] = {}
    for key in seeded_order(defect_types, seed):
        members.setdefault(defect_types[key], []).append(key)
    few = {name: len(keys) for name, keys in members.items() if len(keys) < shots}
    if few:
        name = min(few, key=lambda name: (few[name], name))
        msg = (
            f"shots={shots} is more than there are anomalies of type '{name}' ({few[name]}); use at most that many, or "
            "name the type in held_out."
        )
        raise ValueError(msg)
    return [key for name in sorted(members) for key in members[name][:shots]]


def plan_draw(
    defect_types: Mapping[str, str],
    normal_count: int,
    *,
    ratio: float,
    max_ratio: float | None = None,
    seed: int = 0,
    labelled: int = 0,
    shots: int = 0,
    max_draw: float = 1.0,
    resample: bool = False,
) -> Draw:
    """Draw anomalies for one run of a sweep over contamination ratios.

    Draws of one data set, seed, ``labelled``, ``shots`` and ``max_draw`` are nested: the anomalies of a smaller ratio
    are the first ones of a larger ratio. The pool depends on ``max_ratio`` but not on ``ratio``, and neither do the
    labelled anomalies.

    Args:
        defect_types (Mapping[str, str]): Defect type of each anomaly of the data set, by key.
        normal_count (int): Number of normal training images, at least 1.
        ratio (float): Injected anomalies per normal training image, in [0, 1].
        max_ratio (float | None): Ratio that the pool is sized for, at least ``ratio``. Defaults to ``None``, which
            stands for ``ratio``.
        seed (int): Seed of the draw. Defaults to ``0``.
        labelled (int): Number of anomalies drawn for use with labels, besides the injected ones. Defaults to ``0``.
        shots (int): Number of anomalies of each defect type drawn for use with labels, instead of ``labelled``. Those
            of fewer shots are among those of more. Defaults to ``0``.
        max_draw (float): Largest share of the data set's anomalies that may be drawn, in (0, 1]. Defaults to ``1.0``.
        resample (bool): Whether copies make up for missing anomalies. Labelled anomalies are never copies.
            Defaults to ``False``.

    Returns:
        Draw: The anomalies, in the order of the draw.

    Raises:
        NotEnoughAnomaliesError: If there are too few anomalies.
        ValueError: If an argument is out of range, or a positive ratio stands for less than one image.
    """
    ratio = check_fraction("ratio", ratio)
    max_ratio = ratio if max_ratio is None else check_fraction("max_ratio", max_ratio)
    max_draw = check_fraction("max_draw", max_draw, zero=False)
    few = few_of_each(defect_types, check_count("shots", shots), seed)
    labelled = check_count("labelled", labelled) or len(few)
    if max_ratio < ratio:
        msg = (
            f"max_ratio={max_ratio:g} is smaller than ratio={ratio:g}; it has to be the largest ratio of the sweep, "
            f"so set it to {ratio:g} or more."
        )
        raise ValueError(msg)
    if normal_count < 1:
        msg = "The wrapped data module has no normal training images, so there is nothing to contaminate."
        raise ValueError(msg)
    hidden = injected_count(ratio, normal_count)
    pool_size = injected_count(max_ratio, normal_count)
    if ratio > 0 and hidden == 0:
        msg = (
            f"ratio={ratio:g} of {normal_count} normal training images is less than one anomaly; "
            f"use 0 or at least {math.ceil(10_000 / normal_count) / 10_000:g}."
        )
        raise ValueError(msg)

    available = math.floor(exact(max_draw) * len(defect_types))
    distinct = max(available - labelled, 0)
    enough = labelled <= available and (pool_size <= distinct or (resample and distinct > 0))
    if not enough:
        needed = pool_size + labelled
        raise NotEnoughAnomaliesError(
            needed,
            available,
            largest_ratio(distinct, normal_count),
            _not_enough_message(
                available=available,
                total=len(defect_types),
                needed=needed,
                labelled=labelled,
                shots=shots,
                types=len(set(defect_types.values())),
                normal_count=normal_count,
                max_ratio=max_ratio,
                resample=resample,
            ),
        )

    chosen = set(few)
    order = few + [key for key in stratified_order(defect_types, seed) if key not in chosen]
    with_labels = [Anomaly(key, defect_types[key]) for key in order[:labelled]]
    # The rest is ordered anew, so that the injected anomalies are stratified on their own, not only together with
    # the labelled ones.
    rest = stratified_order({key: defect_types[key] for key in order[labelled:]}, seed)[:distinct]
    pool = [
        Anomaly(rest[place % distinct], defect_types[rest[place % distinct]], copy=place // distinct)
        for place in range(pool_size)
    ]
    return Draw(tuple(pool), hidden, tuple(with_labels))


def _not_enough_message(
    *,
    available: int,
    total: int,
    needed: int,
    labelled: int,
    shots: int,
    types: int,
    normal_count: int,
    max_ratio: float,
    resample: bool,
) -> str:
    """Say how many anomalies there are, how many are needed, and what would work."""
    there_are = f"{available} anomalies" if available == total else f"{available} of {total} anomalies (max_draw)"
    wanted = f"{needed - labelled} for ratio {max_ratio:g} of {normal_count} normal training images"
    wanted += f" and {labelled} with labels" if labelled else ""
    wanted += f", {shots} shots of {types} types" if shots else ""
    if labelled > available and shots:
        most = available // types
        remedy = f"shots can be at most {most}, or " if most else ""
        remedy += f"set max_draw to at least {math.ceil(labelled * 10_000 / total) / 10_000:g}"
    elif labelled > available:
        remedy = f"labelled can be at most {available}"
    else:
        remedy = f"the largest possible ratio is {largest_ratio(available - labelled, normal_count):g}"
        remedy += "" if resample or labelled == available else ", or set resample_dir to re-sample with small changes"
    return f"Not enough anomalies: {there_are} may be drawn, {needed} are needed ({wanted}); {remedy}."


def counts_by_type(anomalies: Sequence[Anomaly]) -> dict[str, int]:
    """Count anomalies by defect type.

    Args:
        anomalies (Sequence[Anomaly]): Any anomalies.

    Returns:
        dict[str, int]: Number of anomalies of each type, sorted by name.
    """
    counts: dict[str, int] = {}
    for anomaly in anomalies:
        counts[anomaly.defect_type] = counts.get(anomaly.defect_type, 0) + 1
    return dict(sorted(counts.items()))
