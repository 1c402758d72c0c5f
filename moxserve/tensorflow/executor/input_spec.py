"""`mox.InputSpec`: inputs in groups, and batches that are made once and cut into a slice for each device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.batching import check_tensors
from moxserve.tensorflow.executor.branch import Inputs
from moxserve.tensorflow.executor.calls import call_with_mode
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.rounds import TowerInputs

__all__ = ["InputSpec", "grouped", "split_to_towers"]

_EXAMPLE = "input_spec = mox.InputSpec(split_to_device=True); input_spec.new_input([image, label]); return input_spec"


class InputSpec:
    """What `input_fn` may return in place of tensors: groups of them.

        def input_fn(mode, **kwargs):
            ...
            return mox.InputSpec(split_to_device=True).new_input([images, labels])

        def model_fn(inputs, mode, **kwargs):
            images, labels = inputs.get_input(0)

    Args:
        split_to_device: the batch that `input_fn` makes is for all devices of the process, and each gets an equal slice
            of it. False: each device gets a batch of its own. Where the executor makes the batches (`auto_batch`) the
            rows that a device gets are the same either way.
    """

    def __init__(self, split_to_device: bool = False) -> None:
        self.split_to_device = bool(split_to_device)
        self._groups: list[list[Any]] = []

    def new_input(self, inputs: Any) -> InputSpec:
        """Add a group, which `model_fn` gets with `inputs.get_input(index)`, counted from 0 in the order of the calls.

        Args:
            inputs: a tensor, or a list or tuple of tensors.

        Returns:
            This InputSpec.

        Raises:
            ModelSpecError: it is something else.
        """
        self._groups.append(check_tensors(inputs, "InputSpec.new_input"))
        return self

    @property
    def tensors(self) -> list[Any]:
        """The tensors of all groups.

        Raises:
            ModelSpecError: there are none.
        """
        if not self._groups:
            raise ModelSpecError("input_fn returned an InputSpec without any input", hint=_EXAMPLE)
        return [tensor for group in self._groups for tensor in group]

    @property
    def groups(self) -> tuple[int, ...]:
        """How many tensors each group has."""
        return tuple(len(group) for group in self._groups)


def split_to_towers(tensors: Sequence[Any], towers: int) -> list[TowerInputs]:
    """Cut batches into one slice for each tower; scalars are for all of them.

    Args:
        tensors: batches, of the same number of rows.
        towers: how many slices.

    Raises:
        ModelSpecError: the rows are known, and are no multiple of the towers.
    """
    for position, tensor in enumerate(tensors):
        rows = tensor.shape[0] if tensor.shape.rank else None
        if rows is not None and rows % towers:
            raise ModelSpecError(
                f"InputSpec(split_to_device=True): input {position} has {rows} rows, which cannot be cut into equal "
                f"slices for {towers} devices",
                hint=f"make batches of a multiple of {towers} rows",
            )
    slices = [[tensor] * towers if tensor.shape.rank == 0 else tf.split(tensor, towers) for tensor in tensors]
    return [TowerInputs(parts) for parts in zip(*slices, strict=True)]


def grouped(model_fn: Callable[..., Any], groups: Sequence[int]) -> Callable[..., Any]:
    """Let a model_fn that is called outside of the run, with plain tensors, find the groups of the run's input."""
    if not groups:
        return model_fn

    def call(inputs: Any, mode: str) -> Any:
        return call_with_mode(model_fn, (Inputs(inputs, groups),), mode, "model_fn")

    return call
