# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Data module that contaminates the training set of another one."""

from __future__ import annotations

import logging
import math
import shutil
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.depth import AnomalibDepthDataset
from anomalib.data.utils import LabelName, TestSplitMode, ValSplitMode
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_comet.data.folders import explanation
from anomalib_comet.data.images import check_stage
from anomalib_comet.files import whole_file

from . import frames, protocol
from .manifest import Manifest, check_against, checked_held_out, checked_settings, read_manifest, to_json
from .sets import images_of_types, rows_of, task_of, warn_about_sets, with_samples, without_images
from .wrapped import SPLIT_SEED, Splits, Wrappable, build, check_wrappable, split_reproducibly

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import EVAL_DATALOADERS

logger = logging.getLogger(__name__)

MANIFEST_NAME = "contamination.json"


class ContaminatedDataModule(AnomalibDataModule):
    """Any anomalib image data module, with anomalies injected into its training set as if they were normal.

    Anomalies are drawn from the wrapped data module's test and validation images, stratified by defect type and by a
    seed, and added to its normal training images. Where it has anomalies that it left out of its own training split
    (``KolektorSDD2(clean=True)``), they are drawn from these instead, and the test set stays whole. They look normal to
    a model: their label and mask are those of a normal image. Their true state is kept in :attr:`contamination`, for
    the evaluation of an audit only. Batch sizes, workers and augmentations are those of the wrapped data module.

    Each ``fit`` writes the draw to ``contamination.json`` in the run's folder.

    Args:
        datamodule (AnomalibDataModule | dict[str, Any]): Data module to contaminate, or its ``class_path`` and
            ``init_args`` as a dict. Video data modules are refused.
        ratio (float): Injected anomalies per normal training image, in [0, 1]. 0.1 means one anomaly for every ten
            normal images, which is a share of 9.1 % of the training set.
            Defaults to ``0.1``.
        overlap (bool): Whether the drawn images stay in the test set as well. By default they leave it.
            Defaults to ``False``.
        seed (int): Seed of the draw. Independent of any other seed of the run.
            Defaults to ``0``.
        max_ratio (float | None): Largest ratio of a sweep, in [``ratio``, 1]. The anomalies for this ratio leave the
            test set for every ratio, so that all runs of the sweep share one test set. ``None`` stands for ``ratio``.
            Defaults to ``None``.
        labelled (int): Number of anomalies that enter the training set *with* label and mask, for few-shot methods.
            They are drawn besides the injected ones and leave the test set too. Defaults to ``0``.
        shots (int): The same for each defect type, instead of ``labelled``. Defaults to ``0``.
        held_out (list[str] | None): Defect types of which nothing is drawn, labelled or not: they appear in the test
            set only. Where the wrapped data module has some of them in its validation set, these are left out.
            Defaults to ``None``.
        max_draw (float): Largest share of the data set's anomalies that may be drawn, in (0, 1]. The rest is sure to
            stay in the test set. Defaults to ``1.0``.
        resample_dir (str | Path | None): If there are too few anomalies, make up for them with copies of the drawn
            ones, rotated by up to 10 degrees and shifted by up to 5 %, which are written to this folder. ``None``
            makes it an error. Defaults to ``None``.
        val_split_mode (str): ``inner`` for the wrapped data module's validation set, or ``from_train`` for a part of
            the contaminated training set, which needs no test labels. Defaults to ``inner``.
        val_split_ratio (float): Share of the training set that ``from_train`` holds out, in (0, 1).
            Defaults to ``0.1``.
        test_split_mode (str): ``inner`` for the wrapped data module's own mode, or one of anomalib's modes (``none``,
            ``from_dir``, ``synthetic``) to replace it with. Defaults to ``inner``.
        manifest (str | Path | None): A ``contamination.json`` whose draw is repeated exactly. It replaces ``ratio``,
            ``overlap``, ``seed``, ``max_ratio``, ``labelled``, ``shots``, ``held_out`` and ``max_draw``.
            Defaults to ``None``.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range, or ``datamodule`` cannot be contaminated.
        FileNotFoundError: If ``manifest`` does not exist.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib_comet.data.contamination import ContaminatedDataModule
        >>> datamodule = ContaminatedDataModule(MVTecAD(category="hazelnut"), ratio=0.05, max_ratio=0.1)
        >>> datamodule.name
        'MVTecAD_r0.05_of0.1_seed0'
    """

    checks_images = True
    """Tells a guard of the training that broken images are found here, see :mod:`anomalib_comet.data.images`."""

    def __init__(
        self,
        datamodule: Wrappable,
        ratio: float = 0.1,
        overlap: bool = False,
        seed: int = 0,
        max_ratio: float | None = None,
        labelled: int = 0,
        shots: int = 0,
        held_out: list[str] | None = None,
        max_draw: float = 1.0,
        resample_dir: str | Path | None = None,
        val_split_mode: str = "inner",
        val_split_ratio: float = 0.1,
        test_split_mode: str = "inner",
        manifest: str | Path | None = None,
    ) -> None:
        # The configuration libraries of anomalib's pipelines hand over mappings of their own, which are no dicts.
        inner = check_wrappable(build(datamodule) if isinstance(datamodule, Mapping) else datamodule)
        if isinstance(inner, ContaminatedDataModule):
            msg = "A ContaminatedDataModule cannot wrap another one; raise its ratio instead."
            raise ValueError(msg)  # noqa: TRY004 - it is a data module, only one of the wrong kind
        if val_split_mode not in {"inner", "from_train"}:
            msg = f"val_split_mode must be 'inner' or 'from_train', got {val_split_mode!r}."
            raise ValueError(msg)
        self.hold_out = val_split_mode == "from_train"
        self.hold_out_ratio = protocol.check_fraction("val_split_ratio", val_split_ratio, zero=False, one=False)
        self.replaced_test_split_mode = _test_split_mode(test_split_mode)

        # A manifest is read now and not in setup: it fixes the name of the run's folder.
        self.manifest_path = None if manifest is None else Path(manifest)
        self._recorded = None if self.manifest_path is None else read_manifest(self.manifest_path)
        self.settings = (
            self._recorded.settings
            if self._recorded
            else checked_settings(
                ratio=ratio,
                max_ratio=max_ratio,
                overlap=overlap,
                seed=seed,
                labelled=labelled,
                shots=shots,
                held_out=held_out or (),
                max_draw=max_draw,
            )
        )
        wanted = None if held_out is None else checked_held_out(held_out)
        if self._recorded and wanted is not None and wanted != self.settings.held_out:
            msg = (
                f"{self.manifest_path} holds out {list(self.settings.held_out)}, not {list(wanted)}: leave held_out or "
                "manifest away."
            )
            raise ValueError(msg)
        self.resample_dir = None if resample_dir is None else Path(resample_dir)
        self.datamodule = inner

        super().__init__(
            train_batch_size=inner.train_batch_size,
            eval_batch_size=inner.eval_batch_size,
            num_workers=inner.num_workers,
            train_augmentations=inner.train_augmentations,
            val_augmentations=inner.val_augmentations,
            test_augmentations=inner.test_augmentations,
            val_split_mode=ValSplitMode.FROM_TRAIN if self.hold_out else inner.val_split_mode,
            val_split_ratio=self.hold_out_ratio if self.hold_out else inner.val_split_ratio,
            test_split_mode=self.replaced_test_split_mode or inner.test_split_mode,
            test_split_ratio=inner.test_split_ratio,
            seed=self.settings.seed,
        )
        self.external_collate_fn = inner.external_collate_fn
        self._draw: protocol.Draw | None = None
        self._normal_count = 0

    @property
    def name(self) -> str:  # type: ignore[override]  # a property in anomalib too
        """Name of the wrapped data module and of all settings of the draw, so that runs stay apart."""
        settings = self.settings
        parts = [f"{self.datamodule.name}_r{settings.ratio:g}"]
        if settings.max_ratio != settings.ratio:
            parts.append(f"of{settings.max_ratio:g}")
        if settings.labelled:
            parts.append(f"labelled{settings.labelled}")
        if settings.shots:
            parts.append(f"shots{settings.shots}")
        if settings.held_out:
            parts.append("without_" + "_".join(settings.held_out))
        if settings.overlap:
            parts.append("overlap")
        parts.append(f"seed{settings.seed}")
        return "_".join(parts)

    @property
    def category(self) -> str:
        """Category of the wrapped data module."""
        return self.datamodule.category

    @category.setter
    def category(self, category: str) -> None:
        """Set the category of the wrapped data module.

        Args:
            category (str): Name of the category.
        """
        self.datamodule.category = category

    @property
    def draw(self) -> protocol.Draw:
        """The anomalies that were drawn.

        Raises:
            RuntimeError: If :meth:`setup` was not called yet.
        """
        if self._draw is None:
            msg = "Nothing is drawn yet; call setup() first."
            raise RuntimeError(msg)
        return self._draw

    @property
    def contamination(self) -> pd.DataFrame:
        """True state of every training image, held-out validation images included.

        It is for the evaluation of an audit only: whatever trains or sets thresholds must not look at it.

        Returns:
            pd.DataFrame: One row for each image with the columns ``image_path``, ``injected`` (an anomaly that is
                labelled normal), ``natural`` (one of these that was not drawn, but is part of the data set's own
                training split), ``labelled`` (an anomaly that is labelled so), ``defect_type`` (empty for normal
                images), ``mask_path`` (true mask, empty if there is none), ``source_path`` (differs from
                ``image_path`` for re-sampled copies) and ``split`` (``train`` or ``val``).

        Raises:
            RuntimeError: If :meth:`setup` was not called yet.
        """
        parts = [self.train_data, self.val_data] if self.draw and self.hold_out else [self.train_data]
        return frames.truth_of(pd.concat([part.samples for part in parts], ignore_index=True))

    def prepare_data(self) -> None:
        """Let the wrapped data module download and convert its images."""
        self.datamodule.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Draw the anomalies and build all sets; once a trainer fits, check the images and write the manifest.

        Args:
            stage (str | None): Stage of the run. All stages build all sets. Defaults to ``None``.

        Raises:
            UnreadableImagesError: If images that a trainer's stage needs cannot be read.
        """
        super().setup(stage)
        trainer = self.trainer
        if trainer is not None:
            check_stage(self, stage)
        if stage == TrainerFn.FITTING and trainer is not None and trainer.is_global_zero:
            self.write_manifest(Path(trainer.default_root_dir) / MANIFEST_NAME)

    def write_manifest(self, path: str | Path) -> Path:
        """Write which images were drawn, and how, as JSON.

        Args:
            path (str | Path): File to write; its folder is made if missing.

        Returns:
            Path: The file.

        Raises:
            RuntimeError: If :meth:`setup` was not called yet.
        """
        path = Path(path)
        manifest = Manifest(self.settings, self._normal_count, self.draw)
        with whole_file(path) as file:
            file.write(to_json(manifest, self._description()).encode())
        return path

    def _description(self) -> dict[str, Any]:
        """Facts for the reader of a manifest."""
        draw = self.draw
        truth = self.contamination
        in_training = truth[truth["split"] == "train"]
        labels = self.test_data.samples["label_index"]
        return {
            "datamodule": self.datamodule.name,
            "category": self.category,
            "share": round(draw.hidden / (draw.hidden + self._normal_count), 6),
            "injected_count": draw.hidden,
            "injected_by_defect_type": protocol.counts_by_type(draw.injected),
            "training_images": len(in_training),
            "training_images_injected": int((in_training["injected"] & ~in_training["natural"]).sum()),
            "training_images_anomalous_by_nature": int(in_training["natural"].sum()),
            "validation": "from_train" if self.hold_out else f"inner ({self.datamodule.val_split_mode.value})",
            "test_images_normal": int((labels == LabelName.NORMAL).sum()),
            "test_images_anomalous": int((labels == LabelName.ABNORMAL).sum()),
        }

    def _setup(self, _stage: str | None = None) -> None:
        """Build all sets. anomalib calls this again for each string stage, which must not change anything."""
        if self._draw is not None:
            return
        splits = self._split()
        train_frame = frames.cleaned(splits.train.samples)
        normals = frames.normal(train_frame)
        if len(normals) < len(train_frame):
            logger.warning(
                "%d training images of %s are not labelled normal and are left out, so that the ratio is true.",
                len(train_frame) - len(normals),
                self.datamodule.name,
            )
        candidates, task = self._candidates(splits)
        folder = frames.common_folder([*normals["image_path"], *candidates["image_path"]]) if len(normals) else Path()
        candidates.index = pd.Index([frames.key_of(path, folder) for path in candidates["image_path"]])
        defect_types = dict(zip(candidates.index, candidates[frames.TRUE_DEFECT_TYPE], strict=True))
        draw = self._drawn(defect_types, len(normals), folder)

        attrs: dict[Any, Any] = {**splits.train.samples.attrs, **task_of(draw, candidates, task)}
        rows = frames.normal_training_rows(normals)
        drawn = partial(
            rows_of,
            candidates=candidates,
            has_depth=isinstance(splits.train, AnomalibDepthDataset),
            resample_dir=self.resample_dir,
            seed=self.settings.seed,
        )
        injected = drawn(draw.injected)
        hidden = frames.training_rows(rows, injected, hide=True) if len(injected) else rows.iloc[:0]
        with_labels = drawn(draw.labelled)
        labelled = frames.training_rows(rows, with_labels, hide=False) if len(with_labels) else rows.iloc[:0]

        known = dict(zip(candidates["image_path"], candidates[frames.TRUE_DEFECT_TYPE], strict=True))
        unseen = images_of_types(splits, self.settings.held_out, known)
        keys = {anomaly.key for anomaly in draw.labelled} if self.settings.overlap else draw.withdrawn_keys
        withdrawn = set(candidates.loc[sorted(keys), "image_path"])
        if self.hold_out:
            rows, hidden, held_out = self._held_out(rows, hidden, folder)
            self.val_data = with_samples(splits.train, frames.joined(held_out, attrs))
        elif splits.val is not None:
            self.val_data = without_images(splits.val, withdrawn | unseen, task)
        self.test_data = without_images(splits.test, withdrawn, task)
        if splits.val is not None:
            spared = frames.cleaned(splits.val.samples)
            # Under from_train, images that the wrapped data module has taken from the test set return to it.
            unused = self.hold_out and self.datamodule.val_split_mode == ValSplitMode.FROM_TEST
            self._move_to_test(spared, set(spared["image_path"]) - withdrawn if unused else unseen)
        self.train_data = with_samples(splits.train, frames.joined([rows, hidden, labelled], attrs))
        self._draw, self._normal_count = draw, len(normals)
        warn_about_sets(self, splits)

    def _split(self) -> Splits:
        """The images of the wrapped data module, split by itself; what fails in it is said in one sentence."""
        try:
            splits = split_reproducibly(self.datamodule, self.replaced_test_split_mode)
        except Exception as error:
            meant = explanation(error, self.datamodule)
            if meant is None:
                raise
            raise ValueError(meant) from error
        for folder in splits.temporary_folders:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return splits

    def _held_out(
        self, normals: pd.DataFrame, hidden: pd.DataFrame, folder: Path
    ) -> tuple[pd.DataFrame, pd.DataFrame, list[pd.DataFrame]]:
        """Split normal and injected rows into those that stay in training, and the held-out ones of both kinds.

        The normal images held out are the same ones for every ratio and seed of the draw, and those of the injected
        images are nested like the draw itself.
        """
        keys = [frames.key_of(path, folder) for path in normals["image_path"]]
        order = protocol.seeded_order(keys, SPLIT_SEED)
        marked = dict(zip(order, protocol.spread_positions(len(order), self.hold_out_ratio), strict=True))
        if not any(marked.values()):
            msg = (
                f"val_split_ratio={self.hold_out_ratio:g} of {len(keys)} normal training images is less than one "
                f"image; use at least {math.ceil(10_000 / len(keys)) / 10_000:g}."
            )
            raise ValueError(msg)
        held_normals = np.array([marked[key] for key in keys])
        held_hidden = np.array(protocol.spread_positions(len(hidden), self.hold_out_ratio), dtype=bool)
        held_out = [part.assign(split="val") for part in (normals[held_normals], hidden[held_hidden])]
        return normals[~held_normals], hidden[~held_hidden], held_out

    def _candidates(self, splits: Splits) -> tuple[pd.DataFrame, TaskType | None]:
        """All anomalies that may be drawn, and the task that their masks allow (``None`` without anomalies)."""
        found = [frames.anomalous(frames.cleaned(dataset.samples)) for dataset in splits.found]
        anomalies = pd.concat([frame for frame in found if len(frame)]) if any(map(len, found)) else pd.DataFrame()
        if anomalies.empty:
            if self._recorded is not None or self.settings.max_ratio or self.settings.labelled or self.settings.shots:
                msg = (
                    f"{self.datamodule.name} has no anomalous test or validation images to draw from (synthetic "
                    "anomalies do not count); give it some, for instance with Folder's abnormal_dir, or use ratio 0."
                )
                raise ValueError(msg)
            return pd.DataFrame({"image_path": [], frames.TRUE_DEFECT_TYPE: []}), None
        anomalies = anomalies.drop_duplicates(subset="image_path").sort_values("image_path", ignore_index=True)
        anomalies[frames.TRUE_DEFECT_TYPE] = frames.defect_types_of(anomalies, splits.found)
        masks = any(map(frames.has_mask, anomalies["mask_path"]))
        # anomalib calls BMAD's mask-less categories segmentation, and then fails to read masks that are not there.
        return anomalies, TaskType.SEGMENTATION if masks else TaskType.CLASSIFICATION

    def _drawn(self, defect_types: Mapping[str, str], normal_count: int, folder: Path) -> protocol.Draw:
        """Draw anew, or take the manifest's draw."""
        settings = self.settings
        unknown = sorted(set(settings.held_out) - set(defect_types.values()))
        if unknown:
            msg = (
                f"held_out names {unknown}, but {self.datamodule.name} has the defect types "
                f"{sorted(set(defect_types.values()))}."
            )
            raise ValueError(msg)
        if self._recorded is not None and self.manifest_path is not None:
            return check_against(self._recorded, defect_types, normal_count, folder, self.manifest_path)
        return protocol.plan_draw(
            {key: name for key, name in defect_types.items() if name not in settings.held_out},
            normal_count,
            ratio=settings.ratio,
            max_ratio=settings.max_ratio,
            seed=settings.seed,
            labelled=settings.labelled,
            shots=settings.shots,
            max_draw=settings.max_draw,
            resample=self.resample_dir is not None,
        )

    def _move_to_test(self, validation: pd.DataFrame, wanted: set[str]) -> None:
        """Test on some of the images that the wrapped data module would validate on."""
        tested = self.test_data.samples
        moved = validation[validation["image_path"].isin(wanted - set(tested["image_path"]))]
        if len(moved):
            both = pd.concat([tested, moved.assign(split="test")], ignore_index=True)
            both.attrs.update(tested.attrs)
            self.test_data = with_samples(self.test_data, both)

    def _create_test_split(self) -> None:
        """Nothing to do: the wrapped data module has split its images before the injection."""

    def _create_val_split(self) -> None:
        """Nothing to do: the wrapped data module has split its images before the injection."""

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Loader of the validation set; an empty list if the wrapped data module has none."""
        return super().val_dataloader() if hasattr(self, "val_data") else []


def _test_split_mode(mode: str) -> TestSplitMode | None:
    """Mode that replaces the wrapped data module's own one, if any."""
    if mode == "inner":
        return None
    try:
        return TestSplitMode(mode)
    except ValueError as error:
        choices = ", ".join(repr(choice.value) for choice in TestSplitMode)
        msg = f"test_split_mode must be 'inner' or one of {choices}, got {mode!r}."
        raise ValueError(msg) from error
