"""Inputs that a thread reads into a queue of the graph, ahead of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.dataflow.base import DataFlow
from moxserve.errors import DataError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import Participant
from moxserve.tensorflow.executor.rounds import TowerInputs, take_if
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.input_source.base import FeedfreeInput
from moxserve.tensorflow.input_source.pump import Pump, PumpParticipant
from moxserve.tensorflow.input_source.reader import FlowReader
from moxserve.tensorflow.input_source.signature import Spec, batched

__all__ = ["BatchQueueInput", "QueueInput", "ZMQInput"]

_CAPACITY = 50
_SIZE_DECAY = 0.5


class QueueInput(FeedfreeInput):
    """A data flow that a thread reads into a queue on the CPU, from which the steps take.

    The scalar summary `QueueInput/queue_size` is a moving average of how many elements wait when a step takes one: near
    0 the data are the bottleneck, near the capacity the model is. An error in the flow ends the run with that error, at
    the next step.

    Args:
        ds: the flow.
        queue: a queue of your own, with the dtypes of the signature; default a FIFOQueue of 50 elements.
        infinite: TRAIN reads the flow again and again; otherwise its end ends the training. EVAL and PREDICT read it
            once, from the beginning for each evaluation.
        signature: dtype, shape and name of each component; None to take them off the first datapoint.
    """

    def __init__(
        self, ds: DataFlow, queue: Any = None, *, infinite: bool = True, signature: Sequence[Any] | None = None
    ) -> None:
        self._reader = FlowReader(ds, infinite, signature)
        self._own_queue = queue is None
        self.queue = queue
        self._session: Any = None
        self._closed = False
        self._size_tensor: Any = None

    @property
    def endless(self) -> bool:  # type: ignore[override]
        """Whether the flow is read again and again."""
        return self._reader.endless

    def make_batches(self, batch_size: int) -> None:
        """Stack so many datapoints to one element of the queue."""
        self._reader.make_batches(batch_size)

    def describe(self) -> str:
        """Name the source and its flow."""
        return f"{type(self).__name__}({self._reader.name})"

    def refill_queue(self) -> None:
        """Empty the queue and read the flow from its beginning.

        Raises:
            UsageError: the input was not started.
            DataError: the queue was closed when the flow ended; or the thread waits for a datapoint that never comes.
        """
        if self._session is None:
            raise UsageError(f"{self.describe()}: refill_queue() before the input was started")
        if self._closed:
            raise DataError(
                f"{self.describe()} has ended, and its queue is closed",
                hint="leave queue= out where an input is started again",
            )
        self._pump.stop()
        while self._session.run(self._size_of_queue):
            self._session.run(self._drop_op)
        self._reader.restart()
        self._pump.start()

    # -- protocol

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        self._element = self._open(signature)
        with self.cached_name_scope(), tf.device("/cpu:0"):
            if self.queue is None:
                self.queue = self._new_queue(self._element)
            self._check_queue()
            self._fed = [tf1.placeholder(spec.dtype, spec.shape, f"fed_{spec.name}") for spec in self._element]
            self._enqueue_op = self.queue.enqueue(self._fed)
            self._close_op = self.queue.close(cancel_pending_enqueues=True)
            self._drop_op, self._size_of_queue = self.queue.dequeue(), self.queue.size()
        self._pump = Pump(type(self).__name__, self._move, self._ahead(), self._told, self._end)

    def _open(self, signature: tuple[Spec, ...]) -> tuple[Spec, ...]:
        """Open the flow, and set the signature of what a step takes; returns that of the queue's elements."""
        self.signature = self._reader.open(self.mode, signature)
        return self.signature

    def _new_queue(self, elements: Sequence[Spec]) -> Any:
        return tf1.FIFOQueue(_CAPACITY, [spec.dtype for spec in elements], name="input_queue")

    def _check_queue(self) -> None:
        found, wanted = (
            [d.base_dtype.name for d in ds] for ds in (self.queue.dtypes, [s.dtype for s in self._element])
        )
        if found != wanted:
            raise ModelSpecError(f"{self.describe()}: the queue has the dtypes {found}, the data {wanted}")

    def _ahead(self) -> int:
        """How many elements the thread may be ahead of the steps."""
        capacity = self.queue.queue_ref.op.get_attr("capacity")
        return int(capacity) if capacity > 0 else _CAPACITY

    def _get_callbacks(self) -> Sequence[Participant]:
        return [PumpParticipant(self._pump)]

    def _get_input_tensors(self) -> Sequence[Any]:
        with self.cached_name_scope(), tf.device("/cpu:0"), tf.control_dependencies(self._watch_size()):
            taken = self._take()
            tensors = list(taken) if isinstance(taken, (list, tuple)) else [taken]
            for tensor, spec in zip(tensors, self.signature, strict=True):
                tensor.set_shape(spec.shape)
        return tensors

    def _take(self) -> Any:
        return self.queue.dequeue(name="dequeue")

    def get_tower_tensors(self, towers: int) -> list[TowerInputs]:
        """Return the tensors of each tower.

        Raises:
            UsageError: the queue holds less than a step takes.
        """
        self._require_setup("get_tower_tensors")
        if towers > self._ahead():
            raise UsageError(
                f"{self.describe()}: a step on {towers} devices takes {towers} elements, and the queue holds "
                f"{self._ahead()}",
                hint="give a queue of a larger capacity, or leave queue= out",
            )
        self._pump.per_step = towers
        return super().get_tower_tensors(towers)

    def _next_tower(self, first: TowerInputs, before: TowerInputs) -> TowerInputs:
        if self.endless:
            return super()._next_tower(first, before)
        # The step began when all that it takes was in the queue, or when nothing was to follow.
        with self.cached_name_scope(), tf.device("/cpu:0"), tf.control_dependencies([t.op for t in before]):
            more = self.queue.size() >= self._rows_taken
            return TowerInputs(take_if(more, self.get_input_tensors, first), more)

    @property
    def _rows_taken(self) -> int:
        return 1

    def _watch_size(self) -> list[Any]:
        """The moving average of the queue's size, updated inside of each step of the first tower."""
        if self._size_tensor is not None:
            return []
        size = tf.cast(self.queue.size(), tf.float32)
        # Both start at 0; their quotient is the average without the bias of that.
        total, weight = (
            tf1.Variable(0.0, trainable=False, collections=[tf1.GraphKeys.LOCAL_VARIABLES], name=name)
            for name in ("size_sum", "size_weight")
        )
        updates = [
            variable.assign(variable * _SIZE_DECAY + value * (1 - _SIZE_DECAY), read_value=False)
            for variable, value in ((total, size), (weight, tf.constant(1.0)))
        ]
        with tf.control_dependencies(updates):
            self._size_tensor = tf.math.divide_no_nan(total.read_value(), weight.read_value())
        tf1.summary.scalar("queue_size", self._size_tensor)
        return updates

    def _reset_state(self) -> None:
        session = tf1.get_default_session()
        if self._session is session and self._session is not None:
            self.refill_queue()
            return
        self._session = session
        self._enqueue = session.make_callable(self._enqueue_op, feed_list=self._fed)
        self._reader.restart()
        self._pump.start()

    def _size(self) -> int:
        return self._reader.size()

    def _close(self) -> None:
        if not self._is_setup:
            return
        self._pump.stop(self._reader.release)
        self._close_queue()
        self._reader.close()
        if self._pump.alive:
            tf1.logging.warning(
                "%s is still waiting for a datapoint; its thread ends with the process", self.describe()
            )

    # -- the thread

    def _move(self) -> bool:
        arrays = self._reader.next(self._element)
        if arrays is None or self._pump.stopping():
            return False
        self._enqueue(*arrays)
        return True

    def _end(self) -> None:
        # A training never starts again, so whoever takes more than its steps gets an error instead of a queue that
        # stays empty. Evaluations do start again, and a closed queue cannot.
        if self.mode == ModeKeys.TRAIN or not self._own_queue:
            self._close_queue()

    def _close_queue(self) -> None:
        if self._session is None or self._closed:
            return
        self._closed = True
        try:
            self._session.run(self._close_op)
        except (RuntimeError, tf.errors.OpError):  # the session was closed, and the queue with it
            return

    def _told(self) -> str:
        return f"{self._reader.name} has given {self._reader.count} datapoint(s) so far"


