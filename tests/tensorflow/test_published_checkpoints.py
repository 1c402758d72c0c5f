"""Checkpoints as others publish them: single files of before 2017, archives, moving averages; what is told of them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.core.protobuf.saver_pb2 import SaverDef

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, UsageError
from moxserve.tensorflow.executor.checkpoint import find_checkpoint, latest_checkpoint, load_checkpoint
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.matching import RestoreRules, match

Values = dict[str, Any]
Write = Callable[..., str]
Open = Callable[[Values], Any]

NET = {"net/conv/weights": np.full([3, 3, 1, 2], 2.0), "net/logits/weights": np.full([2, 4], 3.0),
       "net/logits/biases": np.full([4], 4.0)}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write values as a checkpoint; returns the path that stands for it."""

    def call(values: Values, name: str = "net.ckpt", v1: bool = True) -> str:
        with tf1.Graph().as_default(), tf1.Session() as session:
            for key, value in values.items():
                tf1.get_variable(key, initializer=np.asarray(value, np.int64 if "step" in key else np.float32))
            session.run(tf1.global_variables_initializer())
            saver = tf1.train.Saver(write_version=SaverDef.V1 if v1 else SaverDef.V2)
            saver.save(session, str(tmp_path / name), write_meta_graph=False, write_state=False)
        return str(tmp_path / name)

    return call


@pytest.fixture
def model() -> Iterator[Open]:
    """Open a session on variables of these shapes, all zero."""
    opened: list[Any] = []

    def call(shapes: Values) -> Any:
        graph = tf1.Graph()
        with graph.as_default():
            for name, shape in shapes.items():
                tf1.get_variable(name, shape, initializer=tf1.zeros_initializer())
            initial = tf1.global_variables_initializer()
        session = tf1.Session(graph=graph)
        session.run(initial)
        opened.append(session)
        return session

    yield call
    for session in opened:
        session.close()


def shapes(**changes: Any) -> Values:
    return {**{name: list(value.shape) for name, value in NET.items()}, **changes}


def value(session: Any, name: str) -> np.ndarray:
    with session.graph.as_default():
        found = next(v for v in tf1.global_variables() if v.op.name == name)
    read: np.ndarray = session.run(found)
    return read


def test_a_single_file_of_before_2017_is_restored_and_reported(write: Write, model: Open) -> None:
    path = write({**NET, "global_step": 7, "net/conv/weights/Momentum": np.zeros([3, 3, 1, 2])})
    session = model(shapes())
    report = load_checkpoint(session, path)
    assert (report.form, report.fits, report.total) == ("V1", True, 3)
    assert report.summary == "3 of 3 variables, 30 of 30 parameters"
    assert report.unused == ("global_step", "net/conv/weights/Momentum")
    assert value(session, "net/logits/biases").tolist() == [4.0] * 4


def test_the_file_is_found_in_its_folder_and_by_the_names_of_its_parts(write: Write, tmp_path: Path) -> None:
    path = write(NET)
    (tmp_path / "README.ckpt.txt").write_text("not a checkpoint")
    assert latest_checkpoint(tmp_path) == path
    parts = write(NET, "new.ckpt-3", v1=False)
    for suffix in ("", ".index", ".meta", ".data-00000-of-00001"):
        assert latest_checkpoint(parts + suffix) == parts


def test_a_folder_of_several_single_files_is_refused(write: Write, tmp_path: Path) -> None:
    write(NET, "a.ckpt")
    write(NET, "b.ckpt")
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints: a\.ckpt, b\.ckpt"):
        find_checkpoint(tmp_path)


def test_what_a_killed_training_had_not_finished_is_no_checkpoint(write: Write, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    index = Path(write(NET, "new.ckpt-3", v1=False) + ".index")
    index.rename(tmp_path / "half" / "new.ckpt-3.index.tempstate15511029966970701811")
    assert latest_checkpoint(tmp_path / "half") is None


def test_a_file_that_a_training_removes_meanwhile_is_no_checkpoint(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, is_file = Path(write(NET)), os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: is_file(path) and (written.unlink(missing_ok=True) or True))
    assert latest_checkpoint(tmp_path) is None


def test_training_starts_from_a_single_file(write: Write, train: Any, tmp_path: Path, variable: Any) -> None:
    path = write({"w": [1.0, 2.0, 3.0], "global_step": 4})
    result = train(checkpoint_path=path, log_dir=str(tmp_path / "run"), max_number_of_steps=5,
                   optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0))  # fmt: skip
    assert result.start_step == 4
    assert variable(result.checkpoint, "w").tolist() == [1.0, 2.0, 3.0]


def test_an_archive_as_downloaded_says_what_to_unpack(write: Write, train: Any, tmp_path: Path) -> None:
    write(NET, "resnet.ckpt")
    archive = tmp_path / "resnet_2016_08_28.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.add(tmp_path / "resnet.ckpt", "./resnet.ckpt")
    with pytest.raises(CheckpointError, match="archive of one file") as caught:
        train(checkpoint_path=str(archive))
    assert str(tmp_path / "resnet.ckpt") in str(caught.value)


