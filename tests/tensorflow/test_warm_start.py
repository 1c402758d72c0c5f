"""Warm start: other names, other vocabularies, SavedModels; what it does not take; held against TensorFlow's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, DataError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]
STILL = mox.get_optimizer_fn("momentum", learning_rate=0.0)
OLD, NEW = ["a", "b", "c", "d"], ["d", "x", "a", "y", "b"]
TABLE = np.arange(8, dtype=np.float32).reshape(4, 2) + 1
HEAD = np.arange(12, dtype=np.float32).reshape(3, 4) + 100


def words(table: str, rows: int, scope: str = "net", **kwargs: Any) -> Callable[..., mox.ModelSpec]:
    """A model_fn with an embedding table, a head over the same words, and batch-norm averages."""

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        one = tf1.ones_initializer()
        values = tf1.get_variable(table, [rows, 2], initializer=one, **kwargs)
        with tf1.variable_scope(scope):
            head = tf1.get_variable("head", [3, rows], initializer=one)
            average = tf1.get_variable("moving_mean", [2], initializer=tf1.zeros_initializer(), trainable=False)
        return mox.ModelSpec(loss=tf.reduce_sum(values) + tf.reduce_sum(head) + 0 * tf.reduce_sum(average))

    return model_fn


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A checkpoint of four words at step 7, with slots."""
    with tf1.Graph().as_default(), tf1.Session() as session:
        for name, value in (
            ("table", TABLE), ("table/Momentum", TABLE), ("net/head", HEAD), ("net/moving_mean", np.array([3.0, 4.0])),
        ):  # fmt: skip
            tf1.get_variable(name, initializer=value.astype(np.float32))
        tf1.get_variable("global_step", initializer=np.int64(7))
        session.run(tf1.global_variables_initializer())
        return str(tf1.train.Saver().save(session, str(tmp_path / "old/model.ckpt-7")))


