# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""A sweep on a real cluster of Ray with several nodes, whose workers, nodes and driver are killed in mid-run."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from anomalib_comet.sweep import Results, SweepError, cells_of, result_frame, run_sweep, sweep_from

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from anomalib_comet.sweep.executors import InProcess, OnRay  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A head that runs no cells, and two nodes with a core each."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found.nodes_of_work = [found.add_node(num_cpus=1), found.add_node(num_cpus=1)]
    yield found
    ray.shutdown()
    found.shutdown()


def sweep(folder, seeds):
    """The folder stands in the settings, where the cells below find it."""
    models = {"A": {"class_path": "Padim", "init_args": {"folder": str(folder)}}}
    return sweep_from({"models": models, "data": "MVTecAD", "ratios": [0], "seeds": list(range(seeds))})


def cell(action):
    """Make a cell function that leaves a file a run; functions of this module cannot be imported by workers."""

    def function(settings):
        import os
        import pathlib
        import signal
        import time

        folder = pathlib.Path(settings["model"]["init_args"]["folder"])
        runs = len(list(folder.glob(f"run_{settings['seed']}_*")))
        (folder / f"run_{settings['seed']}_{time.time_ns()}").write_text(os.environ.get("RAY_NODE_ID", ""))
        if action == "die once" and settings["seed"] == 1 and runs == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "die" and settings["seed"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "raise" and settings["seed"] == 1:
            msg = "no luck"
            raise ValueError(msg)
        if action == "wait":
            import ray

            here = ray.get_runtime_context().get_node_id()
            # The process of a lost node may outlive it for a moment: it must not be the one that returns.
            while not list(folder.glob("lost_*")) or (folder / f"lost_{here}").exists():
                time.sleep(0.05)
        return {"image_auroc": 0.5 + settings["seed"] / 10, "fit_seconds": 0.0}

    return function


def runs(folder, seed):
    return len(list(folder.glob(f"run_{seed}_*")))


def test_killed_worker_is_replaced_and_errors_are_not_retried(cluster, tmp_path):
    executor = OnRay(cluster.address, retries=1)
    assert "3 nodes, 2 CPUs" in executor.description
    try:
        state = run_sweep(sweep(tmp_path, 3), tmp_path / "out", executor, cell("die once"))
        assert (state.done, state.failed) == (3, [])
        assert [runs(tmp_path, seed) for seed in range(3)] == [1, 2, 1]
        frame = result_frame(sweep(tmp_path, 3), tmp_path / "out")
        assert frame["image_auroc"].tolist() == [0.5, 0.6, 0.7]

        other = tmp_path / "other"
        other.mkdir()
        state = run_sweep(sweep(other, 2), other / "out", executor, cell("raise"))
        assert [outcome.error for outcome in state.failed] == ["ValueError: no luck"]
        assert runs(other, 1) == 1
        state = run_sweep(sweep(other, 2), other / "out", executor, cell("die"))
        assert "worker died after 2 tries" in state.failed[0].error
        assert (runs(other, 0), runs(other, 1)) == (1, 3)
        assert Results(other / "out" / "cells").read(cells_of(sweep(other, 2))[1]) is None
    finally:
        executor.close()


def test_a_cell_that_fits_no_node_is_refused_and_parallel_cells_are_counted_by_node(cluster, tmp_path):
    executor = OnRay(cluster.address)

    def asking_for(**resources):
        models = {"A": {"class_path": "Padim", "init_args": {"folder": str(tmp_path)}}}
        content = {"models": models, "data": "MVTecAD", "ratios": [0], "seeds": [0], "resources": resources}
        return sweep_from(content)

    try:
        # Both nodes together have two cores, and each has some memory.
        for resources in ({"gpus": 1}, {"cpus": 2}, {"cpus": 1, "memory_gib": 100_000}):
            with pytest.raises(SweepError, match=r"A asks for .* a cell, and no node of Ray has all of that"):
                run_sweep(asking_for(**resources), tmp_path / "out", executor, cell(""))
        for cpus, parallel in ((1, 2), (0.4, 4)):
            run_sweep(asking_for(cpus=cpus), tmp_path / f"out_{cpus}", executor, cell(""))
            assert executor.parallel == parallel
    finally:
        executor.close()


DRIVER = """
    import pathlib, sys, time
    from anomalib_comet.sweep import run_sweep, sweep_from
    from anomalib_comet.sweep.executors import OnRay

    folder, address = pathlib.Path(sys.argv[1]), sys.argv[2]
    models = {"A": {"class_path": "Padim", "init_args": {"folder": str(folder)}}}
    sweep = sweep_from({"models": models, "data": "MVTecAD", "ratios": [0], "seeds": list(range(8))})

    def cell(settings):
        import pathlib, time
        folder = pathlib.Path(settings["model"]["init_args"]["folder"])
        (folder / f"run_{settings['seed']}_{time.time_ns()}").touch()
        time.sleep(0.7)
        return {"image_auroc": 0.5 + settings["seed"] / 10, "fit_seconds": 0.7}

    run_sweep(sweep, folder / "out", OnRay(address), cell)
"""


def test_killed_driver_loses_no_finished_cell(cluster, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    arguments = [sys.executable, str(script), str(tmp_path), cluster.address]
    driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "out" / "cells"
    deadline = time.monotonic() + 90
    while len(list(cells.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    finished = {path.name for path in cells.glob("*.json")}
    before = {seed: runs(tmp_path, seed) for seed in range(8)}
    assert 2 <= len(finished) < 8
    all_cells = cells_of(sweep(tmp_path, 8))
    done = [k for k, entry in enumerate(all_cells) if f"{entry.identity}.json" in finished]

    time.sleep(2.0)  # Ray ends what the dead driver had started
    executor = OnRay(cluster.address)
    try:
        state = run_sweep(sweep(tmp_path, 8), tmp_path / "out", executor, cell(""))
    finally:
        executor.close()
    assert (state.done, state.failed) == (8, [])
    assert all(runs(tmp_path, seed) == before[seed] == 1 for seed in done)
    assert all(runs(tmp_path, seed) > before[seed] for seed in set(range(8)) - set(done))
    run_sweep(sweep(tmp_path, 8), tmp_path / "out", InProcess(), lambda _: pytest.fail("a finished cell was run again"))


def test_cell_of_a_lost_node_moves_to_another(cluster, tmp_path):
    executor = OnRay(cluster.address, retries=2)

    def lose_one():
        deadline = time.monotonic() + 60
        while runs(tmp_path, 0) + runs(tmp_path, 1) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        node = cluster.nodes_of_work.pop()
        cluster.remove_node(node, allow_graceful=False)
        (tmp_path / f"lost_{node.node_id}").touch()

    thread = threading.Thread(target=lose_one)
    thread.start()
    try:
        state = run_sweep(sweep(tmp_path, 2), tmp_path / "out", executor, cell("wait"))
    finally:
        executor.close()
        thread.join()
    assert (state.done, state.failed) == (2, [])
    assert sorted(runs(tmp_path, seed) for seed in range(2)) == [1, 2]


def test_an_address_without_a_cluster_is_said():
    assert not ray.is_initialized()
    start = time.monotonic()
    with pytest.raises(SweepError, match="Ray does not answer at"):
        OnRay(f"127.0.0.1:{os.getpid() % 1000 + 60_000}")
    assert time.monotonic() - start < 15
