# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""What every test may rely on: no network, no logger services, one thread, a working directory of its own."""

import os

# All of these are read when the libraries are imported, so they must be set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["COMET_MODE"] = "DISABLED"
os.environ["MPLBACKEND"] = "Agg"
# The tensors of the tests are small. With threads that wait for each other, training took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples in every run: what passes here passes in CI. HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def _working_directory_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """anomalib writes ``results``, ``datasets`` and ``runs`` into the working directory: never into the repository."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
