# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""``python -m anomalib_comet`` is the console script ``anomalib-comet``."""

import sys

from anomalib_comet.cli import main

if __name__ == "__main__":
    sys.argv[0] = "anomalib-comet"  # what usage messages call the program
    main()
