"""`report.html`: one file that fetches nothing, for a browser and for an archive.

The template gets plain values and escapes them all; only the pictures of `plots` go in as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from moxserve.errors import MissingExtraError
from moxserve.export.facts import OutputFigures
from moxserve.export.report.model import Report, VariantReport
from moxserve.export.report.plots import Bar, Point, bars, scatter
from moxserve.export.report.text import COLUMNS, cells, megabytes, scientific, share, significant
from moxserve.export.requirements import speedup

__all__ = ["render_page"]

_TEMPLATE = "page.html.j2"
_STYLE = "page.css"
# Lists longer than this are folded away.
_LONG = 12


def render_page(report: Report) -> str:
    """Return the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        if error.name != "jinja2":
            raise
        raise MissingExtraError("jinja2", "export", "the page of an export's report") from None
    from markupsafe import Markup

    here = os.path.dirname(__file__)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        share=share,
        scientific=scientific,
        significant=significant,
        shortest=_shortest,
        megabytes=megabytes,
        facts=_facts,
        heading=_heading,
        keys=_keys,
    )
    environment.tests.update(simple=_simple, plain=_plain, counts=_counts, records=_records)
    with open(os.path.join(here, _STYLE), encoding="utf-8") as f:
        style = f.read()
    columns, rows = cells(report)
    return environment.get_template(_TEMPLATE).render(
        report=report,
        style=Markup(style),
        columns=[(name, COLUMNS[name][0]) for name in columns],
        rows=list(zip(report.variants, rows, strict=True)),
        tiles=_tiles(report),
        plots=[(title, what, Markup(picture)) for title, what, picture in _plots(report) if picture],
        kinds=[k for k in ("saved_model", "onnx", "openvino", "tflite") if any(v.format == k for v in report.variants)],
        machine=report.machine or next((v.measured.machine for v in report.variants if v.measured), None),
        outputs=_outputs,
        long=_LONG,
    )


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Return what to see first: heading, figure, what it is of."""
    source = report.source_variant
    published = [v for v in report.variants if v.verdict in ("published", "passed")]
    tried = [v for v in report.variants if v.verdict != "source"]
    tiles = []
    if tried:
        left = len(tried) - len(published)
        title = "variants good enough" if report.failure else "variants published"
        tiles.append((title, f"{len(published)} of {len(tried)}", f"{left} left out" if left else "all"))
    for batch, what in ((1, "one row"), (32, "32 rows")):
        best = max(((s, v.name) for v in published if (s := speedup(v, source, batch)) is not None), default=None)
        if best is not None:
            tiles.append((f"fastest, {what}", f"{best[0]:.2f} ×", best[1]))
    sized = [(v.size_bytes, v.name) for v in published if v.size_bytes]
    if sized and source is not None and source.size_bytes:
        least = min(sized)
        tiles.append(("smallest", f"{megabytes(least[0])} MB", f"{least[1]}, {least[0] / source.size_bytes:.0%} of it"))
    if source is not None and source.figures is not None and source.figures.accuracy is not None:
        tiles.append(("accuracy of the source", share(source.figures.accuracy), f"on {report.rows} rows"))
    return tiles


def _plots(report: Report) -> list[tuple[str, str, str]]:
    """Return the pictures: title, what they show, and the SVG."""
    told = "median of one caller's calls; the thin line is the fastest call"
    found = []
    for batch, rows in ((1, "one row"), (32, "32 rows")):
        title = f"Time of a call, {rows} [ms]"
        found.append((title, told, bars(title, [_latency(v, batch) for v in _measured(report)])))
    title = "Rows a second in batches of 32"
    found.append((title, "at the median call; more is better",
                  bars(title, [_throughput(v, 32) for v in _measured(report)])))  # fmt: skip
    title = "Peak memory [MB]"
    found.append((title, "of the process; the thin line is what it took before the model was loaded",
                  bars(title, [_memory(v) for v in _measured(report)])))  # fmt: skip
    return [*found, *_trade_offs(report)]


def _measured(report: Report) -> list[VariantReport]:
    return [v for v in report.variants if v.measured is not None]


def _pale(variant: VariantReport) -> bool:
    return variant.verdict not in ("source", "published", "passed")


def _latency(variant: VariantReport, batch: int) -> Bar:
    timing = variant.measured.at(batch) if variant.measured else None
    if timing is None:
        return Bar(variant.name, None)
    tip = (
        f"{variant.name}: median {significant(timing.p50_ms)} ms, fastest {significant(timing.min_ms)} ms, "
        f"95 % within {significant(timing.p95_ms)} ms, {significant(timing.cpu_ms)} ms of CPU; {timing.calls} calls"
    )
    return Bar(variant.name, timing.p50_ms, timing.min_ms, variant.format, _pale(variant), tip)


def _throughput(variant: VariantReport, batch: int) -> Bar:
    timing = variant.measured.at(batch) if variant.measured else None
    if timing is None:
        return Bar(variant.name, None)
    tip = (
        f"{variant.name}: {significant(timing.rows_per_s)} at the median, {significant(timing.best_rows_per_s)} at best"
    )
    return Bar(variant.name, timing.rows_per_s, None, variant.format, _pale(variant), tip)


def _memory(variant: VariantReport) -> Bar:
    measured = variant.measured
    if measured is None:
        return Bar(variant.name, None)
    tip = f"{variant.name}: {significant(measured.peak_memory_mb)} MB, before {significant(measured.base_memory_mb)} MB"
    return Bar(variant.name, measured.peak_memory_mb, measured.base_memory_mb, variant.format, _pale(variant), tip)


def _trade_offs(report: Report) -> list[tuple[str, str, str]]:
    known = [v for v in report.variants if v.figures is not None and v.size_bytes]
    if len(known) < 2:
        return []
    found = []
    scored = [(v, v.figures.accuracy) for v in known if v.figures is not None and v.figures.accuracy is not None]
    if scored:
        points = [_spot(v, 100 * y, f"{share(y)} right") for v, y in scored]
        title = "Size and accuracy"
        found.append((title, f"share of {report.rows} rows with the right choice",
                      scatter(title, points, ("MB on disk", "accuracy [%]"), most=100.0)))  # fmt: skip
    others = [(v, v.figures.rel_l2) for v in known if v.figures is not None and v.verdict != "source"]
    if others:
        points = [_spot(v, y, f"relative error {scientific(y)}") for v, y in others]
        title = "Size and error"
        found.append((title, "relative error (L2) of the output that is furthest off; less is better",
                      scatter(title, points, ("MB on disk", "relative error"), log_y=True)))  # fmt: skip
    return found


def _spot(variant: VariantReport, y: float, told: str) -> Point:
    tip = f"{variant.name}: {megabytes(variant.size_bytes)} MB, {told}"
    return Point(variant.name, variant.size_bytes / 1e6, y, variant.format, _pale(variant), tip)


def _outputs(variant: VariantReport) -> list[tuple[str, OutputFigures]]:
    """Return every compared output, and how it was asked."""
    figures = variant.figures
    if figures is None:
        return []
    together = [("in batches", one) for one in figures.outputs]
    return together + [(f"one at a time, {figures.single_rows} rows", one) for one in figures.singles]


def _shortest(value: float) -> str:
    """Return a number without zeros at its end: `1` and `0.5`, since `1.000` might be read as a thousand."""
    text = significant(value, 4)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _simple(value: object) -> bool:
    """Tell whether a value fits into a line."""
    return value is None or isinstance(value, (str, int, float, bool))


def _plain(values: object) -> bool:
    """Tell whether a list has only values that fit into a line."""
    return isinstance(values, Sequence) and all(_simple(v) for v in values)


def _records(values: object) -> bool:
    """Tell whether a list has mappings only, so that it makes a table."""
    return isinstance(values, Sequence) and bool(values) and all(isinstance(v, Mapping) and v for v in values)


def _keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of all mappings of a list, in the order in which they come up."""
    return list(dict.fromkeys(key for record in records for key in record))


def _counts(value: object) -> bool:
    """Tell whether a mapping has only whole numbers, such as operations by type."""
    return isinstance(value, Mapping) and len(value) > 1 and all(type(v) is int for v in value.values())


def _facts(value: Any) -> list[tuple[str, Any]]:
    """Return a mapping's items; keys as text with spaces."""
    return [(str(k).replace("_", " "), v) for k, v in value.items()] if isinstance(value, Mapping) else []


def _heading(name: str) -> str:
    """Return a column's name that a narrow table breaks after a comma only."""
    return name.replace(" ", "\u00a0").replace("-", "\u2011").replace(",\u00a0", ", ")
