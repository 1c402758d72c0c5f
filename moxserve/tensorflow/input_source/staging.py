"""The last stretch: the next batches wait on the device that the model runs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorflow.python.ops.data_flow_ops import StagingArea

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import Clock, Participant
from moxserve.tensorflow.executor.rounds import TowerInputs
from moxserve.tensorflow.input_source.base import FeedfreeInput, InputSource
from moxserve.tensorflow.input_source.pump import Pump, PumpParticipant
from moxserve.tensorflow.input_source.signature import Spec

__all__ = ["StagingInput"]


class StagingInput(FeedfreeInput):
    """Copies what another source gives to a staging area on the device, ahead of the steps, by a thread.

    What is needed for a batch (a copy to the GPU, the part of a `tf.data` pipeline that runs when it is pulled) is done
    while the step before is computed. Nothing is lost at the end of the data, so it is good for EVAL and PREDICT, too.

    Args:
        input: a source that needs no feed_dict.
        nr_stage: how many batches wait on the device.
        device: where; default the first GPU, or the CPU where there is none. Text stays on the CPU.
    """

    def __init__(self, input: InputSource, nr_stage: int = 1, device: str | None = None) -> None:
        if not isinstance(input, FeedfreeInput):
            raise UsageError(
                f"StagingInput cannot stage {type(input).__name__}: it needs a source without feed_dict",
                hint="StagingInput(QueueInput(dataflow))",
            )
        if isinstance(input, StagingInput):
            raise UsageError("StagingInput around a StagingInput: once is enough", hint="nr_stage=2 stages more")
        if nr_stage < 1:
            raise UsageError(f"nr_stage={nr_stage}: expected at least 1")
        self._inner = input
        self._stages = int(nr_stage)
        self._device = device
        self._puts: list[Any] = []
        self._clears: list[Any] = []
        self._put: Any = None
        self._staged = 0
        self.gives_batches = input.gives_batches

    @property
    def endless(self) -> bool:  # type: ignore[override]
        """Whether the source inside never ends."""
        return self._inner.endless

    def make_batches(self, batch_size: int) -> None:
        """Let the source inside make batches."""
        self._inner.make_batches(batch_size)

    def describe(self) -> str:
        """Name the sources."""
        return f"StagingInput({self._inner.describe()})"

    # -- protocol

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        self._participants = self._inner.setup(signature or None, self.mode)
        self.signature = self._inner.signature
        self._clock = Clock(counts_globally=False)
        self._pump = Pump("StagingInput", self._move, self._stages, self._told)
        self._clock.stopped = self._pump.stopping

    def _get_callbacks(self) -> Sequence[Participant]:
        return [_Stager(self._pump, self._participants)]

    def _get_input_tensors(self) -> Sequence[Any]:
        return self._stage(self._inner.get_input_tensors(), 0)

    def get_tower_tensors(self, towers: int) -> list[TowerInputs]:
        """Return the tensors of each tower. What is staged at a time is what a step takes, on the devices of the
        towers.
        """
        self._require_setup("get_tower_tensors")
        rounds = []
        for index, given in enumerate(self._inner.get_tower_tensors(towers)):
            extra = [] if given.present is None else [given.present]
            staged = self._stage([*given, *extra], index)
            rounds.append(TowerInputs(staged[: len(given)], staged[-1] if extra else None))
        return rounds

    def _stage(self, tensors: Sequence[Any], index: int) -> list[Any]:
        with tf.device(None), tf.device(self._place(tensors, index)), self.cached_name_scope():
            # Of no capacity of its own: the pump bounds it, and a put that waits would hold a thread of the runtime.
            area = StagingArea([t.dtype for t in tensors], [t.shape for t in tensors])
            self._puts.append(area.put(tensors))
            self._clears.append(area.clear())
            taken = area.get()
        staged = list(taken) if isinstance(taken, (list, tuple)) else [taken]
        for tensor, original in zip(staged, tensors, strict=True):
            tensor.set_shape(original.shape)
        return staged

    def _place(self, tensors: Sequence[Any], index: int) -> str:
        if any(tensor.dtype == tf.string for tensor in tensors):
            return "/cpu:0"
        if self._device is not None:
            return self._device
        return f"/gpu:{index}" if tf.config.list_physical_devices("GPU") else f"/cpu:{index}"

    def _reset_state(self) -> None:
        session = tf1.get_default_session()
        if self._put is not None:
            self._pump.stop()
            session.run(self._clears)
        self._inner.reset_state(self._start_feed)
        self._put = session.make_callable(self._puts)
        self._staged = 0
        self._pump.start()

    def _size(self) -> int:
        return self._inner.size()

    def _close(self) -> None:
        if self._put is not None:
            self._pump.stop()
        self._inner.close()

    # -- the thread

    def _move(self) -> bool:
        for participant in self._participants:
            participant.ready(self._clock)
        try:
            self._put()
        except tf.errors.OpError as error:
            known = (participant.cause(error) for participant in self._participants)
            raise next((cause for cause in known if cause is not None), error) from None
        self._staged += 1
        return True

    def _told(self) -> str:
        return f"{self._inner.describe()} has given {self._staged} batch(es) so far"


class _Stager(PumpParticipant):
    """Lets a step begin when its batch is on the device. The points of the source inside that need no step are its own.

    Args:
        pump: that fills the staging area.
        inner: participants of the source inside, whose `ready` the pump calls.
    """

    def __init__(self, pump: Pump, inner: Sequence[Participant]) -> None:
        super().__init__(pump)
        self._inner = inner

    def begin(self) -> None:
        """Forward it."""
        for participant in self._inner:
            participant.begin()

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Forward it."""
        for participant in self._inner:
            participant.session_ready(session, coordinator)

    def finish(self, ok: bool) -> None:
        """Forward it."""
        for participant in self._inner:
            participant.finish(ok)
