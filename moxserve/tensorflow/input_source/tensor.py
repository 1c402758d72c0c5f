"""Inputs that are tensors already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.batching import IteratorRecorder, check_tensors, lift_batches
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.rounds import TowerInputs, input_rounds
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.input_source.base import FeedfreeInput
from moxserve.tensorflow.input_source.signature import Spec, as_signature

__all__ = ["DummyConstantInput", "TensorInput"]


class TensorInput(FeedfreeInput):
    """Tensors that a function of yours makes; the `input_fn` of `mox.run` in another form.

    Args:
        get_tensor_fn: called without arguments; returns the tensors of one batch, or of one sample where
            batches are made of it.
        size: how many of them an epoch has: EVAL and PREDICT end after so many, where the tensors themselves never end.
    """

    def __init__(self, get_tensor_fn: Callable[[], Any], size: int | None = None) -> None:
        if not callable(get_tensor_fn):
            raise ModelSpecError(f"TensorInput needs a function, not {type(get_tensor_fn).__name__}")
        self._function = get_tensor_fn
        self._count = size
        self._batch_size = 0
        self._initializers: list[Any] = []

    def make_batches(self, batch_size: int) -> None:
        """Make batches of the samples that the function gives."""
        self._batch_size = batch_size

    # -- protocol

    def _get_input_tensors(self) -> Sequence[Any]:
        return self._tensors(1)[0]

    def get_tower_tensors(self, towers: int) -> list[TowerInputs]:
        """Return the tensors of each tower: the function is called once."""
        self._require_setup("get_tower_tensors")
        return self._tensors(towers)

    def _tensors(self, towers: int) -> list[TowerInputs]:
        recorder = IteratorRecorder()
        with recorder.recording():
            tensors = check_tensors(self._function(), "get_tensor_fn")
        initializers = list(recorder.initializers.values())
        if self._batch_size:
            count = None if self.mode == ModeKeys.TRAIN else self._count
            tensors, initializers, self.endless = lift_batches(
                tensors, recorder, self.mode, self._batch_size, count=count, towers=towers
            )
        elif self._count is not None and self.mode != ModeKeys.TRAIN:
            self.endless = True  # it ends with its size, unless the tensors end before
        if self.signature and len(self.signature) != len(tensors):
            raise ModelSpecError(
                f"get_tensor_fn returned {len(tensors)} tensors, and the signature has {len(self.signature)}"
            )
        for tensor, spec in zip(tensors, self.signature, strict=bool(self.signature)):
            tensor.set_shape(spec.shape)
        rounds, more = input_rounds(tensors, recorder, towers)
        self._initializers += more or initializers
        return rounds

    def _reset_state(self) -> None:
        session = tf1.get_default_session()
        for initializer in self._initializers:
            session.run(initializer, self._start_feed)

    def _size(self) -> int:
        if self._count is None:
            raise NotImplementedError("this TensorInput was made without a size")
        if not self._batch_size:
            return self._count
        return self._count // self._batch_size if self.mode == ModeKeys.TRAIN else -(-self._count // self._batch_size)


class DummyConstantInput(TensorInput):
    """Zeros on the device of the model: what a step costs without any input.

    Args:
        shapes: of each tensor, with the batch dimension.
        dtypes: of each tensor; default those of the signature, else float32.
    """

    gives_batches = True
    endless = True

    def __init__(self, shapes: Sequence[Sequence[int]], dtypes: Sequence[Any] | None = None) -> None:
        super().__init__(self._zeros)
        self._shapes = [tuple(shape) for shape in shapes]
        self._dtypes = dtypes

    def make_batches(self, batch_size: int) -> None:
        """Do nothing: the shapes are those of batches."""

    def _setup(self, signature: tuple[Spec, ...]) -> None:
        dtypes = self._dtypes or [spec.dtype for spec in signature] or [tf.float32] * len(self._shapes)
        if len(dtypes) != len(self._shapes):
            raise ModelSpecError(f"DummyConstantInput has {len(self._shapes)} shapes and {len(dtypes)} dtypes")
        names = [spec.name for spec in signature] or [None] * len(dtypes)
        self.signature = as_signature(list(zip(dtypes, self._shapes, names, strict=True)))

    def _zeros(self) -> list[Any]:
        # No constants: a constant expression would be folded away with half of the model.
        with tf.device(None), self.cached_name_scope():
            return [tf1.placeholder_with_default(tf.zeros(s.shape, s.dtype), s.shape, s.name) for s in self.signature]
