"""The grammar of --fail-if, durations, and the counting of latencies."""

from __future__ import annotations

import contextlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moxserve_loadtests.limits import covers_failures, parse_duration, parse_limit
from moxserve_loadtests.report import SATURATED, with_summary
from moxserve_loadtests.results import Latencies, LoadResult

from moxserve.errors import UsageError

LATENCIES = ["p50", "p90", "p95", "p99", "avg", "min", "max"]
OTHERS = ["rps", "rows_per_s", "fail_ratio", "generator_cpu", "failures", "requests"]


def result(**figures) -> LoadResult:
    return LoadResult("grpc://h:1", "m", 8, 1, "random data", **figures)


@given(
    st.sampled_from(LATENCIES),
    st.sampled_from([">", ">=", "<", "<="]),
    st.floats(1e-3, 1e6).map(lambda v: float(f"{v:.6g}")),
    st.sampled_from([("", 1.0), ("us", 1e-3), ("ms", 1.0), ("s", 1e3)]),
    st.sampled_from(["{}{}{}{}", " {} {} {} {} ", "{} {}{}{}"]),
)
def test_latency_limits(metric, op, value, unit, form) -> None:
    limit = parse_limit(form.format(metric, op, f"{value:f}", unit[0]))
    assert (limit.metric, limit.op) == (metric, op)
    wanted = float(f"{value:f}") * unit[1]
    assert limit.value == pytest.approx(wanted)
    for measured in (wanted * 0.5, wanted, wanted * 2):
        expected = {">": measured > limit.value, ">=": measured >= limit.value, "<": measured < limit.value}.get(
            op, measured <= limit.value
        )
        assert limit.broken(result(**{f"{metric}_ms": measured})) is expected


@given(st.text(max_size=30))
def test_anything_else_is_refused_or_read(text) -> None:
    with contextlib.suppress(UsageError):
        assert parse_limit(text).metric in LATENCIES + OTHERS


@pytest.mark.parametrize(
    ("text", "figures", "broken", "told"),
    [
        ("p95>50ms", {"p95_ms": 61.25}, True, "p95>50ms: measured 61.25 ms"),
        ("p95>50ms", {"p95_ms": 12.0}, False, "measured 12 ms"),
        ("P99 > 1s", {"p99_ms": 1001.0}, True, "measured 1001 ms"),
        ("p50>50ms", {}, True, "p50>50ms: no request succeeded"),
        ("rps<100", {"rps": 99.5}, True, "measured 99.5"),
        ("fail_ratio>1%", {"fail_ratio": 0.01}, False, "measured 0.01 (1.00%)"),
        ("fail_ratio>=0.01", {"fail_ratio": 0.01}, True, "measured 0.01"),
        ("errors>0", {"failures": 2}, True, "measured 2"),
        ("generator_cpu>90%", {"generator_cpu": 0.5}, False, "50.00%"),
    ],
)
def test_judgement(text, figures, broken, told) -> None:
    limit = parse_limit(text)
    assert limit.broken(result(**figures)) is broken
    assert told in limit.describe(result(**figures))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p95", "expected METRIC OP NUMBER"),
        ("p95=50ms", "expected METRIC OP NUMBER"),
        ("p95>fast", "expected METRIC OP NUMBER"),
        ("p59>50ms", "no metric is named 'p59'; did you mean"),
        ("p95>50m", "unit 'm' does not fit p95; expected us or ms or s"),
        ("rps<100%", "unit '%' does not fit rps; expected none"),
        ("", "expected METRIC OP NUMBER"),
    ],
)
def test_refusals(text, message) -> None:
    with pytest.raises(UsageError, match=message):
        parse_limit(text)


def test_limits_that_speak_of_failures() -> None:
    assert covers_failures([parse_limit("p95>1"), parse_limit("errors>5")])
    assert not covers_failures([parse_limit("p95>1")])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("2h", 7200),
        ("1.5s", 1.5),
        ("3", 3),
        ("0.25", 0.25),
        ("1h2m3s4ms", 3723.004),
    ],
)
def test_durations(text, seconds) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "ten", "10x", "-1s", "0s", "0", "1s2m"])
def test_wrong_durations(text) -> None:
    with pytest.raises(UsageError, match="duration"):
        parse_duration(text)


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=300), st.sampled_from([50, 90, 95, 99, 100]))
def test_percentiles_are_within_half_a_percent(values, percent) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    exact = float(np.percentile(values, percent, method="inverted_cdf"))
    assert latencies.percentile(percent) == pytest.approx(exact, rel=0.005)
    assert latencies.avg_ms == pytest.approx(np.mean(values))


def test_figures() -> None:
    latencies = Latencies()
    for value in (1.0, 2.0, 3.0, 4.0):
        latencies.add(value)
    measured = result()
    measured.measured(latencies, Counter({"INTERNAL: boom": 1}), 2.0)
    measured.generator_used(1.9, 2.0, Latencies())
    assert (measured.requests, measured.failures, measured.fail_ratio, measured.rps) == (5, 1, 0.2, 2.0)
    assert (measured.min_ms, measured.max_ms, measured.avg_ms) == (1.0, 4.0, 2.5)
    assert measured.saturated
    assert LoadResult.from_dict(measured.as_dict()) == measured


def test_report_tells_limits_and_saturation_and_escapes() -> None:
    measured = result(p95_ms=61.0, saturated=True, errors={"<b>bad</b>": 3})
    page = with_summary("<html><body><div id='root'></div></body></html>", measured, [parse_limit("p95>50ms")])
    assert page.startswith("<html><body><section")
    assert SATURATED in page
    assert "p95&gt;50ms: measured 61 ms (broken)" in page
    assert "&lt;b&gt;bad&lt;/b&gt;" in page
    assert page.endswith("<div id='root'></div></body></html>")
