# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The audit as one HTML page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pandas as pd

from .tiles import LOWER_QUANTILE, UPPER_QUANTILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .evaluation import Evaluation

CHUNK = 64
"""Images whose pictures stand in one block of the page. A block is decoded when one of them is scrolled into view."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one image, as WebP; empty where there are none."""

    thumbnail: bytes = b""
    heat: bytes = b""


@dataclass(frozen=True)
class Facts:
    """What the page says about itself.

    Attributes:
        title: Name of the run.
        source: Sentence that says where scores and weights come from.
        fence: First position of the slider: the run's own threshold, above which its weights fall below 1, or else the
            fence Q3 + 1.5 (Q3 - Q1) of the scores; ``None`` if there is none.
        thumbnail_size: Longest side of the thumbnails in pixels.
        limits: Map values of no colour and of full colour, or ``None`` without heat maps.
        left_out: Images of the table that the page does not show.
    """

    title: str
    source: str
    fence: float | None
    thumbnail_size: int
    limits: tuple[float, float] | None = None
    left_out: int = 0


def write_page(
    path: Path,
    table: pd.DataFrame,
    pictures: Mapping[str, Pictures],
    facts: Facts,
    evaluation: Evaluation | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: File to write.
        table: Images in the order of suspicion: result of :func:`.ranking.suspicion_table`, with a column ``status``.
        pictures: Pictures by image path.
        facts: What the page says about itself.
        evaluation: How well the ranking finds injected images, where that is known. Defaults to ``None``.
    """
    resources = files("anomalib_comet.audit") / "resources"
    template, style, script = (
        (resources / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    parts = {
        "title": html.escape(facts.title),
        "source": html.escape(facts.source),
        # Only this script and this style may run, whatever the names of the images try.
        "policy": (
            "default-src 'none'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
            f"style-src {_hash_source(style)}; script-src {_hash_source(script)}"
        ),
        "style": style,
        "script": script,
        "data": embedded_json(_data(table, pictures, facts)),
        "evaluation": "" if evaluation is None else evaluation_section(evaluation),
    }
    head, images, tail = template.partition("{{images}}")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as page:
            page.write(_filled(head, parts))
            if images:
                for block in _blocks(table["image_path"], pictures):
                    page.write(block)
            page.write(_filled(tail, parts))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def embedded_json(value: Any) -> str:
    """Return JSON that can stand inside a script element, whatever text it holds.

    Args:
        value: Plain data.

    Returns:
        ASCII text without ``<``, ``>`` and ``&``.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def evaluation_section(evaluation: Evaluation) -> str:
    """Return the numbers and the precision-recall curve as HTML.

    Args:
        evaluation: The evaluation.

    Returns:
        A ``details`` element.
    """
    k = evaluation.injected
    rows = [
        ("Average precision", f"{evaluation.average_precision:.3f}"),
        ("By chance", f"{evaluation.chance:.3f}"),
        (f"Recall among the first {k}", f"{evaluation.recall_k:.3f}"),
        (f"Recall among the first {2 * k}", f"{evaluation.recall_2k:.3f}"),
    ]
    numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return (
        '<details id="evaluation" open><summary>How well the list finds them</summary>'
        f"<p>{k} of {evaluation.images} images are known to be anomalous: injected on purpose, or so by nature.</p>"
        f"<dl>{numbers}</dl>{_curve(evaluation)}</details>"
    )


def _curve(evaluation: Evaluation) -> str:
    width, height, left, bottom = 220, 150, 34, 30
    x0, y0, w, h = left, 8, width - left - 8, height - bottom - 8

    def point(recall: float, precision: float) -> str:
        return f"{x0 + recall * w:.1f},{y0 + (1 - precision) * h:.1f}"

    # A point each time another injected image is found: between them only the precision falls.
    points, before = [], 0.0
    for precision, recall in zip(evaluation.precision.tolist(), evaluation.recall.tolist(), strict=True):
        if recall > before:
            points += [point(before, precision), point(recall, precision)]
            before = recall
    chance = y0 + (1 - evaluation.chance) * h
    ticks = "".join(
        f'<text x="{x0 + v * w:.1f}" y="{y0 + h + 13}" text-anchor="middle">{v:g}</text>'
        f'<text x="{x0 - 5}" y="{y0 + (1 - v) * h + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    return (
        f'<svg id="curve" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Precision-recall curve, average precision {evaluation.average_precision:.3f}">'
        f'<rect class="frame" x="{x0}" y="{y0}" width="{w}" height="{h}"/>'
        f'<line class="chance" x1="{x0}" x2="{x0 + w}" y1="{chance:.1f}" y2="{chance:.1f}"/>'
        f'<polyline class="curve" points="{" ".join(points)}"/>{ticks}'
        f'<text x="{x0 + w / 2}" y="{height - 3}" text-anchor="middle">recall</text>'
        f'<text transform="translate(9 {y0 + h / 2}) rotate(-90)" text-anchor="middle">precision</text></svg>'
    )


def _data(table: pd.DataFrame, pictures: Mapping[str, Pictures], facts: Facts) -> dict[str, Any]:
    paths = table["image_path"].tolist()
    folders: dict[str, int] = {}
    rows = []
    truth = table["injected"].tolist() if "injected" in table else [None] * len(table)
    types = table["defect_type"].tolist() if "defect_type" in table else [None] * len(table)
    columns = (paths, table["anomaly_score"], table["confidence_weight"], table["rank"], table["status"], truth, types)
    for path, score, weight, rank, status, injected, kind in zip(*columns, strict=True):
        folder, name = os.path.split(path)
        rows.append(
            [
                folders.setdefault(folder, len(folders)),
                name,
                _number(score),
                _number(weight),
                None if pd.isna(rank) else int(rank),
                "" if status == "ok" else status,
                None if pd.isna(injected) else bool(injected),
                "" if pd.isna(kind) else str(kind),
            ]
        )
    digest = hashlib.sha256()
    for path, score in zip(paths, table["anomaly_score"], strict=True):
        digest.update(f"{path}\0{score!r}\n".encode("utf-8", "surrogatepass"))
    return {
        "run": digest.hexdigest()[:16],
        "separator": os.sep,
        "folders": list(folders),
        "rows": rows,
        "chunk": CHUNK,
        "fence": _number(facts.fence),
        "thumbnail": facts.thumbnail_size,
        "limits": None if facts.limits is None else list(facts.limits),
        "quantiles": [LOWER_QUANTILE, UPPER_QUANTILE],
        "leftOut": facts.left_out,
        "mapped": sum(bool(of_image.heat) for of_image in pictures.values()),
        "truth": "injected" in table,
    }


def _blocks(image_paths: pd.Series, pictures: Mapping[str, Pictures]) -> Iterator[str]:
    paths = image_paths.tolist()
    for number, start in enumerate(range(0, len(paths), CHUNK)):
        entries = []
        for path in paths[start : start + CHUNK]:
            of_image = pictures.get(path, Pictures())
            entries.append([base64.b64encode(part).decode() for part in (of_image.thumbnail, of_image.heat)])
        yield f'<script type="application/json" id="block{number}">{embedded_json(entries)}</script>\n'


def _filled(template: str, parts: Mapping[str, str]) -> str:
    # Piece by piece and not by replacing over and over: a name of an image may look like a placeholder.
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [parts[name], rest]
    return "".join(filled)


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
