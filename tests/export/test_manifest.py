"""The manifest of a version: written, read back, and held against the files."""

from __future__ import annotations

import hashlib
import json
from datetime import timezone
from pathlib import Path

import numpy as np
import pytest

from moxserve.errors import DataError
from moxserve.export.facts import Figures, Machine, Measured, OutputFigures, Timing
from moxserve.export.manifest import (
    MANIFEST_PATH,
    Manifest,
    OutputCheck,
    SignatureEntry,
    Source,
    Variant,
    Verification,
    Warmup,
    check_files,
    files_of,
    read_manifest,
    take_stock,
    write_manifest,
)
from moxserve.types import Signature, TensorSpec, dtype_by_name


def _manifest(**changes: object) -> Manifest:
    signature = Signature(
        "serving_default",
        "tensorflow/serving/predict",
        {"x": TensorSpec("x", dtype_by_name("float32"), (None, 3), "x:0")},
        {"y": TensorSpec("y", dtype_by_name("string"), None, "y:0")},
    )
    check = OutputCheck(signature="serving_default", output="y", max_abs_error=1e-7, max_rel_error=1e-6)
    verification = Verification(mode="samples", rows=10, atol=1e-5, rtol=1e-4, max_abs_error=1e-7, outputs=(check,))
    fields = {
        "tools": {"moxserve": "0.1.0"},
        "model_name": "half",
        "signatures": {"serving_default": SignatureEntry.from_signature(signature)},
        "source": Source(checkpoint="run/model.ckpt-7", global_step=7),
        "variants": (Variant(name="saved_model", format="saved_model", verification=verification),),
        "warmup": Warmup(records=1, batch_sizes=(1,), signatures=("serving_default",)),
        "metadata": {"accuracy": 0.98},
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version directory with two files and a manifest."""
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "variables" / "variables.index").write_bytes(b"weights")
    write_manifest(str(tmp_path), _manifest())
    return tmp_path


def test_what_is_written_is_read_back(version: Path) -> None:
    manifest = read_manifest(str(version))
    assert manifest is not None
    assert set(manifest.files) == {"saved_model.pb", "variables/variables.index"}
    assert manifest.files["saved_model.pb"].size_bytes == 5
    assert manifest.created.tzinfo in (timezone.utc, manifest.created.tzinfo)
    assert manifest.created.utcoffset().total_seconds() == 0
    assert manifest == _manifest(created=manifest.created, files=manifest.files, variants=manifest.variants)
    signature = manifest.signature_map()["serving_default"]
    assert str(signature) == "serving_default(x: float32[?, 3]) -> (y: string[?])"
    assert signature.inputs["x"].tensor == "x:0"


@pytest.mark.parametrize(
    ("variant", "files"),
    [
        (Variant(name="saved_model", format="saved_model"), ["assets/l.txt", "saved_model.pb", "variables/v.index"]),
        (
            Variant(name="frozen", format="saved_model", path="variants/frozen"),
            ["variants/frozen/frozen_graph.pb", "variants/frozen/saved_model.pb"],
        ),
        (
            Variant(name="onnx", format="onnx", path="variants/onnx/model.onnx"),
            ["variants/onnx/model.onnx", "variants/onnx/weights"],
        ),
        (Variant(name="openvino", format="openvino", path="model.xml"), ["model.bin", "model.xml"]),
        (Variant(name="tflite", format="tflite", path="model.tflite"), []),
    ],
    ids=lambda value: value.name if isinstance(value, Variant) else "",
)
def test_each_variant_has_its_own_files_and_their_digest(tmp_path: Path, variant: Variant, files: list[str]) -> None:
    names = (
        "saved_model.pb", "variables/v.index", "assets/l.txt", "assets.extra/warmup", "model.xml", "model.bin",
        "variants/frozen/saved_model.pb", "variants/frozen/frozen_graph.pb",
        "variants/onnx/model.onnx", "variants/onnx/weights", "variants/onnx_int8/model.onnx",
    )  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert files_of(variant, names) == files
    written = write_manifest(str(tmp_path), _manifest(variants=(variant,))).variants[0]
    assert written.size_bytes == sum(map(len, files))
    lines = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in files)
    assert take_stock(str(tmp_path), variant) == written
    assert written.digest == (hashlib.sha256(lines.encode()).hexdigest() if files else "")


def test_figures_and_measures_of_a_variant_are_read_back(version: Path) -> None:
    timing = Timing(
        batch=1, calls=9, min_ms=1.0, p50_ms=1.5, p95_ms=2.0, rows_per_s=666.7, best_rows_per_s=1000.0, cpu_ms=2.5
    )
    variant = Variant(
        name="onnx_dynamic",
        format="onnx",
        path="variants/onnx_dynamic/model.onnx",
        precision="dynamic",
        figures=Figures(rows=3, outputs=(OutputFigures(output="y", dtype="float32", rel_l2=0.1),), top1_agreement=1.0),
        measured=Measured(
            machine=Machine(cpu="c", cpus=2, versions={"onnxruntime": "1"}),
            load_s=0.1, first_call_ms=3.0, timings=(timing,), base_memory_mb=50.0, peak_memory_mb=70.0,
        ),
        details={"opset": 17},
    )  # fmt: skip
    write_manifest(str(version), _manifest(variants=(variant,)))
    manifest = read_manifest(str(version))
    assert manifest is not None
    read = manifest.variants[0]
    assert (read.figures, read.measured, read.details) == (variant.figures, variant.measured, {"opset": 17})
    assert read.measured is not None
    assert read.measured.at(1) == timing
    assert read.measured.at(32) is None


def test_a_manifest_without_them_is_still_read(version: Path) -> None:
    path = version / MANIFEST_PATH
    content = json.loads(path.read_text())
    content["variants"] = [{"name": "saved_model", "format": "saved_model"}]
    path.write_text(json.dumps(content))
    manifest = read_manifest(str(version))
    assert manifest is not None
    assert (manifest.variants[0].measured, manifest.variants[0].figures, manifest.variants[0].digest) == (
        None,
        None,
        "",
    )


def test_a_complete_version_has_no_problems(version: Path) -> None:
    assert check_files(str(version)) == []


def test_every_missing_short_or_changed_file_is_named(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"grapf")
    (version / "variables" / "variables.index").write_bytes(b"weig")
    assert check_files(str(version)) == [
        "saved_model.pb has another content than the manifest says (SHA-256 differs)",
        "variables/variables.index has 4 bytes; the manifest says 7",
    ]
    assert check_files(str(version), digests=False) == ["variables/variables.index has 4 bytes; the manifest says 7"]
    (version / "saved_model.pb").unlink()
    assert check_files(str(version))[0] == "saved_model.pb is missing"


def test_a_version_of_another_tool_has_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path)) is None
    assert check_files(str(tmp_path)) == []


def test_keys_that_are_not_known_are_ignored(version: Path) -> None:
    path = version / MANIFEST_PATH
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": {"stable": 1}}))
    assert read_manifest(str(version)) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2; this moxserve knows up to 1"),
        ({"model_name": None}, "model_name"),
        ({"files": {"../outside": {"size_bytes": 1, "sha256": "0" * 64}}}, "below the version directory"),
        ({"files": {"/etc/passwd": {"size_bytes": 1, "sha256": "0" * 64}}}, "below the version directory"),
        ({"files": {"a": {"size_bytes": 1, "sha256": "x"}}}, "sha256"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(version: Path, change: dict[str, object], message: str) -> None:
    path = version / MANIFEST_PATH
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        read_manifest(str(version))


def test_a_damaged_manifest_is_refused(version: Path) -> None:
    (version / MANIFEST_PATH).write_text('{"schema_version": 1, "mod')
    with pytest.raises(DataError, match=r"Invalid JSON.*expected a moxserve manifest"):
        check_files(str(version))


def test_metadata_may_hold_numpy_numbers_but_not_objects(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), _manifest(metadata={"accuracy": np.float32(0.5), "shape": np.array([1, 2])}))
    manifest = read_manifest(str(tmp_path))
    assert manifest is not None
    assert manifest.metadata == {"accuracy": 0.5, "shape": [1, 2]}
    with pytest.raises(DataError, match="metadata: expected JSON values"):
        write_manifest(str(tmp_path), _manifest(metadata={"model": object()}))