def test_other_files_are_told_for_what_they_are(tmp_path: Path) -> None:
    for name, content, said in (
        ("weights.h5", b"\x89HDF\r\n\x1a\n" + b"0" * 9, "file of Keras"),
        ("cut.ckpt", b"half a download", "is no checkpoint"),
        ("empty.ckpt", b"", "is no checkpoint"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            find_checkpoint(tmp_path / name)
    assert find_checkpoint(tmp_path / "nothing") is None


def test_a_file_that_lost_its_values_is_refused(write: Write, model: Open, tmp_path: Path) -> None:
    path = write(NET, v1=False)
    data = tmp_path / "net.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(model(shapes()), path)


def test_other_classes_are_told_with_what_to_leave_out(write: Write, model: Open, console: Any) -> None:
    path = write(NET)
    session = model(shapes(**{"net/logits/weights": [2, 6], "net/logits/biases": [6], "net/extra": [5]}))
    report = load_checkpoint(session, path)
    assert report.missing == ("net/extra",)
    assert [misfit.name for misfit in report.misfits] == ["net/logits/weights", "net/logits/biases"]
    assert "net/logits: 4 classes in the checkpoint, 6 here: exclude 'net/logits'" in console.text
    assert "net/logits/weights (shape [2, 4] in the checkpoint, [2, 6] in the model)" in console.text
    excluded = load_checkpoint(session, path, exclude="net/logits,extra")
    assert excluded.fits
    assert set(excluded.excluded) == {"net/logits/weights", "net/logits/biases", "net/extra"}
    assert excluded.summary == "1 of 4 variables, 18 of 41 parameters"


def test_one_class_more_is_told_to_be_the_background(write: Write, model: Open) -> None:
    path = write(NET)
    session = model(shapes(**{"net/logits/weights": [2, 3], "net/logits/biases": [3]}))
    with session.graph.as_default():
        report = match(path, tf1.global_variables(), RestoreRules()).report
    assert "or build it with num_classes=4 (its classes have a background class before them)" in str(report.advice)


def test_shapes_that_differ_in_more_than_classes_get_no_such_advice(write: Write, model: Open) -> None:
    path = write(NET)
    session = model(shapes(**{"net/conv/weights": [5, 5, 1, 2]}))
    report = load_checkpoint(session, path)
    assert report.advice is None
    assert [heading for heading, _ in report.lines()] == ["restored", "does not fit"]


def test_moving_averages_are_taken_where_there_are_some(write: Write, model: Open) -> None:
    averaged = {f"{name}/ExponentialMovingAverage": value * 10 for name, value in NET.items() if "logits" in name}
    path = write({**NET, **averaged}, v1=False)
    session = model(shapes())
    report = load_checkpoint(session, path, moving_averages=True)
    assert report.averaged == ("net/logits/weights", "net/logits/biases")
    assert report.unused == ()
    assert value(session, "net/logits/biases").tolist() == [40.0] * 4
    assert value(session, "net/conv/weights").max() == 2.0
    plain = load_checkpoint(session, path)
    assert (plain.averaged, len(plain.unused)) == ((), 2)
    assert value(session, "net/logits/biases").tolist() == [4.0] * 4


def test_evaluation_takes_moving_averages_by_a_flag(write: Write, linear: Any) -> None:
    average = {"w/ExponentialMovingAverage": [1.0, -2.0, 0.5]}
    path = write({"w": np.zeros(3), **average, "global_step": 9})
    run = {"input_fn": linear.finite_input_fn, "model_fn": linear.model_fn, "run_mode": "EVAL", "batch_size": 10}
    raw = mox.run(**run, checkpoint_path=path).metrics["loss"]
    mox.set_flag("checkpoint_moving_averages", True)
    assert mox.run(**run, checkpoint_path=path).metrics["loss"] < raw / 100


def test_many_accompanying_variables_are_told_by_their_kind(write: Write, model: Open) -> None:
    many = {f"net/u{i}/weights": np.zeros(2) for i in range(12)}
    slots = {f"{name}/{kind}": value for name, value in many.items() for kind in ("RMSProp", "RMSProp_1")}
    path = write({**many, **slots, "global_step": 1})
    report = load_checkpoint(model({name: [2] for name in many}), path)
    assert dict(report.lines())["not used"] == "global_step, 12 of kind RMSProp, 12 of kind RMSProp_1 (25 variables)"


def test_nothing_at_a_path_and_wrong_patterns_are_errors(write: Write, model: Open, tmp_path: Path) -> None:
    session = model(shapes())
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(session, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not a regular expression"):
        load_checkpoint(session, write(NET), exclude="net/(")
    with pytest.raises(CheckpointError, match="holds none of the model's 1 variables"):
        load_checkpoint(model({"other": [3]}), write(NET))
