# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Contamination sweeps: models x ratios x protocols x seeds x categories, as a table, curves and a page.

.. code-block:: bash

    anomalib-comet sweep --config configs/sweeps/surfaces.yaml
"""

from .cells import Cell, Results, cells_of
from .configuration import ModelEntry, Published, Resources, Sweep, SweepError, read_sweep, sweep_from
from .run import result_frame, run_sweep

__all__ = [
    "Cell",
    "ModelEntry",
    "Published",
    "Resources",
    "Results",
    "Sweep",
    "SweepError",
    "cells_of",
    "read_sweep",
    "result_frame",
    "run_sweep",
    "sweep_from",
]
