"""The report of an export: JSON that is read back, a page that fetches nothing, a table for the terminal."""

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import DataError, MissingExtraError
from moxserve.export.facts import Figures, Machine, Measured, OutputFigures, Timing
from moxserve.export.report import Report, read_report, render_summary, write_report
from moxserve.export.report.model import (
    CalibrationFacts,
    RequirementResult,
    SourceFacts,
    Sparsity,
    TransformStep,
    VariantReport,
)
from moxserve.export.report.page import render_page
from moxserve.export.report.plots import Bar, Point, bars, scatter
from moxserve.export.report.text import megabytes, scientific, share, significant

EVIL = "<script>alert('x')</script>&\"'"
MACHINE = Machine(cpu="Some CPU @ 3 GHz", architecture="x86_64", cpus=4, versions={"onnxruntime": "1.31.1"})


def measured(ms: float) -> Measured:
    def timing(batch: int, least: float) -> Timing:
        return Timing(batch=batch, calls=100, min_ms=least, p50_ms=2 * least, p95_ms=3 * least, cpu_ms=least,
                      rows_per_s=500 * batch / least, best_rows_per_s=1000 * batch / least)  # fmt: skip

    return Measured(machine=MACHINE, load_s=0.25, first_call_ms=9.0, timings=(timing(1, ms), timing(32, 4 * ms)),
                    base_memory_mb=80.0, peak_memory_mb=120.0)  # fmt: skip


def figures(rel_l2: float, top1: float, accuracy: float | None) -> Figures:
    outputs = (
        OutputFigures(output="logits", dtype="float32", max_abs_error=rel_l2, rel_l2=rel_l2, sqnr_db=17.25),
        OutputFigures(output="classes", dtype="int64", equal_share=top1),
    )
    return Figures(rows=64, outputs=outputs, single_rows=8, singles=outputs, scores="logits", top1_agreement=top1,
                   top5_agreement=1.0, accuracy=accuracy, source_accuracy=accuracy)  # fmt: skip


@pytest.fixture
def report() -> Report:
    """Something of everything."""
    return Report(
        model_name="digits",
        version="7",
        path="models/digits/7",
        source=SourceFacts(kind="saved_model", path="somewhere/1", details={"global_step": 300}),
        signature="serving_default",
        signatures={"serving_default": "serving_default(x) -> (y)"},
        rows=64,
        labels_known=True,
        calibration=CalibrationFacts(method="entropy", rows=128, exclude=("*/logits*",), max_drop=0.01),
        transforms=(
            TransformStep(name="fold_batch_norms", by="moxserve", arguments={"ignore_errors": True}, nodes_before=90,
                          nodes_after=60, bytes_before=2_000_000, bytes_after=1_900_000, error=2e-7, outcome="applied"),
            TransformStep(name="quantize_weights", outcome="rolled back", why="it changes answers by 0.1"),
        ),
        nodes=90,
        variants=(
            VariantReport(name="saved_model", format="saved_model", path=".", verdict="source", size_bytes=4_000_000,
                          figures=figures(0.0, 1.0, 0.95), measured=measured(8.0)),
            VariantReport(name="onnx_int8", format="onnx", precision="int8", path="variants/onnx_int8/model.onnx",
                          size_bytes=1_000_000, digest="ab" * 32, build_s=3.5, figures=figures(0.1, 0.984375, 0.9375),
                          measured=measured(2.0), notes=("the Softmax stays in float",),
                          details={"opset": 17, "operations": {f"Op{i}": i for i in range(20)},
                                   "kept": [{"operation": "conv1", "cost": 0.02}], "none": None, "yes": True}),
            VariantReport(name="tflite_int8", format="tflite", precision="int8", verdict="dropped",
                          size_bytes=900_000, figures=figures(0.5, 0.5, 0.4), measured=measured(1.0),
                          reasons=("it loses 55.00%",)),
            VariantReport(name="openvino", format="openvino", verdict="failed", reasons=("ended by SIGSEGV",),
                          log="the last words"),
        ),
        requirements=(
            RequirementResult(requirement="int8.rel_l2<=0.2", variant="onnx_int8", metric="rel_l2", value=0.1,
                              passed=True),
            RequirementResult(requirement="int8.rel_l2<=0.2", variant="tflite_int8", metric="rel_l2", value=0.5,
                              passed=False, why="rel_l2 is 0.5, required is <= 0.2"),
        ),
        sparsity=(Sparsity(variable="conv/weights", size=1000, zeros=800),),
        notes=("few rows",),
        tools={"moxserve": "0.1.0"},
        options={"onnx": ["int8"]},
        phases={"convert": 3.5},
    )  # fmt: skip


