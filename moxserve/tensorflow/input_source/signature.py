"""What an input gives: dtype, shape and name of each component.

It is read from what a user writes, or off a datapoint, and held against every further one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.errors import DataError, ModelSpecError
from moxserve.tensorflow.executor.env import tf
from moxserve.types import DTYPES, TensorSpec

__all__ = ["Spec", "as_signature", "batched", "components", "fit", "infer"]

# `tf.TensorSpec`; TensorFlow has no types.
Spec = Any
_ML_DTYPES = frozenset(d.numpy.name for d in DTYPES if d.numpy.kind == "V")
_EXAMPLE = "signature=[tf.TensorSpec([28, 28], tf.uint8, 'image'), tf.TensorSpec([], tf.int32, 'label')]"


def as_signature(entries: Sequence[Any]) -> tuple[Spec, ...]:
    """Read a signature: `tf.TensorSpec`s, moxserve's own, placeholders, or tuples of dtype, shape and name.

    Args:
        entries: one a component.

    Returns:
        `tf.TensorSpec`s, all with a name.

    Raises:
        ModelSpecError: an entry is none of those.
    """
    if not isinstance(entries, (list, tuple)):
        raise ModelSpecError(f"a signature is a list, not {type(entries).__name__}", hint=_EXAMPLE)
    return tuple(_spec(entry, position) for position, entry in enumerate(entries))


def _spec(entry: Any, position: int) -> Spec:
    if isinstance(entry, TensorSpec):
        return tf.TensorSpec(entry.shape, tf.as_dtype(entry.dtype.name), entry.name)
    # tensorpack's InputDesc calls the dtype `type`.
    dtype, shape = getattr(entry, "dtype", None) or getattr(entry, "type", None), getattr(entry, "shape", None)
    name = getattr(entry, "name", None)
    if isinstance(entry, (list, tuple)) and len(entry) in (2, 3) and not hasattr(entry, "dtype"):
        dtype, shape, name = (*entry, None)[:3]
    try:
        made = tf.TensorSpec(shape, tf.as_dtype(dtype))
    except (TypeError, ValueError) as error:
        raise ModelSpecError(f"signature[{position}] is {entry!r}, no TensorSpec: {error}", hint=_EXAMPLE) from error
    return tf.TensorSpec(made.shape, made.dtype, str(name or f"input_{position}").partition(":")[0])


def batched(signature: Sequence[Spec], rows: int | None) -> tuple[Spec, ...]:
    """Put a dimension of rows in front of each shape; None where it varies."""
    return tuple(tf.TensorSpec(tf.TensorShape([rows]).concatenate(s.shape), s.dtype, s.name) for s in signature)


def components(datapoint: Any, what: str) -> dict[str, Any]:
    """Take a datapoint apart: `input_0`, `input_1`, ... of a list or tuple; a dict's own names, sorted.

    Args:
        datapoint: a list, tuple or dict.
        what: whose it is, for messages.

    Raises:
        DataError: it is neither.
    """
    if isinstance(datapoint, Mapping):
        return {str(name): datapoint[name] for name in sorted(datapoint)}
    if isinstance(datapoint, (list, tuple)):
        return {f"input_{position}": value for position, value in enumerate(datapoint)}
    raise DataError(
        f"{what} gave a datapoint of type {type(datapoint).__name__}; expected a list of components",
        hint="yield [image, label], or [image] where there is only one",
    )


def _as_array(value: Any, name: str, what: str) -> np.ndarray:
    """Make an array of numbers or text.

    Raises:
        DataError: it is nothing that a tensor can hold.
    """
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except ValueError:  # lists in lists of different lengths
        array = np.empty(0, object)
        usable = False
    else:
        usable = array.dtype.kind in "biufcSU" or (array.dtype == object and _is_text(array))
        usable = usable or array.dtype.name in _ML_DTYPES
    if not usable:
        raise DataError(
            f"{what}: {name} is {type(value).__name__} of dtype {array.dtype}, which no tensor can hold",
            hint="are its rows of different shapes? bring them to one shape",
        )
    return array


def _array(value: Any, name: str, what: str) -> np.ndarray:
    """What a component is without a signature: Python's numbers are 32 bits wide, as in tensorpack."""
    array = _as_array(value, name, what)
    if type(value) is int and np.iinfo(np.int32).min <= value <= np.iinfo(np.int32).max:
        return array.astype(np.int32)
    return array.astype(np.float32) if type(value) is float else array


def infer(datapoint: Any, what: str, rows: int | None = None, fixed: bool = False) -> tuple[Spec, ...]:
    """Read a signature off a datapoint.

    Args:
        datapoint: the first one: a batch.
        what: whose it is, for messages.
        rows: length of the first dimension where it is known to be fixed.
        fixed: whether shapes are taken as they are, without a first dimension that varies.

    Raises:
        DataError: a component is nothing that a tensor can hold.
    """
    signature = []
    for name, value in components(datapoint, what).items():
        array = _array(value, name, what)
        dtype = tf.string if array.dtype.kind in "SUO" else tf.as_dtype(array.dtype)
        shape = list(array.shape)
        if shape and not fixed:
            shape[0] = rows
        signature.append(tf.TensorSpec(shape, dtype, name))
    return tuple(signature)


def _is_text(array: np.ndarray) -> bool:
    return array.dtype == object and all(isinstance(item, (str, bytes)) for item in array.flat)


def fit(datapoint: Any, signature: Sequence[Spec], what: str) -> list[np.ndarray]:
    """Turn a datapoint into arrays that fit a signature.

    Numbers may be narrowed within their kind (float64 to float32), never changed to another one (float to int).

    Raises:
        DataError: it has another number of components, or one has another dtype or shape.
    """
    found = components(datapoint, what)
    names = [spec.name for spec in signature]
    if isinstance(datapoint, Mapping) and set(names) == set(found):
        found = {name: found[name] for name in names}
    if len(found) != len(signature):
        raise DataError(
            f"{what} gave a datapoint of {len(found)} components ({', '.join(found)}); the signature has "
            f"{len(signature)}: {', '.join(names)}"
        )
    return [_fit(value, spec, what) for value, spec in zip(found.values(), signature, strict=True)]


def _fit(value: Any, spec: Spec, what: str) -> np.ndarray:
    wanted = np.dtype(spec.dtype.as_numpy_dtype)
    array = _as_array(value, spec.name, what)
    if spec.dtype == tf.string:
        usable = array.dtype.kind in "SUO"
        array = array.astype(object) if usable else array
    else:
        # A Python number is as wide as it needs to be.
        usable = np.can_cast(array.dtype, wanted, "same_kind") or (type(value) is int and _holds(wanted, value))
        array = array.astype(wanted, copy=False) if usable else array
    if not usable:
        raise DataError(
            f"{what} gave {array.dtype} for {spec.name!r}, which is {spec.dtype.name}",
            hint="convert it in the data flow, or give another signature",
        )
    if not spec.shape.is_compatible_with(array.shape):
        raise DataError(
            f"{what} gave the shape {list(array.shape)} for {spec.name!r}, which is {spec.shape}",
            hint="give signature=[tf.TensorSpec(...)] with None for dimensions that vary",
        )
    return array


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    return dtype.kind == "f" or (dtype.kind in "iu" and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
