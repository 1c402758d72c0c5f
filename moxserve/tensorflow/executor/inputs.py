"""From a user's `input_fn` to the tensors that `model_fn` gets: batching, restarts, and the end of the input.

While `input_fn` runs, one-shot iterators become initialisable ones that the executor initialises: they can be
restarted, and their datasets are known. With `auto_batch` the sample tensors are lifted into a dataset and batched
there (see `lift`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow
from moxserve.errors import DataError
from moxserve.tensorflow.executor.batching import IteratorRecorder, check_tensors, lift_batches
from moxserve.tensorflow.executor.calls import call_with_mode, check_callable
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.input_spec import InputSpec, split_to_towers
from moxserve.tensorflow.executor.participants import (
    Clock,
    HookParticipant,
    InputEnded,
    Participant,
    StepContext,
    is_end_of_input,
)
from moxserve.tensorflow.executor.position import INPUT_COUNTS_STEPS, INPUT_POSITIONS
from moxserve.tensorflow.executor.rounds import TowerInputs, input_rounds, limit_rounds
from moxserve.tensorflow.executor.skipped import SkippedRows
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.executor.workers.shards import input_of
from moxserve.tensorflow.input_source.base import InputSource
from moxserve.tensorflow.input_source.queue import QueueInput

__all__ = ["ModeInput", "build_inputs", "collect_samples", "explain", "first_rows", "start_queues"]

_EXAMPLE = "def input_fn(mode, **kwargs): ... return image, label"


@dataclass
class ModeInput:
    """The input of one mode, built into the current graph.

    Attributes:
        towers: what each call of `model_fn` gets, batch dimension first when batches are made here or by the user.
        initializers: operations that start, or restart, the input; run in order.
        auto_batch: whether the batches are made here.
        endless: True when it is known that the input never ends.
        positions: scalars of the graph that say how many rows were given before (see `datasets.base`).
        counts_steps: True when those count steps, since the batches differ in size.
        started_with_tables: operations that start iterators and that the initialisation of tables runs, too.
        participants: who keeps the tensors supplied, in each loop that takes them.
        source: what the tensors are from; None where it is only the graph.
    """

    towers: list[TowerInputs]
    initializers: list[Any] = field(default_factory=list)
    auto_batch: bool = True
    endless: bool = False
    positions: list[Any] = field(default_factory=list)
    counts_steps: bool = False
    started_with_tables: list[Any] = field(default_factory=list)
    participants: list[Participant] = field(default_factory=list)
    source: InputSource | None = None

    @property
    def tensors(self) -> list[Any]:
        """What the first tower gets."""
        return self.towers[0]

    def start(self, session: Any, position: int = 0) -> None:
        """Start the input, or start it again: from the beginning, or after the rows that were given before.

        Args:
            session: whose input it is.
            position: how many rows were given; only inputs that say where they stand start later than at the beginning.
        """
        feed = {scalar: self._row_position(scalar, position) for scalar in self.positions}
        # Tables are initialised without a position, and before each restart nobody initialises them again.
        tables = self.started_with_tables if position and self.positions else []
        for initializer in (*tables, *self.initializers):
            session.run(initializer, feed)
        if self.source is not None:
            with session.as_default():
                self.source.reset_state(feed)

    def keep_skipped(self, path: str) -> None:
        """Let a file remember which rows are left out; those that it knows are passed by when the input starts."""
        for scalar in self.positions:
            if (skipped := SkippedRows.attached(scalar)) is not None:
                skipped.keep(path)

    def _row_position(self, scalar: Any, given: int) -> int:
        skipped = SkippedRows.attached(scalar)
        return given if skipped is None or not given or self.counts_steps else skipped.row_position(given)

    def close(self) -> None:
        """End the threads and processes of the input, while the session is open."""
        if self.source is not None:
            self.source.close()

    @property
    def steps(self) -> int:
        """How many steps make one pass where the tensors themselves never end; 0 where that is not known."""
        return 0 if self.source is None else _size(self.source)

    def fetch(self, session: Any) -> list[np.ndarray]:
        """Take one batch outside of a loop.

        Raises:
            InputEnded: there is none any more.
        """
        context = StepContext(session, Clock(counts_globally=False))
        feed: dict[Any, Any] = {}
        for participant in self.participants:
            participant.ready(context.clock)
        for participant in self.participants:
            args = participant.step_args(context)
            feed.update((args.feed_dict or {}) if args is not None else {})
        try:
            batch: list[np.ndarray] = session.run(self.tensors, feed)
        except tf.errors.OutOfRangeError as error:
            if is_end_of_input(error):
                raise InputEnded from None
            raise
        return batch

    def rows_per_step(self, batch_size: int) -> int:
        """How many rows a step takes, all towers together: as the tensors say where batches are not made here, else
        `batch_size` a tower.
        """
        if self.counts_steps:
            return len(self.towers)
        first = self.tensors[0].shape
        rows = first[0] if not self.auto_batch and first.rank else None
        return (batch_size if rows is None else int(rows)) * len(self.towers)

    def export_shape(self, tensor: Any) -> tuple[int | None, ...] | None:
        """The shape that an exported model takes: as in training, but any number of rows when batches are made here."""
        if tensor.shape.rank is None:
            return None
        shape = tuple(tensor.shape.as_list())
        return (None, *shape[1:]) if self.auto_batch else shape


def build_inputs(
    input_fn: Callable[..., Any], mode: str, batch_size: int, auto_batch: bool, towers: int = 1
) -> ModeInput:
    """Call `input_fn` in the current graph and make what `model_fn` gets of its result.

    Args:
        input_fn: the user's function; returns a tensor, a list or tuple of tensors, an InputSpec, a
            `tf.data.Dataset`, an InputSource or a DataFlow.
        mode: TRAIN, EVAL or PREDICT.
        batch_size: rows of a batch.
        auto_batch: True: the tensors are one sample, batches are made here. False: they are batches already.
        towers: how many calls of `model_fn` take a batch of their own.

    Returns:
        The source; with `auto_batch` the last batch of a finite input may have fewer rows.

    Raises:
        ModelSpecError: `input_fn` returned something else, or cannot be batched.
    """
    check_callable(input_fn, "input_fn", _EXAMPLE)
    known = {key: len(tf1.get_collection(key)) for key in (INPUT_POSITIONS, tf1.GraphKeys.TABLE_INITIALIZERS)}
    with input_of(training=mode == ModeKeys.TRAIN):
        source = _build(input_fn, mode, batch_size if auto_batch else 0, towers)
    source.positions = tf1.get_collection(INPUT_POSITIONS)[known[INPUT_POSITIONS] :]
    source.counts_steps = bool(tf1.get_collection(INPUT_COUNTS_STEPS))
    started = tf1.get_collection(tf1.GraphKeys.TABLE_INITIALIZERS)[known[tf1.GraphKeys.TABLE_INITIALIZERS] :]
    source.started_with_tables = [op for op in started if op.type == "MakeIterator"]
    return source


def _build(input_fn: Callable[..., Any], mode: str, batch_size: int, towers: int) -> ModeInput:
    recorder = IteratorRecorder()
    with recorder.recording():
        result = call_with_mode(input_fn, (), mode, "input_fn")
        if isinstance(result, tf.data.Dataset):
            result = recorder.make_iterator(result).get_next()
            result = tf.nest.flatten(result)
    if isinstance(result, (DataFlow, InputSource)):
        return _from_source(result, recorder, mode, batch_size, towers)
    spec = result if isinstance(result, InputSpec) else None
    tensors, endless = check_tensors(result, "input_fn") if spec is None else spec.tensors, False
    if batch_size:
        tensors, initializers, endless = lift_batches(tensors, recorder, mode, batch_size, towers=towers)
    else:
        initializers = list(recorder.initializers.values())
    more: list[Any] = []
    if spec is not None and spec.split_to_device and not batch_size and towers > 1:
        rounds = split_to_towers(tensors, towers)
    else:
        rounds, more = input_rounds(tensors, recorder, towers)
    for given in rounds:
        given.groups = () if spec is None else spec.groups
    return ModeInput(rounds, more or initializers, auto_batch=bool(batch_size), endless=endless)


def _from_source(
    given: DataFlow | InputSource, recorder: IteratorRecorder, mode: str, batch_size: int, towers: int
) -> ModeInput:
    """Set a source up, and take its tensors; a data flow is read ahead into a queue."""
    source = QueueInput(given) if isinstance(given, DataFlow) else given
    try:
        if batch_size:
            source.make_batches(batch_size)
        participants = source.setup(None, mode)
        rounds, endless = source.get_tower_tensors(towers), source.endless
        if endless and towers > 1 and mode != ModeKeys.TRAIN and (size := _size(source)):
            rounds, endless = limit_rounds(rounds, recorder, size), False
    except BaseException:
        source.close()
        raise
    return ModeInput(
        rounds,
        list(recorder.initializers.values()),
        auto_batch=bool(batch_size) or source.gives_batches,
        endless=endless,
        participants=[p if isinstance(p, Participant) else HookParticipant(p) for p in participants],
        source=source,
    )


def _size(source: InputSource) -> int:
    """How many elements make one pass; 0 where that is not known."""
    with suppress(NotImplementedError):
        return source.size()
    return 0


def collect_samples(
    input_fn: Callable[..., Any], mode: str, batch_size: int, auto_batch: bool = True, count: int = 32
) -> list[np.ndarray]:
    """Read the first rows of an input, in a graph and session of its own.

    Args:
        input_fn: the user's function.
        mode: the mode that it is called with.
        batch_size: rows of a batch.
        auto_batch: whether batches are made here.
        count: how many rows are wanted.

    Returns:
        One array per input, each with up to `count` rows; empty if an input has no batch dimension.

    Raises:
        ModelSpecError: `input_fn` broke its contract.
    """
    with tf1.Graph().as_default(), tf.device("/cpu:0"):
        source = build_inputs(input_fn, mode, batch_size, auto_batch)
        if any(tensor.shape.rank == 0 for tensor in source.tensors):
            return []
        with tf1.Session(config=tf1.ConfigProto(device_count={"GPU": 0})) as session:
            session.run(
                [tf1.global_variables_initializer(), tf1.local_variables_initializer(), tf1.tables_initializer()]
            )
            source.start(session)
            coordinator = tf1.train.Coordinator()
            threads = start_queues(session, coordinator)
            try:
                batches = _first_batches(session, source, count)
            finally:
                source.close()
            coordinator.request_stop()
            session.close()
            coordinator.join(threads, stop_grace_period_secs=5, ignore_live_threads=True)
    return first_rows([np.concatenate(parts) for parts in zip(*batches, strict=True)], count)


# The end of what the runtime tells of a Python function that raised: where the class is from, what it said, its hint.
_OUR_ERROR = re.compile(r"^moxserve\.[\w.]*Error: (.+?)(?:\nhint: (.*?))?\n\s*\n", re.MULTILINE | re.DOTALL)
_UNEQUAL_SLICES = re.compile(r"should evenly divide the split dimension, .*\(size = (\d+)\) and num_split (\d+)")
_UNEQUAL_SAMPLES = ("Cannot batch tensors with different shapes", "Cannot add tensor to the batch")


def explain(error: Any) -> DataError | None:
    """Tell what to do about an error of the runtime that is the input's fault; None for any other."""
    message = str(error.message)
    if ours := _OUR_ERROR.search(message):
        return DataError(ours[1], hint=ours[2])
    if slices := _UNEQUAL_SLICES.search(message):
        return DataError(
            f"InputSpec(split_to_device=True): a batch of {slices[1]} rows cannot be cut into equal slices for "
            f"{slices[2]} devices",
            hint=f"make batches of a multiple of {slices[2]} rows: dataset.batch(n, drop_remainder=True)",
        )
    if not any(text in message for text in _UNEQUAL_SAMPLES):
        return None
    return DataError(
        f"the samples of input_fn cannot be made a batch: {message.splitlines()[0]}",
        hint="bring all samples to one shape in input_fn (tf.image.resize), or batch there and give auto_batch=False",
    )


def start_queues(session: Any, coordinator: Any) -> list[Any]:
    """Start the threads that fill the graph's queues, where `input_fn` uses the queue functions of `tf.train`."""
    if not session.graph.get_collection(tf1.GraphKeys.QUEUE_RUNNERS):
        return []
    threads: list[Any] = tf1.train.start_queue_runners(session, coordinator)
    return threads


def _first_batches(session: Any, source: ModeInput, count: int) -> list[list[np.ndarray]]:
    batches: list[list[np.ndarray]] = []
    rows = 0
    while rows < count:
        try:
            batch = source.fetch(session)
        except InputEnded:
            break
        batches.append(batch)
        if len(batch[0]) == 0:
            break
        rows += len(batch[0])
    return batches


def first_rows(arrays: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Cut arrays to their first rows; empty unless all of them have the same number of rows."""
    if not arrays or any(array.ndim == 0 for array in arrays) or len({len(array) for array in arrays}) != 1:
        return []
    return [array[:count] for array in arrays]
