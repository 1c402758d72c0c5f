"""What an exported SavedModel holds, and what it answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import CheckpointError, ExportError, ModelSpecError
from moxserve.export.job import ExportJob


def _example(tf: Any, images: np.ndarray) -> list[bytes]:
    def one(image: np.ndarray) -> bytes:
        feature = tf.train.Feature(int64_list=tf.train.Int64List(value=image.ravel().tolist()))
        return tf.train.Example(features=tf.train.Features(feature={"images": feature})).SerializeToString()

    return [one(image) for image in images]


def test_half_plus_two_answers_as_arithmetic_does(half_job: ExportJob, export: Any, load_model: Any) -> None:
    result = export(half_job)
    assert sorted(os.listdir(result.path)) == ["assets.extra", "saved_model.pb", "variables"]
    signature = result.signatures["serving_default"]
    assert str(signature) == "serving_default(x: float32[?]) -> (y: float32[?])"
    assert signature.method == "tensorflow/serving/predict"
    x = np.array([1.0, 2.0, 5.0], np.float32)
    np.testing.assert_allclose(load_model(result.path)("serving_default", x=x)["y"], x / 2 + 2)


def test_predict_equals_numpy(conv_case: Any, export: Any, load_model: Any) -> None:
    result = export(conv_case.job)
    answer = load_model(result.path)("serving_default", images=conv_case.images)
    np.testing.assert_allclose(answer["logits"], conv_case.logits, atol=1e-5)
    np.testing.assert_array_equal(answer["classes"], conv_case.logits.argmax(1))
    exponentials = np.exp(conv_case.logits)
    np.testing.assert_allclose(answer["probabilities"], exponentials / exponentials.sum(1, keepdims=True), atol=1e-6)


def test_classify_parses_examples_and_names_classes(conv_case: Any, export: Any, load_model: Any) -> None:
    from moxserve.tensorflow.executor.env import tf

    result = export(conv_case.job)
    assert str(result.signatures["classify"]) == (
        "classify(inputs: string[?]) -> (classes: string[?, 3], scores: float32[?, 3])"
    )
    assert result.signatures["classify"].method == "tensorflow/serving/classify"
    model = load_model(result.path)
    answer = model("classify", inputs=_example(tf, conv_case.images[:5]))
    assert answer["classes"].tolist() == [[b"cat", "dög".encode(), b"eel"]] * 5
    predicted = model("serving_default", images=conv_case.images[:5])["probabilities"]
    np.testing.assert_array_equal(answer["scores"], predicted)
    assert Path(result.path, "assets", "labels.txt").read_text() == "cat\ndög\neel\n"


def test_classes_are_numbered_without_labels(conv_case: Any, export: Any, load_model: Any) -> None:
    from moxserve.tensorflow.executor.env import tf

    result = export(conv_case.job, labels=None)
    answer = load_model(result.path)("classify", inputs=_example(tf, conv_case.images[:1]))
    assert answer["classes"].tolist() == [[b"0", b"1", b"2"]]
    assert not os.path.exists(os.path.join(result.path, "assets"))


def test_a_moved_version_finds_its_labels(conv_case: Any, export: Any, load_model: Any, tmp_path: Path) -> None:
    from moxserve.tensorflow.executor.env import tf

    moved = str(tmp_path / "elsewhere")
    os.rename(export(conv_case.job).path, moved)
    answer = load_model(moved)("classify", inputs=_example(tf, conv_case.images[:1]))
    assert answer["classes"][0][0] == b"cat"


def test_the_graph_holds_what_serving_needs_and_nothing_of_this_machine(conv_case: Any, export: Any) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    result = export(conv_case.job)
    raw = Path(result.path, "saved_model.pb").read_bytes()
    (meta,) = saved_model_pb2.SavedModel.FromString(raw).meta_graphs
    assert not [n.name for n in meta.graph_def.node if n.device]
    names = {n.name for n in meta.graph_def.node}
    assert "image" in names
    assert "label" not in names
    assert not [n.name for n in meta.graph_def.node if "Summary" in n.op or "CrossEntropy" in n.op]
    assert b"tmp" not in raw
    assert {n.attr["value"].tensor.string_val[0] for n in meta.graph_def.node if "labels" in n.name} == {b"labels.txt"}
    # Weights are shared by both signatures, not copied.
    assert [n.op for n in meta.graph_def.node].count("VarHandleOp") == 4


TF2_LOAD = """
import sys
import numpy as np
import tensorflow as tf
loaded, other = tf.saved_model.load(sys.argv[1]), tf.saved_model.load(sys.argv[4])
images = tf.constant(np.load(sys.argv[2]))
signatures = loaded.signatures
def example(image):
    value = tf.train.Int64List(value=image.numpy().ravel().tolist())
    feature = {"images": tf.train.Feature(int64_list=value)}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