class Page(HTMLParser):
    """What a browser sees of a page."""

    VOID = frozenset(("meta", "br", "link", "img"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def test_json_is_read_back(tmp_path: Path, report: Report) -> None:
    paths = write_report(str(tmp_path / "new" / "folder"), report)
    assert [Path(p).name for p in paths] == ["report.json", "report.html"]
    assert read_report(paths[0]) == report
    assert read_report(str(tmp_path / "new" / "folder")) == report
    content = json.loads(Path(paths[0]).read_text())
    assert content["schema_version"] == 1
    assert content["variants"][1]["measured"]["timings"][0]["min_ms"] == 2.0


def test_the_page_fetches_nothing_and_is_well_formed(report: Report) -> None:
    text = render_page(report)
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not attributes & {"src", "href", "style"}
    assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_says_everything(report: Report) -> None:
    text = " ".join(Page(render_page(report)).text.split())
    for said in (
        "digits version 7", "from somewhere/1 (saved model) to models/digits/7", "few rows",
        "variants published 1 of 3 2 left out", "4.00 × onnx_int8",
        "it loses 55.00%", "ended by SIGSEGV", "the last words", "the Softmax stays in float",
        "98.44 %", "93.75 %", "17.2", "serving_default(x) -> (y) converted",
        "fold_batch_norms(ignore_errors=True)", "90 → 60", "2.0e-07", "rolled back", "it changes answers by 0.1",
        "entropy", "*/logits*", "conv/weights", "80.00 %", "rel_l2 is 0.5, required is <= 0.2", "does not hold",
        "Some CPU @ 3 GHz", "1.31.1", "global step 300", "Op18 18, Op19 19", "operation cost conv1 0.02", "ab" * 32,
    ):  # fmt: skip
        assert said in text, said


def evil(value: Any) -> Any:
    """Put markup wherever there is text that may be anything."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, dict):
        return {evil(key): evil(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [evil(item) for item in value]
    return value


FIXED = {"schema_version", "created", "verdict", "digest", "machine", "figures", "measured"}


def test_everything_is_escaped(report: Report) -> None:
    content = report.model_dump()
    bad = {key: item if key in FIXED or key == "variants" else evil(item) for key, item in content.items()
           if key not in ("transforms", "calibration", "requirements", "sparsity", "source")}  # fmt: skip
    for key in ("calibration", "source"):
        bad[key] = {name: evil(item) for name, item in content[key].items()}
    for key in ("transforms", "requirements", "sparsity", "variants"):
        bad[key] = [{n: i if n in FIXED else evil(i) for n, i in one.items()} for one in content[key]]
    for variant in bad["variants"]:
        if variant["figures"]:
            variant["figures"]["outputs"] = [
                {**o, "output": EVIL, "dtype": EVIL} for o in variant["figures"]["outputs"]
            ]
            variant["figures"]["scores"] = EVIL
    bad["machine"] = {"cpu": EVIL, "architecture": EVIL, "cpus": 1, "versions": {EVIL: EVIL}}
    bad["failure"] = EVIL
    text = render_page(Report.model_validate(bad))
    page = Page(text)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert EVIL not in text
    assert html.escape(EVIL, quote=False).split("alert")[0] in text
    assert page.text.count(EVIL) > 30


def test_a_report_of_hardly_anything(tmp_path: Path) -> None:
    bare = Report(model_name="m", source=SourceFacts(kind="checkpoint"), failure="it could not be frozen")
    write_report(str(tmp_path), bare)
    assert "Nothing was published.  it could not be frozen" in Page((tmp_path / "report.html").read_text()).text
    assert render_summary(bare) == (("variant", "verdict"), ())


def test_the_table_of_the_terminal(report: Report) -> None:
    columns, rows = render_summary(report)
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [row["variant"] for row in table] == ["saved_model", "onnx_int8", "tflite_int8", "openvino"]
    assert table[1] == {
        "variant": "onnx_int8", "verdict": "published", "MB": "1.00", "load s": "0.25", "ms": "4.00",
        "speed-up": "4.00 ×", "rows/s": "2000", "memory MB": "120", "rel. error": "1.0e-01", "top-1": "98.44 %",
        "accuracy": "93.75 %",
    }  # fmt: skip
    assert table[3]["verdict"] == "failed"
    assert "accuracy" not in render_summary(report.model_copy(update={"variants": report.variants[3:]})).columns


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_name": "m"}', "source: Field required; expected the report of an export"),
        ("{", "Invalid JSON"),
        ('{"model_name": "m", "source": {"kind": "k"}, "schema_version": 2}', "schema version 2; this moxserve knows"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_report(str(tmp_path))


def test_what_is_no_json_is_refused_and_numbers_of_numpy_are_not(tmp_path: Path, report: Report) -> None:
    write_report(str(tmp_path), report.model_copy(update={"options": {"n": np.float32(1.5), "a": np.arange(2)}}))
    assert read_report(str(tmp_path)).options == {"n": 1.5, "a": [0, 1]}
    with pytest.raises(DataError, match="report: expected JSON values"):
        write_report(str(tmp_path), report.model_copy(update={"options": {"o": object()}}))


def test_without_jinja2_there_is_no_page(tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"moxserve\[export\]"):
        write_report(str(tmp_path), report)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert write_report(str(tmp_path), report, page=False) == [str(tmp_path / "report.json")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0"), (0.00001234, "1.23e-05"), (0.01234, "0.0123"), (1.5, "1.50"), (12.345, "12.3"),
     (123.4, "123"), (123456.7, "123457"), (-2.0, "-2.00"), (1e12, "1.00e+12"), (9.999, "10.00")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_other_numbers() -> None:
    assert (megabytes(13_210_000), megabytes(0)) == ("13.2", "")
    assert (share(1.0), share(0.98765), share(None)) == ("100 %", "98.77 %", "")
    assert (scientific(0.0), scientific(1.25e-7), scientific(None)) == ("0", "1.2e-07", "")


_AMOUNT = st.floats(0, 1e12) | st.floats(0, 1e-9)


@given(st.lists(st.tuples(_AMOUNT | st.none(), _AMOUNT | st.none()), max_size=6))
def test_bars_stay_in_the_picture(values: list[tuple[float | None, float | None]]) -> None:
    picture = bars("t", [Bar(EVIL, value, mark, "onnx") for value, mark in values])
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([0-9.]+)"', picture)]
    assert all(0 < width <= 560 - 150 - 74 + 1 for width in widths)
    assert EVIL not in picture
    if picture:
        Page(picture)


@given(st.lists(st.tuples(_AMOUNT, _AMOUNT), max_size=8), st.booleans())
def test_points_stay_in_the_picture(places: list[tuple[float, float]], log_y: bool) -> None:
    picture = scatter("t", [Point(EVIL, x, y, "tflite") for x, y in places], ("x", "y"), log_y=log_y)
    assert bool(picture) == bool(places)
    for x, y in re.findall(r'cx="([-0-9.]+)" cy="([-0-9.]+)"', picture):
        assert 0 <= float(x) <= 560
        assert 0 <= float(y) <= 340
    assert "nan" not in picture
    if picture:
        Page(picture)
