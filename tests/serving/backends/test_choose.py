"""Which form of a model serves: the fastest that answers as the SavedModel does."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import NotFound
from moxserve.export.manifest import TensorNames, Tolerance, Variant, Verification
from moxserve.protocol import messages
from moxserve.protocol.tensors import to_proto
from moxserve.protocol.tfrecord import write_records
from moxserve.serving import backends
from moxserve.serving.backends import LoadOptions, choose, loading
from moxserve.serving.backends.decisions import cache_directory

Make = Callable[..., Path]
X = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2]])
VERIFIED = Verification(mode="samples", rows=8, atol=1e-4, rtol=1e-4)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Figures for each variant instead of measured ones, so that no test depends on how fast the machine is."""
    figures: dict[str, float] = {}
    monkeypatch.setattr(choose, "runs_per_second", lambda backend, sample, budget_s: figures.get(backend.variant, 1.0))
    return figures


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which forms were loaded, in order."""
    seen: list[str] = []
    load_graph, load_saved = loading._load_graph, loading._load_saved_model

    def graph(path: str, variant: Variant, options: LoadOptions) -> Any:
        seen.append(variant.name)
        return load_graph(path, variant, options)

    def saved(path: str, options: LoadOptions) -> Any:
        seen.append("saved_model")
        return load_saved(path, options)

    monkeypatch.setattr(loading, "_load_graph", graph)
    monkeypatch.setattr(loading, "_load_saved_model", saved)
    return seen


@pytest.fixture(scope="session")
def wrong_onnx(forms: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with one weight changed a little."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(forms.onnx))
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [4, 3])
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = tmp_path_factory.mktemp("wrong") / "model.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def wrong_alone_onnx(forms: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, but that a single row gets one added to its scores."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(forms.onnx))
    graph = model.graph
    output, source = graph.output[0].name, graph.input[0].name
    for node in graph.node:
        node.output[:] = ["right" if name == output else name for name in node.output]
    for name, value in (("first", np.int64(0)), ("single", np.int64(1))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.node.extend(
        [
            helper.make_node("Shape", [source], ["its_shape"]),
            helper.make_node("Gather", ["its_shape", "first"], ["its_rows"]),
            helper.make_node("Equal", ["its_rows", "single"], ["alone"]),
            helper.make_node("Cast", ["alone"], ["error"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["right", "error"], [output]),
        ]
    )
    path = tmp_path_factory.mktemp("alone") / "model.onnx"
    onnx.save(model, str(path))
    return path


def test_a_variant_that_is_wrong_on_single_rows_never_serves(
    version: Make, wrong_alone_onnx: Path, speeds: dict[str, float]
) -> None:
    speeds.update(saved_model=1.0, alone=1000.0)
    assert backends.load(version(variants={"alone": wrong_alone_onnx})).variant == "saved_model"


def test_one_form_is_not_measured(version: Make, forms: Any, loads: list[str], own_cache: Path) -> None:
    assert backends.load(version(1)).variant == "saved_model"
    assert backends.load(version(2, saved_model=False, top=forms.onnx)).variant == "onnx"
    assert loads == ["saved_model", "onnx"]
    assert not own_cache.exists()


def test_the_fastest_serves_and_is_remembered(
    version: Make, forms: Any, speeds: dict[str, float], loads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = version(variants={"a": forms.onnx, "b": forms.tflite, "c": forms.xml})
    speeds.update(saved_model=100.0, a=300.0, b=500.0, c=200.0)
    backend = backends.load(path)
    assert (backend.variant, backend.platform) == ("b", "tflite")
    assert "is served by b (requests a second: b 500, a 300, c 200, saved_model 100)" in caplog.text
    np.testing.assert_allclose(backend.run("serving_default", {"x": X})["scores"], forms.scores(X), rtol=1e-5)
    loads.clear()
    assert backends.load(path).variant == "b"
    assert loads == ["b"]  # no other form, and nothing to compare with
    assert "as measured before on this machine" in caplog.text


def test_what_changes_is_measured_again(version: Make, forms: Any, speeds: dict[str, float], loads: list[str]) -> None:
    path = version(variants={"a": forms.onnx, "b": forms.tflite})
    speeds.update(saved_model=1.0, a=30.0, b=20.0)
    assert backends.load(path).variant == "a"
    speeds.update(a=10.0)
    assert backends.load(path).variant == "a"
    (path / "variants" / "a" / "model.onnx").touch()
    os.utime(path / "variants" / "a" / "model.onnx", ns=(1, 1))
    assert backends.load(path).variant == "b"
    assert backends.load(path, LoadOptions(intra_op_threads=2)).variant == "b"
    loads.clear()
    (path / "variants" / "b" / "model.tflite").unlink()
    assert backends.load(path).variant == "a"
    assert loads == ["saved_model", "a"]


def test_a_remembered_variant_that_does_not_load_any_more(
    version: Make, forms: Any, speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = version(variants={"a": forms.onnx, "b": forms.tflite})
    speeds.update(saved_model=1.0, a=30.0, b=20.0)
    assert backends.load(path).variant == "a"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert backends.load(path).variant == "b"


def test_hardly_faster_is_not_worth_it(version: Make, forms: Any, speeds: dict[str, float]) -> None:
    speeds.update(saved_model=100.0, a=105.0)
    assert backends.load(version(variants={"a": forms.onnx})).variant == "saved_model"


def test_a_wrong_variant_never_serves(
    version: Make, forms: Any, wrong_onnx: Path, speeds: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    speeds.update(saved_model=1.0, wrong=1000.0, right=2.0)
    backend = backends.load(version(variants={"wrong": wrong_onnx, "right": forms.onnx}))
    assert backend.variant == "right"
    assert (
        "variant wrong is not served: signature 'serving_default' answers otherwise: 'scores': relative" in caplog.text
    )


def test_a_tolerance_that_the_manifest_declares(
    version: Make, wrong_onnx: Path, declare: Callable[..., None], speeds: dict[str, float]
) -> None:
    speeds.update(saved_model=1.0, v=2.0)
    place: dict[str, Any] = {"name": "v", "format": "onnx", "path": "variants/v/model.onnx"}
    for number, extra, serves in (
        (1, {"precision": "int8"}, "v"),
        (2, {"tolerance": Tolerance(rel_l2=0.5, agreement=0.5)}, "v"),
        (3, {"tolerance": Tolerance(atol=1e-6)}, "saved_model"),
        (4, {"precision": "int8", "enabled": False}, "saved_model"),
    ):
        path = version(number, variants={"v": wrong_onnx})
        declare(path, Variant(**place, **extra))
        assert backends.load(path).variant == serves, extra


def test_variants_that_raise_or_lack_their_package(
    version: Make,
    forms: Any,
    speeds: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = version(variants={"broken": forms.onnx, "good": forms.tflite, "packageless": forms.xml})
    (path / "variants" / "broken" / "model.onnx").write_bytes(b"\x08\x07nonsense")
    monkeypatch.setitem(sys.modules, "openvino", None)
    from moxserve.serving.backends import openvino

    openvino._make_core.cache_clear()
    speeds.update(saved_model=1.0, good=2.0)
    assert backends.load(path).variant == "good"
    assert "variant broken is not served: " in caplog.text
    assert "variant packageless is not served: serving an OpenVINO model needs openvino" in caplog.text


def test_a_variant_that_fails_while_it_is_measured(
    version: Make, forms: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from moxserve.errors import Internal
    from moxserve.serving.backends.onnx import OnnxGraph

    def fail(*_: Any) -> Any:
        raise Internal("the runtime gave up")

    monkeypatch.setattr(OnnxGraph, "run", fail)
    assert backends.load(version(variants={"v": forms.onnx})).variant == "saved_model"
    assert "variant v is not served: the runtime gave up" in caplog.text


@pytest.mark.slow
def test_really_measured(version: Make, forms: Any, wrong_onnx: Path, tmp_path: Path, slow_onnx: Path) -> None:
    """No figures made up: whichever of the right ones is faster here, the slow one and the wrong one do not serve."""
    path = version(variants={"right": forms.onnx, "slow": slow_onnx, "wrong": wrong_onnx})
    backend = backends.load(path)
    assert backend.variant in ("right", "saved_model")
    np.testing.assert_allclose(backend.run("serving_default", {"x": X})["scores"], forms.scores(X), rtol=1e-5)


@pytest.fixture
def slow_onnx(forms: Any, tmp_path: Path) -> Path:
    """The same model, with ten milliseconds of multiplications whose result changes nothing."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(forms.onnx))
    size = 600
    model.graph.initializer.append(numpy_helper.from_array(np.eye(size, dtype=np.float32), "eye"))
    scores = next(o.name for o in model.graph.output if o.name.startswith("scores"))
    for node in model.graph.node:
        node.output[:] = ["before" if name == scores else name for name in node.output]
        node.input[:] = ["before" if name == scores else name for name in node.input]
    add = model.graph.node.add
    add().CopyFrom(helper.make_node("ReduceSum", ["before"], ["total"], keepdims=1))
    add().CopyFrom(helper.make_node("Add", ["eye", "total"], ["power0"]))
    for i in range(20):
        add().CopyFrom(helper.make_node("MatMul", [f"power{i}", "eye"], [f"power{i + 1}"]))
    add().CopyFrom(helper.make_node("ReduceMax", ["power20"], ["top"], keepdims=0))
    add().CopyFrom(helper.make_node("Sub", ["top", "top"], ["zero"]))
    add().CopyFrom(helper.make_node("Add", ["before", "zero"], [scores]))
    path = tmp_path / "slow" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, str(path))
    return path


