"""Inputs through feed_dict: placeholders that somebody feeds, or that a data flow feeds in the thread of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.participants import InputEnded, Participant, StepContext
from moxserve.tensorflow.executor.rounds import TowerInputs
from moxserve.tensorflow.input_source.base import InputSource
from moxserve.tensorflow.input_source.reader import FlowReader
from moxserve.tensorflow.input_source.signature import Spec, as_signature

__all__ = ["FeedInput", "PlaceholderInput"]


class PlaceholderInput(InputSource):
    """Placeholders that a hook of yours feeds.

    Args:
        signature: `tf.TensorSpec`s; None to take what `setup` gets.
    """

    gives_batches = True
    endless = True

    def __init__(self, signature: Sequence[Any] | None = None) -> None:
        self.signature = () if signature is None else as_signature(signature)

    def make_batches(self, batch_size: int) -> None:
        """Do nothing: whoever feeds makes the batches."""

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        if not signature:
            raise ModelSpecError(
                "PlaceholderInput needs a signature", hint="PlaceholderInput([tf.TensorSpec([None, 784], tf.float32)])"
            )
        with self.cached_name_scope():
            self._placeholders = [tf1.placeholder(spec.dtype, spec.shape, spec.name) for spec in signature]

    def _get_input_tensors(self) -> Sequence[Any]:
        return self._placeholders


class FeedInput(InputSource):
    """A data flow that is read between the steps and fed to placeholders.

    An error in the flow comes out of the run as it is. No latency is hidden: `QueueInput` does that. Each tower has
    placeholders of its own; each call of `get_input_tensors` returns those of the first.

    Args:
        ds: the flow.
        infinite: TRAIN reads it again and again; otherwise its end ends the training. EVAL and PREDICT read it once.
        signature: dtype, shape and name of each component; None to take them off the first datapoint.
    """

    def __init__(self, ds: DataFlow, infinite: bool = True, *, signature: Sequence[Any] | None = None) -> None:
        self._reader = FlowReader(ds, infinite, signature)

    @property
    def endless(self) -> bool:  # type: ignore[override]
        """Whether the flow is read again and again."""
        return self._reader.endless

    def make_batches(self, batch_size: int) -> None:
        """Stack so many datapoints each time."""
        self._reader.make_batches(batch_size)

    def describe(self) -> str:
        """Name the source and its flow."""
        return f"{type(self).__name__}({self._reader.name})"

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        self.signature = self._reader.open(self.mode, signature)
        self._towers = [TowerInputs(self._placeholders())]

    def _placeholders(self) -> list[Any]:
        with self.cached_name_scope():
            return [tf1.placeholder(spec.dtype, spec.shape, spec.name) for spec in self.signature]

    def _get_callbacks(self) -> Sequence[Participant]:
        return [_Feeder(self)]

    def _get_input_tensors(self) -> Sequence[Any]:
        return self._towers[0]

    def _next_tower(self, first: TowerInputs, before: TowerInputs) -> TowerInputs:
        present = tf1.placeholder_with_default(True, [], "present")
        self._towers.append(TowerInputs(self._placeholders(), present))
        return self._towers[-1]

    def _reset_state(self) -> None:
        self._reader.restart()

    def _size(self) -> int:
        return self._reader.size()

    def _close(self) -> None:
        self._reader.close()

    def _feed(self) -> dict[Any, Any]:
        first = self._reader.next(self.signature)
        if first is None:
            raise InputEnded
        feed = dict(zip(self._towers[0], first, strict=True))
        for tower in self._towers[1:]:
            arrays = self._reader.next(self.signature)
            feed.update(zip(tower, first if arrays is None else arrays, strict=True))
            feed[tower.present] = np.bool_(arrays is not None)
        return feed


class _Feeder(Participant):
    """Feeds each step."""

    def __init__(self, source: FeedInput) -> None:
        self._source = source

    def step_args(self, context: StepContext) -> Any:
        """Read the next datapoint."""
        return tf1.train.SessionRunArgs(fetches=[], feed_dict=self._source._feed())
