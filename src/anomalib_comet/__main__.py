# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""``python -m anomalib_comet`` is the console script ``anomalib-comet``."""

from anomalib_comet.cli import main

if __name__ == "__main__":
    main()
