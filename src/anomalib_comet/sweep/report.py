# Copyright (C) 2026 The anomalib_comet authors
# SPDX-License-Identifier: Apache-2.0

"""The files of a sweep: tidy table, degradation table, curves, and one page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import math
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .cells import cells_of
from .configuration import METRICS
from .plots import NAMES, curve_figure, svg_of
from .statistics import beside_published, curves, differing_test_sets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from .configuration import Sweep

PROTOCOLS = {
    False: "no overlap: injected images leave the test set",
    True: "overlap: injected images stay in the test set",
}


def write_report(sweep: Sweep, frame: pd.DataFrame, output: Path) -> list[Path]:
    """Write the files of a sweep, each whole or not at all.

    Args:
        sweep: The sweep.
        frame: Its table, not empty.
        output: Folder to write to.

    Returns:
        ``results.csv``, ``results.parquet`` (if pyarrow is installed), ``degradation.csv``, ``published.csv`` (if the
        sweep names published values), ``curve_<metric>.svg`` and ``report.html``.
    """
    categories = max(1, len(sweep.categories))
    table, published = curves(frame, categories), beside_published(frame, sweep.published, categories)
    written = [_write(output / "results.csv", frame.to_csv(index=False).encode())]
    if importlib.util.find_spec("pyarrow") is not None:
        written.append(_write(output / "results.parquet", frame.to_parquet(index=False)))
    written.append(_write(output / "degradation.csv", table.to_csv(index=False, float_format="%.6f").encode()))
    if len(published):
        written.append(_write(output / "published.csv", published.to_csv(index=False).encode()))
    pictures: dict[bool, dict[str, bytes]] = {}
    for overlap in sweep.overlap:
        for metric in METRICS:
            figure = curve_figure(table, metric, overlap)
            if figure is None:
                continue
            picture = svg_of(figure)
            pictures.setdefault(overlap, {})[metric] = picture
            written.append(_write(output / f"curve_{metric}{'_overlap' if overlap else ''}.svg", picture))
    page = _page(sweep, frame, table, published, pictures, output.resolve().name)
    return [*written, _write(output / "report.html", page.encode())]


def _write(path: Path, content: bytes) -> Path:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _page(
    sweep: Sweep,
    frame: pd.DataFrame,
    table: pd.DataFrame,
    published: pd.DataFrame,
    pictures: dict[bool, dict[str, bytes]],
    title: str,
) -> str:
    style = (files("anomalib_comet.sweep") / "resources" / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'"
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="color-scheme" content="light dark">\n',
            f"<title>Contamination sweep: {html.escape(title)}</title>\n<style>{style}</style>\n</head>\n",
            "<body>\n<main>\n",
            f"<h1>Contamination sweep</h1>\n<p class='name'>{html.escape(title)}</p>\n",
            *_facts(sweep, frame),
            *(_protocol(overlap, table, pictures.get(overlap, {})) for overlap in sweep.overlap),
            _published(published),
            _cells(frame),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _facts(sweep: Sweep, frame: pd.DataFrame) -> Iterator[str]:
    total = len(cells_of(sweep))
    counts = [
        ("cells", f"{len(frame)} of {total}"),
        ("models", len(sweep.models)),
        ("ratios", ", ".join(f"{r:g}" for r in sorted(sweep.ratios))),
        ("seeds", ", ".join(map(str, sweep.seeds))),
        ("categories", len(sweep.categories) or 1),
        ("training", f"{frame['fit_seconds'].sum() / 60:.1f} min"),
    ]
    yield "<dl>" + "".join(f"<div><dt>{k}</dt><dd>{html.escape(str(v))}</dd></div>" for k, v in counts) + "</dl>\n"
    yield (
        "<p>r is the number of injected anomalies per normal training image; their share of the training set is "
        "r / (1 + r). One test set serves all ratios and models of a seed, and the draws are nested. The last epoch "
        "is measured; labels of the test set choose nothing. Bands (from 3 seeds on) and intervals are 95 % confidence "
        "intervals of the mean over seeds (Student's t), each seed being the mean over its categories.</p>\n"
    )
    warnings = []
    if len(frame) < total:
        warnings.append(f"{total - len(frame)} cells are missing: means with missing categories are left out.")
    if len(sweep.seeds) < 3:  # noqa: PLR2004
        warnings.append("Fewer than 3 seeds: differences may be chance.")
    if differing := differing_test_sets(frame):
        warnings.append(f"Test sets differ between models or ratios, so do not compare: {'; '.join(differing)}.")
    for name in ("anomalib_comet", "anomalib", "torch"):
        found = sorted(frame[name].dropna().unique())
        if len(found) > 1:
            warnings.append(f"Cells were measured with several versions of {name}: {', '.join(map(str, found))}.")
    yield "".join(f'<p class="warning">{html.escape(text)}</p>\n' for text in warnings)


def _protocol(overlap: bool, table: pd.DataFrame, pictures: dict[str, bytes]) -> str:
    part = table[table["overlap"] == overlap]
    if part.empty:
        return ""
    figures = "".join(
        f'<figure><img alt="{NAMES[metric]} against the contamination ratio" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"></figure>'
        for metric, picture in pictures.items()
    )
    tables = "".join(_degradation(metric, part[part["metric"] == metric]) for metric in pictures)
    return f"<section><h2>{PROTOCOLS[overlap]}</h2>\n<div class='curves'>{figures}</div>\n{tables}</section>\n"


def _degradation(metric: str, part: pd.DataFrame) -> str:
    ratios = sorted(part["ratio"].unique())
    head = ["model", *(f"r = {r:g} <small>({100 * r / (1 + r):.1f} %)</small>" for r in ratios)]
    rows = []
    for model, line in part.groupby("model", sort=False):
        by_ratio: dict[float, dict[Any, Any]] = {row["ratio"]: row for row in line.to_dict("records")}
        cells = [html.escape(str(model))]
        for ratio in ratios:
            row = by_ratio.get(ratio)
            if row is None:
                cells.append("")
                continue
            text = f"{row['mean']:.3f}{_half(row['low'], row['high'])}"
            if ratio != min(by_ratio) and not math.isnan(row["drop"]):
                text += f"<small>{-row['drop']:+.3f}{_half(row['drop_low'], row['drop_high'])}</small>"
            cells.append(text)
        rows.append(cells)
    caption = f"{NAMES[metric]}; below, the change from the smallest ratio, paired by seed"
    return _table(caption, head, rows)


def _half(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" ± {(high - low) / 2:.3f}"


def published_lines(published: pd.DataFrame) -> list[str]:
    """Return each published value beside the measured one, a line a value.

    Args:
        published: Result of :func:`.statistics.beside_published`.
    """
    lines = []
    for row in published.to_dict("records"):
        said = f"{row['model']}, {NAMES[row['metric']]}, {_where(row)}: published {row['published']:.3f}"
        lines.append(f"{said}, {'not measured' if math.isnan(row['measured']) else 'measured ' + _measured(row)}")
    return lines


def _where(row: dict[Any, Any]) -> str:
    ratio, overlap = row["ratio"], row["overlap"]
    parts = [str(row["category"] or ""), "" if ratio is None or math.isnan(ratio) else f"r = {ratio:g}"]
    return ", ".join(filter(None, [*parts, "overlap" if overlap is True else ""]))


def _measured(row: dict[Any, Any]) -> str:
    """Mean and standard deviation over seeds; nothing to say about the spread of a single one."""
    seeds = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"
    spread = "" if math.isnan(row["sd"]) else f" ± {row['sd']:.3f}"
    return f"{row['measured']:.3f}{spread} ({seeds})"


def _published(published: pd.DataFrame) -> str:
    if published.empty:
        return ""
    rows = []
    for row in published.to_dict("records"):
        missing = math.isnan(row["measured"])
        named = [str(row["model"]), NAMES[row["metric"]], _where(row)]
        measured = "not measured" if missing else _measured(row)
        change = "" if missing else f"{row['difference']:+.3f}"
        rows.append([*map(html.escape, named), f"{row['published']:.3f}", measured, change, html.escape(row["source"])])
    head = ["model", "metric", "of", "published", "measured", "difference", "source"]
    caption = "Measured: mean ± standard deviation over seeds, each seed being the mean over its categories."
    return f"<section><h2>Beside published values</h2>{_table(caption, head, rows)}</section>\n"


def _cells(frame: pd.DataFrame) -> str:
    shown = [c for c in frame.columns if c != "cell" and frame[c].notna().any()]
    rows = [[_text(value) for value in row] for row in frame[shown].itertuples(index=False)]
    return (
        f"<section><details><summary>All {len(frame)} cells</summary>"
        f"{_table('', [name.replace('_', ' ') for name in shown], rows)}</details></section>\n"
        f"<footer>anomalib_comet {html.escape(version('anomalib-comet'))}</footer>\n"
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return html.escape(str(value))


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    title = f"<caption>{caption}</caption>" if caption else ""
    return f"<div class='table'><table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>\n"