class BatchQueueInput(QueueInput):
    """A data flow of single samples; the queue makes batches of them.

    Args:
        ds: the flow; its datapoints are samples of one shape.
        batch_size: rows of a batch.
        queue: a queue of your own; default a FIFOQueue of 10 batches.
        infinite: as for QueueInput; the rest that fills no batch is left out where the flow ends, with a warning in
            EVAL and PREDICT. A flow that has less than a batch is an error.
        signature: of a sample; None to take it off the first datapoint.
    """

    gives_batches = True

    def __init__(
        self,
        ds: DataFlow,
        batch_size: int,
        queue: Any = None,
        *,
        infinite: bool = True,
        signature: Sequence[Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: expected at least 1")
        super().__init__(ds, queue, infinite=infinite, signature=signature)
        self._batch_size = int(batch_size)

    def make_batches(self, batch_size: int) -> None:
        """Do nothing: the queue makes batches, of its own size.

        Raises:
            ModelSpecError: the sizes differ.
        """
        if batch_size != self._batch_size:
            raise ModelSpecError(
                f"BatchQueueInput makes batches of {self._batch_size}, and the run has batch_size={batch_size}"
            )

    # -- protocol

    def _open(self, signature: tuple[Spec, ...]) -> tuple[Spec, ...]:
        samples = tuple(tf.TensorSpec(spec.shape[1:], spec.dtype, spec.name) for spec in signature)
        samples = self._reader.open(self.mode, samples, samples=True)
        for spec in samples:
            if not spec.shape.is_fully_defined():
                raise ModelSpecError(
                    f"BatchQueueInput needs samples of one shape; {spec.name!r} has {spec.shape}",
                    hint="give signature= with full shapes, or use QueueInput over BatchData",
                )
        self.signature = batched(samples, self._batch_size)
        return samples

    def _new_queue(self, elements: Sequence[Spec]) -> Any:
        shapes = [spec.shape for spec in elements]
        return tf1.FIFOQueue(10 * self._batch_size, [spec.dtype for spec in elements], shapes, name="input_queue")

    def _ahead(self) -> int:
        return max(1, super()._ahead() // self._batch_size)

    def _take(self) -> Any:
        return self.queue.dequeue_many(self._batch_size, name="dequeue")

    @property
    def _rows_taken(self) -> int:
        return self._batch_size

    def _size(self) -> int:
        return super()._size() // self._batch_size

    def _move(self) -> bool:
        rows = 0
        while rows < self._batch_size and super()._move():
            rows += 1
        if rows < self._batch_size and not self._pump.stopping():
            self._leave_out(rows)
        return rows == self._batch_size

    def _leave_out(self, rows: int) -> None:
        if not self._pump.moved:
            raise DataError(
                f"{self._reader.name} gave {rows} datapoint(s), less than a batch of {self._batch_size}",
                hint="QueueInput gives evaluations a smaller last batch",
            )
        if rows and self.mode != ModeKeys.TRAIN:
            tf1.logging.warning(
                "%s: the last %d datapoint(s) fill no batch of %d and are left out of %s; QueueInput gives them, too",
                self.describe(),
                rows,
                self._batch_size,
                self.mode,
            )


class ZMQInput(QueueInput):
    """Datapoints that other processes, or machines, send with `moxserve.dataflow.send_dataflow_zmq`.

    It ends when the sender says that there is no more; a sender without `passes` never does.

    Args:
        end_point: address, such as `tcp://*:8877` or `ipc:///tmp/input.sock`.
        hwm: how many datapoints may wait in the socket.
        bind: whether this end binds the address, or connects to it.
        signature: dtype, shape and name of each component; None to wait for the first datapoint and take them off it.
    """

    def __init__(
        self, end_point: str, hwm: int = 50, bind: bool = True, *, signature: Sequence[Any] | None = None
    ) -> None:
        from moxserve.dataflow import RemoteDataZMQ

        super().__init__(RemoteDataZMQ(end_point, hwm=hwm, bind=bind), infinite=False, signature=signature)
        self._address = end_point

    def describe(self) -> str:
        """Name the source and its address."""
        return f"ZMQInput({self._address!r})"

    def _close(self) -> None:
        super()._close()
        self._reader.release()  # of a dataset, too, which sets up no queue

    def to_dataset(self, types: Sequence[Any] | None = None) -> Any:
        """Return a `tf.data.Dataset` of what comes, instead of a queue; `close` ends it.

        Args:
            types: dtype of each component; None takes those of the signature that the constructor got.

        Raises:
            UsageError: neither is given.
        """
        from moxserve.tensorflow.input_source.dataset import dataflow_to_dataset

        known = self._reader.given if types is None else types
        if known is None:
            raise UsageError("ZMQInput.to_dataset() needs types", hint="to_dataset([tf.uint8, tf.int32])")
        return dataflow_to_dataset(self._reader.ds, known)
