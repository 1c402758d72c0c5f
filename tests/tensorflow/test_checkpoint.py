"""Checkpoints: precedence, what is restored and what is not, damage, and the folder's housekeeping."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, UsageError
from moxserve.tensorflow.executor import lock
from moxserve.tensorflow.executor.checkpoint import Checkpointer, latest_checkpoint, restore
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]
MOMENTUM = mox.get_optimizer_fn("momentum", learning_rate=0.1)


@pytest.fixture
def session() -> Iterator[Any]:
    """A session with two variables and a step."""
    with tf1.Graph().as_default():
        tf1.get_variable("w", initializer=np.arange(6, dtype=np.float32).reshape(2, 3))
        tf1.get_variable("b", initializer=np.ones(2, np.float32))
        tf1.train.get_or_create_global_step()
        with tf1.Session() as session:
            yield session


def save(session: Any, folder: Path, *steps: int, keep: int = 5) -> Checkpointer:
    writer = Checkpointer(str(folder), keep)
    session.run(tf1.global_variables_initializer())
    for step in steps:
        writer.save(session, step)
    return writer


def steps_in(folder: Path) -> list[int]:
    return sorted(int(p.name.split("-")[1].split(".")[0]) for p in folder.glob("*.index"))


# -- precedence


def test_log_dir_wins_over_checkpoint_path(train: Train, tmp_path: Path, variable: Any) -> None:
    train(log_dir=str(tmp_path / "a"), max_number_of_steps=3)
    train(log_dir=str(tmp_path / "b"), max_number_of_steps=9)
    result = train(log_dir=str(tmp_path / "a"), checkpoint_path=str(tmp_path / "b"), max_number_of_steps=4)
    assert (result.start_step, result.global_step) == (3, 4)


def test_checkpoint_path_counts_when_log_dir_has_none(train: Train, tmp_path: Path) -> None:
    given = train(log_dir=str(tmp_path / "a"), max_number_of_steps=3)
    for path in (tmp_path / "a", given.checkpoint, f"{given.checkpoint}.index"):
        target = tmp_path / f"b{len(list(tmp_path.iterdir()))}"
        result = train(log_dir=str(target), checkpoint_path=str(path), max_number_of_steps=5)
        assert (result.start_step, result.global_step) == (3, 5)
        assert steps_in(target) == [5]


def test_training_starts_fresh_when_neither_has_one(train: Train, tmp_path: Path, console: Any) -> None:
    result = train(log_dir=str(tmp_path / "a"), checkpoint_path=str(tmp_path / "nowhere"))
    assert result.start_step == 0
    assert "training starts from initial values" in console.text


# -- what is restored


def test_another_model_in_log_dir_is_an_error_that_names_the_differences(
    train: Train, linear: Any, tmp_path: Path
) -> None:
    train(log_dir=str(tmp_path))

    def wider(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf1.get_variable("w", [4])
        new = tf1.get_variable("new", [])
        return mox.ModelSpec(loss=tf.reduce_sum(w) + new)

    with pytest.raises(CheckpointError) as caught:
        train(model_fn=wider, log_dir=str(tmp_path), max_number_of_steps=9)
    message = str(caught.value)
    assert "w (shape [3] in the checkpoint, [4] in the model)" in message
    assert "missing in it: new" in message
    assert "checkpoint_path" in message


def test_checkpoint_path_gives_what_fits_and_says_what_does_not(
    train: Train, linear: Any, tmp_path: Path, variable: Any, console: Any
) -> None:
    first = train(log_dir=str(tmp_path / "a"))

    def larger(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        extra = tf1.get_variable("extra", [], initializer=tf1.ones_initializer())
        return mox.ModelSpec(loss=spec.loss + 0 * extra)

    result = train(
        model_fn=larger, optimizer_fn=MOMENTUM, log_dir=str(tmp_path / "b"), checkpoint_path=str(tmp_path / "a"),
        max_number_of_steps=6,
    )  # fmt: skip
    assert result.start_step == 5
    assert "missing in it: extra" in console.text
    assert "missing in it: w/Momentum" in console.text
    assert variable(result.checkpoint, "extra") == 1.0
    assert not np.array_equal(variable(result.checkpoint, "w"), variable(first.checkpoint, "w"))


def test_include_and_exclude_patterns(train: Train, tmp_path: Path, variable: Any, console: Any) -> None:
    first = train(log_dir=str(tmp_path / "a"))
    mox.set_flag("checkpoint_exclude_patterns", "global_step,nothing_like_it")
    result = train(log_dir=str(tmp_path / "b"), checkpoint_path=str(tmp_path / "a"), max_number_of_steps=1,
                   optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0))  # fmt: skip
    assert (result.start_step, result.global_step) == (0, 1)
    np.testing.assert_array_equal(variable(result.checkpoint, "w"), variable(first.checkpoint, "w"))
    assert "not restored: global_step (left out by" in console.text
    assert "the pattern 'nothing_like_it' matches none of the model's 2 variables" in console.text
    # Never applied when a run is resumed from its own folder.
    assert train(log_dir=str(tmp_path / "b"), max_number_of_steps=2).start_step == 1
    mox.set_flag("checkpoint_exclude_patterns", "")
    mox.set_flag("checkpoint_include_patterns", "global_step")
    result = train(log_dir=str(tmp_path / "c"), checkpoint_path=str(tmp_path / "a"), max_number_of_steps=6)
    assert result.start_step == 5


def test_a_checkpoint_of_something_else_altogether_is_an_error(session: Any, train: Train, tmp_path: Path) -> None:
    save(session, tmp_path / "other", 3)
    mox.set_flag("checkpoint_exclude_patterns", "global_step")
    with pytest.raises(CheckpointError, match="holds none of the model's"):
        train(
            checkpoint_path=str(tmp_path / "other"), log_dir=str(tmp_path / "x"),
            model_fn=lambda inputs, mode: mox.ModelSpec(loss=tf.reduce_sum(tf1.get_variable("unlike", [3]))),
        )  # fmt: skip


@pytest.mark.slow
def test_evaluation_needs_every_variable(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))

    def larger(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        return mox.ModelSpec(log_info={"loss": spec.log_info["loss"] + tf1.get_variable("extra", [])})

    with pytest.raises(CheckpointError, match="missing in it: extra"):
        mox.run(linear.input_fn, None, larger, run_mode="EVAL", batch_size=5, log_dir=str(tmp_path))


def test_restore_gives_values_in_a_frozen_graph_and_checks_shapes(session: Any, tmp_path: Path) -> None:
    prefix = save(session, tmp_path, 7)._kept[-1]
    with tf1.Graph().as_default() as graph:
        w = tf1.get_variable("w", [2, 3])
        init = tf1.global_variables_initializer()
        graph.finalize()
        with tf1.Session() as other:
            other.run(init)
            restore(other, prefix, [w])
            np.testing.assert_array_equal(other.run(w), np.arange(6).reshape(2, 3))
    with tf1.Graph().as_default():
        variables = [tf1.get_variable("w", [3, 2]), tf1.get_variable("b", [2], tf.float64), tf1.get_variable("c", [])]
        with tf1.Session() as other, pytest.raises(CheckpointError) as caught:
            restore(other, prefix, variables)
    message = str(caught.value)
    assert "w (shape [2, 3] in the checkpoint, [3, 2] in the model)" in message
    assert "b (float32 in the checkpoint, float64 in the model)" in message
    assert "missing in it: c" in message


def test_partitioned_variables_are_restored_whole_and_in_parts(session: Any, tmp_path: Path) -> None:
    prefix = save(session, tmp_path, 1)._kept[-1]
    with tf1.Graph().as_default():
        parts = tf1.get_variable("w", [2, 3], partitioner=tf1.fixed_size_partitioner(2))
        with tf1.Session() as other:
            other.run(tf1.global_variables_initializer())
            restore(other, prefix, list(parts))
            np.testing.assert_array_equal(np.concatenate(other.run(list(parts))), np.arange(6).reshape(2, 3))


# -- the folder


def test_variables_that_begin_as_the_same_tensor_get_values_of_their_own(session: Any, tmp_path: Path) -> None:
    beginning = tf.constant([0.0, 0.0])
    variables = [tf1.get_variable(name, initializer=beginning) for name in ("one", "other")]
    session.run([v.initializer for v in variables], {beginning: [1.0, 2.0]})
    session.run(variables[1].assign([3.0, 4.0]))
    prefix = tf1.train.Saver(variables).save(session, str(tmp_path / "model.ckpt"))
    session.run([v.initializer for v in variables])
    restore(session, prefix, variables)
    np.testing.assert_array_equal(session.run(variables), [[1, 2], [3, 4]])


def test_the_last_five_stay(session: Any, tmp_path: Path) -> None:
    save(session, tmp_path, *range(1, 9))
    assert steps_in(tmp_path) == [4, 5, 6, 7, 8]
    state = tf1.train.get_checkpoint_state(str(tmp_path))
    assert [Path(p).name for p in state.all_model_checkpoint_paths] == [f"model.ckpt-{n}" for n in range(4, 9)]
    assert latest_checkpoint(tmp_path) == str(tmp_path / "model.ckpt-8")
    assert tf1.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-8")  # TensorFlow agrees


def test_a_later_run_counts_the_earlier_ones_checkpoints(session: Any, tmp_path: Path) -> None:
    save(session, tmp_path, 1, 2, 3)
    save(session, tmp_path, 4, 5, 6)
    assert steps_in(tmp_path) == [2, 3, 4, 5, 6]


def test_checkpoints_that_a_dead_writer_forgot_are_dropped_first(session: Any, tmp_path: Path) -> None:
    save(session, tmp_path, 1, 2, keep=2)
    state = (tmp_path / "checkpoint").read_bytes()
    save(session, tmp_path, 3, keep=3)
    (tmp_path / "checkpoint").write_bytes(state)  # killed after 3 was written, before the state file named it
    assert latest_checkpoint(tmp_path) == str(tmp_path / "model.ckpt-2")
    save(session, tmp_path, 4, keep=3)
    assert steps_in(tmp_path) == [1, 2, 4]


def test_tensorflow_itself_finds_the_checkpoint_of_a_relative_folder(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(session, Path("runs/a"), 1, 2)
    assert tf1.train.latest_checkpoint("runs/a") == "runs/a/model.ckpt-2"
    assert tf1.train.get_checkpoint_state("runs/a").all_model_checkpoint_paths == [
        "runs/a/model.ckpt-1",
        "runs/a/model.ckpt-2",
    ]


def test_a_moved_folder_is_still_a_checkpoint(session: Any, tmp_path: Path) -> None:
    save(session, tmp_path / "a", 3)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert latest_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "model.ckpt-3")
    # TensorFlow's own savers name files by their whole paths: of a copy these are not the ones that are meant.
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    tf1.train.update_checkpoint_state(str(tmp_path / "a"), str(tmp_path / "a" / "model.ckpt-3"))
    shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True)
    assert latest_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "model.ckpt-3")


@pytest.mark.parametrize("damage", ["index gone", "data gone", "state gone", "state empty", "state garbage"])
def test_the_newest_complete_checkpoint_is_found_after_damage(session: Any, tmp_path: Path, damage: str) -> None:
    save(session, tmp_path, 8, 9, 10)
    what, how = damage.split()
    if what == "state":
        state = tmp_path / "checkpoint"
        state.unlink() if how == "gone" else state.write_text("" if how == "empty" else "{[")
        assert latest_checkpoint(tmp_path) == str(tmp_path / "model.ckpt-10")
    else:
        for path in tmp_path.glob(f"model.ckpt-10.{what}*"):
            path.unlink()
        assert latest_checkpoint(tmp_path) == str(tmp_path / "model.ckpt-9")


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(None) is None
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "model.ckpt-3") is None


def test_leavings_of_dead_writers_are_swept_others_are_not(session: Any, tmp_path: Path) -> None:
    save(session, tmp_path, 1)
    garbage = ["model.ckpt-2.data-00000-of-00001.tempstate123", "model.ckpt-2.index.tempstate77"]
    keep = ["model.ckpt-1.index", "notes.tempstate1", "1"]
    garbage += ["model.ckpt-3.data-00000-of-00002", "model.ckpt-4.index"]  # of uploads and removals broken off
    for name in garbage + keep[1:2]:
        (tmp_path / name).write_text("x")
    (tmp_path / "model.ckpt-2_temp").mkdir()
    (tmp_path / "1").mkdir()
    save(session, tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names.isdisjoint([*garbage, "model.ckpt-2_temp"])
    assert names >= set(keep)


def test_a_log_dir_that_is_a_file_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be a folder for checkpoints"):
        train(log_dir=str(tmp_path / "file"))


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(session: Any, tmp_path: Path) -> None:
    writer = save(session, tmp_path, 1)
    (tmp_path / "model.ckpt-2.index").mkdir()  # in the way
    (tmp_path / "model.ckpt-2.index" / "x").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        writer.save(session, 2)
    assert latest_checkpoint(tmp_path) == str(tmp_path / "model.ckpt-1")


@pytest.mark.slow
def test_one_training_at_a_time_in_a_folder(train: Train, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"process {holder.pid} is training into it"):
        train(log_dir=str(tmp_path))
    holder.kill()
    holder.communicate()
    train(log_dir=str(tmp_path))  # the lock went with its process
    with lock.held(str(tmp_path)), pytest.raises(UsageError, match="another run of this process"):
        train(log_dir=str(tmp_path))


HOLD = """
import sys
from moxserve.tensorflow.executor import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
