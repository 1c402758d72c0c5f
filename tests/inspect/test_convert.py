"""Conversions: lossless where they can be, whole or not there, and readable by what the format belongs to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moxserve.errors import DataError, ExportError, UsageError
from moxserve.inspect.convert.arrays import write_checkpoint, write_npz
from moxserve.inspect.convert.run import Conversion, convert
from moxserve.inspect.detect import detect


def to(source, destination: Path | str, **options):
    return convert(detect(source), Conversion(str(destination), **options))


def stored(prefix: Path | str) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def test_a_saved_model_to_text_and_back(saved_v1: Path, tmp_path: Path) -> None:
    done = to(saved_v1, tmp_path / "saved_model.pbtxt")
    assert "its variables stay in" in done.notes[-1]
    to(tmp_path / "saved_model.pbtxt", tmp_path / "back.pb")
    from tensorflow.core.protobuf import saved_model_pb2

    first, again = (
        saved_model_pb2.SavedModel.FromString(path.read_bytes())
        for path in (saved_v1 / "saved_model.pb", tmp_path / "back.pb")
    )
    assert first == again


def test_tensorflow_loads_the_text(saved_v2: Path, tmp_path: Path, eager: None) -> None:
    import tensorflow as tf

    shutil.copytree(saved_v2, tmp_path / "m")
    to(tmp_path / "m", tmp_path / "m" / "saved_model.pbtxt")
    (tmp_path / "m" / "saved_model.pb").unlink()
    model = tf.saved_model.load(str(tmp_path / "m"))
    answer = model.signatures["serving_default"](x=tf.constant([[1.0, 2.0]]))["y"]
    assert answer.numpy().tolist() == [[3.5, 7.5]]
    assert detect(tmp_path / "m").kind == "version"


def test_a_graph_and_a_meta_graph_to_text_and_back(frozen: Path, trained, tmp_path: Path) -> None:
    from moxserve.inspect.protos import read_graph_file

    for source in (str(frozen), f"{trained.prefix}.meta"):
        to(source, tmp_path / "g.pbtxt", force=True)
        to(tmp_path / "g.pbtxt", tmp_path / "g.pb", force=True)
        assert read_graph_file(str(tmp_path / "g.pb")).message == read_graph_file(source).message


def test_what_the_signatures_need_of_tensorflow_1(saved_v1: Path, trained, tmp_path: Path) -> None:
    done = to(saved_v1, tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as found:
        assert set(found) == {"net/bias", "net/dense", "net/wide"}
        for name in found:
            assert np.array_equal(found[name], trained.values[name]), name
    assert done.notes == ["1 variables that no output needs are left out (--all takes them)"]
    to(saved_v1, tmp_path / "all.npz", everything=True)
    with np.load(tmp_path / "all.npz") as found:
        assert "spare" in found


def test_what_the_signatures_need_of_tensorflow_2(saved_v2: Path, tmp_path: Path) -> None:
    to(saved_v2, tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as found:
        assert {name: found[name].tolist() for name in found} == {"factor": [[2.0, 3.0]], "shift": 1.5}


def test_what_the_signatures_need_of_tensorflow_servings_models(tfserving: Path, tmp_path: Path) -> None:
    for name in ("saved_model_half_plus_two_cpu", "saved_model_half_plus_two_tf2_cpu"):
        to(tfserving / name, tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as found:
            assert (found["a"], found["b"], found["c"]) == (0.5, 2, 3)


def test_a_saved_model_to_a_checkpoint_and_npz_to_a_checkpoint(saved_v2: Path, tmp_path: Path) -> None:
    to(saved_v2, tmp_path / "m.ckpt")
    values = stored(tmp_path / "m.ckpt")
    assert set(values) == {"factor", "shift"}
    to(saved_v2, tmp_path / "w.npz", everything=True)
    to(tmp_path / "w.npz", tmp_path / "again")
    assert stored(tmp_path / "again")["idle"].tolist() == [0.0] * 7


def test_tensorflow_restores_what_was_converted(trained, tmp_path: Path) -> None:
    """A training that goes on from a converted checkpoint: npz and back, into a graph of variables of its own."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    to(trained.prefix, tmp_path / "w.npz", patterns=["net/*"])
    to(tmp_path / "w.npz", tmp_path / "model.ckpt")
    with tf.Graph().as_default(), tf1.Session() as session:
        dense = tf1.get_variable("net/dense", [4, 3])
        wide = tf1.get_variable("net/wide", [6, 4])
        tf1.train.Saver().restore(session, str(tmp_path / "model.ckpt"))
        assert np.array_equal(session.run(dense), trained.values["net/dense"])
        assert np.array_equal(session.run(wide), trained.values["net/wide"])


def test_a_checkpoint_needs_to_be_told_what_inference_needs(trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not say which of its \d+ variables inference needs"):
        to(trained.prefix, tmp_path / "w.npz")
    assert not (tmp_path / "w.npz").exists()
    to(trained.prefix, tmp_path / "w.npz", outputs={"y": "logits:0"})
    with np.load(tmp_path / "w.npz") as found:
        assert set(found) == {"net/bias", "net/dense", "net/wide"}
    with pytest.raises(UsageError, match="has no tensor 'logit:0'; did you mean 'logits'"):
        to(trained.prefix, tmp_path / "v.npz", outputs={"y": "logit:0"})


def test_every_dtype_survives_npz_and_checkpoint(tmp_path: Path) -> None:
    values = {
        "file": np.arange(3, dtype=np.uint16),  # a name that numpy.savez has an argument of
        "half": np.array([1.5, -2], ml_dtypes.bfloat16),
        "scope/float16": np.array([0.1], np.float16),
        "c": np.array(1 + 2j, np.complex64),
        "empty": np.zeros((0, 4), np.float32),
        "flag": np.array(True),
        "words": np.array([b"a", b"\xff\x00b"], dtype=object),
    }
    write_npz(str(tmp_path / "w.npz"), values.items())
    to(tmp_path / "w.npz", tmp_path / "m")
    found = stored(tmp_path / "m")
    assert set(found) == set(values)
    for name, value in values.items():
        assert np.asarray(found[name]).tolist() == value.tolist(), name
        assert np.asarray(found[name]).dtype == value.dtype, name
    to(tmp_path / "m", tmp_path / "again.npz", everything=True)
    with np.load(tmp_path / "again.npz") as arrays:
        assert arrays["half"].view(ml_dtypes.bfloat16).tolist() == [1.5, -2]
        assert arrays["words"].tolist() == [b"a", b"\xff\x00b"]


def test_text_that_numpy_would_cut_is_refused(trained, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="variable 'words' holds text that ends in a zero byte"):
        to(trained.prefix, tmp_path / "w.npz", everything=True)
    assert os.listdir(tmp_path) == []


ENDS = {"inputs": {"x": "x:0"}, "outputs": {"logits": "logits:0"}}


def test_a_checkpoint_and_its_graph_to_a_saved_model(trained, saved_v1: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    done = to(trained.prefix, tmp_path / "saved", inputs={"x": "x:0"}, outputs={"hidden": "hidden:0"})
    assert "graph that was trained" in done.notes[0]
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "saved"))
        definition = meta.signature_def["serving_default"]
        found = session.run(definition.outputs["hidden"].name, {definition.inputs["x"].name: rows})
        names = {node.op for node in meta.graph_def.node}
        assert not any(node.device for node in meta.graph_def.node)
    expected = np.maximum(rows @ trained.values["net/wide"] + trained.values["net/bias"], 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # What only training needed is gone: momentum, loss, labels.
    assert "ResourceApplyMomentum" not in names
    assert "SparseSoftmaxCrossEntropyWithLogits" not in names


def test_dropout_in_the_training_graph_is_told(trained, tmp_path: Path) -> None:
    notes = to(f"{trained.prefix}.meta", tmp_path / "saved", **ENDS).notes
    assert any("random operations, such as dropout's" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says what .* takes and gives; its placeholders: x, labels"),
        ({"inputs": {"x": "x:0"}}, "nothing says what .* takes and gives"),
        ({**ENDS, "inputs": {"x": "X:0"}}, "--input x=X:0: .* has no such tensor; known: labels, x"),
        ({**ENDS, "outputs": {"y": "logits_2:0"}}, "has no such tensor; did you mean 'logits'"),
        ({**ENDS, "inputs": {"x": "labels:0"}}, "output 'logits' needs 'x' .Placeholder., which is no input"),
        ({**ENDS, "outputs": {"y": "logits:5"}}, "there is no tensor 'logits:5'"),
        ({**ENDS, "meta": "nowhere.meta"}, "nowhere.meta is not there"),
    ],
)
def test_endpoints_that_do_not_fit(trained, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to(trained.prefix, tmp_path / "saved", **options)
    assert os.listdir(tmp_path) == []


def test_a_graph_with_foreign_operations(trained, tmp_path: Path) -> None:
    from moxserve.inspect.protos import read_graph_file

    message = read_graph_file(f"{trained.prefix}.meta").message
    message.graph_def.node.add(name="odd", op="Acme>Fuse")
    (tmp_path / "g.meta").write_bytes(message.SerializeToString())
    with pytest.raises(ExportError, match="operations that TensorFlow does not have: Acme>Fuse"):
        to(trained.prefix, tmp_path / "saved", meta=str(tmp_path / "g.meta"), **ENDS)
    assert os.listdir(tmp_path) == ["g.meta"]


def test_nothing_is_replaced_without_force(trained, saved_v2: Path, tmp_path: Path) -> None:
    for name, source, options in [
        ("g.pbtxt", saved_v2, {}),
        ("w.npz", saved_v2, {}),
        ("m.ckpt", saved_v2, {}),
        ("saved", trained.prefix, ENDS),
    ]:
        to(source, tmp_path / name, **options)
        before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
        with pytest.raises(UsageError, match="exists already") as caught:
            to(source, tmp_path / name, **options)
        assert caught.value.hint == "--force replaces it"
        assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
        to(source, tmp_path / name, force=True, **options)
    assert stored(tmp_path / "m.ckpt")["shift"] == 1.5
    assert detect(tmp_path / "saved").kind == "version"


def test_files_and_directories_do_not_replace_each_other(trained, saved_v2: Path, tmp_path: Path) -> None:
    (tmp_path / "w.npz").mkdir()
    (tmp_path / "saved").touch()
    with pytest.raises(UsageError, match="is a directory and will not be replaced"):
        to(saved_v2, tmp_path / "w.npz", force=True)
    with pytest.raises(UsageError, match="is a file and will not be replaced"):
        to(trained.prefix, tmp_path / "saved", force=True, **ENDS)
    with pytest.raises(UsageError, match=r"is no directory; .* is to be written into it"):
        to(saved_v2, tmp_path / "no" / "w.npz")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("frozen", {"to": "savedmodel"}, "is a graph file, which becomes pb, pbtxt, npz, checkpoint, not savedmodel"),
        ("trained", {"to": "pbtxt"}, "is a checkpoint, which becomes npz, checkpoint, savedmodel, not pbtxt"),
        ("saved_v2", {"to": "onnx"}, "--to 'onnx': no such form"),
    ],
)
def test_what_cannot_be_converted(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, options: dict, message: str
) -> None:
    source = request.getfixturevalue(kind)
    with pytest.raises(UsageError, match=message):
        to(getattr(source, "prefix", source), tmp_path / "x", **options)


def test_a_failing_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moxserve.inspect.convert import arrays

    write_checkpoint(str(tmp_path / "m"), {"a": np.ones(3)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(str(tmp_path / "m"), {"a": np.zeros(3)})
    monkeypatch.undo()
    assert stored(tmp_path / "m")["a"].tolist() == [1, 1, 1]
    assert sorted(os.listdir(tmp_path)) == ["m.data-00000-of-00001", "m.index"]


def test_a_full_disk_names_what_could_not_be_written(
    saved_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moxserve.inspect.convert import run

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.file, "write", full)
    with pytest.raises(ExportError, match=r"cannot convert .* to .*g\.pbtxt: .*No space left on device"):
        to(saved_v2, tmp_path / "g.pbtxt")


def test_what_a_killed_conversion_left_is_removed(saved_v2: Path, tmp_path: Path) -> None:
    (tmp_path / ".moxserve-tmp-999999999-1").touch()
    to(saved_v2, tmp_path / "g.pbtxt")
    assert os.listdir(tmp_path) == ["g.pbtxt"]
