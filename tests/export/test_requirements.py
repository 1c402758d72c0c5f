"""Conditions on variants: read, bound to what is made, held against what was found."""

from __future__ import annotations

import fnmatch
import operator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moxserve.errors import UsageError
from moxserve.export.facts import Figures, Machine, Measured, OutputFigures, Timing
from moxserve.export.report.model import VariantReport
from moxserve.export.requirements import (
    METRICS,
    Requirement,
    bind_requirements,
    check_requirements,
    metrics_of,
    parse_requirement,
    read_conditions,
    speedup,
)
from moxserve.export.targets import Target

TARGETS = [
    Target("frozen"), Target("frozen", "bfloat16"), Target("onnx"), Target("onnx", "int8"), Target("tflite", "int8"),
    Target("openvino", "float16"),
]  # fmt: skip
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


def test_a_condition_is_read() -> None:
    assert parse_requirement("int8.top1_agreement>=0.99") == Requirement(
        "int8.top1_agreement>=0.99", "int8", "top1_agreement", ">=", 0.99
    )
    spaced = parse_requirement("  onnx_* . size_mb  <  1.5e2 ")
    assert (spaced.variant, spaced.metric, spaced.operator, spaced.limit) == ("onnx_*", "size_mb", "<", 150.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: no operator"),
        ("int8.top1_agreement", "column 20: no operator (>=, <=, ==, >, <)"),
        ("int8.top1_agreement=0.9", "column 20: no operator"),
        ("top1_agreement>=0.9", "column 1: no variant before the metric"),
        (".accuracy>=0.9", "column 1: no variant before the metric"),
        ("int8.top1_agrement>=0.9", "column 6: 'top1_agrement' is not a metric; did you mean 'top1_agreement' or"),
        ("int8. >=0.9", "is not a metric"),
        ("int8.accuracy>=", "column 16: '' is not a number"),
        ("int8.accuracy>= 90%", "column 17: '90%' is not a number"),
        ("int8.accuracy>=nan", "'nan' is not a number"),
        ("int8.size_mb<1e999", "column 14: '1e999' is beyond what a number can hold"),
        ("int8.accuracy>=>=1", "'>=1' is not a number"),
        ("int8.accuracy=>1", "column 6: 'accuracy=' is not a metric"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_requirement(text)
    assert message in caught.value.message
    assert caught.value.hint == "expected VARIANT.METRIC OPERATOR NUMBER, such as int8.top1_agreement>=0.99"


_VARIANTS = st.from_regex(r"[a-z*?\[\]_0-9.]*[a-z*?\[\]_0-9]", fullmatch=True)
_SPACE = st.sampled_from(["", " ", "  "])


@given(
    _VARIANTS, st.sampled_from(METRICS), st.sampled_from(sorted(OPERATORS)),
    st.floats(allow_nan=False, allow_infinity=False), _SPACE,
)  # fmt: skip
def test_every_condition_that_is_written_is_read_back(
    variant: str, metric: str, sign: str, limit: float, space: str
) -> None:
    found = parse_requirement(f"{space}{variant}.{metric}{space}{sign}{space}{limit!r}{space}")
    assert (found.variant, found.metric, found.operator, found.limit) == (variant, metric, sign, limit)


@given(st.text(max_size=40))
@example("int8.accuracy>=1" + "0" * 400)
@example("a.b.accuracy>=1")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_requirement(text)
    except UsageError:
        return
    assert found.metric in METRICS
    assert found.about([Target("onnx")]) in ([], ["onnx"])


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("onnx_int8", ["onnx_int8"]),
        ("onnx", ["onnx"]),  # the variant of that name, not the format
        ("tflite", ["tflite_int8"]),  # no variant of that name: the format
        ("int8", ["onnx_int8", "tflite_int8"]),
        ("bf16", ["frozen_bf16"]),
        ("fp32", ["frozen", "onnx"]),
        ("onnx*", ["onnx", "onnx_int8"]),
        ("*_int8", ["onnx_int8", "tflite_int8"]),
        ("[fo]*", ["frozen", "frozen_bf16", "onnx", "onnx_int8", "openvino_fp16"]),
        ("saved_model", ["saved_model"]),
        ("*", [t.name for t in TARGETS]),
    ],
)
def test_which_variants_a_condition_is_about(variant: str, names: list[str]) -> None:
    (found,) = bind_requirements([f"{variant}.rel_l2<1"], TARGETS)
    reports = [VariantReport(name="saved_model", format="saved_model", verdict="source")]
    reports += [
        VariantReport(name=t.name, format="saved_model" if t.format == "frozen" else t.format, precision=t.precision)
        for t in TARGETS
    ]
    assert found.about(reports) == names
    assert [r.variant for r in check_requirements([found], reports)] == names


