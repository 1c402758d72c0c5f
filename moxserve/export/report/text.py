"""Numbers of a report as people read them; unknown ones are empty."""

from __future__ import annotations

from collections.abc import Callable

from moxserve.export.facts import Figures, Measured, Timing
from moxserve.export.report.model import Report, VariantReport
from moxserve.export.requirements import speedup

__all__ = ["COLUMNS", "cells", "megabytes", "milliseconds", "scientific", "seconds", "share", "significant"]


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with some significant digits and no exponent, such as `0.0123`, `1.50` or `1234`."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e9:
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole >= digits:
        return f"{value:.0f}"
    if whole:
        return f"{value:.{digits - whole}f}"
    return f"{value:.{digits}g}"


def megabytes(size_bytes: float | None) -> str:
    """Return a size in bytes as MB (1e6 bytes)."""
    return significant(size_bytes / 1e6) if size_bytes else ""


def milliseconds(timing: Timing | None) -> str:
    """Return the median time of a call."""
    return significant(timing.p50_ms) if timing is not None else ""


def seconds(value: float | None) -> str:
    """Return a time in seconds."""
    return significant(value)


def share(value: float | None) -> str:
    """Return a share as a percentage, `98.44 %`; all is `100 %`."""
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.2f} %"


def scientific(value: float | None) -> str:
    """Return an error, such as `1.2e-07`; none is `0`."""
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def _times(value: float | None) -> str:
    return f"{value:.2f} ×" if value is not None else ""


def _of_measured(pick: Callable[[Measured], str]) -> Callable[[VariantReport, Report], str]:
    return lambda variant, _: pick(variant.measured) if variant.measured is not None else ""


def _of_figures(pick: Callable[[Figures], str]) -> Callable[[VariantReport, Report], str]:
    return lambda variant, _: pick(variant.figures) if variant.figures is not None else ""


def _rows_per_s(timing: Timing | None) -> str:
    return significant(timing.rows_per_s) if timing is not None else ""


def _speedup(batch: int) -> Callable[[VariantReport, Report], str]:
    return lambda variant, report: _times(speedup(variant, report.source_variant, batch))


# Heading -> (what it means, cell).
COLUMNS: dict[str, tuple[str, Callable[[VariantReport, Report], str]]] = {
    "variant": ("its folder in variants/", lambda v, _: v.name),
    "verdict": ("source: what the others are held against", lambda v, _: v.verdict),
    "MB": ("on disk", lambda v, _: megabytes(v.size_bytes)),
    "load s": ("until it can be called, its runtime already loaded", _of_measured(lambda m: seconds(m.load_s))),
    "ms": ("one row, median", _of_measured(lambda m: milliseconds(m.at(1)))),
    "speed-up": ("one row, the fastest calls against those of the SavedModel", _speedup(1)),
    "ms, 32 rows": ("32 rows, median", _of_measured(lambda m: milliseconds(m.at(32)))),
    "speed-up, 32 rows": ("32 rows, the fastest calls against those of the SavedModel", _speedup(32)),
    "rows/s": ("in batches of 32, median", _of_measured(lambda m: _rows_per_s(m.at(32)))),
    "memory MB": ("the most that the process took", _of_measured(lambda m: significant(m.peak_memory_mb))),
    "rel. error": ("L2, of the output that is furthest off", _of_figures(lambda f: scientific(f.rel_l2))),
    "top-1": ("rows with the source's first choice", _of_figures(lambda f: share(f.top1_agreement))),
    "accuracy": ("rows with the right choice", _of_figures(lambda f: share(f.accuracy))),
}


# A terminal is narrow: what 32 rows take is told by the rows a second.
_LEFT_OUT = ("ms, 32 rows", "speed-up, 32 rows")


def cells(report: Report, *, narrow: bool = False) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the table of all variants.

    Args:
        report: with the variants.
        narrow: leave out what other columns tell nearly, too.

    Returns:
        Headings, those of empty columns left out, and a row of cells for each variant.
    """
    columns = {name: cell for name, (_, cell) in COLUMNS.items() if not (narrow and name in _LEFT_OUT)}
    rows = [[cell(variant, report) for cell in columns.values()] for variant in report.variants]
    kept = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in rows)]
    names = tuple(columns)
    return tuple(names[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows)
