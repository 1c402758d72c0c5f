"""The grammar of `--fail-if`: `METRIC OP NUMBER[UNIT]`.

    METRIC   p50 p90 p95 p99 avg min max      latency of successful requests; unit us, ms (default) or s
             rps  rows_per_s                  successful requests, or rows, a second; no unit
             fail_ratio                       share of failed requests, 0..1, or with unit %
             failures  requests               counts; no unit
             generator_cpu                    of one core, 0..1 or more, or with unit %
    OP       > >= < <=

Blanks are allowed between the parts: `p95>50ms`, `rps < 100`, `fail_ratio > 1%`. The test fails when the statement is
true. A latency of which there is none (no request succeeded) breaks every limit on it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from moxserve.errors import UsageError, did_you_mean
from moxserve_loadtests.results import LoadResult

__all__ = ["Limit", "parse_duration", "parse_limit"]

_LATENCIES = ("p50", "p90", "p95", "p99", "avg", "min", "max")
_MS = {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3}
_SHARE = {"": 1.0, "%": 0.01}
_NONE = {"": 1.0}
_UNITS = {
    **dict.fromkeys(_LATENCIES, _MS),
    "fail_ratio": _SHARE,
    "generator_cpu": _SHARE,
    "rps": _NONE,
    "rows_per_s": _NONE,
    "failures": _NONE,
    "requests": _NONE,
}
_ALIASES = {"errors": "failures"}
_OPS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_FORM = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(>=|<=|>|<)\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|[A-Za-z]*)\s*"
)
_EXPECTED = "expected METRIC OP NUMBER[UNIT], such as 'p95>50ms', 'rps<100' or 'fail_ratio>1%'"


@dataclass(frozen=True, slots=True)
class Limit:
    """A statement that must not become true.

    Attributes:
        text: as the user wrote it.
        metric: name of the figure.
        op: `>`, `>=`, `<` or `<=`.
        value: in milliseconds, shares or plain numbers.
    """

    text: str
    metric: str
    op: str
    value: float

    def measured(self, result: LoadResult) -> float | None:
        """Return the figure that is limited; None when there is none."""
        value: float | None = getattr(result, f"{self.metric}_ms" if self.metric in _LATENCIES else self.metric)
        return value

    def broken(self, result: LoadResult) -> bool:
        """Tell whether the statement is true of a result."""
        value = self.measured(result)
        return value is None or _OPS[self.op](value, self.value)

    def describe(self, result: LoadResult) -> str:
        """Return the limit and what was measured, such as `p95>50ms: measured 61.3 ms`."""
        value = self.measured(result)
        if value is None:
            return f"{self.text}: no request succeeded"
        if self.metric in _LATENCIES:
            return f"{self.text}: measured {value:.4g} ms"
        if self.metric in ("fail_ratio", "generator_cpu"):
            return f"{self.text}: measured {value:.4g} ({value:.2%})"
        return f"{self.text}: measured {value:,.6g}"


def parse_limit(text: str) -> Limit:
    """Read one limit.

    Raises:
        UsageError: it does not follow the grammar.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"--fail-if {text!r}: {_EXPECTED}")
    metric = _ALIASES.get(match[1].lower(), match[1].lower())
    if metric not in _UNITS:
        raise UsageError(f"--fail-if {text!r}: no metric is named {match[1]!r}; {did_you_mean(metric, _UNITS, 20)}")
    units = _UNITS[metric]
    if match[4] not in units:
        allowed = " or ".join(unit for unit in units if unit) or "none"
        raise UsageError(f"--fail-if {text!r}: unit {match[4]!r} does not fit {metric}; expected {allowed}")
    return Limit(text.strip(), metric, match[2], float(match[3]) * units[match[4]])


def covers_failures(limits: Iterable[Limit]) -> bool:
    """Tell whether the user said how many failures are acceptable."""
    return any(limit.metric in ("failures", "fail_ratio") for limit in limits)


def parse_duration(text: str) -> float:
    """Read a duration: `10s`, `1m30s`, `500ms`, `2h`, or seconds as a plain number.

    Returns:
        Seconds.

    Raises:
        UsageError: it is none of those, or nothing at all.
    """
    plain = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*", text)
    parts = re.fullmatch(r"\s*(?:(\d+)h)?\s*(?:(\d+)m(?!s))?\s*(?:([0-9]*\.?[0-9]+)s)?\s*(?:(\d+)ms)?\s*", text)
    if plain:
        seconds = float(plain[1])
    elif parts and any(parts.groups()):
        hours, minutes, rest, millis = (float(p or 0) for p in parts.groups())
        seconds = hours * 3600 + minutes * 60 + rest + millis / 1e3
    else:
        raise UsageError(f"duration {text!r}: expected something like 10s, 1m30s or 500ms")
    if seconds <= 0:
        raise UsageError(f"duration {text!r}: expected more than nothing")
    return seconds
