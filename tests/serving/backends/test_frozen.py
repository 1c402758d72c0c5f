"""SavedModels in `variants/`, run by TensorFlow behind the model's own signatures; and what manifests tell of speed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import FailedPrecondition, InvalidArgument, NotFound
from moxserve.export.facts import Figures, Measured, OutputFigures, Timing
from moxserve.export.manifest import TensorNames, Tolerance, Variant, Verification
from moxserve.serving import backends
from moxserve.serving.backends import LoadOptions, choose
from moxserve.serving.backends.contents import holds_model, look
from moxserve.serving.backends.loading import find_variant, load_variant
from moxserve.serving.machine import machine
from moxserve.serving.source import find_versions

Make = Callable[..., Path]
X = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])
FROZEN: dict[str, Any] = {"name": "frozen", "format": "saved_model", "path": "variants/frozen"}


class Speeds(dict[str, float]):
    """Figures for each variant instead of measured ones, and the order in which they were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[str] = []

    def __call__(self, backend: Any, sample: Any, budget_s: float) -> float:
        self.tried.append(backend.variant)
        return self.get(backend.variant, 1.0)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """No test depends on how fast the machine is."""
    made = Speeds()
    monkeypatch.setattr(choose, "runs_per_second", made)
    return made


def test_it_is_found_with_and_without_a_manifest(version: Make, forms: Any, declare: Callable[..., None]) -> None:
    path = version(variants={"frozen": forms.frozen})
    assert [(v.name, v.format, v.path) for v in look(str(path)).variants] == [tuple(FROZEN.values())]
    own = Variant(name="saved_model", format="saved_model")
    declare(path, own, Variant(**FROZEN, precision="bfloat16"))
    contents = look(str(path))
    assert [v.precision for v in contents.variants] == ["bfloat16"]
    assert contents.own == own.model_copy(update={"size_bytes": contents.own.size_bytes, "digest": contents.own.digest})
    assert str(contents) == "a SavedModel, frozen (saved_model)"


def test_the_fastest_serves_behind_the_models_signatures(version: Make, forms: Any, speeds: Speeds) -> None:
    path = version(variants={"frozen": forms.frozen, "onnx": forms.onnx})
    speeds.update(saved_model=1.0, onnx=2.0, frozen=3.0)
    backend = backends.load(path)
    assert (backend.variant, backend.platform) == ("frozen", "tensorflow")
    assert set(backend.signatures) == {"serving_default", "just_scores", "twice", "text"}
    plain = backends.load(path, LoadOptions(backend="onnx"))
    assert plain.variant == "onnx"
    # Metadata are the model's, whatever runs it.
    assert backend.signature_defs.signature_def["serving_default"].outputs["scores"].name == "scores:0"
    found = backend.run("serving_default", {"x": X})
    np.testing.assert_allclose(found["scores"], forms.scores(X), rtol=1e-5)
    assert list(backend.run_here("serving_default", {"x": X}, ["best"])) == ["best"]
    (together,) = backend.run_together(["serving_default"], X)
    np.testing.assert_array_equal(together["best"], forms.scores(X).argmax(1))
    # The rest is the SavedModel's.
    assert backend.run("text", {"text": np.array([b"a"], object)})["upper"].tolist() == [b"A"]
    with pytest.raises(InvalidArgument, match="Expects arg\\[0\\] to be float but int32 is provided"):
        backend.run("serving_default", {"x": X.astype(np.int32)})
    with pytest.raises(FailedPrecondition, match='Serving signature key "no" not found'):
        backend.run("no", {"x": X})
    backend.close()


@pytest.mark.parametrize(
    ("options", "serves"),
    [
        (LoadOptions(backend="tensorflow"), "frozen"),
        (LoadOptions(platform="tensorflow"), "tflite"),
        (LoadOptions(backend="tflite"), "tflite"),
        (LoadOptions(platform="onnx"), "onnx"),
    ],
)
def test_what_the_options_hold_it_to(version: Make, forms: Any, speeds: Speeds, options: Any, serves: str) -> None:
    speeds.update(saved_model=1.0, frozen=2.0, onnx=3.0, tflite=4.0)
    path = version(variants={"frozen": forms.frozen, "onnx": forms.onnx, "tflite": forms.tflite})
    assert backends.load(path, options).variant == serves


