"""One model in four formats gives one answer, and one kind of refusal."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moxserve.errors import DataLoss, FailedPrecondition, Internal, InvalidArgument, MissingExtraError, NotFound
from moxserve.export.manifest import SignatureEntry, TensorEntry, TensorNames, Variant
from moxserve.serving import backends
from moxserve.serving.backends import Backend, LoadOptions

Make = Callable[..., Path]

X = np.float32([[1, 2, 3, 4], [-1, 0.5, 0, 2], [0, 0, 0, 0]])
FORMATS = ["onnx", "openvino", "tflite"]


def file_of(forms: Any, name: str) -> Path:
    return {"onnx": forms.onnx, "openvino": forms.xml, "tflite": forms.tflite}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_variant_answers_as_the_savedmodel_does(name: str, version: Make, forms: Any) -> None:
    path = version(variants={"v": file_of(forms, name)})
    saved = backends.load(path, LoadOptions(backend="tensorflow"))
    backend = backends.load(path, LoadOptions(backend=name))
    assert isinstance(backend, Backend)
    assert (backend.platform, backend.variant, saved.variant) == (name, "v", "saved_model")
    assert str(backend.signatures["serving_default"]) == str(saved.signatures["serving_default"])
    for rows in (X, X[:1], np.repeat(X, 50, 0)):
        got, want = backend.run("serving_default", {"x": rows}), saved.run("serving_default", {"x": rows})
        assert {k: (v.dtype, v.shape) for k, v in got.items()} == {k: (v.dtype, v.shape) for k, v in want.items()}
        np.testing.assert_allclose(got["scores"], forms.scores(rows), rtol=1e-5)
        np.testing.assert_array_equal(got["best"], want["best"])
    assert list(backend.run("serving_default", {"x": X}, ["best"])) == ["best"]
    np.testing.assert_allclose(backend.run("just_scores", {"input": X})["y"], forms.scores(X), rtol=1e-5)
    together = backend.run_together(["serving_default", "just_scores"], X)
    np.testing.assert_array_equal(together[0]["scores"], together[1]["y"])
    backend.close()


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_variant_refuses(name: str, version: Make, forms: Any) -> None:
    backend = backends.load(version(variants={"v": file_of(forms, name)}), LoadOptions(backend=name))
    for inputs, text in (
        ({"x": X.astype(np.float64)}, r"Expects arg\[0\] to be float but double is provided \(input 'x'\)"),
        ({"x": X, "z": X}, r"input size does not match signature: 2!=1 .* Sent extra: {z}"),
        ({}, "Missing but required: {x}"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            backend.run("serving_default", inputs)
    with pytest.raises(InvalidArgument, match="output tensor alias not found in signature: zz"):
        backend.run("serving_default", {"x": X}, ["zz"])
    with pytest.raises(FailedPrecondition, match='Serving signature key "twice" not found'):
        # An input of the same alias, but of another graph: it must not be taken for the one of serving_default.
        backend.run("twice", {"x": X})


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_shapes_are_refused_in_one_way(name: str, version: Make, forms: Any) -> None:
    backend = backends.load(version(variants={"v": file_of(forms, name)}), LoadOptions(backend=name))
    for bad, text in ((X[0], "[4]"), (X[:, :3], "[3,3]"), (X[None], "[1,3,4]")):
        with pytest.raises(InvalidArgument) as caught:
            backend.run("serving_default", {"x": bad})
        assert caught.value.message == f"input 'x' has shape {text}; expected [?,4]"


def test_tflite_resizes_and_recovers_from_what_it_cannot_run(version: Make, forms: Any) -> None:
    backend = backends.load(version(variants={"v": forms.tflite}), LoadOptions(backend="tflite"))
    with pytest.raises(Internal, match="Failed to invoke TfLite interpreter"):
        backend.run("serving_default", {"x": X[:, :3]})
    np.testing.assert_allclose(backend.run("serving_default", {"x": X})["scores"], forms.scores(X), rtol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_many_threads(name: str, version: Make, forms: Any) -> None:
    backend = backends.load(version(variants={"v": file_of(forms, name)}), LoadOptions(backend=name))
    wrong: list[Any] = []

    def run(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            rows = random.random((int(random.integers(1, 9)), 4), np.float32)
            got = backend.run("serving_default", {"x": rows})["scores"]
            if not np.allclose(got, forms.scores(rows), rtol=1e-4):
                wrong.append((rows, got))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_directory_without_a_savedmodel(name: str, version: Make, forms: Any) -> None:
    backend = backends.load(version(saved_model=False, top=file_of(forms, name)))
    assert (backend.platform, backend.variant) == (name, name)
    signature = backend.signatures["serving_default"]
    (alias,) = signature.inputs
    assert signature.method == "tensorflow/serving/predict"
    assert backend.signature_defs.signature_def["serving_default"].inputs[alias].dtype == 1
    outputs = backend.run("serving_default", {alias: X})
    scores = next(v for k, v in outputs.items() if k.startswith("scores"))
    np.testing.assert_allclose(scores, forms.scores(X), rtol=1e-5)


def test_names_and_signatures_of_the_manifest(version: Make, forms: Any, declare: Callable[..., None]) -> None:
    path = version(saved_model=False, variants={"v": forms.onnx})
    variant = Variant(
        name="v", format="onnx", path="variants/v/model.onnx",
        signatures={"score": TensorNames(inputs={"features": "x:0"}, outputs={"points": "scores:0"})},
    )  # fmt: skip
    entry = SignatureEntry(
        method="tensorflow/serving/predict",
        inputs={"features": TensorEntry(dtype="float32", shape=(None, 4))},
        outputs={"points": TensorEntry(dtype="float64", shape=(None, 3))},
    )
    declare(path, variant, signatures={"score": entry})
    backend = backends.load(path)
    assert str(backend.signatures["score"]) == "score(features: float32[?, 4]) -> (points: float64[?, 3])"
    points = backend.run("score", {"features": X})["points"]
    assert points.dtype == np.float64  # as the signature says, whatever the file computes
    np.testing.assert_allclose(points, forms.scores(X), rtol=1e-5)


def test_a_variant_that_does_not_fit(version: Make, forms: Any, tmp_path: Path, onnx_identity: Any) -> None:
    fixed = onnx_identity(tmp_path / "fixed.onnx", "FLOAT", [1, 4])
    with pytest.raises(FailedPrecondition, match=r"it has no output for 'best' of signature 'serving_default'"):
        backends.load(version(1, variants={"v": fixed}), LoadOptions(backend="onnx"))
    integers = onnx_identity(tmp_path / "integers.onnx", "INT64", ["n", 4], ["scores", "best"])
    with pytest.raises(FailedPrecondition, match="expected float32, it has int64"):
        backends.load(version(2, variants={"v": integers}), LoadOptions(backend="onnx"))
    one_row = onnx_identity(tmp_path / "one.onnx", "FLOAT", [1, 4], ["y"])
    path = version(3, variants={"v": one_row})
    with pytest.raises(FailedPrecondition, match="cannot stand in for the model"):
        backends.load(path, LoadOptions(backend="onnx"))


@pytest.fixture
def onnx_identity() -> Callable[..., Path]:
    """`onnx_identity(path, "FLOAT", ["n", 4], ["y"])`: outputs that are the input x."""
    from onnx import TensorProto, helper

    def make(path: Path, kind: str, shape: list[Any], outputs: list[str] | None = None) -> Path:
        element = getattr(TensorProto, kind)
        nodes = [helper.make_node("Identity", ["x"], [name]) for name in outputs or ["y"]]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes, "g", [info("x", element, shape)], [info(n, element, shape) for n in outputs or ["y"]]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FLOAT16", np.float16([[1, 2]])),
        ("BFLOAT16", np.asarray([[1, 2], [3, 4]]).astype(ml_dtypes.bfloat16)),
        ("INT64", np.int64([[2**40, -1]])),
        ("BOOL", np.array([[True, False]])),
        ("UINT8", np.uint8([[255, 0]])),
        ("STRING", np.array([[b"a\x00b", "é".encode()]], object)),
    ],
)
def test_element_types_of_onnx(kind: str, values: np.ndarray, tmp_path: Path, onnx_identity: Any) -> None:
    onnx_identity(tmp_path / "1" / "model.onnx", kind, ["n", 2])
    backend = backends.load(tmp_path / "1")
    got = backend.run("serving_default", {"x": values})["y"]
    assert (got.dtype, got.tolist()) == (values.dtype, values.tolist())
    empty = backend.run("serving_default", {"x": values[:0]})["y"]
    assert (empty.shape, empty.dtype) == ((0, 2), values.dtype)


def test_strings_of_onnx_are_text(tmp_path: Path, onnx_identity: Any) -> None:
    onnx_identity(tmp_path / "1" / "model.onnx", "STRING", ["n"])
    backend = backends.load(tmp_path / "1")
    with pytest.raises(InvalidArgument, match="input 'x': element 1 is no UTF-8"):
        backend.run("serving_default", {"x": np.array([b"a", b"\xff"], object)})


def test_whole_numbers_that_openvino_would_wrap(tmp_path: Path, onnx_identity: Any) -> None:
    import openvino as ov

    model = ov.convert_model(str(onnx_identity(tmp_path / "m.onnx", "INT64", ["n"])))
    (tmp_path / "1").mkdir()
    ov.save_model(model, str(tmp_path / "1" / "model.xml"))
    backend = backends.load(tmp_path / "1")
    assert backend.run("serving_default", {"x": np.int64([-5])})["y"].tolist() == [-5]
    with pytest.raises(InvalidArgument, match="OpenVINO computes with whole numbers of 32 bits"):
        backend.run("serving_default", {"x": np.int64([2**40])})


@pytest.mark.slow
def test_precision_of_openvino(tmp_path: Path, declare: Callable[..., None], onnx_identity: Any) -> None:
    """Computing in bfloat16 must be asked for, whatever the CPU can do; then it is really done."""
    import openvino as ov
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    random = np.random.default_rng(1)
    weights = random.random((64, 64), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [info("x", TensorProto.FLOAT, ["n", 64])],
        [info("y", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor("w", TensorProto.FLOAT, [64, 64], weights.tobytes(), raw=True)],
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, ir_version=9).SerializeToString())
    x = random.random((8, 64), np.float32)
    capable = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for number, precision, option, reduced in (
        (1, "", "", False),
        (2, "bfloat16", "", True),
        (3, "", "bf16", True),
        (4, "float32", "bf16", False),
    ):
        path = tmp_path / str(number)
        path.mkdir()
        model = ov.convert_model(str(tmp_path / "m.onnx"))
        if option:
            model.set_rt_info(option, ["runtime_options", "INFERENCE_PRECISION_HINT"])
        ov.save_model(model, str(path / "model.xml"), compress_to_fp16=False)
        declare(path, Variant(name="v", format="openvino", path="model.xml", precision=precision))
        y = backends.load(path).run("serving_default", {"x": x})["y"]
        error = float(np.abs(y / (x @ weights) - 1).max())
        assert error < (2e-2 if reduced else 1e-5)
        assert not (reduced and capable) or error > 1e-5, "it was asked to compute in bfloat16"


def test_what_cannot_be_loaded(version: Make, forms: Any, tmp_path: Path) -> None:
    broken = version(1, saved_model=False, top=forms.onnx)
    (broken / "model.onnx").write_bytes(forms.onnx.read_bytes()[:100])
    with pytest.raises(Internal, match=r"model\.onnx"):
        backends.load(broken)
    broken = version(2, saved_model=False, top=forms.tflite)
    (broken / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 50)
    with pytest.raises(InvalidArgument, match="Cannot build FlatBufferModel from buffer"):
        backends.load(broken)
    broken = version(3, saved_model=False, top=forms.xml)
    (broken / "model.bin").unlink()
    with pytest.raises(Internal, match=r"OpenVINO cannot load it"):
        backends.load(broken)
    with pytest.raises(NotFound, match=r"holds nothing that onnx could serve; it holds a SavedModel, v \(tflite\)"):
        backends.load(version(4, variants={"v": forms.tflite}), LoadOptions(backend="onnx"))
    unreadable = version(5, saved_model=False, top=forms.onnx)
    (unreadable / "assets.extra").mkdir()
    (unreadable / "assets.extra" / "moxserve.json").write_text("{")
    with pytest.raises(DataLoss, match="expected a moxserve manifest"):
        backends.load(unreadable)


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_package_that_is_not_there(
    name: str, package: str, version: Make, forms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moxserve.serving.backends import openvino

    openvino._make_core.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        backends.load(version(saved_model=False, top=file_of(forms, name)))
    assert (caught.value.package, caught.value.extra) == (package, name)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_no_tensorflow(name: str, version: Make, forms: Any) -> None:
    path = version(variants={"v": file_of(forms, name)})
    code = (
        "import sys, numpy as np; from moxserve.serving import backends; "
        f"b = backends.load({str(path)!r}, backends.LoadOptions(backend={name!r})); "
        "y = b.run('serving_default', {'x': np.ones((1, 4), 'float32')})['scores']; "
        "print(y.shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.splitlines()[-1] == "(1, 3) False"
