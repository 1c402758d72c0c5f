"""The protocol itself, without a run: towers, restarts, sizes, signatures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import DataError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import Clock, InputEnded
from moxserve.tensorflow.input_source import (
    BatchQueueInput,
    DummyConstantInput,
    FeedInput,
    QueueInput,
    StagingInput,
    TensorInput,
    TFDatasetInput,
    dataflow_to_dataset,
    remap_input_source,
)
from moxserve.tensorflow.input_source.signature import as_signature, fit, infer
from moxserve.types import TensorSpec, dtype_by_name


class Opened:
    """A source in a graph and session of its own, with some towers."""

    def __init__(self, source: Any, towers: int = 1, signature: Any = None, mode: str = "TRAIN") -> None:
        self.source = source
        self.participants = source.setup(signature, mode)
        self.towers = [source.get_input_tensors() for _ in range(towers)]
        self.session = tf1.Session()
        self.session.run(tf1.local_variables_initializer())
        self.start()

    def start(self) -> None:
        with self.session.as_default():
            self.source.reset_state()

    def step(self) -> list[Any]:
        for participant in self.participants:
            participant.ready(Clock())
        return [[np.asarray(v).tolist() for v in tower] for tower in self.session.run(self.towers)]


@contextmanager
def opened(source: Any, **kwargs: Any) -> Iterator[Opened]:
    with tf1.Graph().as_default():
        made = Opened(source, **kwargs)
        try:
            yield made
        finally:
            source.close()
            made.session.close()


@pytest.mark.parametrize("make", [QueueInput, TFDatasetInput, lambda f: StagingInput(QueueInput(f))])
def test_each_tower_gets_data_of_its_own(make: Any, numbers: Any) -> None:
    flow = numbers(None, make=lambda i: [np.float32(i), i])
    source = make(flow)
    with opened(source, towers=2) as made:
        steps = [made.step() for _ in range(5)]
        seen = [int(tower[1]) for step in steps for tower in step]
        assert sorted(seen) == list(range(10))
        assert all(tower[0] == tower[1] for step in steps for tower in step)


def test_a_queue_can_be_refilled(numbers: Any) -> None:
    flow = numbers(None)
    source = QueueInput(flow)
    with pytest.raises(UsageError, match="before the input was started"):
        source.refill_queue()
    with opened(source) as made:
        assert [made.step()[0][0] for _ in range(3)] == [0, 1, 2]
        source.refill_queue()
        assert [made.step()[0][0] for _ in range(3)] == [0, 1, 2]
        assert flow.passes == 2


def test_an_evaluation_starts_again_after_its_end_and_in_the_middle(numbers: Any) -> None:
    for make in (QueueInput, TFDatasetInput, lambda f: StagingInput(QueueInput(f), nr_stage=2)):
        with opened(make(numbers(5)), mode="EVAL") as made:
            assert [made.step()[0][0] for _ in range(5)] == [0, 1, 2, 3, 4]
            with pytest.raises((InputEnded, tf.errors.OutOfRangeError)):
                made.step()
            for count in (2, 5):
                made.start()
                assert [made.step()[0][0] for _ in range(count)] == list(range(count))


def test_sizes(numbers: Any) -> None:
    assert QueueInput(numbers(10)).size() == FeedInput(numbers(10)).size() == 10
    assert StagingInput(QueueInput(numbers(10))).size() == 10
    assert TFDatasetInput(numbers(10)).size() == 10
    assert TensorInput(lambda: [], size=3).size() == 3
    assert BatchQueueInput(numbers(10), 4).size() == 2
    batched = QueueInput(numbers(10))
    batched.make_batches(4)
    assert batched.size() == 2
    for source in (QueueInput(numbers(None)), TensorInput(lambda: []), TFDatasetInput(tf.data.Dataset.range(3))):
        with pytest.raises(NotImplementedError):
            source.size()


def test_names_are_in_one_scope_named_after_the_class(numbers: Any) -> None:
    with opened(QueueInput(numbers(None)), towers=2) as made:
        assert all(tower[0].op.name.startswith("QueueInput/") for tower in made.towers)
        with made.source.cached_name_scope() as scope:
            assert scope == "QueueInput/"


def test_only_some_entries_of_a_signature(numbers: Any) -> None:
    signature = [tf.TensorSpec([None, 2], tf.int32, "a"), tf.TensorSpec([], tf.float32, "b")]
    with opened(remap_input_source(QueueInput(numbers(None)), ["b"]), signature=signature) as made:
        ((a, b),) = made.step()
        assert (a, b) == ([], 0.0)
    with pytest.raises(ModelSpecError, match="names c, and the signature has a, b"):
        remap_input_source(QueueInput(numbers(None)), ["c"]).setup(signature)


def test_the_signature_of_a_model_wins(numbers: Any) -> None:
    for signature in (
        [tf1.placeholder(tf.float64, [], "x")],
        [TensorSpec("x", dtype_by_name("float64"), ())],
        [(tf.float64, [], "x")],
    ):
        with opened(QueueInput(numbers(None)), signature=signature) as made:
            assert made.towers[0][0].dtype == tf.float64
            assert made.source.signature[0].name == "x"
    with pytest.raises(ModelSpecError, match="a signature is a list"):
        as_signature(tf.TensorSpec([]))  # type: ignore[arg-type]
    with pytest.raises(ModelSpecError, match=r"signature\[0\] is 'float32', no TensorSpec"):
        as_signature(["float32"])


def test_before_setup_and_twice(numbers: Any) -> None:
    source = QueueInput(numbers(None))
    with pytest.raises(UsageError, match=r"get_input_tensors\(\) was called before setup"):
        source.get_input_tensors()
    with opened(source), pytest.raises(UsageError, match="was set up before"):
        source.setup()
    source.close()  # twice is no harm


def test_constants_have_the_signatures_dtypes() -> None:
    signature = [tf.TensorSpec([None, 3], tf.uint8, "a"), tf.TensorSpec([None], tf.int32, "b")]
    with opened(DummyConstantInput([[2, 3], [2]]), signature=signature) as made:
        assert [t.dtype for t in made.towers[0]] == [tf.uint8, tf.int32]
        assert made.step() == [[[[0, 0, 0], [0, 0, 0]], [0, 0]]]
    with pytest.raises(ModelSpecError, match="1 shapes and 2 dtypes"):
        DummyConstantInput([[2]]).setup(signature)


def test_a_flow_as_a_dataset(numbers: Any) -> None:
    flow = numbers(3, make=lambda i: {"b": i, "a": b"x" * i})
    with tf1.Graph().as_default():
        dataset = dataflow_to_dataset(flow, (tf.string, tf.int32)).batch(2)
        values = tf1.data.make_one_shot_iterator(dataset).get_next()
        with tf1.Session() as session:
            first, second = session.run(values), session.run(values)
    assert (first[0].tolist(), first[1].tolist()) == ([b"", b"x"], [0, 1])
    assert second[1].tolist() == [2]
    assert TFDatasetInput.dataflow_to_dataset is dataflow_to_dataset


NUMBERS = st.sampled_from(["int8", "uint8", "int32", "int64", "float16", "float32", "float64", "bool"])


@given(NUMBERS, st.lists(st.integers(0, 3), max_size=3), NUMBERS)
def test_any_array_fits_what_is_inferred_of_it_and_nothing_of_another_kind(
    dtype: str, shape: list[int], wanted: str
) -> None:
    array = np.zeros(shape, dtype)
    signature = infer([array], "flow")
    assert fit([array], signature, "flow")[0] is array
    other = [tf.TensorSpec(shape, tf.as_dtype(wanted), "x")]
    if np.can_cast(np.dtype(dtype), np.dtype(wanted), "same_kind"):
        assert fit([array], other, "flow")[0].dtype == wanted
    else:
        with pytest.raises(DataError, match="for 'x'"):
            fit([array], other, "flow")


@pytest.mark.parametrize("value", [{1, 2}, object(), [[1], [2, 3]], None, [b"a", 1, None]])
def test_what_no_tensor_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="flow"):
        infer([value], "flow")
    with pytest.raises(DataError, match="flow"):
        fit([value], [tf.TensorSpec(None, tf.string, "x")], "flow")


@pytest.mark.parametrize("datapoint", [np.zeros(3), 5, "text", None])
def test_a_datapoint_is_a_list(datapoint: Any) -> None:
    with pytest.raises(DataError, match="expected a list of components"):
        infer(datapoint, "flow")