def test_who_asks_for_tensorflow_gets_its_arithmetic(
    version: Make, forms: Any, declare: Callable[..., None], speeds: Speeds
) -> None:
    path = version(variants={"frozen": forms.frozen})
    declare(path, Variant(**FROZEN, precision="bfloat16"))
    speeds.update(saved_model=1.0, frozen=2.0)
    assert backends.load(path, LoadOptions(backend="tensorflow")).variant == "saved_model"
    assert backends.load(path).variant == "frozen"


def test_a_directory_with_nothing_else(version: Make, forms: Any, declare: Callable[..., None]) -> None:
    path = version(saved_model=False, variants={"frozen": forms.frozen})
    assert holds_model(str(path))
    assert find_versions(str(path.parent)).versions[1].path == str(path)
    backend = backends.load(path)
    assert (backend.variant, set(backend.signatures)) == ("frozen", {"serving_default"})
    np.testing.assert_allclose(backend.run("serving_default", {"x": X})["scores"], forms.scores(X), rtol=1e-5)
    with pytest.raises(NotFound, match=r"holds nothing that onnx could serve; it holds frozen \(saved_model\)"):
        backends.load(path, LoadOptions(backend="onnx"))


@pytest.mark.parametrize(
    ("signatures", "message"),
    [
        ({"text": TensorNames()}, "the manifest says that it serves 'text'; it has serving_default"),
        ({"unknown": TensorNames()}, "it serves no signature that is wanted"),
        ({"serving_default": TensorNames(outputs={"best": "x"})}, "it has no output for 'best'"),
        ({"serving_default": TensorNames(outputs={"best": "scores"})}, "'best': expected int64, it has float32"),
    ],
)
def test_what_does_not_fit_is_refused(
    version: Make, forms: Any, signatures: dict[str, TensorNames], message: str
) -> None:
    path = version(variants={"frozen": forms.frozen})
    with pytest.raises(FailedPrecondition, match=f"variants/frozen cannot stand in for the model: .*{message}"):
        load_variant(str(path), Variant(**FROZEN, signatures=signatures), LoadOptions())


def test_names_of_tensors_lead_to_its_own(version: Make, forms: Any) -> None:
    names = TensorNames(inputs={"x": "cut/x:0"}, outputs={"scores": "cut/scores", "best": "best"})
    variant = Variant(**FROZEN, signatures={"serving_default": names})
    backend = load_variant(str(version(variants={"frozen": forms.frozen})), variant, LoadOptions())
    assert set(backend.signatures) == {"serving_default"}
    np.testing.assert_allclose(backend.run("serving_default", {"x": X})["scores"], forms.scores(X), rtol=1e-5)


def test_just_one_form_is_loaded_when_it_is_named(version: Make, forms: Any, speeds: Speeds) -> None:
    path = str(version(variants={"frozen": forms.frozen, "onnx": forms.onnx}))
    for name, keys in ((None, 4), ("frozen", 1), ("onnx", 2)):
        backend = load_variant(path, name, LoadOptions(backend="tflite", prefer_tflite=True))
        assert (backend.variant, len(backend.signatures)) == (name or "saved_model", keys)
        backend.close()
    assert speeds.tried == []
    assert find_variant(path, "onnx").format == "onnx"
    with pytest.raises(NotFound, match="has no variant 'frosen'; did you mean 'frozen'"):
        load_variant(path, "frosen", LoadOptions())


