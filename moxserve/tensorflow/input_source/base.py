"""InputSource: the protocol that every source of input keeps, in the order in which it is called.

    make_batches(batch_size)     only where the caller wants batches of what the source gives one by one
    setup(signature, mode)       the graph is open, no session of the run exists: processes are forked here
    get_tower_tensors(towers)    or get_input_tensors() for a single tower
    reset_state()                a default session exists: starts the input, or starts it again from the beginning
      ready, step_args           the participants that `setup` returned, at each step
    close()                      ends threads and processes; more than once does no harm

A subclass overrides the methods with a leading underscore, as in tensorpack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.participants import Participant
from moxserve.tensorflow.executor.rounds import TowerInputs, in_order
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.input_source.signature import Spec, as_signature

__all__ = ["FeedfreeInput", "InputSource", "remap_input_source"]


class InputSource:
    """Tensors, and who keeps them supplied.

    Attributes:
        mode: what the input is for: TRAIN goes on for ever where the source can, EVAL and PREDICT go through once.
        signature: dtype, shape and name of each tensor; known after `setup`.
        endless: whether it is known that the input never ends.
        gives_batches: whether what it gives are batches, whoever asks.
    """

    mode: str = ModeKeys.TRAIN
    signature: tuple[Spec, ...] = ()
    endless: bool = False
    gives_batches: bool = False
    _scope: str | None = None
    _is_setup: bool = False
    _start_feed: Mapping[Any, Any] = {}

    # -- protocol

    def setup(self, signature: Sequence[Any] | None = None, mode: str = ModeKeys.TRAIN) -> list[Participant]:
        """Build what the source needs into the current graph. Processes of data flows are forked here.

        Args:
            signature: `tf.TensorSpec`s, or placeholders, of what the model takes; None leaves it to the source.
            mode: TRAIN, EVAL or PREDICT.

        Returns:
            Who takes part in the loop for this source.

        Raises:
            UsageError: it was set up before.
            ModelSpecError: the signature does not fit the data, or none is given and it cannot be told from the data.
        """
        if self._is_setup:
            raise UsageError(f"{type(self).__name__} was set up before", hint="make a new one for each run and mode")
        self.mode = mode
        if signature is not None:
            self.signature = as_signature(signature)
        self._setup(self.signature)
        self._is_setup = True
        return self.get_callbacks()

    def setup_done(self) -> bool:
        """Whether `setup` was called."""
        return self._is_setup

    def get_callbacks(self) -> list[Participant]:
        """Return who takes part in the loop for this source."""
        self._require_setup("get_callbacks")
        return list(self._get_callbacks())

    def get_input_tensors(self) -> list[Any]:
        """Return one tensor for each entry of the signature, new ones each time (placeholders excepted).

        Raises:
            UsageError: before `setup`.
        """
        self._require_setup("get_input_tensors")
        return list(self._get_input_tensors())

    def get_tower_tensors(self, towers: int) -> list[TowerInputs]:
        """Return the tensors of each tower: a step takes so many elements, in the order of the towers.

        Args:
            towers: how many there are.

        Raises:
            UsageError: before `setup`.
        """
        rounds = [TowerInputs(self.get_input_tensors())]
        while len(rounds) < towers:
            rounds.append(self._next_tower(rounds[0], rounds[-1]))
        return rounds

    def reset_state(self, feed: Mapping[Any, Any] | None = None) -> None:
        """Start the input, or start it again from the beginning. Needs a default session.

        Args:
            feed: values of placeholders that say where datasets start.
        """
        self._require_setup("reset_state")
        self._start_feed = feed or {}
        self._reset_state()

    def size(self) -> int:
        """How many elements make an epoch.

        Raises:
            NotImplementedError: nobody knows. tensorpack's contract.
        """
        return self._size()

    def close(self) -> None:
        """End threads and processes."""
        self._close()

    @contextmanager
    def cached_name_scope(self) -> Iterator[str]:
        """Enter the name scope of this source, named after its class; the same one each time."""
        if self._scope is None:
            with tf1.name_scope(type(self).__name__) as scope:
                self._scope = scope
                yield scope
        else:
            with tf1.name_scope(self._scope) as scope:
                yield scope

    def make_batches(self, batch_size: int) -> None:
        """Give batches of what the source would give one by one. Before `setup`.

        Raises:
            ModelSpecError: the source cannot.
        """
        raise ModelSpecError(
            f"{type(self).__name__} cannot make batches of {batch_size}", hint="give run(auto_batch=False)"
        )

    def describe(self) -> str:
        """Name the source in messages."""
        return type(self).__name__

    # -- what subclasses override

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        """Build; sets `self.signature` where it was not given."""

    def _get_callbacks(self) -> Sequence[Participant]:
        return []

    def _get_input_tensors(self) -> Sequence[Any]:
        raise TypeError(f"{type(self).__name__} does not define _get_input_tensors")

    def _next_tower(self, first: TowerInputs, before: TowerInputs) -> TowerInputs:
        """Make the tensors of one more tower.

        Args:
            first: of the first tower.
            before: of the tower whose turn is before.
        """
        return TowerInputs(in_order(self.get_input_tensors, before))

    def _reset_state(self) -> None:
        """Start, or start again."""

    def _size(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} does not know its size")

    def _close(self) -> None:
        """End threads and processes."""

    def _require_setup(self, what: str) -> None:
        if not self._is_setup:
            raise UsageError(f"{type(self).__name__}.{what}() was called before setup()")


class FeedfreeInput(InputSource):
    """A source that needs no feed_dict, so that its tensors can be pulled by anybody."""


class _Remapped(InputSource):
    """See `remap_input_source`."""

    def __init__(self, source: InputSource, names: Sequence[str]) -> None:
        self._inner = source
        self._names = tuple(names)

    @property
    def endless(self) -> bool:  # type: ignore[override]
        return self._inner.endless

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        known = {spec.name: position for position, spec in enumerate(signature)}
        missing = [name for name in self._names if name not in known]
        if missing:
            raise ModelSpecError(
                f"remap_input_source names {', '.join(missing)}, and the signature has {', '.join(map(str, known))}"
            )
        self._order = [known[name] for name in self._names]
        self._rest = [position for position in range(len(signature)) if position not in self._order]
        self._participants = self._inner.setup([signature[position] for position in self._order], self.mode)

    def _get_callbacks(self) -> Sequence[Participant]:
        return self._participants

    def _get_input_tensors(self) -> Sequence[Any]:
        return self._remap(self._inner.get_input_tensors())

    def get_tower_tensors(self, towers: int) -> list[TowerInputs]:
        """Return the tensors of each tower."""
        return [TowerInputs(self._remap(given), given.present) for given in self._inner.get_tower_tensors(towers)]

    def _remap(self, tensors: Sequence[Any]) -> list[Any]:
        found = dict(zip(self._order, tensors, strict=True))
        for position in self._rest:
            spec = self.signature[position]
            found[position] = tf1.placeholder_with_default(_empty(spec), spec.shape, spec.name)
        return [found[position] for position in range(len(self.signature))]

    def _reset_state(self) -> None:
        self._inner.reset_state(self._start_feed)

    def _size(self) -> int:
        return self._inner.size()

    def _close(self) -> None:
        self._inner.close()

    def make_batches(self, batch_size: int) -> None:
        self._inner.make_batches(batch_size)


def _empty(spec: Spec) -> Any:
    """Nothing of a dtype and rank: zero where the shape is unknown."""
    return tf1.zeros([dimension or 0 for dimension in spec.shape.as_list()], spec.dtype)


def remap_input_source(source: InputSource, names: Sequence[str]) -> InputSource:
    """Let a source give only some entries of a signature; the others are empty placeholders.

    Args:
        source: gives as many components as there are names.
        names: of the entries, in the order of the source's components.
    """
    return _Remapped(source, names)
