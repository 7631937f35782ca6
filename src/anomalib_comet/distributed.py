# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Training in several processes, one a device: what they must have in common, and how they get it.

Lightning's ``ddp`` averages gradients, so that parameters stay equal. What our detectors learn about their training
images beside the parameters (scores, weights, thresholds, banks, pseudo-labels) is made equal here: every process
computes a share of it, and all of them receive everything in the same order. With one process all of this does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from anomalib.models.components import AnomalibModule
    from lightning.pytorch import Trainer

    _Base = AnomalibModule
else:
    _Base = object

T = TypeVar("T")


class Ranks:
    """The processes of a training.

    Every method but :meth:`share` is to be called by all of them, in the same order.

    Args:
        count: Number of processes. Defaults to ``1``.
        rank: Number of this one, from 0. Defaults to ``0``.
        local_rank: Its number on its machine, from 0. Defaults to ``0``.
        node: Number of its machine, from 0. Defaults to ``0``.
    """

    def __init__(self, count: int = 1, rank: int = 0, local_rank: int = 0, node: int = 0) -> None:
        self.count = count
        self.rank = rank
        self.local_rank = local_rank
        self.node = node

    @classmethod
    def of(cls, module: Any) -> Ranks:
        """Return the processes of a Lightning module's trainer; a module without a trainer is alone.

        The trainer is asked, not ``torch.distributed``: after a fit with ``ddp`` the process group stays, and a fit on
        one device may follow in one of the processes.
        """
        return cls.of_trainer(getattr(module, "_trainer", None))

    @classmethod
    def of_trainer(cls, trainer: Any) -> Ranks:
        """Return the processes of a trainer, or of ``None``."""
        count = int(getattr(trainer, "world_size", 1))
        if count == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(count, trainer.global_rank, trainer.local_rank, trainer.node_rank)

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's part of some items: consecutive ones, so that :meth:`gather` restores their order.

        Example:
            >>> Ranks(count=2, rank=0).share([10, 11, 12]), Ranks(count=2, rank=1).share([10, 11, 12])
            ([10, 11], [12])
        """
        size, larger = divmod(len(items), self.count)
        start = self.rank * size + min(self.rank, larger)
        return list(items[start : start + size + (self.rank < larger)])

    def gather(self, items: list[T]) -> list[T]:
        """Return the items of all processes, those of the first one first; tensors are to be on the CPU."""
        if self.count == 1:
            return items
        everything: list[Any] = [None] * self.count
        distributed.all_gather_object(everything, items)
        return list(chain.from_iterable(everything))

    def interleave(self, parts: Iterable[T]) -> Iterator[T]:
        """Yield what the processes produce part by part, so that not everything is in memory at once.

        Args:
            parts: Parts of this process, none of them ``None``; processes may have different numbers of parts.
        """
        if self.count == 1:
            yield from parts
            return
        own = iter(parts)
        while True:
            found = [part for part in self.gather([next(own, None)]) if part is not None]
            if not found:
                return
            yield from found

    def first(self, value: T) -> T:
        """Return the first process's value."""
        return self.gather([value])[0]

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of every number over the processes that have it."""
        if self.count == 1:
            return dict(numbers)
        gathered = self.gather([dict(numbers)])
        names = dict.fromkeys(chain.from_iterable(gathered))
        found = {name: [part[name] for part in gathered if name in part] for name in names}
        return {name: math.fsum(values) / len(values) for name, values in found.items()}

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather([None])

    @torch.no_grad()
    def copy_state(self, module: nn.Module, parameters: bool = True) -> None:
        """Give all processes the first one's parameters and buffers.

        Args:
            module: The module.
            parameters: Whether parameters are copied, or buffers alone. Defaults to ``True``.
        """
        if self.count == 1:
            return
        for tensor in chain(module.parameters() if parameters else (), module.buffers()):
            values = tensor.detach().contiguous()
            distributed.broadcast(values, src=0)
            tensor.copy_(values)


# -------------------------------------------------------------------------------------------------- before training
def refuse_unsupported(trainer: Trainer, name: str) -> None:
    """Refuse a trainer in which processes could not share what training learns about its images.

    Args:
        trainer: The trainer of a fit that is about to start.
        name: Name of the detector, the subject of the message.

    Raises:
        ValueError: If the strategy is another one than a single device or plain ``ddp``.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return
    remedy = "use --trainer.strategy ddp, or one device (--trainer.devices 1)"
    if type(strategy) is not DDPStrategy:
        msg = f"{name} trains on one device or with strategy ddp, not with {type(strategy).__name__}: {remedy}."
        raise ValueError(msg)
    if getattr(strategy, "_start_method", "popen") != "popen":
        msg = (
            f"{name} keeps what it learns about the training images in its process, and those of ddp_spawn, ddp_fork "
            f"and ddp_notebook end with the training: {remedy}."
        )
        raise ValueError(msg)
    if getattr(strategy, "_model_averaging_period", None) is not None:
        msg = f"{name} needs parameters that are equal after every step, which model averaging does not give: {remedy}."
        raise ValueError(msg)
    if getattr(strategy, "_layer_sync", None) is not None:
        msg = f"{name} was never trained with sync_batchnorm on several devices: leave it out."
        raise ValueError(msg)