def test_the_savedmodel_serves_what_the_variant_does_not(
    version: Make, forms: Any, speeds: dict[str, float], loads: list[str]
) -> None:
    path = version(variants={"v": forms.onnx})
    speeds.update(saved_model=1.0, v=2.0)
    assert backends.load(path).variant == "v"
    loads.clear()
    backend = backends.load(path)
    assert loads == ["v"]
    assert set(backend.signatures) == {"serving_default", "just_scores", "twice", "text"}
    assert set(backend.signature_defs.signature_def) >= set(backend.signatures)
    backend.run("serving_default", {"x": X})
    backend.run_together(["serving_default", "just_scores"], X)
    assert loads == ["v"]
    assert backend.run("text", {"text": np.array([b"a"], object)})["upper"].tolist() == [b"A"]
    np.testing.assert_array_equal(backend.run("twice", {"x": X})["scores"], X * 2)
    first, second = backend.run_together(["just_scores", "twice"], X)
    np.testing.assert_allclose(first["y"], forms.scores(X), rtol=1e-5)
    np.testing.assert_array_equal(second["scores"], X * 2)
    assert loads == ["v", "saved_model"]
    backend.close()


def test_warmup_records_are_what_variants_are_compared_with(
    version: Make, wrong_onnx: Path, speeds: dict[str, float]
) -> None:
    speeds.update(saved_model=1.0, v=2.0)
    for number, first, serves in ((1, 0.0, "v"), (2, 1.0, "saved_model")):
        # The wrong weight is the one of the first column: it shows only where that column is not zero.
        path = version(number, variants={"v": wrong_onnx})
        logs = [messages.PredictionLog(), messages.PredictionLog()]
        for log, key, alias in zip(logs, ("", "just_scores"), ("x", "input"), strict=True):
            log.predict_log.request.model_spec.signature_name = key
            log.predict_log.request.inputs[alias].CopyFrom(to_proto(np.float32([[first, 2.0, 0.0, 1.0]] * 2)))
        (path / "assets.extra").mkdir()
        write_records(path / "assets.extra" / "tf_serving_warmup_requests", [log.SerializeToString() for log in logs])
        assert backends.load(path).variant == serves


