"""Sources other than a checkpoint: any SavedModel, a frozen graph."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import DataError, ExportError, MoxserveError, UsageError
from moxserve.export.job import ExportJob, GraphJob, SavedModelJob
from moxserve.export.targets import Target, VariantOptions
from moxserve.types import TensorSpec, dtype_by_name


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    """`stage(kind, path, **fields)`: the staged model and its directory."""

    def run(kind: Any, path: str | Path, **fields: Any) -> tuple[Any, str]:
        from moxserve.export.sources import stage_model

        directory = tmp_path / f"staged-{len(os.listdir(tmp_path))}"
        directory.mkdir()
        model = stage_model(kind(str(path), base_dir=str(tmp_path / "base"), **fields), str(directory))
        return model, str(directory)

    return run


@pytest.fixture
def exported(conv_case: Any, tmp_path: Path) -> str:
    """The conv model as a SavedModel of ours, with labels."""
    from moxserve.export.sources import stage_model

    directory = tmp_path / "exported"
    directory.mkdir()
    stage_model(conv_case.job, str(directory))
    return str(directory)


V2 = """
import sys
import tensorflow as tf

class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(sys.argv[2], tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
                                          tf.lookup.TextFileIndex.LINE_NUMBER), -1)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x")])
    def dot(self, x):
        with tf.device("/device:GPU:0"):
            return {"y": tf.matmul(x, self.w)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def look(self, word):
        return {"index": self.table.lookup(word)}

net = Net()
tf.saved_model.save(net, sys.argv[1], signatures={"serving_default": net.dot, "look": net.look})
"""


@pytest.fixture(scope="session")
def v2_model(tmp_path_factory: pytest.TempPathFactory, run_tensorflow_script: Any) -> str:
    """A SavedModel of TensorFlow 2: a matrix product on a GPU, and a table from a file."""
    folder = tmp_path_factory.mktemp("v2")
    (folder / "words.txt").write_text("apple\nplum\n")
    target = str(folder / "model")
    run_tensorflow_script(V2, target, folder / "words.txt").check_returncode()
    (folder / "words.txt").unlink()
    return target


def _graph_of(directory: str) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString(Path(directory, "saved_model.pb").read_bytes()).meta_graphs[0]


@pytest.mark.slow
def test_a_tf2_model_is_copied_whole_and_without_devices(v2_model: str, stage: Any, load_model: Any) -> None:
    assert any(n.device for f in _graph_of(v2_model).graph_def.library.function for n in f.node_def)
    rows = np.random.default_rng(0).normal(size=(70, 2)).astype(np.float32)
    model, directory = stage(SavedModelJob, v2_model, samples={"x": rows})
    assert model.main == "serving_default"
    assert sorted(model.signatures) == ["look", "serving_default"]
    assert model.verification.mode == "samples"
    assert model.verification.rows == 70
    assert {(c.signature, c.output) for c in model.verification.outputs} == {
        ("serving_default", "y"),
        ("look", "index"),
    }
    assert model.verification.max_abs_error == 0
    np.testing.assert_array_equal(model.rows["x"], rows)
    np.testing.assert_allclose(model.expected["y"], rows @ [[1, 2], [3, 4]], rtol=1e-5)
    assert (model.source.kind, model.source.path) == ("saved_model", os.path.abspath(v2_model))
    graph_def = _graph_of(directory).graph_def
    assert not [n.name for n in graph_def.node if n.device]
    assert not [n.name for f in graph_def.library.function for n in f.node_def if n.device]
    loaded = load_model(directory)
    assert loaded("look", word=[b"plum", b"?"])["index"].tolist() == [1, -1]


@pytest.mark.slow
def test_signatures_are_chosen_and_renamed_for_both_loaders(
    v2_model: str, stage: Any, load_model: Any, run_tensorflow_script: Any
) -> None:
    model, directory = stage(SavedModelJob, v2_model, signatures={"dot": "serving_default"})
    assert list(model.signatures) == ["dot"]
    assert model.main == "dot"
    assert load_model(directory)("dot", x=[[1.0, 0.0]])["y"].tolist() == [[1.0, 2.0]]
    code = (
        "import sys, tensorflow as tf; m = tf.saved_model.load(sys.argv[1]); "
        "print(list(m.signatures), m.signatures['dot'](x=tf.constant([[0.0, 1.0]]))['y'].numpy().tolist())"
    )
    run = run_tensorflow_script(code, directory)
    assert run.stdout.strip() == "['dot'] [[3.0, 4.0]]"


def test_a_version_of_ours_keeps_labels_and_its_origin(exported: str, conv_case: Any, stage: Any) -> None:
    from moxserve.export.manifest import Manifest, Source, write_manifest

    source = Source(checkpoint="runs/a/model.ckpt-7", global_step=7)
    manifest = Manifest(model_name="m", signatures={}, source=source, variants=(), metadata={"who": "me"})
    write_manifest(exported, manifest)
    Path(exported, "assets.extra", "somebody.txt").write_text("kept")
    model, directory = stage(SavedModelJob, exported, samples={"images": conv_case.images})
    assert Path(directory, "assets", "labels.txt").read_text() == "cat\ndög\neel\n"
    assert Path(directory, "assets.extra", "somebody.txt").read_text() == "kept"
    assert not os.path.exists(os.path.join(directory, "assets.extra", "moxserve.json"))
    assert (model.source.checkpoint, model.source.global_step, model.source.kind) == (
        *("runs/a/model.ckpt-7", 7),
        "saved_model",
    )
    assert model.metadata == {"who": "me"}
    assert model.scores == "probabilities"
    np.testing.assert_allclose(model.expected["logits"], conv_case.logits, atol=1e-5)


def test_warmup_records_are_rows_where_no_others_are_given(
    conv_case: Any, exported: str, stage: Any, tmp_path: Path
) -> None:
    from moxserve.protocol import messages
    from moxserve.protocol.tensors import to_proto
    from moxserve.protocol.tfrecord import write_records

    logs = []
    for size in (1, 8, 32):
        log = messages.PredictionLog()
        log.predict_log.request.model_spec.signature_name = "serving_default"
        log.predict_log.request.inputs["images"].CopyFrom(to_proto(conv_case.images[:size]))
        logs.append(log.SerializeToString())
    os.makedirs(os.path.join(exported, "assets.extra"), exist_ok=True)
    write_records(os.path.join(exported, "assets.extra", "tf_serving_warmup_requests"), logs)
    model, _ = stage(SavedModelJob, exported)
    np.testing.assert_array_equal(model.rows["images"], conv_case.images[:32])
    assert model.verification.rows == 32


def test_samples_of_a_file_bring_labels(exported: str, conv_case: Any, stage: Any, tmp_path: Path) -> None:
    labels = np.arange(70) % 3
    np.savez(tmp_path / "rows.npz", images=conv_case.images, labels=labels)
    model, _ = stage(SavedModelJob, exported, samples_file=str(tmp_path / "rows.npz"), sample_limit=40)
    assert model.verification.rows == 40
    np.testing.assert_array_equal(model.labels, labels[:40])
    lines = [f'{{"images": {image.tolist()}, "label": "eel"}}' for image in conv_case.images[:3]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    model, _ = stage(SavedModelJob, exported, samples_file=str(tmp_path / "rows.jsonl"))
    assert model.labels.tolist() == [2, 2, 2]
    (tmp_path / "bad.jsonl").write_text('{"images": [[1]]}')
    with pytest.raises(DataError, match=r"bad.jsonl:1"):
        stage(SavedModelJob, exported, samples_file=str(tmp_path / "bad.jsonl"))


def test_samples_that_do_not_fit_are_refused(exported: str, stage: Any) -> None:
    with pytest.raises(UsageError, match="images"):
        stage(SavedModelJob, exported, samples={"pixels": np.zeros((2, 8, 8, 1), np.uint8)})
    with pytest.raises(UsageError, match="images"):
        stage(SavedModelJob, exported, samples={"images": np.zeros((2, 9, 8, 1), np.uint8)})
    with pytest.raises(UsageError, match="given twice"):
        stage(SavedModelJob, exported, samples={"images": np.zeros((2, 8, 8, 1), np.uint8)}, samples_file="x.npz")


def test_models_of_tensorflow_serving(shared_dir: Path, stage: Any, load_model: Any) -> None:
    base = shared_dir / "testdata" / "tfserving"
    rows = np.float32([[1], [2]])
    model, directory = stage(
        SavedModelJob, base / "saved_model_half_plus_two_2_versions" / "00000123", samples={"x": rows}
    )
    # What a signature parses out of tf.Examples is read from its graph, and filled from the rows.
    assert {c.signature for c in model.verification.outputs} >= {"regress_x_to_y", "classify_x_to_y", "serving_default"}
    loaded = load_model(directory)
    answer = loaded("regress_x_to_y", **model.requests["regress_x_to_y"])["outputs"]
    np.testing.assert_array_equal(answer, rows / 2 + 2)
    assert model.notes == ()
    assert len(model.signatures) == 6
    assert model.main == "serving_default"
    assert load_model(directory)("serving_default", x=[[4.0]])["y"].tolist() == [[4.0]]
    assert Path(directory, "assets", "foo.txt").exists()
    model, directory = stage(
        SavedModelJob, base / "saved_model_half_plus_two_tf2_cpu" / "00000123", samples={"x": np.float32([3])}
    )
    assert model.expected["y"].tolist() == [3.5]
    model, directory = stage(SavedModelJob, base / "matrix_half_plus_two" / "1")
    assert model.verification.mode == "zeros"
    with pytest.raises(ExportError, match="session bundle"):
        stage(SavedModelJob, base / "bad_half_plus_two" / "00000123")
    with pytest.raises(ExportError, match="holds no SavedModel"):
        stage(SavedModelJob, base / "saved_model_half_plus_two_tflite" / "00000123")


def test_a_model_that_counts_is_copied_and_compared(shared_dir: Path, stage: Any) -> None:
    path = shared_dir / "testdata" / "tfserving" / "saved_model_counter" / "00000123"
    model, _ = stage(SavedModelJob, path)
    assert len(model.signatures) == 4
    targets = VariantOptions(targets=(Target("onnx"),))
    with pytest.raises(UsageError, match=r"none is 'serving_default'") as raised:
        stage(SavedModelJob, path, variants=targets)
    assert "--signature" in str(raised.value.hint)


@pytest.fixture
def v1_model(tmp_path: Path) -> Callable[..., str]:
    """`v1_model(use_resource)`: y = w * x of TensorFlow 1, in two graphs: tags `serve` and `train`, `gpu`."""

    def make(use_resource: bool = True) -> str:
        from moxserve.tensorflow.executor.env import tf, tf1

        path = str(tmp_path / f"v1-{use_resource}")
        builder = tf1.saved_model.Builder(path)
        with tf.Graph().as_default(), tf1.Session() as session:
            x = tf1.placeholder(tf.float32, [None], "x")
            w = tf1.get_variable("w", [], initializer=tf1.constant_initializer(3.0), use_resource=use_resource)
            session.run(w.initializer)
            signature = tf1.saved_model.predict_signature_def({"x": x}, {"y": w * x})
            builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        with tf.Graph().as_default(), tf1.Session():
            x = tf1.placeholder(tf.float32, [None], "x")
            w = tf1.get_variable("w", [], use_resource=use_resource)
            signature = tf1.saved_model.predict_signature_def({"x": x}, {"y": 10.0 * w * x})
            builder.add_meta_graph(["train", "gpu"], {"training": signature})
        builder.save()
        return path

    return make


@pytest.mark.parametrize("use_resource", [True, False], ids=["resource", "ref"])
def test_a_tf1_model_by_its_tags(use_resource: bool, v1_model: Any, stage: Any, load_model: Any) -> None:
    path = v1_model(use_resource)
    rows = np.arange(5, dtype=np.float32)
    model, directory = stage(SavedModelJob, path, samples={"x": rows})
    np.testing.assert_array_equal(model.expected["y"], 3 * rows)
    model, directory = stage(SavedModelJob, path, tags=("gpu", "train"), samples={"x": rows})
    assert model.main == "training"
    assert "is tagged serve now" in model.notes[0]
    assert load_model(directory)("training", x=[1.0])["y"].tolist() == [30.0]
    with pytest.raises(UsageError, match="no graph tagged serve, gpu; it has graphs tagged: serve; gpu, train"):
        stage(SavedModelJob, path, tags=("serve", "gpu"))


def test_a_text_form_is_read(v1_model: Any, stage: Any) -> None:
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(v1_model())
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (path / "saved_model.pb").unlink()
    (path / "saved_model.pbtxt").write_text(text_format.MessageToString(saved))
    model, directory = stage(SavedModelJob, path, samples={"x": np.ones(2, np.float32)})
    assert model.expected["y"].tolist() == [3.0, 3.0]
    assert Path(directory, "saved_model.pb").exists()


def _without_shard(path: Path) -> None:
    (path / "variables" / "variables.data-00000-of-00001").unlink()


def _without_index(path: Path) -> None:
    shutil.rmtree(path / "variables")


def _garbage(path: Path) -> None:
    (path / "saved_model.pb").write_bytes(b"\xff" * 100)


def _unsigned(path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].signature_def.clear()
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())


def _misnamed(path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].signature_def["serving_default"].outputs["y"].name = "mull:0"
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())


def _torn(path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    next(node for node in saved.meta_graphs[0].graph_def.node if node.op == "Mul").input[0] = "nowhere"
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())


def _foreign_op(path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].graph_def.node.add(name="n", op="FrobnicateV9")
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_shard, r"variables\.data-00000-of-00001 is missing"),
        (_without_index, r"variables/variables\.index is missing"),
        (_garbage, "saved_model.pb cannot be read as a SavedModel"),
        (_unsigned, "expected signatures that can be called; the SavedModel has none"),
        (_misnamed, "signature 'serving_default', output 'y': the graph has no tensor 'mull:0'; did you mean 'mul'"),
        (_torn, "cannot be loaded: .*nowhere"),
        (_foreign_op, "operations that TensorFlow does not have: FrobnicateV9"),
    ],
    ids=["shard", "variables", "garbage", "unsigned", "misnamed", "torn", "foreign"],
)
def test_a_damaged_model_is_named(damage: Any, message: str, v1_model: Any, stage: Any) -> None:
    path = Path(v1_model())
    damage(path)
    with pytest.raises(MoxserveError, match=message):
        stage(SavedModelJob, path)


def test_where_there_is_no_model_it_says_so(stage: Any, v1_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no folder"):
        stage(SavedModelJob, tmp_path / "nowhere")
    path = v1_model()
    for version in ("9", "10"):
        shutil.copytree(path, tmp_path / "base" / version)
    with pytest.raises(ExportError) as raised:
        stage(SavedModelJob, tmp_path / "base")
    assert str(raised.value.hint).endswith("/base/10 is the newest")
    with pytest.raises(UsageError, match="did you mean 'serving_default'"):
        stage(SavedModelJob, path, signatures={"a": "serving_defautl"})
    with pytest.raises(UsageError, match="empty or TensorFlow's own"):
        stage(SavedModelJob, path, signatures={"": "serving_default"})


def test_a_random_model_is_copied_and_told(stage: Any, tmp_path: Path) -> None:
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None], "x")
        tf1.saved_model.simple_save(session, str(tmp_path / "dice"), {"x": x}, {"y": tf.random.uniform(tf.shape(x))})
    model, _ = stage(SavedModelJob, tmp_path / "dice", samples={"x": np.ones(4, np.float32)})
    assert "answers differently each time" in " ".join(model.notes)
    assert model.verification.outputs == ()


def test_nothing_is_made_up_for_a_convolution_of_any_rank(stage: Any, tmp_path: Path) -> None:
    """TensorFlow ends the process when it gets another rank."""
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, None, "x")
        y = tf.nn.conv2d(x, tf.ones([3, 3, 1, 2]), 1, "SAME")
        tf1.saved_model.simple_save(session, str(tmp_path / "conv"), {"x": x}, {"y": y})
    model, _ = stage(SavedModelJob, tmp_path / "conv")
    assert model.verification.mode == "loaded"
    assert model.notes == ("no samples: the model was loaded, not compared, and no warmup records were written",)
    model, _ = stage(SavedModelJob, tmp_path / "conv", samples={"x": np.ones((5, 4, 4, 1), np.float32)})
    assert model.verification.rows == 5
    assert model.expected["y"].shape == (5, 4, 4, 2)


# ---- frozen graphs


@pytest.mark.parametrize("used", [64, 128, 7])
def test_an_output_that_is_as_long_as_a_chunk_by_chance(used: int, stage: Any, tmp_path: Path) -> None:
    """64 prices that do not depend on the rows are not one for each of 64 rows."""
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None, 2], "x")
        outputs = {"y": x * 2.0, "prices": tf.constant(np.arange(64.0)), "mean": tf.reduce_mean(x)}
        tf1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, outputs)
    values = np.random.default_rng(0).random((used, 2), np.float32)
    model, _ = stage(SavedModelJob, tmp_path / "model", samples={"x": values})
    assert set(model.expected) == {"y"}
    assert model.row_count == used


@pytest.mark.parametrize("outputs", [("logit",), ("a", "b")])
def test_labels_find_their_scores_or_are_told_to_be_of_no_use(
    outputs: tuple[str, ...], stage: Any, tmp_path: Path
) -> None:
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None, 3], "x")
        tf1.saved_model.simple_save(
            session, str(tmp_path / "model"), {"x": x}, {alias: x * 2.0 for alias in outputs} | {"sum": x[:, :1]}
        )
    fields = {"samples": {"x": np.eye(3, dtype=np.float32)}, "sample_labels": np.arange(3)}
    model, _ = stage(SavedModelJob, tmp_path / "model", **fields)
    assert model.scores == ("logit" if len(outputs) == 1 else "")
    assert any("labels of the rows are of no use" in note for note in model.notes) == (len(outputs) > 1)


@pytest.mark.parametrize(
    ("shapes", "rows", "expected"),
    [
        ([(None, 6)], 100, (64, 100)),
        ([(64, 6)], 100, (64, 64)),
        ([(8, 6), (8,)], 20, (8, 16)),
        ([(8, 6), (None, 2)], 20, (8, 16)),
        ([None], 3, (64, 3)),
    ],
)
def test_rows_are_cut_as_the_model_takes_them(shapes: list[Any], rows: int, expected: Any) -> None:
    from moxserve.export.sources.samples import chunk_rows

    inputs = [TensorSpec(f"x{i}", dtype_by_name("float32"), shape) for i, shape in enumerate(shapes)]
    assert chunk_rows(inputs, rows) == (*expected, "")


@pytest.mark.parametrize(
    ("shapes", "why"),
    [([(8, 6)], "7 samples do not fill the fixed batch of 8"), ([()], "no common"), ([(2,), (3,)], "no common")],
)
def test_rows_that_make_no_batch_are_told(shapes: list[Any], why: str) -> None:
    from moxserve.export.sources.samples import chunk_rows

    _, usable, told = chunk_rows(
        [TensorSpec(f"x{i}", dtype_by_name("float32"), shape) for i, shape in enumerate(shapes)], 7
    )
    assert usable == 0
    assert why in told


def test_strings_of_rank_two_are_rows_again(stage: Any, tmp_path: Path) -> None:
    from moxserve.protocol.prediction_log import predict_log
    from moxserve.protocol.tfrecord import write_records
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default(), tf1.Session() as session:
        s = tf1.placeholder(tf.string, [None, 2], "s")
        tf1.saved_model.simple_save(session, str(tmp_path / "model"), {"s": s}, {"n": tf.strings.length(s)})
    words = np.array([[b"ab", b"c"], [b"a", b"bc"], [b"ab", b"c"]], object)
    (tmp_path / "model" / "assets.extra").mkdir()
    log = predict_log("m", "serving_default", {"s": words})
    write_records(str(tmp_path / "model/assets.extra/tf_serving_warmup_requests"), [log.SerializeToString()])
    model, _ = stage(SavedModelJob, tmp_path / "model")
    assert model.rows["s"].tolist() == words[:2].tolist()
    model, _ = stage(SavedModelJob, tmp_path / "model", sample_limit=1)
    assert model.rows["s"].tolist() == words[:1].tolist()


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    """`net/images` -> two heads, one on a device, and an assertion that nobody uses."""
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default() as graph:
        with tf1.name_scope("net"):
            images = tf1.placeholder(tf.float32, [None, 4], "images")
            with tf.device("/cpu:0"):
                hidden = tf.nn.relu(tf.matmul(images, tf.constant(np.eye(4, 3, dtype=np.float32)), name="hidden"))
            tf.nn.softmax(hidden, name="probabilities")
            tf.argmax(hidden, 1, name="classes")
            tf1.assert_non_negative(images)
        path = tmp_path / "net.pb"
        path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def test_a_frozen_graph_is_wrapped(graph_file: Path, stage: Any, load_model: Any) -> None:
    rows = np.random.default_rng(0).random((70, 4)).astype(np.float32)
    names = {"inputs": {"x": "net/images"}, "outputs": {"p": "net/probabilities:0", "h": "net/Relu"}}
    model, directory = stage(GraphJob, graph_file, samples={"x": rows}, **names)
    assert str(model.signatures["serving_default"]) == (
        "serving_default(x: float32[?, 4]) -> (h: float32[?, 3], p: float32[?, 3])"
    )
    assert model.notes == ()
    assert model.verification.rows == 70
    assert not [n.name for n in _graph_of(directory).graph_def.node if n.device]
    np.testing.assert_allclose(load_model(directory)("serving_default", x=rows)["h"], np.maximum(rows[:, :3], 0))
    assert model.source.kind == "frozen_graph"


def test_inputs_and_outputs_are_guessed_and_told(graph_file: Path, stage: Any) -> None:
    from google.protobuf import text_format
    from tensorflow.core.framework import graph_pb2

    text = graph_file.with_suffix(".pbtxt")
    text.write_text(text_format.MessageToString(graph_pb2.GraphDef.FromString(graph_file.read_bytes())))
    model, _ = stage(GraphJob, text)
    assert list(model.signatures["serving_default"].inputs) == ["images"]
    assert list(model.signatures["serving_default"].outputs) == ["classes", "probabilities"]
    assert model.scores == "probabilities"
    assert model.notes[:2] == (
        "inputs were not named: its placeholders are taken, net/images",
        "outputs were not named: what nothing else uses is taken, net/classes, net/probabilities",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"inputs": {"x": "net/image"}}, "has no tensor 'net/image'; did you mean 'net/images'"),
        ({"outputs": {"y": "net/classes:1"}}, "node 'net/classes' of .* has 1 outputs; got 'net/classes:1'"),
        ({"outputs": {"y": "net/classes:x"}}, "has 1 outputs; got"),
    ],
)
def test_wrong_tensor_names(names: dict[str, Any], message: str, graph_file: Path, stage: Any) -> None:
    with pytest.raises(UsageError, match=message):
        stage(GraphJob, graph_file, **names)


def test_a_graph_with_variables_is_not_frozen(tmp_path: Path, stage: Any) -> None:
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default() as graph:
        tf.identity(tf1.get_variable("w", [2]) * tf1.placeholder(tf.float32, [2]))
        (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ExportError, match=r"has 1 variables \(the first is 'w'\) .* it is not frozen"):
        stage(GraphJob, tmp_path / "g.pb")


def test_what_is_no_graph(exported: str, tmp_path: Path, stage: Any) -> None:
    (tmp_path / "x.pb").write_bytes(b"\x08\x01")
    (tmp_path / "x.pbtxt").write_text("node { nonsense }")
    with pytest.raises(ExportError, match="holds no graph"):
        stage(GraphJob, tmp_path / "x.pb")
    with pytest.raises(ExportError, match="cannot be read as a GraphDef: ParseError"):
        stage(GraphJob, tmp_path / "x.pbtxt")
    with pytest.raises(ExportError, match="there is no file"):
        stage(GraphJob, tmp_path / "y.pb")
    with pytest.raises(ExportError):
        stage(GraphJob, os.path.join(exported, "saved_model.pb"))


def test_a_graph_with_a_table(tmp_path: Path, stage: Any, load_model: Any) -> None:
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default() as graph:
        words = tf1.placeholder(tf.string, [None], "words")
        pairs = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
        tf.identity(tf.lookup.StaticHashTable(pairs, -1).lookup(words), "index")
        (tmp_path / "t.pb").write_bytes(graph.as_graph_def().SerializeToString())
    rows = np.array([b"b", b"?"], dtype=object)
    model, directory = stage(GraphJob, tmp_path / "t.pb", outputs={"index": "index"}, samples={"words": rows})
    assert model.expected["index"].tolist() == [2, -1]
    assert load_model(directory)("serving_default", words=rows)["index"].tolist() == [2, -1]


def test_what_only_other_sources_have_is_refused(graph_file: Path, stage: Any) -> None:
    with pytest.raises(UsageError, match=r"no signature 'classify': such a model gets one, 'serving_default'"):
        stage(GraphJob, graph_file, variants=VariantOptions(signature="classify"))
    with pytest.raises(UsageError, match=r"label_input 'label' names an input of a model_fn"):
        stage(GraphJob, graph_file, label_input="label")


def test_a_job_of_an_unknown_kind(tmp_path: Path) -> None:
    from moxserve.export.job import JobOptions
    from moxserve.export.sources import stage_model

    with pytest.raises(UsageError, match="nothing exports a JobOptions"):
        stage_model(JobOptions(base_dir=str(tmp_path)), str(tmp_path))


def test_rows_and_labels_of_a_checkpoint(conv_case: Any, tmp_path: Path) -> None:
    import dataclasses

    from moxserve.export.sources import stage_model

    job: ExportJob = conv_case.job
    (tmp_path / "s").mkdir()
    model = stage_model(job, str(tmp_path / "s"))
    np.testing.assert_array_equal(model.rows["images"], conv_case.images)
    np.testing.assert_allclose(model.expected["logits"], conv_case.logits, atol=1e-5)
    np.testing.assert_array_equal(model.labels, job.samples[1])
    assert (model.main, model.scores, model.row_count) == ("serving_default", "probabilities", 70)
    with pytest.raises(UsageError, match="label_input 'truth' is no input"):
        dataclasses.replace(job, label_input="truth")
    (tmp_path / "t").mkdir()
    with pytest.raises(UsageError, match="label_input 'image' is image: uint8"):
        stage_model(dataclasses.replace(job, label_input="image"), str(tmp_path / "t"))
