"""Which requests may meet: a lane holds those that feed and fetch the same tensors of one loaded version.

Under BatchingParameters every request is put together with others, as in tensorflow_model_server, and one that has no
rows is refused. Without them only what says that it works row by row is: each input and output of the signature has a
first dimension that may vary, and the arrays of the request have as many dimensions as the signature says. Everything
else runs by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moxserve.errors import InvalidArgument
from moxserve.serving.backends.base import Backend
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.batching.execute import Model
from moxserve.types import CLASSIFY_METHOD, REGRESS_METHOD, Signature, TensorSpec

__all__ = ["Form", "Key", "common_rows", "form_of", "form_together"]

Key = tuple[object, ...]

_BY_EXAMPLE = (CLASSIFY_METHOD, REGRESS_METHOD)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to ask a version, and how that maps to a lane.

    Attributes:
        key: of the lane: requests of forms with equal keys meet.
        name: of the signature, or several, for the log.
        model: runs a batch of the lane.
        model_here: the same for one that is known to be quick, on the calling thread.
        feeds: input aliases of the request in the order of the lane.
        ranks: how many dimensions each must have to be put together with others; empty
            when that does not matter.
        fetches: names of what comes out, in the order of the lane.
    """

    key: Key
    name: str
    model: Model
    model_here: Model
    feeds: tuple[str, ...]
    ranks: tuple[int, ...]
    fetches: tuple[str, ...]


def form_of(
    backend: Backend, name: str, sent: Sequence[str], asked: Sequence[str] | None, *, rows_only: bool
) -> Form | None:
    """Find the lane of a request for one signature.

    Args:
        backend: the version.
        name: key of the signature.
        sent: aliases of the inputs of the request.
        asked: aliases of the outputs to compute; None or empty for all.
        rows_only: whether the signature must say that it works row by row.

    Returns:
        None when the request must be run by itself; also when there is no such signature, which the run will tell.

    Raises:
        InvalidArgument: inputs or outputs do not fit the signature.
    """
    call = backend.calls.get(name)
    if call is None:
        return None
    call.match_inputs(sent)
    fetches = call.match_outputs(asked)
    left_out = [alias for alias in call.input_names if alias not in sent]
    if any(call.defaults[alias].ndim for alias in left_out):
        # It may or may not have rows, and would then have to grow with the batch.
        return None
    inputs = [call.signature.inputs[alias] for alias in sorted(sent)]
    outputs = [call.signature.outputs[alias] for alias in fetches]
    by_example = call.signature.method in _BY_EXAMPLE
    if rows_only and not (by_example or (_vary(inputs) and _vary(outputs))):
        return None
    feeds, fetched = _ordered(call.signature.inputs, sorted(sent)), _ordered(call.signature.outputs, fetches)
    key = (_tensors(call, feeds, inputs=True), _tensors(call, fetched, inputs=False), name if left_out else "")

    def model(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = backend.run(name, dict(zip(feeds, arrays, strict=True)), fetched)
        return [found[alias] for alias in fetched]

    def model_here(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = backend.run_here(name, dict(zip(feeds, arrays, strict=True)), fetched)
        return [found[alias] for alias in fetched]

    ranks = tuple(_rank(call.signature.inputs[alias], by_example) for alias in feeds) if rows_only else ()
    return Form(key, name, model, model_here, feeds, ranks, fetched)


def form_together(backend: Backend, names: Sequence[str]) -> Form | None:
    """Find the lane of a request for several signatures of classify and regress, which work example by example.

    Its only input is the array of examples, its outputs are named `signature NUL alias`.

    Returns:
        None when there is no such signature, which the run will tell.
    """
    if any(name not in backend.calls for name in names):
        return None
    names = sorted(names)
    fetches = [(i, name, alias) for i, name in enumerate(names) for alias in backend.calls[name].output_names]

    def model(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = backend.run_together(names, arrays[0])
        return [found[i][alias] for i, _, alias in fetches]

    labels = tuple(f"{name}\0{alias}" for _, name, alias in fetches)
    return Form(("together", *names), ", ".join(names), model, model, ("",), (1,), labels)


def _vary(specs: Sequence[TensorSpec]) -> bool:
    return bool(specs) and all(spec.shape is not None and spec.shape[:1] == (None,) for spec in specs)


def _rank(spec: TensorSpec, by_example: bool) -> int:
    # Signatures of tf.Examples often leave their shape open; they take vectors.
    return 1 if by_example and spec.shape is None else len(spec.shape or ())


def _ordered(specs: Mapping[str, TensorSpec], aliases: Sequence[str]) -> tuple[str, ...]:
    """Order aliases by their tensors, so that signatures that name the same tensors otherwise agree."""
    return tuple(sorted(aliases, key=lambda alias: (specs[alias].tensor, alias)))


def _tensors(call: CallSignature, aliases: Sequence[str], *, inputs: bool) -> Key:
    signature: Signature = call.signature
    specs = signature.inputs if inputs else signature.outputs
    tensors = [specs[alias].tensor for alias in aliases]
    if all(tensors) and len(set(tensors)) == len(tensors):
        return tuple(tensors)
    # Without names of tensors, or with two aliases for one, only requests of this signature are sure to mean the same.
    return (signature.name, *aliases)


def common_rows(arrays: Sequence[np.ndarray]) -> int:
    """Return the first dimension of the inputs of a request.

    Raises:
        InvalidArgument: there is no input, one has no dimension, or they differ.
    """
    if not arrays:
        raise InvalidArgument("Batching Run() must have at least one input tensor")
    if any(array.ndim == 0 for array in arrays):
        raise InvalidArgument("Batching Run() input tensors must have at least one dimension")
    rows = len(arrays[0])
    if any(len(array) != rows for array in arrays):
        raise InvalidArgument("Batching Run() input tensors must have equal 0th-dimension size")
    return rows
