"""Classify, regress and multi-inference: signatures that take tf.Examples, with the checks and texts of the original.

A classify signature has one input, `inputs`, which takes a vector of serialized tf.Examples, and the outputs `classes`
(strings) and `scores` (floats), or one of them, both [batch, classes]. A regress signature has the same input and one
output, `outputs`, floats [batch] or [batch, 1].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from google.protobuf import text_format

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.execution.context import RequestContext
from moxserve.serving.servable import Servable
from moxserve.types import CLASSIFY_METHOD, DEFAULT_SIGNATURE, REGRESS_METHOD, dtype_of

__all__ = [
    "Classification",
    "Inferred",
    "ReadExamples",
    "Regression",
    "Task",
    "classify_on",
    "infer_together",
    "regress_on",
]

_INPUT, _CLASSES, _SCORES, _VALUES = "inputs", "classes", "scores", "outputs"

ReadExamples = Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class Classification:
    """What a classify signature gave; at least one of the two.

    Attributes:
        classes: labels, [batch, classes] of bytes.
        scores: float32 [batch, classes].
    """

    classes: np.ndarray | None
    scores: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Regression:
    """What a regress signature gave.

    Attributes:
        values: float32 [batch].
    """

    values: np.ndarray


Result = TypeVar("Result", bound=Classification | Regression, covariant=True)


@dataclass(frozen=True, slots=True)
class Inferred(Generic[Result]):
    """The answer of a model to tf.Examples.

    Attributes:
        name: of the model.
        version: that answered.
        signature: key of the signature that was run.
        result: what it gave.
        examples: how many there were.
        run_s: how long the model itself ran, in s.
    """

    name: str
    version: int
    signature: str
    result: Result
    examples: int
    run_s: float


@dataclass(frozen=True, slots=True)
class Task:
    """One part of a multi-inference.

    Attributes:
        model: name of the model; all parts must name the same.
        signature: key of a signature; empty for `serving_default`.
        method: `CLASSIFY_METHOD` or `REGRESS_METHOD`.
    """

    model: str
    signature: str
    method: str


async def classify_on(
    servable: Servable,
    signature_name: str,
    examples: ReadExamples,
    context: RequestContext,
    *,
    check_method: bool = False,
) -> Inferred[Classification]:
    """Run a classify signature.

    Args:
        servable: the version.
        signature_name: key; empty for `serving_default`.
        examples: reads the serialized tf.Examples, once the signature is known to fit; its errors go to the caller.
        context: how long the caller waits.
        check_method: whether the signature must say that it is one of this method.

    Raises:
        InvalidArgument: there is no such signature, it is none for this method, or its results do not fit.
        ServingError: the model failed.
    """
    run = await _run_on(servable, Task(servable.name, signature_name, CLASSIFY_METHOD), examples, context, check_method)
    result = _read_classification(run.outputs, run.examples)
    return Inferred(servable.name, servable.version, run.signature, result, run.examples, run.run_s)


async def regress_on(
    servable: Servable,
    signature_name: str,
    examples: ReadExamples,
    context: RequestContext,
    *,
    check_method: bool = False,
) -> Inferred[Regression]:
    """Run a regress signature; see `classify_on`."""
    run = await _run_on(servable, Task(servable.name, signature_name, REGRESS_METHOD), examples, context, check_method)
    result = _read_regression(run.outputs, run.examples)
    return Inferred(servable.name, servable.version, run.signature, result, run.examples, run.run_s)


@dataclass(frozen=True, slots=True)
class _Run:
    signature: str
    outputs: Mapping[str, np.ndarray]
    examples: int
    run_s: float


async def _run_on(
    servable: Servable, task: Task, examples: ReadExamples, context: RequestContext, check_method: bool
) -> _Run:
    key = task.signature or DEFAULT_SIGNATURE
    call = servable.backend.calls.get(key)
    if call is None:
        raise InvalidArgument(f"No signature was found with the name: {key}")
    _check_signature(servable, call, task.method, check_method)
    array = examples()
    context.check()
    began = time.perf_counter()
    outputs = await servable.runner.run(key, {_INPUT: array}, None, context)
    return _Run(key, outputs, len(array), time.perf_counter() - began)


async def infer_together(
    servable: Servable,
    tasks: Sequence[Task],
    examples: ReadExamples,
    context: RequestContext,
    *,
    check_method: bool = False,
) -> list[Inferred[Classification | Regression]]:
    """Run classify and regress signatures on the same examples, all in one run of the model.

    Args:
        servable: the version, whichever the tasks name.
        tasks: what to run.
        examples: as of `classify_on`.
        context: how long the caller waits.
        check_method: as of `classify_on`.

    Returns:
        One answer a task, in their order. The run counts as that of each.

    Raises:
        InvalidArgument: the tasks name several models, a signature twice or one that is not there; and as
            `classify_on`.
        Unimplemented: a task is neither classify nor regress.
        ServingError: the model failed.
    """
    if not tasks:
        raise InvalidArgument("there is no task; expected signatures to run")
    keys: list[str] = []
    for task in tasks:
        keys.append(_check_task(servable, task, tasks[0].model, keys, check_method))
    array = examples()
    count = len(array)
    context.check()
    began = time.perf_counter()
    found = await servable.runner.run_together(keys, array, context)
    run_s = time.perf_counter() - began
    return [
        Inferred(servable.name, servable.version, key, _READERS[task.method](outputs, count), count, run_s)
        for task, key, outputs in zip(tasks, keys, found, strict=True)
    ]


def _check_task(servable: Servable, task: Task, model: str, before: Sequence[str], check_method: bool) -> str:
    if not task.model:
        raise InvalidArgument("Found ModelSpec with an empty model name.")
    if task.model != model:
        raise InvalidArgument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
    key = task.signature or DEFAULT_SIGNATURE
    if key in before:
        raise InvalidArgument(f"Duplicate evaluation of signature: {key}")
    call = servable.backend.calls.get(key)
    if call is None:
        raise InvalidArgument(f"Requested signature not found in model graph: {key}")
    if task.method not in _READERS:
        raise Unimplemented(f"Unsupported signature method_name: {task.method}")
    _check_signature(servable, call, task.method, check_method)
    return key


# Signatures


def _check_signature(servable: Servable, call: CallSignature, method: str, check_method: bool) -> None:
    signature = call.signature
    kind = "classification" if method == CLASSIFY_METHOD else "regression"
    if check_method and signature.method != method:
        raise InvalidArgument(f"Expected {kind} signature method_name to be {method}. Was: {signature.method}")
    if len(signature.inputs) != 1:
        raise InvalidArgument("Expected one input Tensor.")
    count = len(signature.outputs)
    if method == REGRESS_METHOD and count != 1:
        raise InvalidArgument("Expected one output Tensor.")
    if method == CLASSIFY_METHOD and count not in (1, 2):
        raise InvalidArgument(f"Expected one or two output Tensors, found {count}")
    if _INPUT not in signature.inputs:
        raise InvalidArgument(f"No {kind} inputs found in SignatureDef: {_text(servable, signature.name)}")
    if method == REGRESS_METHOD and _VALUES not in signature.outputs:
        raise InvalidArgument(f"No {kind} outputs found in SignatureDef: {_text(servable, signature.name)}")
    if method == CLASSIFY_METHOD and not {_CLASSES, _SCORES} & signature.outputs.keys():
        raise InvalidArgument(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}". '
            f"Signature was: {_text(servable, signature.name)}"
        )


def _text(servable: Servable, key: str) -> str:
    text: str = text_format.MessageToString(servable.backend.signature_defs.signature_def[key])
    return text


# Results


def _read_classification(outputs: Mapping[str, np.ndarray], examples: int) -> Classification:
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    if classes is not None:
        _check_batch(_CLASSES, classes, "DT_STRING", examples)
    if scores is not None:
        _check_batch(_SCORES, scores, "DT_FLOAT", examples)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise InvalidArgument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    return Classification(classes, scores)


def _check_batch(alias: str, array: np.ndarray, dtype: str, examples: int) -> None:
    if array.ndim != 2:
        raise InvalidArgument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
    if (came := dtype_of(array).enum_name) != dtype:
        raise InvalidArgument(f"Expected {alias} Tensor of {dtype}. Got: {came}")
    if len(array) != examples:
        raise InvalidArgument(f"Expected {alias} output batch size of {examples}. Got: {len(array)}")


def _read_regression(outputs: Mapping[str, np.ndarray], examples: int) -> Regression:
    array = outputs[_VALUES]
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        raise InvalidArgument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}"
        )
    if len(array) != examples:
        raise InvalidArgument(f"Input batch size did not match output batch size: {examples} vs. {len(array)}")
    if (came := dtype_of(array).enum_name) != "DT_FLOAT":
        # Two blanks, as in the original.
        raise InvalidArgument(f"Expected output Tensor of DT_FLOAT.  Got: {came}")
    return Regression(array.reshape(-1))


_READERS: Mapping[str, Callable[[Mapping[str, np.ndarray], int], Classification | Regression]] = {
    CLASSIFY_METHOD: _read_classification,
    REGRESS_METHOD: _read_regression,
}


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
