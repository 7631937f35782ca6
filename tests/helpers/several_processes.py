# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Trainings in two processes on the CPU, and the same in one.

As a script it trains every case with ``strategy="ddp"``. Lightning starts the script again as the second process, and
each writes what it has in the end to ``<case>_<rank>.pt`` in the folder that is given.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from anomalib_comet.confident_meta_learning.strategy import CHECKPOINT_KEY
from anomalib_comet.models import CoMetDifferNet, CoMetSimpleNet, FunAd
from anomalib_comet.models.frozen_features import DRAWS_KEY
from anomalib_comet.models.fun_ad.lightning_model import STATE_KEY
from anomalib_comet.post_processing import LabelFreePostProcessor
from helpers.tiny import PUBLISHED_FUN_AD, TINY, TINY_FUN_AD, TINY_SIMPLENET, engine, surfaces

PROCESSES = 2
BATCH = 4
COMET = {"warmup_epochs": 1, "kappa": 0.0, "audit": False, "visualizer": False}


def _differnet():
    """Without local windows no step draws random numbers, and tasks of a batch of eight are those of two of four."""
    whitened = {"feature_scaling": "whiten", "identity_start": True, "pooling": "mean_std", "n_windows": 0}
    cross_fitted = {
        "cross_fit_folds": 2,
        "cross_fit_epochs": 0,
        "weight_power": 4.0,
        "task_size": BATCH,
        "lambda0": 0.1,
    }
    post_processor = LabelFreePostProcessor()
    return CoMetDifferNet(**{**TINY, **whitened, **cross_fitted, **COMET}, lr=1e-2, post_processor=post_processor)


def _simplenet():
    """With batch norm, noise that every process draws for itself, and short trainings without a fold."""
    return CoMetSimpleNet(**TINY_SIMPLENET, **COMET, cross_fit_folds=2, cross_fit_epochs=1)


def _patch_weights():
    return CoMetSimpleNet(**TINY_SIMPLENET, **COMET, weight_level="patch", train_patches=60)


def _fun_ad():
    return FunAd(**TINY_FUN_AD, visualizer=False, feature_store="temporary")


def _published_fun_ad():
    return FunAd(**{**TINY_FUN_AD, **PUBLISHED_FUN_AD, "scope": "epoch"}, visualizer=False)


LEARNT = (CHECKPOINT_KEY, STATE_KEY, DRAWS_KEY)
"""Tables of weights, thresholds, task losses, history; distances, bank, scores; the number of draws."""

CASES = {
    "differnet": (_differnet, 2),
    "simplenet": (_simplenet, 1),
    "patch_weights": (_patch_weights, 2),
    "fun_ad": (_fun_ad, 2),
    "published_fun_ad": (_published_fun_ad, 1),
}
"""What is built, and for how many epochs it is trained."""


def images(root, **kwargs):
    """Odd numbers of images for training, validation and testing, so that processes cannot share them evenly."""
    batches = {"train_batch_size": BATCH, "eval_batch_size": BATCH}
    sizes = {"n_train": 19, "n_val_normal": 5, "n_test_anomalous": 13, **batches}
    return surfaces(root, sizes, **kwargs)


class AsSharded(Sampler):
    """The order of images in which batches of all processes, one after the other, are batches of one process."""

    def __init__(self, dataset):
        self.shards = [DistributedSampler(dataset, PROCESSES, rank, seed=0) for rank in range(PROCESSES)]
        self.epoch = 0

    def __iter__(self):
        orders = []
        for shard in self.shards:
            shard.set_epoch(self.epoch)
            orders.append(list(shard))
        self.epoch += 1
        for start in range(0, len(orders[0]), BATCH):
            for order in orders:
                yield from order[start : start + BATCH]

    def __len__(self):
        return sum(len(shard) for shard in self.shards)


def images_for_one(root):
    """The same images for one process, whose batches are those of all processes together."""
    datamodule = images(root)
    datamodule.train_dataloader = lambda: DataLoader(
        datamodule.train_data,
        batch_size=BATCH * PROCESSES,
        sampler=AsSharded(datamodule.train_data),
        collate_fn=datamodule.train_data.collate_fn,
    )
    return datamodule


def fit(case, datamodule, folder, ckpt_path=None, **kwargs):
    """Train a case; return the model, its engine, and all that it knows in the end as tensors and plain data."""
    build, epochs = CASES[case]
    torch.manual_seed(0)
    model = build()
    # FunAd's steps divide by the size of a gradient: in single precision, a tiny one would be rounding alone.
    precision = "64-true" if case == "fun_ad" else "32-true"
    trained_by = engine(folder, **{"max_epochs": epochs, "precision": precision, **kwargs})
    trained_by.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    known = {"state": {name: value.clone() for name, value in model.state_dict().items()}}
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    known["learnt"] = {key: checkpoint[key] for key in LEARNT if key in checkpoint}
    if isinstance(model, FunAd):
        known["scaled_distances"] = model.bank.scaled_distances(model.scope, model.label_kappa)
    return model, trained_by, known


def main():
    """Train all cases in this process of two."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    two = {"strategy": "ddp", "devices": PROCESSES}
    for case in CASES:
        # Folders of its own from the second training on: both processes make theirs at the same time.
        folder = out / case / ("" if case == "differnet" else str(rank))
        model, trained_by, known = fit(case, images(data), folder, **two)
        known["folder"] = str(trained_by.trainer.default_root_dir)
        if case in {"differnet", "fun_ad"}:
            known["test"] = trained_by.test(model, datamodule=images(data), verbose=False)[0]
        torch.save(known, out / f"{case}_{rank}.pt")

    interrupted = fit("differnet", images(data), out / "first" / str(rank), max_epochs=1, **two)[1]
    path = interrupted.trainer.checkpoint_callback.best_model_path
    resumed = fit("differnet", images(data), out / "second" / str(rank), ckpt_path=path, **two)[2]
    torch.save(resumed, out / f"resumed_{rank}.pt")

    try:
        fit("fun_ad", images(data, seed=rank), out / "different" / str(rank), **two)
    except ValueError as error:
        (out / f"refusal_{rank}.txt").write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
