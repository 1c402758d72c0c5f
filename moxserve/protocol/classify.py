"""Bodies and messages of classify and regress: JSON to tf.Examples, results to JSON and to messages. No sockets.

Request: an object with `examples`, a list of objects from feature name to value or list of values; `context`
(optional), one such object, whose features all examples have unless they have their own; and `signature_name`
(optional). Nothing says what kind a feature is, so it is taken from the JSON: text and `{"b64": "..."}` are bytes,
numbers with a fraction or an exponent, NaN and Infinity are floats, whole numbers are int64, true and false are int64 1
and 0. So a float feature must be written `2.0`, not `2`. An empty list makes a feature without kind.

Answer: `{"results": [...]}` with one element an example: a list of `[label, score]` for classify, where a model
without labels gives `""` and one without scores 0.0; a number for regress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.examples import with_context
from moxserve.protocol.json_values import as_bytes, excerpt, is_b64, kind_of, read_object, write_floats, write_string
from moxserve.protocol.wire import sized, tag

__all__ = [
    "ExamplesBody",
    "fill_classification",
    "fill_regression",
    "parse_examples",
    "write_classify",
    "write_regress",
]

# Field 1 holds the results of a message, and theirs; a score is field 2 and a value field 1, of four bytes each.
_RESULTS, _SCORE_TAG, _VALUE_TAG = 1, 0x15, 0x0D
_INT64_MIN, _INT64_MAX, _UINT64_MAX = -(2**63), 2**63 - 1, 2**64 - 1
_KINDS: Mapping[type, str] = {float: "float", str: "bytes", bool: "int64"}


@dataclass(frozen=True, slots=True)
class ExamplesBody:
    """A classify or regress request.

    Attributes:
        signature_name: as asked for; empty when it is not.
        examples: serialized tf.Examples, 1-D object array of bytes.
    """

    signature_name: str
    examples: np.ndarray


def parse_examples(body: bytes) -> ExamplesBody:
    """Read a classify or regress request.

    Raises:
        InvalidArgument: the body is not as the module tells; with the text of tensorflow_model_server.
    """
    name, document = read_object(body)
    context = _example(document["context"]) if "context" in document else None
    if "examples" not in document:
        # The original says this of regress too, and clients look for its text.
        raise InvalidArgument(
            f"JSON Value: {excerpt(document)} When method is classify, key 'examples' is expected and was not found"
        )
    listed = document["examples"]
    if type(listed) is not list:
        raise InvalidArgument(f"JSON Value: {excerpt(document)} Expecting 'examples' value to be an list/array")
    if not listed:
        raise InvalidArgument(f"JSON Value: {excerpt(document)} 'examples' value is an empty array")
    return ExamplesBody(name, with_context(map(_example, listed), context))


def _example(value: Any) -> Any:
    if type(value) is not dict:
        raise InvalidArgument(f"Example must be JSON object but got JSON {kind_of(value)}")
    example = messages.Example()
    features = example.features.feature
    for name, content in value.items():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"JSON Parse error: the feature name {name!r} is not UTF-8") from None
        _fill_feature(features[name], name, content if type(content) is list else [content])
    return example


def _fill_feature(feature: Any, name: str, values: list[Any]) -> None:
    if not values:
        return
    kind = _sure_kind(values) or _common_kind(name, values)
    if kind == "bytes":
        feature.bytes_list.value.extend(map(as_bytes, values))
    elif kind == "float":
        feature.float_list.value.extend(_as_float32(values))
    else:
        feature.int64_list.value.extend(map(int, values))


def _sure_kind(values: Sequence[Any]) -> str:
    """Tell the kind of a list of one type, as lists are as a rule, without a look at each element; else empty."""
    types = set(map(type, values))
    if types == {int}:
        return "int64" if min(values) >= _INT64_MIN and max(values) <= _INT64_MAX else ""
    return _KINDS.get(types.pop(), "") if len(types) == 1 else ""


def _common_kind(name: str, values: Sequence[Any]) -> str:
    common = _kind(name, values[0])
    for value in values:
        if _kind(name, value) != common:
            raise InvalidArgument(f"Unexpected element type in feature: {name} expecting type: {common}")
        if type(value) is int and _INT64_MAX < value <= _UINT64_MAX:
            raise InvalidArgument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    return common


def _kind(name: str, value: Any) -> str:
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    if type(value) is int:
        # What has no 64 bits is read as a double.
        return "int64" if _INT64_MIN <= value <= _UINT64_MAX else "float"
    if is_b64(value):
        return "bytes"
    raise InvalidArgument(f"Feature: {name} has element with unexpected JSON type: {kind_of(value)}")


def _as_float32(values: Sequence[float]) -> list[float]:
    try:
        doubles = np.array(list(map(float, values)), dtype=np.float64)
    except OverflowError:
        raise InvalidArgument("JSON Parse error: Number too big to be stored in double.") from None
    with np.errstate(over="ignore"):
        floats: list[float] = doubles.astype(np.float32).tolist()
    return floats


# Results


def write_classify(classes: np.ndarray | None, scores: np.ndarray | None) -> bytes:
    """Write the answer to a classify request.

    Args:
        classes: labels, [batch, classes] of bytes; None when the model gives none.
        scores: float32 [batch, classes]; None when the model gives none.

    Raises:
        InvalidArgument: there is no result.
    """
    (batch, width), labels, numbers = _cells(classes, scores)
    if batch == 0:
        raise InvalidArgument("Cannot convert empty ClassificationResults to JSON")
    written = {label: write_string(label) for label in set(labels)}
    cells = [f"[{written[label]}, {n}]" for label, n in zip(labels, write_floats(numbers), strict=True)]
    rows = ["[" + ", ".join(cells[i * width : (i + 1) * width]) + "]" for i in range(batch)]
    return ('{\n    "results": [' + ", ".join(rows) + "\n    ]\n}").encode()


def write_regress(values: np.ndarray) -> bytes:
    """Write the answer to a regress request.

    Args:
        values: float32 [batch].

    Raises:
        InvalidArgument: there is no result.
    """
    if not len(values):
        raise InvalidArgument("Cannot convert empty RegressionResults to JSON")
    return ('{\n    "results": [' + ", ".join(write_floats(values)) + "]\n}").encode()


def fill_classification(message: Any, classes: np.ndarray | None, scores: np.ndarray | None) -> None:
    """Fill a ClassificationResult message; see `write_classify` for the arguments.

    A label that is no UTF-8, which the message cannot hold, gets replacement characters.
    """
    (batch, width), labels, numbers = _cells(classes, scores)
    heads = {label: _label_head(label) for label in set(labels)}
    cells = list(chain.from_iterable(zip(map(heads.__getitem__, labels), _raw_floats(numbers), strict=True)))
    step = 2 * width
    rows = [b"".join(cells[at : at + step]) for at in range(0, batch * step, step)] if step else [b""] * batch
    message.MergeFromString(b"".join([sized(_RESULTS, row) for row in rows]))


def _label_head(label: bytes) -> bytes:
    """Return a Class message with its tag, up to the four bytes of its score."""
    text = sized(1, label.decode("utf-8", "replace").encode()) if label else b""
    return tag(_RESULTS, len(text) + 5) + text + bytes([_SCORE_TAG])


def _raw_floats(numbers: np.ndarray) -> list[bytes]:
    """Return the four bytes of each number."""
    found: list[bytes] = np.frombuffer(np.ascontiguousarray(numbers, "<f4"), "V4").tolist()
    return found


def fill_regression(message: Any, values: np.ndarray) -> None:
    """Fill a RegressionResult message from float32 [batch]."""
    head = tag(_RESULTS, 5) + bytes([_VALUE_TAG])
    message.MergeFromString(b"".join([head + value for value in _raw_floats(values)]))


def _cells(classes: np.ndarray | None, scores: np.ndarray | None) -> tuple[tuple[int, int], list[bytes], np.ndarray]:
    """Return shape, labels and scores row by row; what is missing is the default of its field."""
    given = scores if classes is None else classes
    if given is None:
        raise InvalidArgument("a classification has neither classes nor scores")
    labels = [b""] * given.size if classes is None else classes.reshape(-1).tolist()
    numbers = np.zeros(given.size, np.float32) if scores is None else scores.reshape(-1)
    return (given.shape[0], given.shape[1]), labels, numbers
