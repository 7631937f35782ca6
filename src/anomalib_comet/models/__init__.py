# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0