examples = tf.constant([example(image) for image in images])
np.save(sys.argv[3], signatures["serving_default"](images=images)["logits"].numpy())
names = [m.signatures["classify"](inputs=examples)["classes"][0, 1].numpy().decode() for m in (loaded, other)]
print(sorted(signatures), len(loaded.variables), *names)
"""


@pytest.mark.slow
def test_tf_saved_model_load_takes_two_versions_in_eager_mode(
    conv_case: Any, export: Any, tmp_path: Path, run_tensorflow_script: Any
) -> None:
    result, other = export(conv_case.job), export(conv_case.job, labels=["x", "y", "z"])
    images, logits = tmp_path / "images.npy", tmp_path / "logits.npy"
    np.save(images, conv_case.images[:6])
    run = run_tensorflow_script(TF2_LOAD, result.path, images, logits, other.path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "['classify', 'serving_default'] 4 dög y"
    np.testing.assert_allclose(np.load(logits), conv_case.logits[:6], atol=1e-5)


def _spec_model(build: Callable[..., tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]) -> Callable[..., Any]:
    """Make a model_fn of a function that returns inputs, outputs and further fields of the ExportSpec."""

    def model_fn(inputs: list[Any], mode: str) -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1
        from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

        ins, outs, fields = build(tf, tf1, *inputs)
        return ModelSpec(export_spec=ExportSpec(ins, outs, **fields))

    return model_fn


@pytest.fixture
def simple_job(tmp_path: Path, save_checkpoint: Any, spec: Any) -> Callable[..., ExportJob]:
    """`simple_job(build, [spec, …], [samples, …])`: a job for a model of `_spec_model`."""

    def make(build: Any, inputs: list[Any], samples: list[np.ndarray] | None = None, **fields: Any) -> ExportJob:
        model_fn = _spec_model(build)
        checkpoint = save_checkpoint(tmp_path / "run", model_fn, inputs)
        return ExportJob(model_fn, inputs, checkpoint, base_dir=str(tmp_path / "out"), samples=samples or (), **fields)

    return make


def test_any_tensor_can_be_an_input_also_for_classify(simple_job: Any, spec: Any, export: Any, load_model: Any) -> None:
    from moxserve.tensorflow.executor.env import tf

    def build(tf: Any, tf1: Any, raw: Any) -> Any:
        images = tf.cast(raw, tf.float32) / 255.0
        weights = tf1.get_variable("w", [4, 2])
        return {"images": images}, {"scores": tf.nn.softmax(tf.matmul(images, weights))}, {"scores": "scores"}

    rows = np.random.default_rng(0).integers(0, 256, (10, 4), dtype=np.uint8)
    result = export(simple_job(build, [spec("raw", "uint8", None, 4)], [rows]))
    assert result.signatures["serving_default"].inputs["images"].dtype.name == "float32"
    model = load_model(result.path)
    scaled = (rows / 255.0).astype(np.float32)
    expected = model("serving_default", images=scaled)["scores"]
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-6)
    features = [{"images": tf.train.Feature(float_list=tf.train.FloatList(value=row))} for row in scaled]
    examples = [tf.train.Example(features=tf.train.Features(feature=f)).SerializeToString() for f in features]
    np.testing.assert_array_equal(model("classify", inputs=examples)["scores"], expected)


def test_strings_go_in_and_out(simple_job: Any, spec: Any, export: Any, load_model: Any) -> None:
    def build(tf: Any, tf1: Any, text: Any) -> Any:
        length = tf.cast(tf.strings.length(text), tf.float32)
        scores = tf.stack([length, -length], 1)
        return {"text": text}, {"upper": tf.strings.upper(text), "scores": scores}, {"scores": "scores"}

    rows = np.array([b"abc", b"", b"z\x00\xff", "dög".encode()], dtype=object)
    result = export(simple_job(build, [spec("text", "string", None)], [rows], labels=["long", "short"]))
    assert result.verified_rows == 4
    assert result.warmup_records == 4
    answer = load_model(result.path)("serving_default", text=rows)
    assert answer["upper"].tolist() == [b"ABC", b"", b"Z\x00\xff", "DöG".encode()]


def test_several_inputs_of_every_kind_reach_classify(simple_job: Any, spec: Any, export: Any) -> None:
    kinds = ["float32", "float64", "float16", "bfloat16", "int8", "uint16", "int32", "int64", "bool"]

    def build(tf: Any, tf1: Any, *inputs: Any) -> Any:
        total = tf.add_n([tf.reshape(tf.cast(x, tf.float64), [-1, 2]) for x in inputs])
        aliases = dict(zip(kinds, inputs, strict=True))
        return aliases, {"scores": total}, {"scores": "scores"}

    random = np.random.default_rng(0)
    specs = [spec(kind, kind, None, 2, 1) for kind in kinds]
    samples = [random.integers(0, 2, (5, 2, 1)).astype(s.dtype.numpy) for s in specs]
    samples[1] = random.normal(size=(5, 2, 1))
    result = export(simple_job(build, specs, samples))
    assert result.signatures["serving_default"].outputs["scores"].dtype.name == "float64"
    assert result.signatures["classify"].outputs["scores"].dtype.name == "float32"


def test_tables_and_assets_of_the_user_go_along(
    simple_job: Any, spec: Any, export: Any, load_model: Any, tmp_path: Path
) -> None:
    words = tmp_path / "labels.txt"
    words.write_text("apple\nplum\n")

    def build(tf: Any, tf1: Any, text: Any) -> Any:
        initializer = tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        index = tf.lookup.StaticHashTable(initializer, -1).lookup(text)
        return (
            {"text": text},
            {"index": index, "scores": tf.one_hot(index, 2)},
            {"scores": "scores", "labels": ["A", "B"]},
        )

    rows = np.array([b"plum", b"pear", b"apple"], dtype=object)
    result = export(simple_job(build, [spec("text", "string", None)], [rows]))
    # Two assets of one name: both are there, under different names.
    texts = {p.read_text() for p in Path(result.path, "assets").iterdir()}
    assert texts == {"apple\nplum\n", "A\nB\n"}
    words.unlink()
    model = load_model(result.path)
    assert model("serving_default", text=rows)["index"].tolist() == [1, -1, 0]


@pytest.mark.parametrize("v2", [True, False], ids=["functional", "switch-merge"])
def test_loops_and_conditions_are_exported(v2: bool, simple_job: Any, spec: Any, export: Any, load_model: Any) -> None:
    from moxserve.tensorflow.executor.env import tf1

    def build(tf: Any, tf1: Any, x: Any) -> Any:
        scale = tf1.get_variable("scale", [2])
        _, doubled = tf1.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 2.0 + scale), [0, x])
        scores = tf1.cond(tf.reduce_sum(x) > 0, lambda: doubled, lambda: -doubled)
        return {"x": x}, {"scores": scores}, {"scores": "scores"}

    before = tf1.control_flow_v2_enabled()
    (tf1.enable_control_flow_v2 if v2 else tf1.disable_control_flow_v2)()
    try:
        rows = np.random.default_rng(0).normal(size=(70, 2)).astype(np.float32)
        result = export(simple_job(build, [spec("x", "float32", None, 2)], [rows]))
    finally:
        (tf1.enable_control_flow_v2 if before else tf1.disable_control_flow_v2)()
    assert result.max_abs_error == 0
    model = load_model(result.path)
    assert model("serving_default", x=rows[:3])["scores"].shape == (3, 2)


def test_a_fixed_batch_stays_fixed(simple_job: Any, spec: Any, export: Any, load_model: Any) -> None:
    def build(tf: Any, tf1: Any, x: Any) -> Any:
        return {"x": x}, {"scores": tf.reshape(x * 2.0, [8, 3])}, {"scores": "scores"}

    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    result = export(simple_job(build, [spec("x", "float32", 8, 3)], [rows]))
    assert str(result.signatures["serving_default"]) == "serving_default(x: float32[8, 3]) -> (scores: float32[8, 3])"
    assert result.signatures["classify"].inputs["inputs"].shape == (8,)
    assert result.verified_rows == 16  # two whole batches
    assert result.warmup_records == 2  # one of 8 rows for each signature
    np.testing.assert_array_equal(load_model(result.path)("serving_default", x=rows[:8])["scores"], rows[:8] * 2)


def test_an_output_may_be_an_input(simple_job: Any, spec: Any, export: Any, load_model: Any) -> None:
    def build(tf: Any, tf1: Any, key: Any, x: Any) -> Any:
        return {"key": key, "x": x}, {"key": key, "y": x + 1.0}, {}

    keys, x = np.array([b"a", b"b"], dtype=object), np.zeros(2, np.float32)
    result = export(simple_job(build, [spec("key", "string", None), spec("x", "float32", None)], [keys, x]))
    signature = result.signatures["serving_default"]
    assert signature.inputs["key"].tensor != signature.outputs["key"].tensor
    assert load_model(result.path)("serving_default", key=keys, x=x)["key"].tolist() == [b"a", b"b"]


def _free_rows(tf: Any, tf1: Any, x: Any) -> Any:
    rows = tf1.placeholder_with_default(x[:, tf.newaxis], [None, None])
    return {"x": rows}, {"y": rows[:, :2]}


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda tf, tf1, x, n: ({"x": x}, {"y": x * n}, {}),
            ExportError,
            "output 'y' needs model_fn's input 'n'; ExportSpec.inputs_dict has only 'x' \\(x:0\\)",
        ),
        (
            lambda tf, tf1, x, n: ({"x": x}, {"y": x * tf1.placeholder(tf.float32, name="keep")}, {}),
            ExportError,
            "output 'y' needs the placeholder 'keep'",
        ),
        (
            lambda tf, tf1, x, n: ({"a": x, "b": x}, {"y": x + 1.0}, {}),
            ModelSpecError,
            "'a' and 'b' are both x:0",
        ),
        (
            lambda tf, tf1, x, n: ({"x": x}, {"y": x}, {"scores": "y"}),
            ModelSpecError,
            r"expected \[batch, classes\] floats",
        ),
        (
            lambda tf, tf1, x, n: ({"x": x}, {"y": tf.stack([x, x], 1)}, {"scores": "y", "labels": ["a"]}),
            ModelSpecError,
            "1 labels for 2 classes in output 'y'",
        ),
        (
            lambda tf, tf1, x, n: ({"x": x}, {"y": tf.stack([x, x], 1)}, {"scores": "y", "labels": ["a", "b\nc"]}),
            ModelSpecError,
            "label 1 .* has a line break",
        ),
        (
            lambda tf, tf1, x, n: (
                *_free_rows(tf, tf1, x),
                {"scores": "y"},
            ),
            ModelSpecError,
            r"fixed row shape of numbers or strings; got x: float32\[\?, \?\]",
        ),
        (
            lambda tf, tf1, x, n: (
                {"x": x},
                {"y": x * tf1.get_variable("local", [], collections=[tf1.GraphKeys.LOCAL_VARIABLES])},
                {},
            ),
            ExportError,
            "an output needs the variable 'local', which is not in the GLOBAL_VARIABLES collection",
        ),
        (
            lambda tf, tf1, x, n: ({"x": x}, {"y": tf.quantization.quantize(x, 0.0, 1.0, tf.qint8)[0]}, {}),
            ModelSpecError,
            "is qint8, which no request can carry",
        ),
    ],
    ids=["other-input", "placeholder", "doubled", "scores", "labels", "line-break", "free-rows", "local", "dtype"],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused(
    build: Any, error: type[Exception], message: str, simple_job: Any, spec: Any, export: Any, tmp_path: Path
) -> None:
    job = simple_job(build, [spec("x", "float32", None), spec("n", "float32", None)])
    with pytest.raises(error, match=message):
        export(job)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_model_fn_must_give_an_export_spec(half_job: ExportJob, export: Any) -> None:
    from moxserve.tensorflow.executor.spec import ModelSpec

    with pytest.raises(ModelSpecError, match="without export_spec, which EXPORT needs") as raised:
        export(half_job, model_fn=lambda inputs, mode: ModelSpec())
    assert "mox.ExportSpec(inputs_dict=" in str(raised.value.hint)


def test_a_checkpoint_that_lacks_a_variable_is_refused(half_job: ExportJob, export: Any) -> None:
    original = half_job.model_fn

    def model_fn(inputs: Any, mode: str) -> Any:
        from moxserve.tensorflow.executor.env import tf1
        from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

        spec = original(inputs, mode).export_spec
        y = spec.outputs_dict["y"] * tf1.get_variable("added_later", [])
        return ModelSpec(export_spec=ExportSpec(spec.inputs_dict, {"y": y}))

    with pytest.raises(CheckpointError, match=r"(?s)building the model for export: .*added_later"):
        export(half_job, model_fn=model_fn)


def test_variables_that_no_output_needs_may_be_missing(half_job: ExportJob, export: Any) -> None:
    original = half_job.model_fn

    def model_fn(inputs: Any, mode: str) -> Any:
        from moxserve.tensorflow.executor.env import tf1

        tf1.get_variable("only_for_the_loss", [3])
        return original(inputs, mode)

    result = export(half_job, model_fn=model_fn)
    assert b"only_for_the_loss" not in Path(result.path, "saved_model.pb").read_bytes()


def test_a_model_without_variables_is_exported(simple_job: Any, spec: Any, export: Any, load_model: Any) -> None:
    result = export(simple_job(lambda tf, tf1, x: ({"x": x}, {"y": -x}, {}), [spec("x", "int32", None)]))
    assert load_model(result.path)("serving_default", x=[1, 2])["y"].tolist() == [-1, -2]


def _partitioned(tf: Any, tf1: Any, x: Any) -> Any:
    with tf1.variable_scope("p", partitioner=tf1.fixed_size_partitioner(2)):
        return tf.matmul(x, tf.convert_to_tensor(tf1.get_variable("w", [4, 3])))


def _reference_variable(tf: Any, tf1: Any, x: Any) -> Any:
    return tf.matmul(x, tf1.get_variable("w", [4, 3], use_resource=False))


def _keras(tf: Any, tf1: Any, x: Any) -> Any:
    x = tf.keras.layers.BatchNormalization(name="bn")(x, training=False)
    return tf.keras.layers.Dense(3, activation="softmax", name="dense")(x)


def _v1_layers(tf: Any, tf1: Any, x: Any) -> Any:
    x = tf1.layers.batch_normalization(tf1.layers.dense(x, 8), training=False)
    return tf1.layers.dense(tf1.layers.dropout(x, training=False), 3)


def _plain_variable(tf: Any, tf1: Any, x: Any) -> Any:
    return tf.matmul(x, tf1.Variable(np.eye(4, 3, dtype=np.float32), name="w"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tf.layers:UserWarning")
@pytest.mark.parametrize("layer", [_partitioned, _reference_variable, _keras, _v1_layers, _plain_variable])
def test_variables_of_every_make_are_restored_and_shared(
    layer: Any, simple_job: Any, spec: Any, export: Any, load_model: Any
) -> None:
    def build(tf: Any, tf1: Any, x: Any) -> Any:
        scores = layer(tf, tf1, x)
        return {"x": x}, {"scores": scores}, {"scores": "scores"}

    rows = np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32)
    result = export(simple_job(build, [spec("x", "float32", None, 4)], [rows]))
    assert result.max_abs_error == 0
    assert result.verified_rows == 70
    model = load_model(result.path)
    answer = model("serving_default", x=rows)["scores"]
    assert np.abs(answer).max() > 0
    names = [v.op.name for v in model.graph.get_collection("variables")]
    assert len(names) == len(set(names)) == len([n for n in model.graph.get_operations() if n.type in VARIABLE_OPS])


VARIABLE_OPS = ("VarHandleOp", "VariableV2")


def test_the_light_modules_import_no_tensorflow() -> None:
    code = (
        "import sys; import moxserve.export.job, moxserve.export.manifest, moxserve.export.versions; "
        "import moxserve.export.compare; print('tensorflow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_graph_that_other_servers_may_refuse_is_told(simple_job: Any, spec: Any, export: Any) -> None:
    def build(tf: Any, tf1: Any, x: Any) -> Any:
        return {"x": x}, {"y": tf.nn.max_pool2d(x, 2, 2, "VALID", data_format="NCHW")}, {}

    result = export(simple_job(build, [spec("x", "float32", None, 3, 4, 4)], [np.ones((2, 3, 4, 4), np.float32)]))
    assert len(result.notes) == 2  # the other one is about mode EVAL
    assert result.notes[0].startswith("1 operations are in NCHW format (the first is 'MaxPool2d')")
