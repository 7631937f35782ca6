# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Data module that moves a few labelled anomalies of another one into its training set."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # the command line reads the types of arguments

from .contamination import ContaminatedDataModule
from .contamination.wrapped import Wrappable  # noqa: TC001  # the command line reads the types of arguments


class FewShotDataModule(ContaminatedDataModule):
    """Any anomalib image data module, with a few labelled anomalies in its training set.

    It is a :class:`ContaminatedDataModule` that injects nothing unless told so: by ``seed``, ``shots`` anomalies of
    each defect type enter the training set with label, mask and defect type, and leave the test set. Nothing of a
    ``held_out`` type enters training or validation. With a ``ratio`` above zero, hidden anomalies, labelled normal,
    come on top of the labelled ones. Each ``fit`` writes the draw to ``contamination.json`` in the run's folder.

    Models that read labels use them (``MultidirectionalMeta``, anomalib's SuperSimpleNet and UniNet); others would take
    labelled anomalies for normal images.

    Args:
        datamodule (AnomalibDataModule | dict[str, Any]): Data module to draw from, or its ``class_path`` and
            ``init_args`` as a dict.
        shots (int): Number of anomalies of each defect type that enter training with their labels. Defaults to ``10``.
        held_out (list[str] | None): Defect types that appear in the test set only. Defaults to ``None``.
        ratio (float): Hidden anomalies per normal training image, in [0, 1]. Defaults to ``0.0``.
        seed (int): Seed of the draw. Defaults to ``0``.
        max_ratio (float | None): Largest ratio of a sweep, in [``ratio``, 1]. Defaults to ``None``, ``ratio``.
        max_draw (float): Largest share of the anomalies that may be drawn, in (0, 1]. Defaults to ``1.0``.
        val_split_mode (str): ``inner`` for the wrapped data module's validation set without the held-out types, or
            ``from_train`` for a part of the normal training images. Defaults to ``inner``.
        val_split_ratio (float): Share of the training set that ``from_train`` holds out, in (0, 1).
            Defaults to ``0.1``.
        test_split_mode (str): ``inner`` for the wrapped data module's own mode, or one of anomalib's modes.
            Defaults to ``inner``.
        manifest (str | Path | None): A ``contamination.json`` whose draw is repeated exactly, in place of the
            arguments above it except the splits. Defaults to ``None``.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range, or ``datamodule`` cannot be wrapped; in ``setup``, if a defect type
            has fewer anomalies than ``shots`` or ``held_out`` names one that is not there.
        FileNotFoundError: If ``manifest`` does not exist.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib_comet.data import FewShotDataModule
        >>> FewShotDataModule(MVTecAD(category="hazelnut"), shots=5, held_out=["crack"]).name
        'MVTecAD_r0_shots5_without_crack_seed0'
    """

    def __init__(
        self,
        datamodule: Wrappable,
        shots: int = 10,
        held_out: list[str] | None = None,
        ratio: float = 0.0,
        seed: int = 0,
        max_ratio: float | None = None,
        max_draw: float = 1.0,
        val_split_mode: str = "inner",
        val_split_ratio: float = 0.1,
        test_split_mode: str = "inner",
        manifest: str | Path | None = None,
    ) -> None:
        super().__init__(
            datamodule,
            ratio=ratio,
            seed=seed,
            max_ratio=max_ratio,
            shots=shots,
            held_out=held_out,
            max_draw=max_draw,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            test_split_mode=test_split_mode,
            manifest=manifest,
        )
