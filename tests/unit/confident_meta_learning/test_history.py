# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The history of a training: rows, files, and what a checkpoint keeps."""

import math

import pandas as pd

from anomalib_comet.confident_meta_learning.history import TrainingHistory, figure_of


def test_an_epoch_is_the_mean_of_its_steps():
    history = TrainingHistory()
    history.add({"loss_detector": 1.0, "inner_improvement": 0.5})
    history.add({"loss_detector": 3.0})
    history.close_epoch(0)
    history.close_epoch(1)  # nothing was noted
    assert history.rows == [{"epoch": 0, "loss_detector": 2.0, "inner_improvement": 0.5}]


def test_a_repeated_epoch_replaces_its_row_and_those_after_it():
    history = TrainingHistory()
    for epoch in range(3):
        history.add({"loss_detector": float(epoch)})
        history.close_epoch(epoch)
    history.add({"loss_detector": 9.0})
    history.close_epoch(1)
    assert [(row["epoch"], row["loss_detector"]) for row in history.rows] == [(0, 0.0), (1, 9.0)]


def test_late_values_join_the_finished_epoch_or_the_unfinished_one():
    history = TrainingHistory()
    history.add({"loss_detector": 1.0})
    history.close_epoch(0)
    history.amend({"weight_mean": 0.9})
    assert history.rows[-1]["weight_mean"] == 0.9
    history.add({"loss_detector": 2.0})
    history.amend({"weight_mean": 0.8})
    history.close_epoch(1)
    assert history.rows[-1] == {"epoch": 1, "loss_detector": 2.0, "weight_mean": 0.8}


def test_files_hold_every_epoch_and_panels_show_what_was_measured(tmp_path):
    history = TrainingHistory()
    for epoch in range(3):
        history.add({"loss_detector": 10.0 ** (3 - 2 * epoch), "epoch_extra": 1.0})
        if epoch:  # the first weights come after the warm-up
            history.add({"weight_mean": 0.9, "weight_min": 0.1})
        history.close_epoch(epoch)
    history.write(tmp_path / "run" / "history.csv", tmp_path / "run" / "history.png")
    table = pd.read_csv(tmp_path / "run" / "history.csv")
    assert table.columns.tolist() == ["epoch", "loss_detector", "weight_min", "weight_mean", "epoch_extra"]
    assert math.isnan(table.weight_mean[0])
    assert (tmp_path / "run" / "history.png").read_bytes()[:4] == b"\x89PNG"
    panels = [ax for ax in figure_of(history.frame()).axes if ax.axison]
    assert [ax.get_title() for ax in panels] == ["loss per part", "confidence weights"]
    assert panels[0].get_yscale() == "log"
    restored = TrainingHistory()
    restored.restore(history.state())
    assert restored.rows == history.rows


def test_an_empty_history_writes_nothing(tmp_path):
    TrainingHistory().write(tmp_path / "history.csv", tmp_path / "history.png")
    assert not list(tmp_path.iterdir())
