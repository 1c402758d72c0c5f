"""Pictures of a report as inline SVG: horizontal bars, and points in a plane. Colours come from the page's style."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from moxserve.export.report.text import significant

__all__ = ["Bar", "Point", "bars", "scatter"]

_WIDTH = 560
_LABEL = 150
_VALUE = 74
_BAR = 16
_STEP = 26
_CHAR = 6.8


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: before it.
        value: its length; None when it is not known, which is written in its place.
        mark: a value inside or beside it, drawn as a thin line, such as the fastest call; None for none.
        kind: what colours it: `saved_model`, `onnx`, `openvino`, `tflite`.
        pale: it belongs to a variant that is not published.
        tip: shown when the pointer rests on it.
    """

    label: str
    value: float | None
    mark: float | None = None
    kind: str = ""
    pale: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        label: beside it.
        x: such as a size.
        y: such as an accuracy.
        kind: as of `Bar`.
        pale: as of `Bar`.
        tip: as of `Bar`.
    """

    label: str
    x: float
    y: float
    kind: str = ""
    pale: bool = False
    tip: str = ""


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Draw horizontal bars from 0.

    Args:
        title: read out in the place of the picture.
        rows: from top to bottom.

    Returns:
        An `svg` element; empty when no value is known.
    """
    known = [v for row in rows for v in (row.value, row.mark) if v is not None]
    if not known or max(known) <= 0:
        return ""
    scale = (_WIDTH - _LABEL - _VALUE) / max(known)
    height = _STEP * len(rows) + 4
    parts = [_bar(row, 2 + _STEP * i, scale) for i, row in enumerate(rows)]
    return _svg(title, height, parts)


def _bar(row: Bar, top: float, scale: float) -> str:
    middle = top + _STEP / 2
    text = f'<text class="label" x="{_LABEL - 8}" y="{middle:.1f}" text-anchor="end">{escape(_short(row.label))}</text>'
    if row.value is None:
        return f'<g>{text}<text class="soft" x="{_LABEL}" y="{middle:.1f}">not measured</text></g>'
    length = max(1.5, row.value * scale)
    classes = _classes("bar", row.kind, row.pale)
    place = f'x="{_LABEL}" y="{middle - _BAR / 2:.1f}" width="{length:.1f}" height="{_BAR}"'
    drawn = f'<rect class="{classes}" {place} rx="2"/>'
    if row.mark is not None:
        x = _LABEL + row.mark * scale
        drawn += f'<path class="mark" d="M{x:.1f} {middle - _BAR / 2 - 2:.1f}v{_BAR + 4}"/>'
    end = _LABEL + max(length, (row.mark or 0.0) * scale) + 6
    value = f'<text class="value" x="{end:.1f}" y="{middle:.1f}">{escape(significant(row.value))}</text>'
    return f"<g><title>{escape(row.tip or row.label)}</title>{text}{drawn}{value}</g>"


def scatter(
    title: str, points: Sequence[Point], axes: tuple[str, str], *, log_y: bool = False, most: float = math.inf
) -> str:
    """Draw points in a plane; sizes that differ by more than tenfold on a logarithmic axis.

    Args:
        title: read out in the place of the picture.
        points: at least one.
        axes: names of x and y.
        log_y: y on a logarithmic axis; values that are not positive stand at its foot.
        most: no y can be larger.

    Returns:
        An `svg` element; empty without points.
    """
    if not points:
        return ""
    height, left, right, top, foot = 340.0, 76.0, 24.0, 18.0, 48.0
    xs = [p.x for p in points if p.x > 0]
    log_x = len(xs) == len(points) and max(xs) > 10 * min(xs)
    across = _Axis([p.x for p in points], log_x, left, _WIDTH - right)
    up = _Axis([p.y for p in points], log_y, height - foot, top, most)
    box = (left, _WIDTH - right, top, height - foot)
    placed = _Labels(_WIDTH - right)
    ordered = sorted(points, key=lambda p: (p.x, p.y))
    drawn = [_point(point, across.at(point.x), up.at(point.y), placed) for point in ordered]
    return _svg(title, height, [*_grid(across, up, box), *_names(axes, box, height), *drawn])