def set_up_ranks(module: Any, stage: str) -> None:
    """Refuse what does not go in several processes, and give the processes one folder and evaluation without repeats.

    Args:
        module: The Lightning module.
        stage: Lightning's stage.

    Raises:
        ValueError: If the strategy is not supported, or the processes have different images.
    """
    trainer = module.trainer
    if stage == "fit":
        refuse_unsupported(trainer, type(module).__name__)
    ranks = Ranks.of_trainer(trainer)
    if ranks.count == 1:
        return
    share_folder(trainer, ranks)
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        sets = {"validation": "val_data", "test": "test_data"}
        for subset, attribute in sets.items():
            _require_same_images(getattr(getattr(datamodule, attribute, None), "samples", None), subset, ranks)
        evaluate_once(datamodule)


def check_ranks(module: Any) -> None:
    """Refuse processes that could not train in step.

    Args:
        module: The Lightning module.

    Raises:
        ValueError: If the processes have different training images, or different numbers of batches.
    """
    ranks = Ranks.of(module)
    if ranks.count == 1:
        return
    trainer = module.trainer
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    _require_same_images(getattr(dataset, "samples", None), "training", ranks)
    batches = ranks.gather([trainer.num_training_batches])
    if len(set(batches)) > 1:
        msg = (
            f"The processes have {batches} batches an epoch, and would wait for each other: give all the same number, "
            "as Lightning's own sampler does (--trainer.use_distributed_sampler true)."
        )
        raise ValueError(msg)


class InStep(_Base):
    """A mixin for Lightning modules whose processes have to train in step, see :func:`set_up_ranks`.

    Place it before ``AnomalibModule``, behind mixins that learn about images when training starts.
    """

    def setup(self, stage: str) -> None:
        """Refuse a trainer whose processes could not share what is learnt about the training images.

        Args:
            stage (str): Lightning's stage.

        Raises:
            ValueError: If the strategy is another one than a single device or ``ddp``.
        """
        set_up_ranks(self, stage)
        super().setup(stage)

    def on_train_start(self) -> None:
        """Refuse processes that could not train in step."""
        check_ranks(self)
        super().on_train_start()


def _require_same_images(samples: Any, subset: str, ranks: Ranks) -> None:
    paths = [] if samples is None else [str(path) for path in samples["image_path"]]
    digest = hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()
    if len(set(ranks.gather([(len(paths), digest)]))) > 1:
        msg = (
            f"The processes have different {subset} images, as a random split without a seed gives every one another: "
            "give the data module a seed (--data.seed 0), and images the same paths on all machines."
        )
        raise ValueError(msg)


def share_folder(trainer: Trainer, ranks: Ranks) -> None:
    """Let all processes have the first one's folder of the run.

    Every process of anomalib's engine makes a folder of its own (``v0``, ``v1``, ...) and lets the link ``latest``
    point to it. The empty ones are removed, and the link points to the run again.

    Args:
        trainer: The trainer.
        ranks: Its processes.
    """
    own = Path(trainer.default_root_dir)
    shared = Path(ranks.first(str(own)))
    if own != shared:
        latest = own.parent / "latest"
        with contextlib.suppress(OSError):
            pointed_here = latest.is_symlink() and latest.resolve() == own.resolve()
            own.rmdir()  # fails where something is in it
            if pointed_here:
                latest.unlink()
                latest.symlink_to(shared, target_is_directory=True)
        trainer._default_root_dir = str(shared)  # type: ignore[attr-defined]  # noqa: SLF001  # there is no setter
    ranks.barrier()


# ------------------------------------------------------------------------------------------------------ evaluation
class _EachOnce(DistributedSampler):
    """Every image in one process, once. Torch's own sampler repeats some, which then count twice in the metrics."""

    def __init__(self, dataset: Any, ranks: Ranks) -> None:
        super().__init__(dataset, num_replicas=ranks.count, rank=ranks.rank, shuffle=False)
        self.total_size = len(dataset)
        self.num_samples = len(range(ranks.rank, self.total_size, ranks.count))


def evaluate_once(datamodule: Any) -> None:
    """Let a data module's validation and test loaders give every image to one process, once.

    Metrics and thresholds are then those of one process. Where there are fewer images than processes, or the loader is
    no plain one, Lightning's sampler is left to do it.

    Args:
        datamodule: The data module.
    """
    for name in ("val_dataloader", "test_dataloader"):
        loader = getattr(datamodule, name, None)
        if loader is not None and not getattr(loader, "gives_each_once", False):
            setattr(datamodule, name, _each_once(loader, datamodule))


def _each_once(make_loader: Callable[[], Any], datamodule: Any) -> Callable[[], Any]:
    @functools.wraps(make_loader)
    def loader() -> Any:
        made = make_loader()
        ranks = Ranks.of_trainer(datamodule.trainer)  # asked now: the next trainer may have one device
        plain = type(made) is DataLoader and type(made.sampler) is SequentialSampler and made.batch_size is not None
        if ranks.count == 1 or not plain or len(made.dataset) < ranks.count:
            return made
        return DataLoader(
            made.dataset,
            batch_size=made.batch_size,
            sampler=_EachOnce(made.dataset, ranks),
            num_workers=made.num_workers,
            collate_fn=made.collate_fn,
            pin_memory=made.pin_memory,
            drop_last=made.drop_last,
            timeout=made.timeout,
            worker_init_fn=made.worker_init_fn,
            multiprocessing_context=made.multiprocessing_context,
            prefetch_factor=made.prefetch_factor,
            persistent_workers=made.persistent_workers,
        )

    loader.gives_each_once = True  # type: ignore[attr-defined]
    return loader
