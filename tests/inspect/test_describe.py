"""The reports of versions and other subjects."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.errors import DataError, UsageError
from moxserve.export.facts import Figures, Machine, Measured, OutputFigures, Timing
from moxserve.export.manifest import Manifest, SignatureEntry, Source, Variant, write_manifest
from moxserve.inspect.describe import describe
from moxserve.inspect.detect import detect
from moxserve.inspect.report import Report


def table(report: Report, key: str) -> list[dict[str, Any]]:
    (found,) = [t for t in report.tables if t.key == key]
    return found.records()


@pytest.fixture
def version(tmp_path: Path, saved_v1: Path) -> Path:
    """A version with a manifest that tells of an ONNX variant, too."""
    folder = tmp_path / "3"
    shutil.copytree(saved_v1, folder)
    (folder / "variants" / "onnx_int8").mkdir(parents=True)
    (folder / "variants" / "onnx_int8" / "model.onnx").write_bytes(b"0" * 1000)
    (folder / "variants" / "onnx_int8" / "model.onnx.data").write_bytes(b"0" * 500)
    timings = [
        Timing(batch=b, calls=9, min_ms=m, p50_ms=m, p95_ms=m, rows_per_s=r, best_rows_per_s=r, cpu_ms=m)
        for b, m, r in [(1, 0.5, 2000.0), (32, 4.0, 8000.0)]
    ]
    variant = Variant(
        name="onnx_int8",
        format="onnx",
        path="variants/onnx_int8/model.onnx",
        precision="int8",
        figures=Figures(
            rows=64,
            outputs=(OutputFigures(output="logits", dtype="float32", max_abs_error=0.25, rel_l2=0.01),),
            top1_agreement=0.97,
            accuracy=0.95,
        ),
        measured=Measured(
            machine=Machine(cpu="x", cpus=2), load_s=0.1, first_call_ms=3, timings=tuple(timings), base_memory_mb=50,
            peak_memory_mb=80,
        ),
    )  # fmt: skip
    saved_model = Variant(name="saved_model", format="saved_model")
    manifest = Manifest(
        model_name="net",
        tools={"moxserve": "1"},
        signatures={"serving_default": SignatureEntry(method="m", inputs={}, outputs={})},
        source=Source(checkpoint="runs/net/model.ckpt-7", global_step=7),
        variants=(saved_model, variant),
    )
    write_manifest(str(folder), manifest)
    return folder


def test_a_version_tells_where_it_came_from_and_what_it_holds(version: Path) -> None:
    report = describe(detect(version.parent))
    assert report.problems == []
    assert report.facts["model_name"] == "net"
    assert report.facts["made_from"] == "runs/net/model.ckpt-7 (step 7)"
    assert report.facts["files_checked"] == "sizes and SHA-256"
    assert (report.facts["tags"], report.facts["form"]) == ("serve", "SavedModel (binary)")
    assert report.facts["variables"] >= 4
    rows = {row["name"]: row for row in table(report, "variants")}
    onnx = rows["onnx_int8"]
    assert (onnx["precision"], onnx["size"], onnx["rows"], onnx["max_error"]) == ("int8", 1500, 64, 0.25)
    assert (onnx["top1"], onnx["accuracy"], onnx["ms_b1"], onnx["rows_s_b32"]) == (0.97, 0.95, 0.5, 8000.0)
    parts = [version / "saved_model.pb", *(version / "variables").iterdir(), *(version / "assets").iterdir()]
    assert rows["saved_model"]["size"] == sum(path.stat().st_size for path in parts)
    assert table(report, "assets") == [{"file": "labels.txt", "size": 12}]
    assert table(report, "tables")[0]["filled_from"] == "labels.txt"
    assert "/device:CPU:0" in {row["device"] for row in table(report, "devices")}


def test_files_are_held_against_the_manifest(version: Path) -> None:
    (version / "variants" / "onnx_int8" / "model.onnx").write_bytes(b"1" * 1000)
    (version / "assets" / "labels.txt").unlink()
    problems = describe(detect(version)).problems
    assert any("model.onnx has another content" in problem for problem in problems)
    assert any("labels.txt is missing" in problem for problem in problems)
    quick = describe(detect(version), digests=False)
    assert not any("another content" in problem for problem in quick.problems)
    assert quick.facts["files_checked"] == "sizes"


def test_a_broken_manifest_is_named(version: Path) -> None:
    (version / "assets.extra" / "moxserve.json").write_text("{}")
    with pytest.raises(DataError, match=r"moxserve\.json: .*expected a moxserve manifest"):
        describe(detect(version))


def test_a_missing_asset_is_told_without_a_manifest(tmp_path: Path, saved_v1: Path) -> None:
    shutil.copytree(saved_v1, tmp_path / "1")
    (tmp_path / "1" / "assets" / "labels.txt").unlink()
    assert describe(detect(tmp_path)).problems == [f"asset 'labels.txt' is missing in {tmp_path / '1' / 'assets'}"]


def test_operations_are_cut_to_the_most_frequent(saved_v1: Path) -> None:
    short, whole = describe(detect(saved_v1)), describe(detect(saved_v1), all_rows=True)
    (cut,) = [t for t in short.tables if t.key == "operations"]
    assert len(cut.rows) == 12
    assert cut.total == len(table(whole, "operations")) > 12
    assert short.to_json()["operations_total"] == cut.total
    counts = [row["nodes"] for row in table(whole, "operations")]
    assert counts == sorted(counts, reverse=True)


def test_every_model_of_tensorflow_serving(tfserving: Path) -> None:
    bases = sorted(path for path in tfserving.glob("*") if path.is_dir() and path.name != "bad_half_plus_two")
    assert len(bases) >= 10
    for base in bases:
        report = describe(detect(base))
        # One of them comes without its asset.
        lacking = {"saved_model_half_plus_two_cpu_with_saved_model_config": ["foo.txt"]}.get(base.name, [])
        assert [p.split("'")[1] for p in report.problems] == lacking, base
        assert any(t.key in ("signatures", "tensors") and t.rows for t in report.tables), base


def test_checkpoints_runs_and_graphs(trained, frozen: Path, tmp_path: Path) -> None:
    (row,) = table(describe(detect(Path(trained.prefix).parent)), "checkpoints")
    assert (row["checkpoint"], row["step"], row["shards"], row["meta"]) == ("model.ckpt-1", 1, 1, "yes")
    graph = describe(detect(frozen))
    assert [row["tensor"] for row in table(graph, "ends")] == ["x:0", "y:0"]
    assert graph.facts["constants_bytes"] >= 6400
    meta = describe(detect(f"{trained.prefix}.meta"), all_rows=True)
    assert meta.facts["form"] == "MetaGraphDef (binary)"
    assert {row["operation"] for row in table(meta, "operations")} >= {"SaveV2", "MatMul"}
    np.savez(tmp_path / "w.npz", a=np.zeros((2, 3)))
    assert table(describe(detect(tmp_path / "w.npz")), "variables")[0] == {
        "name": "a", "dtype": "float64", "shape": (2, 3), "parameters": 6, "size": 48,
    }  # fmt: skip


def test_a_version_in_another_format_only(tfserving: Path) -> None:
    report = describe(detect(tfserving / "saved_model_half_plus_two_tflite"))
    assert [row["format"] for row in table(report, "variants")] == ["tflite"]
    assert {row["operation"] for row in table(report, "operations")} == {"MUL", "ADD"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 60))
def test_a_damaged_graph_is_told_or_refused(saved_v1: Path, damage: list[tuple[int, int]], cut: int) -> None:
    whole = (saved_v1 / "saved_model.pb").read_bytes()
    data = bytearray(whole[: len(whole) - cut])
    for place, value in damage:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "saved_model.pb").write_bytes(data)
        with contextlib.suppress(DataError, UsageError):
            assert describe(detect(folder)).facts["nodes"] >= 0