def _grid(across: _Axis, up: _Axis, box: tuple[float, float, float, float]) -> Iterator[str]:
    left, right, top, bottom = box
    for value in up.ticks():
        y = up.at(value)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield f'<text class="soft" x="{left - 8:.1f}" y="{y:.1f}" text-anchor="end">{_tick(value)}</text>'
    for value in across.ticks():
        x = across.at(value)
        yield f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        yield f'<text class="soft" x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_tick(value)}</text>'


def _names(axes: tuple[str, str], box: tuple[float, float, float, float], height: float) -> Iterator[str]:
    left, right, top, bottom = box
    across = f'x="{(left + right) / 2:.1f}" y="{height - 8:.1f}"'
    up = f'transform="translate(13 {(top + bottom) / 2:.1f}) rotate(-90)"'
    for place, name in ((across, axes[0]), (up, axes[1])):
        yield f'<text class="axis" {place} text-anchor="middle">{escape(name)}</text>'


def _point(point: Point, x: float, y: float, placed: _Labels) -> str:
    classes = _classes("dot", point.kind, point.pale)
    text = _short(point.label)
    at, anchor, text_y = placed.place(x, y, _CHAR * len(text))
    return (
        f"<g><title>{escape(point.tip or point.label)}</title>"
        f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
        f'<text class="label" x="{at:.1f}" y="{text_y:.1f}" text-anchor="{anchor}">{escape(text)}</text></g>'
    )


class _Labels:
    """Finds places for labels beside points, where they cover no other one if possible."""

    def __init__(self, right: float) -> None:
        self._right = right
        self._taken: list[tuple[float, float, float]] = []

    def place(self, x: float, y: float, width: float) -> tuple[float, str, float]:
        """Return x, anchor and y of a label for a point."""
        ways = [(offset, side) for offset in (0, -14, 14, -28, 28, -42, 42) for side in (1, -1)]
        fitting = [(o, s) for o, s in ways if (x + 10 + width <= self._right if s > 0 else x - 10 - width >= 78)]
        chosen = next((way for way in fitting if self._free(x, y + way[0], width, way[1])), (fitting or ways)[0])
        offset, side = chosen
        start = x + 10 if side > 0 else x - 10 - width
        self._taken.append((start, y + offset, width))
        return (x + 10 * side), ("start" if side > 0 else "end"), y + offset

    def _free(self, x: float, y: float, width: float, side: int) -> bool:
        start = x + 10 if side > 0 else x - 10 - width
        return all(abs(y - b) >= 13 or start + width < a or start > a + w for a, b, w in self._taken)


class _Axis:
    """Values along a line of the picture."""

    def __init__(
        self, values: Sequence[float], log: bool, start: float, end: float, most: float = math.inf
    ) -> None:  # fmt: skip
        positive = [v for v in values if v > 0]
        self._log = log and bool(positive)
        self._start, self._end = start, end
        self._floor = max(min(positive) / 10, sys.float_info.min) if positive else 1.0
        low, high = (f(self._value(v) for v in values) for f in (min, max))
        alike = high - low < 1e-9 * max(1.0, abs(high))
        margin = max(abs(high) * 0.05, 0.5 if self._log else 0.01) if alike else 0.12 * (high - low)
        self._low, self._high = low - margin, min(high + margin, max(most, high) + margin / 3)
        self._most = most

    def _value(self, value: float) -> float:
        return math.log10(value if value > 0 else self._floor) if self._log else value

    def at(self, value: float) -> float:
        """Return the place of a value."""
        part = (self._value(value) - self._low) / (self._high - self._low)
        return self._start + part * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return values to name, at round numbers."""
        if self._log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            steps = (1, 2, 5) if self._high - self._low < 3 else (1,)
            stride = 1 + (len(powers) - 1) // 8
            found = [m * 10.0**p for p in powers if p % stride == 0 for m in steps]
        else:
            rough = (self._high - self._low) / 5
            power = 10 ** math.floor(math.log10(rough))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
            first = math.ceil(self._low / step)
            found = [i * step for i in range(first, first + 12)]
        return [v for v in found if self._low <= self._value(v) <= self._high and v <= self._most]


def _tick(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _short(label: str) -> str:
    return label if len(label) <= 20 else label[:19] + "…"


def _classes(what: str, kind: str, pale: bool) -> str:
    known = "".join(c if c.isalnum() or c == "_" else "-" for c in kind)
    return " ".join([what, *([f"is-{known}"] if known else []), *(["pale"] if pale else [])])


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">' + "".join(parts) + "</svg>"
    )
