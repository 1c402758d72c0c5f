"""Inputs: batching of samples, restarts, ends, and what may be written in an input_fn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.inputs import ModeInput, build_inputs, collect_samples

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10)


def one_shot(dataset: Any) -> Any:
    return tf1.data.make_one_shot_iterator(dataset).get_next()


def rows(repeat: bool = False) -> Any:
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    return dataset.repeat() if repeat else dataset


class Opened:
    """An input, built and started in a session."""

    def __init__(
        self, input_fn: Callable[..., Any], batch_size: int = 4, auto_batch: bool = True, mode: str = "EVAL"
    ) -> None:
        with tf1.Graph().as_default():
            tf1.set_random_seed(5)
            self.source: ModeInput = build_inputs(input_fn, mode, batch_size, auto_batch)
            initial = [tf1.global_variables_initializer(), tf1.tables_initializer()]
            self.session = tf1.Session()
            self.session.run(initial)
            self.source.start(self.session)

    def batches(self, limit: int = 1000) -> Iterator[list[np.ndarray]]:
        try:
            for _ in range(limit):
                yield self.session.run(self.source.tensors)
        except tf.errors.OutOfRangeError:
            return


def test_samples_are_batched_in_order_and_the_rest_is_kept() -> None:
    opened = Opened(lambda mode: one_shot(rows()))
    batches = list(opened.batches())
    assert [len(b[1]) for b in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), X)
    np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), Y)


def test_code_after_get_next_runs_once_per_sample() -> None:
    def input_fn(mode: str) -> Any:
        x, y = one_shot(rows())
        doubled = tf.reshape(x, [2, 1]) * 2 + tf.cast(y, tf.float32)
        return doubled, y, tf.strings.as_string(y)

    batches = list(Opened(input_fn).batches())
    expected = X[:, :, None] * 2 + Y[:, None, None]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), expected)
    assert np.concatenate([b[2] for b in batches]).tolist() == [str(i).encode() for i in Y]


def test_loops_over_tensors_are_part_of_a_sample() -> None:
    def input_fn(mode: str) -> Any:
        x, _ = one_shot(rows())
        return tf.map_fn(lambda value: value * 2, x)

    np.testing.assert_array_equal(np.concatenate([b[0] for b in Opened(input_fn).batches()]), X * 2)


def test_summaries_of_single_samples_are_left_out() -> None:
    def input_fn(mode: str) -> Any:
        x, _ = one_shot(rows())
        tf1.summary.scalar("of_one_sample", x[0])
        return x

    with tf1.Graph().as_default():
        tf1.summary.scalar("before", 1.0)
        build_inputs(input_fn, "TRAIN", 4, auto_batch=True)
        assert [t.op.name for t in tf1.get_collection(tf1.GraphKeys.SUMMARIES)] == ["before"]


def test_the_input_starts_again_from_the_beginning() -> None:
    opened = Opened(lambda mode: [t + 0 for t in one_shot(rows())])
    for _ in range(3):
        opened.source.start(opened.session)
        assert np.concatenate([b[1] for b in opened.batches()]).tolist() == Y.tolist()


def test_a_single_tensor_a_list_and_a_dataset_are_all_inputs() -> None:
    for input_fn in (
        lambda mode: one_shot(tf.data.Dataset.range(5)),
        lambda mode: [one_shot(tf.data.Dataset.range(5))],
        lambda run_mode, **kwargs: tf.data.Dataset.range(5),
        lambda: tf.data.Dataset.range(5),
    ):
        opened = Opened(input_fn)
        assert len(opened.source.tensors) == 1
        assert [b[0].tolist() for b in opened.batches()] == [[0, 1, 2, 3], [4]]


def test_a_dataset_of_a_dict_gives_its_parts_by_sorted_name() -> None:
    opened = Opened(lambda mode: tf.data.Dataset.from_tensor_slices({"b": Y, "a": X}))
    first = next(opened.batches())
    np.testing.assert_array_equal(first[0], X[:4])
    np.testing.assert_array_equal(first[1], Y[:4])


def test_an_endless_input_has_a_fixed_batch_dimension_a_finite_one_has_not() -> None:
    endless = Opened(lambda mode: one_shot(rows(repeat=True)), mode="TRAIN").source
    assert endless.endless
    assert [t.shape.as_list() for t in endless.tensors] == [[4, 2], [4]]
    assert endless.export_shape(endless.tensors[0]) == (None, 2)
    finite = Opened(lambda mode: one_shot(rows()), mode="TRAIN").source
    assert not finite.endless
    assert [t.shape.as_list() for t in finite.tensors] == [[None, 2], [None]]


def test_generators_have_full_batches_in_training_and_all_rows_otherwise() -> None:
    def input_fn(mode: str) -> Any:
        return one_shot(tf1.data.Dataset.from_generator(lambda: iter(range(10)), tf.int64, tf.TensorShape([])))

    training = Opened(input_fn, mode="TRAIN")
    assert training.source.tensors[0].shape.as_list() == [4]
    assert [len(b[0]) for b in training.batches()] == [4, 4]
    assert [len(b[0]) for b in Opened(input_fn, mode="PREDICT").batches()] == [4, 4, 2]


def test_tensors_without_an_iterator_are_drawn_anew_for_each_sample() -> None:
    def input_fn(mode: str) -> Any:
        return tf1.random_uniform([3], dtype=tf.float64), tf.constant([1, 2])  # of 2**52 numbers: no two are the same

    opened = Opened(input_fn, batch_size=64)
    assert opened.source.endless
    drawn, fixed = next(opened.batches())
    assert drawn.shape == (64, 3)
    assert len(np.unique(drawn)) == 64 * 3
    np.testing.assert_array_equal(fixed, np.tile([1, 2], (64, 1)))


def test_seeded_random_samples_repeat_from_run_to_run() -> None:
    def input_fn(mode: str) -> Any:
        x, _ = one_shot(rows(repeat=True))
        return x + tf1.random_normal([2], seed=3)

    first, second = (np.concatenate([b[0] for b in Opened(input_fn).batches(5)]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[:4], X[:4])


def test_several_iterators_make_one_sample() -> None:
    def input_fn(mode: str) -> Any:
        return one_shot(rows())[1], one_shot(tf.data.Dataset.range(100, 107))

    batches = list(Opened(input_fn).batches())
    assert np.concatenate([b[0] for b in batches]).tolist() == list(range(7))  # the shorter one ends the input
    assert np.concatenate([b[1] for b in batches]).tolist() == list(range(100, 107))


def test_two_elements_of_one_iterator_make_one_sample() -> None:
    def input_fn(mode: str) -> Any:
        iterator = tf1.data.make_one_shot_iterator(tf.data.Dataset.range(10))
        first = iterator.get_next()
        with tf1.control_dependencies([first]):
            second = iterator.get_next()
        return first, second

    opened = Opened(input_fn)
    pairs = np.concatenate([np.stack(b, 1) for b in opened.batches()])
    assert sorted(pairs.ravel().tolist()) == list(range(10))
    opened.source.start(opened.session)
    assert sum(len(b[0]) for b in opened.batches()) == 5


def test_tables_and_python_functions_work_in_a_sample() -> None:
    def input_fn(mode: str) -> Any:
        y = one_shot(rows())[1]
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.range(10, dtype=tf.int64), tf.range(10, 20)), -1
        )
        squared = tf1.py_func(lambda v: v * v, [y], tf.int64)
        squared.set_shape([])
        return table.lookup(y), squared

    batches = list(Opened(input_fn).batches())
    assert np.concatenate([b[0] for b in batches]).tolist() == list(range(10, 20))
    assert np.concatenate([b[1] for b in batches]).tolist() == [i * i for i in range(10)]


def test_ready_batches_are_left_alone() -> None:
    opened = Opened(lambda mode: one_shot(rows().batch(3)), auto_batch=False)
    assert [len(b[1]) for b in opened.batches()] == [3, 3, 3, 1]
    assert opened.source.export_shape(opened.source.tensors[0]) == (None, 2)
    fixed = Opened(lambda mode: one_shot(rows().batch(5, drop_remainder=True)), auto_batch=False).source
    assert fixed.export_shape(fixed.tensors[0]) == (5, 2)


def test_a_failing_generator_says_what_failed() -> None:
    def generate() -> Iterator[int]:
        yield 1
        raise RuntimeError("the camera is unplugged")

    opened = Opened(lambda mode: one_shot(tf1.data.Dataset.from_generator(generate, tf.int64)), batch_size=1)
    with pytest.raises(tf.errors.OpError, match="the camera is unplugged"):
        list(opened.batches())


def test_a_placeholder_in_a_sample_is_explained() -> None:
    with pytest.raises(ModelSpecError, match="auto_batch=False") as caught:
        Opened(lambda mode: tf1.placeholder(tf.float32, [2]))
    assert "cannot be fed" in str(caught.value)


def test_one_shot_iterators_are_themselves_again_afterwards() -> None:
    Opened(lambda mode: one_shot(rows()))
    with tf1.Graph().as_default():
        value = one_shot(tf.data.Dataset.range(3))
        with tf1.Session() as session:  # needs no initializer
            assert session.run(value) == 0


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (6, 6), (100, 10)])
def test_collect_samples_gives_the_first_rows(count: int, expected: int) -> None:
    x, y = collect_samples(lambda mode: one_shot(rows()), "EVAL", 4, True, count)
    np.testing.assert_array_equal(x, X[:expected])
    np.testing.assert_array_equal(y, Y[:expected])


def test_collect_samples_of_an_input_without_rows_is_empty() -> None:
    assert collect_samples(lambda mode: [tf.constant(0.0)], "TRAIN", 4, False, 8) == []


def test_the_queues_of_tf_train_still_feed() -> None:
    def input_fn(mode: str) -> Any:
        (name,) = tf1.train.slice_input_producer([tf.range(6)], shuffle=False, num_epochs=None)
        return tf1.train.batch([name], 3)

    (values,) = collect_samples(input_fn, "TRAIN", 3, False, 6)
    assert values.tolist() == list(range(6))