def test_without_tensorflow_it_is_left_out(
    version: Make,
    forms: Any,
    declare: Callable[..., None],
    speeds: Speeds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = version(variants={"frozen": forms.frozen, "onnx": forms.onnx})
    verified = Verification(mode="samples", rows=8, atol=1e-4, rtol=1e-4)
    onnx = Variant(name="onnx", format="onnx", path="variants/onnx/model.onnx", verification=verified)
    declare(path, Variant(**FROZEN, verification=verified), onnx)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert backends.load(path).variant == "onnx"
    assert "variant frozen is not served: serving a SavedModel needs tensorflow" in caplog.text


def timing(ms: float) -> Timing:
    return Timing(batch=1, calls=9, min_ms=ms, p50_ms=ms, p95_ms=ms, rows_per_s=1, best_rows_per_s=1, cpu_ms=ms)


def measured(ms: float, **changes: Any) -> Measured:
    facts: dict[str, Any] = {
        "machine": machine(), "load_s": 1.0, "first_call_ms": 1.0, "timings": (timing(ms),), "base_memory_mb": 1.0,
        "peak_memory_mb": 2.0,
    }  # fmt: skip
    return Measured(**{**facts, **changes})


def declared(times: dict[str, Measured | None]) -> list[Variant]:
    forms = {"saved_model": "", "onnx": "model.onnx", "tflite": "model.tflite", "openvino": "model.xml"}
    return [
        Variant(name=name, format=name, path=f"variants/{name}/{forms[name]}" if forms[name] else ".", measured=found)
        for name, found in times.items()
    ]


def test_the_fastest_by_the_manifest_is_tried_first_and_hopeless_ones_are_not(
    version: Make, forms: Any, declare: Callable[..., None], speeds: Speeds, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = version(variants={"onnx": forms.onnx, "tflite": forms.tflite, "openvino": forms.xml})
    times = {"saved_model": measured(8.0), "onnx": measured(90.0), "tflite": measured(3.0), "openvino": measured(2.0)}
    declare(path, *declared(times))
    speeds.update(saved_model=1.0, tflite=5.0, openvino=4.0, onnx=99.0)
    assert backends.load(path).variant == "tflite"  # what this machine does now counts, not what the manifest says
    assert speeds.tried == ["saved_model", "openvino", "tflite"]
    assert "variant onnx is not tried: the manifest says 90 ms" in caplog.text


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"machine": machine().model_copy(update={"cpu": "another"})},
        {"machine": machine().model_copy(update={"cpus": 99})},
        {"machine": machine().model_copy(update={"versions": {"onnxruntime": "0.1"}})},
        {"threads": 7},
        {"timings": ()},
    ],
    ids=["cpu", "cpus", "versions", "threads", "nothing"],
)
def test_figures_from_elsewhere_leave_nothing_out(
    version: Make, forms: Any, declare: Callable[..., None], speeds: Speeds, elsewhere: dict[str, Any]
) -> None:
    path = version(variants={"onnx": forms.onnx, "tflite": forms.tflite})
    times = {"saved_model": measured(1.0), "onnx": measured(900.0, **elsewhere), "tflite": measured(0.9)}
    declare(path, *declared(times))
    speeds.update(saved_model=1.0, onnx=9.0, tflite=2.0)
    assert backends.load(path).variant == "onnx"
    assert speeds.tried == ["saved_model", "tflite", "onnx"]


def test_a_variant_that_did_not_serve_leaves_nothing_out(
    version: Make, forms: Any, declare: Callable[..., None], speeds: Speeds
) -> None:
    path = version(variants={"onnx": forms.onnx, "tflite": forms.tflite})
    declare(path, *declared({"onnx": measured(900.0), "tflite": measured(1.0)}))
    (path / "variants" / "tflite" / "model.tflite").write_bytes(b"x")
    assert backends.load(path).variant == "saved_model"
    assert speeds.tried == ["saved_model", "onnx"]


@pytest.mark.parametrize(
    ("changes", "serves"),
    [
        ({}, "onnx"),
        ({"enabled": False}, "saved_model"),
        ({"figures": {"rel_l2": 1e-3}}, "saved_model"),
        ({"figures": {"rel_l2": 1e-3}, "precision": "bfloat16"}, "onnx"),
        ({"figures": {"rel_l2": 1e-3}, "tolerance": Tolerance(rel_l2=1e-2)}, "onnx"),
        ({"figures": {"misplaced": 1}}, "saved_model"),
    ],
)
def test_what_failed_its_verification_does_not_serve(
    version: Make, forms: Any, declare: Callable[..., None], speeds: Speeds, changes: dict[str, Any], serves: str
) -> None:
    path = version(variants={"onnx": forms.onnx})
    found = changes.pop("figures", None)
    if found:
        one = OutputFigures(output="scores", dtype="float32", max_abs_error=1.0, **found)
        changes["figures"] = Figures(rows=64, outputs=(one,))
    declare(path, Variant(name="onnx", format="onnx", path="variants/onnx/model.onnx", **changes))
    speeds.update(saved_model=1.0, onnx=2.0)
    assert backends.load(path).variant == serves