@pytest.mark.slow
@given(st.text("abonx*?[]_", max_size=8))
def test_patterns_are_those_of_the_shell(pattern: str) -> None:
    found = Requirement("", pattern, "rel_l2", "<", 1).about(TARGETS)
    names = [t.name for t in TARGETS]
    assert found == ([pattern] if pattern in names else [n for n in names if fnmatch.fnmatchcase(n, pattern)])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("onx_int8.rel_l2<1", {}, "no variant is called so; did you mean 'onnx_int8'"),
        ("dynamic.rel_l2<1", {}, "no variant in dynamic is made; known: saved_model, frozen"),
        ("int8.latency_ms<1", {"measure": False}, "latency_ms needs variants to be measured"),
        ("int8.accuracy_drop<1", {"labels": False}, "the right classes of the rows are not known"),
    ],
)
def test_what_cannot_be_told_is_refused_before_any_work(text: str, options: dict[str, bool], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bind_requirements(["frozen.size_mb>0", text], TARGETS, **options)


def measured(ms: float) -> Measured:
    timings = [
        Timing(batch=b, calls=9, min_ms=ms * b, p50_ms=2 * ms * b, p95_ms=3 * ms * b, rows_per_s=500 / ms,
               best_rows_per_s=1000 / ms, cpu_ms=ms)
        for b in (1, 32)
    ]  # fmt: skip
    machine = Machine(cpu="c", cpus=2)
    return Measured(
        machine=machine, load_s=0.5, first_call_ms=9.0, timings=timings, base_memory_mb=10.0, peak_memory_mb=30.0
    )


SOURCE = VariantReport(
    name="saved_model", format="saved_model", verdict="source", size_bytes=4_000_000, measured=measured(8.0)
)
INT8 = VariantReport(
    name="onnx_int8",
    format="onnx",
    precision="int8",
    size_bytes=1_000_000,
    measured=measured(2.0),
    figures=Figures(
        rows=100,
        outputs=(
            OutputFigures(output="a", dtype="float32", max_abs_error=1.0, max_rel_error=0.5, rel_l2=0.1, sqnr_db=20.0),
            OutputFigures(output="b", dtype="float32", max_abs_error=2.0, max_rel_error=0.1, rel_l2=0.01, sqnr_db=40.0),
        ),
        top1_agreement=0.99, top5_agreement=0.995, accuracy=0.9, source_accuracy=0.95, scores="a",
    ),
)  # fmt: skip


def test_every_metric_has_its_value() -> None:
    found = metrics_of(INT8, SOURCE)
    assert set(found) == set(METRICS)
    assert found == pytest.approx({
        "top1_agreement": 0.99, "top5_agreement": 0.995, "accuracy": 0.9, "accuracy_drop": 0.05,
        "max_abs_error": 2.0, "max_rel_error": 0.5, "rel_l2": 0.1, "sqnr_db": 20.0,
        "size_mb": 1.0, "size_ratio": 0.25, "load_s": 0.5, "latency_ms": 4.0, "latency_b32_ms": 128.0,
        "throughput": 250.0, "throughput_b32": 250.0, "peak_memory_mb": 30.0, "speedup": 4.0,
    })  # fmt: skip
    assert speedup(INT8, SOURCE, 32) == 4.0
    assert speedup(INT8, None, 1) is None
    assert speedup(INT8, SOURCE, 7) is None


@given(st.sampled_from(METRICS), st.sampled_from(sorted(OPERATORS)), st.floats(-10, 300))
def test_a_condition_holds_or_says_why_not(metric: str, sign: str, limit: float) -> None:
    requirement = parse_requirement(f"int8.{metric}{sign}{limit!r}")
    (result,) = check_requirements([requirement], [SOURCE, INT8])
    value = metrics_of(INT8, SOURCE)[metric]
    assert (result.variant, result.metric, result.value) == ("onnx_int8", metric, value)
    assert result.passed == OPERATORS[sign](value, limit)
    assert result.passed == (result.why == "")


def test_what_is_not_known_does_not_hold() -> None:
    failed = VariantReport(name="tflite_int8", format="tflite", precision="int8", verdict="failed")
    (result,) = check_requirements([parse_requirement("int8.top1_agreement>=0")], [SOURCE, failed])
    assert (result.passed, result.value) == (False, None)
    assert result.why == "top1_agreement of tflite_int8 is not known"


def test_frozen_means_every_frozen_graph_before_and_after_it_was_made() -> None:
    """The report calls a frozen graph what its loaders call it, a SavedModel."""
    conditions = read_conditions(["frozen.rel_l2<=1e-9"], ["frozen.size_mb<=1"], [Target("frozen", "bfloat16")])
    made = VariantReport(name="frozen_bf16", format="saved_model", precision="bfloat16", size_bytes=2_000_000)
    source = VariantReport(name="saved_model", format="saved_model", verdict="source")
    for conditions_of in (conditions.required, conditions.limits):
        (result,) = check_requirements(conditions_of, [source, made])
        assert (result.variant, result.passed) == ("frozen_bf16", False)
    assert conditions.demanded == ("frozen_bf16",)


def test_the_saved_model_can_be_required_and_not_dropped() -> None:
    assert read_conditions(["saved_model"], [], []).demanded == ()
    assert len(read_conditions(["saved_model.size_mb<=1"], [], []).required) == 1
    with pytest.raises(UsageError, match=r"limit 'saved_model.size_mb<=1': the SavedModel cannot be dropped"):
        read_conditions([], ["saved_model.size_mb<=1"], [])
