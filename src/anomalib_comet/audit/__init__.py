# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""Which images of a training set are suspicious: a table and a page.

Example:
    From scores of any origin::

        from anomalib_comet.audit import audit

        audit(image_paths, scores, output="audit")

    From a model, when its training ends::

        from anomalib_comet.audit import AuditReport

        Engine(callbacks=[AuditReport()]).fit(model, datamodule=datamodule)

    From a checkpoint: ``anomalib-comet audit --ckpt_path CHECKPOINT --images FOLDER``.
"""

from .callback import AuditReport
from .evaluation import Evaluation, average_precision, evaluate, precision_recall_curve, recall_among_first
from .ranking import suspicion_table
from .report import Audit, audit, audit_model

__all__ = [
    "Audit",
    "AuditReport",
    "Evaluation",
    "audit",
    "audit_model",
    "average_precision",
    "evaluate",
    "precision_recall_curve",
    "recall_among_first",
    "suspicion_table",
]
