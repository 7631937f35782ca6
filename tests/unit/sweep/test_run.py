# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The loop of a sweep with a cell that takes no time: nothing finished is repeated, nothing unfinished counts."""

import json

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from anomalib_comet.sweep import Results, SweepError, cells_of, result_frame, run_sweep, sweep_from
from anomalib_comet.sweep.command import _report
from anomalib_comet.sweep.executors import InProcess
from anomalib_comet.sweep.run import remaining_seconds

SWEEP = sweep_from({"models": {"A": "Padim", "B": "Patchcore"}, "data": "MVTecAD", "ratios": [0, 0.1], "seeds": [0, 1]})


class Cells:
    """A cell function that counts, and that can be told to fail or to be interrupted."""

    def __init__(self, fail=lambda _: False, interrupt_at=None):
        self.seen, self.fail, self.interrupt_at = [], fail, interrupt_at

    def __call__(self, settings):
        if len(self.seen) == self.interrupt_at:
            raise KeyboardInterrupt
        self.seen.append(settings)
        if self.fail(settings):
            msg = "no luck"
            raise RuntimeError(msg)
        return {"image_auroc": 1 - settings["ratio"], "fit_seconds": 0.0}


def test_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    first = Cells(interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(SWEEP, tmp_path, InProcess(), first)
    second, told = Cells(), []
    run_sweep(SWEEP, tmp_path, InProcess(), second, lambda state: told.append(state.done))
    assert len(first.seen) == 3
    assert first.seen + second.seen == [cell.settings for cell in cells_of(SWEEP)]
    assert told == [3, 4, 5, 6, 7, 8]
    run_sweep(SWEEP, tmp_path, InProcess(), third := Cells())
    assert third.seen == []


def test_half_written_damaged_and_foreign_files_never_count(tmp_path):
    run_sweep(SWEEP, tmp_path, InProcess(), Cells())
    results, cells = Results(tmp_path / "cells"), cells_of(SWEEP)
    whole = results.path(cells[0]).read_text()
    results.path(cells[0]).write_text(whole[: len(whole) // 2])
    results.path(cells[1]).write_text(results.path(cells[2]).read_text())
    results.path(cells[3]).write_text(json.dumps({"settings": cells[3].settings, "row": None}))
    (tmp_path / "cells" / "left.partial").write_text("{")
    assert len(result_frame(SWEEP, tmp_path)) == 5
    run_sweep(SWEEP, tmp_path, InProcess(), again := Cells())
    assert again.seen == [cells[k].settings for k in (0, 1, 3)]
    assert not list((tmp_path / "cells").glob("*.partial"))
    assert len(result_frame(SWEEP, tmp_path)) == 8


@given(cut=st.integers(min_value=0, max_value=10_000))
def test_no_part_of_a_file_counts(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cells")
    results, cell = Results(folder), cells_of(SWEEP)[0]
    results.write(cell, {"image_auroc": 0.5})
    content = results.path(cell).read_bytes()
    results.path(cell).write_bytes(content[: cut % len(content)])
    assert results.read(cell) is None


def test_a_full_disk_leaves_no_result_and_loses_none(tmp_path, monkeypatch):
    results, cells = Results(tmp_path), cells_of(SWEEP)
    results.write(cells[0], {"image_auroc": 0.5})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anomalib_comet.sweep.cells.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        results.write(cells[1], {"image_auroc": 0.5})
    with pytest.raises(OSError, match="No space"):
        results.write(cells[0], {"image_auroc": 0.7})
    assert [path.name for path in tmp_path.iterdir()] == [f"{cells[0].identity}.json"]
    assert results.read(cells[0]) == {"image_auroc": 0.5}


def test_a_failing_cell_does_not_end_the_others_and_is_tried_again(tmp_path):
    state = run_sweep(SWEEP, tmp_path, InProcess(), Cells(fail=lambda s: s["ratio"] > 0 and s["seed"] == 1))
    assert (state.done, len(state.failed)) == (6, 2)
    assert state.failed[0].error == "RuntimeError: no luck"
    (log, _) = sorted((tmp_path / "failed").iterdir())
    assert "Traceback" in log.read_text()
    state = run_sweep(SWEEP, tmp_path, InProcess(), again := Cells())
    assert len(again.seen) == 2
    assert state.done == 8
    assert not list((tmp_path / "failed").iterdir())


def test_a_sweep_whose_cells_all_fail_ends_with_1_and_says_where_to_look(tmp_path, capsys):
    state = run_sweep(SWEEP, tmp_path, InProcess(), Cells(fail=lambda _: True))
    assert _report(SWEEP, tmp_path, Console(soft_wrap=True), failed=len(state.failed)) == 1
    assert f"All 8 cells failed, see {tmp_path / 'failed'}" in capsys.readouterr().out
    with pytest.raises(SweepError, match=r"--output: .* has no finished cell of this sweep"):
        _report(SWEEP, tmp_path, Console(), failed=0)


def test_failed_cells_are_no_durations(tmp_path):
    told = []
    run_sweep(
        SWEEP, tmp_path, InProcess(), Cells(fail=lambda s: s["seed"] == 0), lambda state: told.append(state.remaining)
    )
    assert told[:5] == [None] * 5
    assert None not in told[5:]


def test_table_is_tidy_and_in_order(tmp_path):
    run_sweep(SWEEP, tmp_path, InProcess(), Cells())
    frame = result_frame(SWEEP, tmp_path)
    assert frame.groupby(["model", "ratio", "seed"]).size().eq(1).all()
    assert frame["share"].unique().tolist() == pytest.approx([0, 1 / 11], abs=1e-6)
    assert frame["image_auroc"].tolist() == (1 - frame["ratio"]).tolist()
    relabelled = sweep_from({"models": {"C": "Padim"}, "data": "MVTecAD", "ratios": [0, 0.1], "seeds": [0, 1]})
    assert set(result_frame(relabelled, tmp_path)["model"]) == {"C"}


def test_two_sweeps_in_one_folder_are_refused(tmp_path):
    with FileLock(tmp_path / "sweep.lock"), pytest.raises(SweepError, match="another sweep is running"):
        run_sweep(SWEEP, tmp_path, InProcess(), Cells())


def test_a_refused_sweep_leaves_the_configuration_of_the_running_one(tmp_path):
    run_sweep(SWEEP, tmp_path, InProcess(), Cells(), configuration="first")
    with FileLock(tmp_path / "sweep.lock"), pytest.raises(SweepError, match="another sweep is running"):
        run_sweep(SWEEP, tmp_path, InProcess(), Cells(), configuration="second")
    assert (tmp_path / "sweep.yaml").read_text() == "first"


def test_remaining_time_by_hand():
    seconds = {"slow": [100.0, 200.0], "fast": [2.0]}
    # 150 + 2 + the mean of all, 302 / 3, over two at once; the longest one alone takes 150.
    assert remaining_seconds(seconds, ["slow", "fast", "new"], parallel=2) == pytest.approx(150.0)
    assert remaining_seconds(seconds, ["slow", "slow", "fast", "new"], 2) == pytest.approx((302 + 302 / 3) / 2)
    assert remaining_seconds(seconds, [], 2) == 0
    assert remaining_seconds({}, ["slow"], 2) is None