def test_a_variant_takes_every_shape_that_the_savedmodel_takes(
    tmp_path: Path, save_linear: Callable[..., Path], speeds: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    """JSON rows `[1.0, 2.0]` become [2], where a careful client sends [2, 1]: whatever served both goes on to."""
    import tensorflow as tf
    from onnx import TensorProto, helper

    tf1 = tf.compat.v1
    path = tmp_path / "1"
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder("float32", [None, 1], "x")
        tf1.saved_model.simple_save(session, str(path), {"x": x}, {"y": x * 0.5 + 2.0})
    info, number = helper.make_tensor_value_info, helper.make_tensor
    speeds.update(saved_model=1.0, strict=5.0, lax=2.0)
    for name, rank in (("strict", ["n", 1]), ("lax", None)):
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])], "g",
            [info("x", TensorProto.FLOAT, rank)], [info("y", TensorProto.FLOAT, rank)],
            [number("a", TensorProto.FLOAT, [], [0.5]), number("b", TensorProto.FLOAT, [], [2.0])],
        )  # fmt: skip
        (path / "variants" / name).mkdir(parents=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (path / "variants" / name / "model.onnx").write_bytes(model.SerializeToString())
    backend = backends.load(path)
    assert backend.variant == "lax"
    assert backend.run("serving_default", {"x": np.float32([1, 2])})["y"].tolist() == [2.5, 3.0]
    assert "variant strict is not served: signature 'serving_default' answers otherwise: it refuses what" in caplog.text


def test_without_tensorflow_the_manifest_is_trusted(
    version: Make, forms: Any, declare: Callable[..., None], monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    bare = version(1, variants={"v": forms.onnx})
    with pytest.raises(NotFound, match="the manifest does not say that it was verified"):
        backends.load(bare)
    vouched = version(2, variants={"v": forms.onnx})
    place = {"name": "v", "format": "onnx", "path": "variants/v/model.onnx"}
    declare(vouched, Variant(**place, verification=VERIFIED))
    assert backends.load(vouched).variant == "v"


def test_of_several_without_a_savedmodel_the_most_precise_is_the_measure(
    version: Make, forms: Any, wrong_onnx: Path, declare: Callable[..., None], speeds: dict[str, float]
) -> None:
    path = version(saved_model=False, variants={"f32": forms.onnx, "i8": wrong_onnx, "w": wrong_onnx})
    entries = [
        Variant(name=n, format="onnx", path=f"variants/{n}/model.onnx", precision=p, tolerance=t)
        for n, p, t in (
            ("i8", "int8", None),
            ("f32", "float32", None),
            ("w", "bfloat16", Tolerance(rel_l2=1e-5)),
        )
    ]
    declare(path, *entries)
    speeds.update(f32=1.0, i8=2.0, w=3.0)
    assert backends.load(path).variant == "i8"


CRASH = """
import os, sys
from moxserve.serving import backends
from moxserve.serving.backends import choose
from moxserve.serving.backends.onnx import OnnxGraph
OnnxGraph.run = lambda *_: os._exit(9)
for _ in range(3):
    process = os.fork()
    if not process:
        print(backends.load(sys.argv[1]).variant)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_variant_that_ends_the_process_is_given_up(
    version: Make, forms: Any, own_cache: Path, run_tensorflow_script: Any
) -> None:
    path = version(variants={"v": forms.onnx})
    done = run_tensorflow_script(CRASH, path)
    assert done.stdout.split() == ["9", "9", "saved_model", "0"], done.stderr
    assert done.stderr.count("the process ended twice while it was tried") == 1


def test_a_cache_that_cannot_be_written(
    version: Make, forms: Any, speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOXSERVE_CACHE", "/proc/nowhere")
    speeds.update(saved_model=1.0, v=2.0)
    path = version(variants={"v": forms.onnx})
    assert [backends.load(path).variant for _ in range(2)] == ["v", "v"]


def test_a_damaged_decision_is_made_again(version: Make, forms: Any, speeds: dict[str, float]) -> None:
    speeds.update(saved_model=1.0, v=2.0)
    path = version(variants={"v": forms.onnx})
    assert backends.load(path).variant == "v"
    (file,) = (Path(cache_directory()) / "variants").glob("*.json")
    file.write_text("{")
    assert backends.load(path).variant == "v"
    assert '"v"' in file.read_text()


def test_signatures_that_the_manifest_names(
    version: Make, forms: Any, declare: Callable[..., None], speeds: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    names = TensorNames(inputs={"x": "x:0"}, outputs={"scores": "scores:0", "best": "best:0"})
    place: dict[str, Any] = {"name": "v", "format": "onnx", "path": "variants/v/model.onnx"}
    speeds.update(saved_model=1.0, v=2.0)
    path = version(1, variants={"v": forms.onnx})
    declare(path, Variant(**place, signatures={"serving_default": names}))
    backend: Any = backends.load(path)
    assert backend.served == ("serving_default",)
    path = version(2, variants={"v": forms.onnx})
    declare(path, Variant(**place, signatures={"nope": names}))
    assert backends.load(path).variant == "saved_model"
    assert "it serves 'nope', which the model does not have" in caplog.text
