# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of the few-shot benchmarks."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(params=["few_shot", "few_shot_maps"])
def benchmark(request, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(request.param)


def test_nothing_to_print_is_one_sentence(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--print", "--csv", str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "none.csv to print: leave --print away to measure" in capsys.readouterr().err


def test_batch_sizes_of_maps_are_not_averaged_together(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    maps = importlib.import_module("few_shot_maps")
    rows = [
        {"held_out": held_out, "shots": 10, "batch_size": size, "seed": seed, "score": "model"}
        | dict.fromkeys(maps.VALUES, size / 10000)
        for size in (256, 2048)
        for held_out in maps.DEFECTS
        for seed in (0, 1)
    ]
    lines = maps.table(pd.DataFrame(rows)).splitlines()[-2:]
    assert ["256" in line and "0.026" in line for line in lines] == [True, False]
    assert ["2048" in line and "0.205" in line for line in lines] == [False, True]
