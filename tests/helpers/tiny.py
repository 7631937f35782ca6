# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Data and models small enough to train in seconds."""

import warnings

import torch
from anomalib.engine import Engine
from torch.utils.data import DataLoader

from anomalib_comet.data import ContaminatedDataModule, ProceduralSurfaces

TINY = {
    "backbone": "gabor",
    "image_size": (64, 64),
    "n_scales": 2,
    "coupling_blocks": 2,
    "hidden_units": 32,
    "n_windows": 4,
    "local_coupling_blocks": 2,
    "local_hidden_units": 16,
    "train_windows": 4,
    "train_rotations": "quarter",
}

TINY_SIMPLENET = {
    "backbone": "gabor",
    "layers": ["scale2", "scale3"],
    "image_size": (64, 64),
    "feature_dim": 32,
    "hidden_units": 16,
}

TINY_FUN_AD = {
    "backbone": "gabor",
    "layers": ["scale3", "scale4"],
    "image_size": (64, 64),
    "image_descriptor": "pooled",
    "hidden_units": [32, 16],
    "patch_pool": 3,
    "lr": 1e-3,
}

PUBLISHED_FUN_AD = {
    "patch_pool": 1,
    "feature_scaling": "none",
    "top_share": 0.0,
    "scope": "batch",
    "target": "labels",
    "space": "adapted",
    "bank_rule": "min_max",
    "bank_half": True,
    "neighbour_share": 0.0,
    "exclude": "patch",
    "norm_input": False,
    "image_weight": 0.0,
}


def surfaces(root, sizes=None, **kwargs):
    """A few small images, a quarter of the training set defective; ``sizes`` are other arguments of the surfaces."""
    arguments = {
        "root": root,
        "category": "woven",
        "n_train": 16,
        "n_test_normal": 6,
        "n_test_anomalous": 12,
        "n_val_normal": 4,
        "n_val_anomalous": 4,
        "severity": 1.0,
        "image_size": 72,
        "train_batch_size": 8,
        "eval_batch_size": 8,
        "num_workers": 0,
    }
    return ContaminatedDataModule(ProceduralSurfaces(**{**arguments, **(sizes or {})}), **{"ratio": 0.25, **kwargs})


def engine(root, **kwargs):
    """An engine that writes below ``root`` and draws nothing on the screen."""
    arguments = {"max_epochs": 3, "accelerator": "cpu", "devices": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Engine(default_root_dir=root, **{**arguments, **quiet, **kwargs})


def in_order(root):
    """The same images in the same order in every epoch, for comparisons between runs."""
    datamodule = surfaces(root)
    datamodule.train_dataloader = lambda: DataLoader(
        datamodule.train_data, batch_size=8, shuffle=False, collate_fn=datamodule.train_data.collate_fn
    )
    return datamodule


def train(model, datamodule, root, **kwargs):
    """Train a model and return its engine."""
    torch.manual_seed(0)
    trained_by = engine(root, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained_by.fit(model, datamodule=datamodule)
    return trained_by


def trained(model):
    """The trained parameters, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def identical(first, second):
    """Whether two dictionaries hold the same tensors."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