@pytest.fixture
def begin(train: Train, variable: Any, tmp_path: Path) -> Callable[..., Callable[[str], np.ndarray]]:
    """Begin a training with a warm start, and read its variables after a step that changes nothing."""

    def call(model_fn: Any, warm_start: Any, **kwargs: Any) -> Callable[[str], np.ndarray]:
        log_dir = str(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        result = train(model_fn=model_fn, optimizer_fn=STILL, log_dir=log_dir, warm_start=warm_start,
                       max_number_of_steps=1, **kwargs)  # fmt: skip
        assert (result.start_step, result.global_step) == (0, 1)
        return lambda name: variable(result.checkpoint, name)

    return call


def change(new_rows: Any = "zeros", axis: int = 0, new: Any = NEW) -> mox.VocabularyChange:
    return mox.VocabularyChange(new, OLD, axis, new_rows)


def filled(value: float) -> Callable[..., Any]:
    """An initializer that TensorFlow's own warm start can call, too: its shapes are tensors there."""
    return lambda shape, dtype=None, partition_info=None: tf.fill(shape, value)


def test_a_path_alone_takes_the_models_variables_but_no_step_and_no_slots(begin: Any, old: str, console: Any) -> None:
    read = begin(words("table", 4), old)
    np.testing.assert_array_equal(read("table"), TABLE)
    np.testing.assert_array_equal(read("net/moving_mean"), [3, 4])
    np.testing.assert_array_equal(read("table/Momentum"), np.ones_like(TABLE))  # the gradient of its own first step
    assert "3 of 3 variables" in console.text


def test_renamed_variables_and_scopes(begin: Any, old: str, console: Any) -> None:
    renamed = {"words/embedding": "table", "student/": "net/"}
    read = begin(words("words/embedding", 4, "student"), mox.WarmStart(old, renamed=renamed))
    np.testing.assert_array_equal(read("words/embedding"), TABLE)
    np.testing.assert_array_equal(read("student/head"), HEAD)
    assert "3 of 3 variables, 22 of 22 parameters, 3 of them from other names" in console.text


def test_patterns_choose_the_variables(begin: Any, old: str) -> None:
    read = begin(words("table", 4), mox.WarmStart(old, variables=["table", "net/"], exclude="head"))
    np.testing.assert_array_equal(read("net/head"), np.ones([3, 4]))
    np.testing.assert_array_equal(read("table"), TABLE)
    np.testing.assert_array_equal(read("net/moving_mean"), [3, 4])


def test_a_changed_vocabulary_moves_rows_and_columns_as_tensorflow_does(
    begin: Any, old: str, tmp_path: Path, console: Any
) -> None:
    for name, tokens in (("new.txt", NEW), ("old.txt", OLD)):
        (tmp_path / name).write_text("".join(f"{token}\n" for token in tokens))
    with tf1.Graph().as_default(), tf1.Session() as session:
        variables = [tf1.get_variable("table", [5, 2]), tf1.get_variable("net/head", [3, 5])]
        vocabulary = {"new_vocab": str(tmp_path / "new.txt"), "new_vocab_size": 5, "num_oov_buckets": 0,
                      "old_vocab": str(tmp_path / "old.txt")}  # fmt: skip
        tf1.train.warm_start(
            old, var_name_to_vocab_info={
                "table": tf1.train.VocabInfo(**vocabulary, axis=0, backup_initializer=filled(0.0)),
                "net/head": tf1.train.VocabInfo(**vocabulary, axis=1, backup_initializer=filled(0.5)),
            },
        )  # fmt: skip
        session.run(tf1.global_variables_initializer())
        table, head = session.run(variables)
    changes = {
        "table": mox.VocabularyChange(tmp_path / "new.txt", str(tmp_path / "old.txt")),
        "net/head": change(filled(0.5), axis=-1),
    }
    read = begin(words("table", 5), mox.WarmStart(old, vocabularies=changes))
    np.testing.assert_array_equal(read("table"), table)
    np.testing.assert_array_equal(read("table"), [TABLE[3], [0, 0], TABLE[0], [0, 0], TABLE[1]])
    np.testing.assert_array_equal(read("net/head"), head)
    assert "2 of them for another vocabulary" in console.text


def test_new_words_may_keep_their_initial_values(begin: Any, old: str) -> None:
    changes = {"words": change("initial"), "net/head": change("initial", axis=1)}
    read = begin(words("words", 5), mox.WarmStart(old, renamed={"words": "table"}, vocabularies=changes))
    np.testing.assert_array_equal(read("words"), [TABLE[3], [1, 1], TABLE[0], [1, 1], TABLE[1]])
    np.testing.assert_array_equal(read("net/head")[:, [1, 3]], np.ones([3, 2]))


def test_buckets_beyond_the_vocabulary_are_kept_where_they_are_as_many(begin: Any, old: str) -> None:
    shorter = mox.VocabularyChange(["c", "x"], ["a", "b", "c"])  # the fourth row of old is a bucket
    read = begin(words("table", 3), mox.WarmStart(old, variables="table", vocabularies={"table": shorter}))
    np.testing.assert_array_equal(read("table"), [TABLE[2], [0, 0], TABLE[3]])
    more = mox.VocabularyChange(["c"], ["a", "b", "c"])
    read = begin(words("table", 3), mox.WarmStart(old, variables="table", vocabularies={"table": more}))
    np.testing.assert_array_equal(read("table"), [TABLE[2], [0, 0], [0, 0]])


def test_a_partitioned_table_changes_its_vocabulary_too(begin: Any, old: str) -> None:
    model_fn = words("table", 5, partitioner=tf1.fixed_size_partitioner(2))
    read = begin(model_fn, mox.WarmStart(old, variables="table", vocabularies={"table": change("initial")}))
    np.testing.assert_array_equal(read("table"), [TABLE[3], [1, 1], TABLE[0], [1, 1], TABLE[1]])


def test_log_dir_wins_over_a_warm_start(train: Train, old: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model_fn": words("table", 4), "warm_start": old, "log_dir": str(tmp_path / "a")}
    train(max_number_of_steps=2, **options)
    assert train(max_number_of_steps=3, **options).start_step == 2


@pytest.mark.slow
def test_a_saved_model_gives_its_variables(
    train: Train, begin: Any, linear: Any, tmp_path: Path, variable: Any
) -> None:
    result = train(log_dir=str(tmp_path / "a"))
    with tf1.Graph().as_default(), tf1.Session() as session:
        tf1.get_variable("w", initializer=variable(result.checkpoint, "w"))
        session.run(tf1.global_variables_initializer())
        tf1.saved_model.simple_save(session, str(tmp_path / "model/3"), {"x": tf.ones([])}, {"y": tf.ones([])})
    for path in (tmp_path / "model", tmp_path / "model/3"):
        np.testing.assert_array_equal(begin(linear.model_fn, path)("w"), variable(result.checkpoint, "w"))


def test_checkpoints_of_objects_are_read_by_the_names_of_variables(begin: Any, linear: Any, tmp_path: Path) -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        w = tf.Variable([1.0, 2.0, 3.0], name="w")
        session.run(w.initializer)
        prefix = tf1.train.Checkpoint(layers=[w]).write(str(tmp_path / "objects"), session=session)
    np.testing.assert_array_equal(begin(linear.model_fn, prefix)("w"), [1, 2, 3])


@pytest.mark.parametrize(
    ("warm_start", "error", "told"),
    [
        ({"renamed": {"tabel": "table"}}, UsageError, "names 'tabel'.*did you mean 'table'"),
        ({"renamed": {"table": "tabel"}}, CheckpointError, "no such variable; did you mean 'table"),
        ({"renamed": {"net/": "table"}}, UsageError, "one is a scope"),
        ({"variables": "("}, UsageError, "not a regular expression"),
        ({"vocabularies": {"table": ("new", "old")}}, UsageError, "expected a mox.VocabularyChange"),
        ({"vocabularies": {"tables": change()}}, UsageError, "names 'tables'"),
        ({"vocabularies": {"table": change(axis=1)}}, CheckpointError, "only axis 1 may differ"),
        ({"vocabularies": {"table": change(axis=2)}}, CheckpointError, "no axis 2"),
        ({"vocabularies": {"table": change(new=[*NEW, "z"])}}, CheckpointError, "has 6 tokens, and the variable 5"),
        ({"vocabularies": {"table": change(new=["a", "a"])}}, DataError, "'a' is there twice"),
    ],
)
def test_what_is_wrong_is_told(train: Train, old: str, warm_start: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        train(model_fn=words("table", 5), warm_start=mox.WarmStart(old, **warm_start))


def test_a_warm_start_is_for_training_and_from_one_place(train: Train, old: str, linear: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a training starts from one of them"):
        train(warm_start=old, checkpoint_path=old)
    with pytest.raises(UsageError, match="is for TRAIN, not for EVAL"):
        mox.run(linear.input_fn, None, linear.model_fn, run_mode="EVAL", batch_size=5, warm_start=old)
    with pytest.raises(CheckpointError, match="warm_start: no checkpoint at"):
        train(warm_start=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="expected 'zeros', 'initial' or an initializer"):
        change("ones")
