"""Inputs against a signature: names, dtypes and shapes, refused before anything is sent.

Conversions: an array is converted only when every value of its dtype exists in the wanted one (uint8 to float32, int32
to int64, never float64 to float32). Plain Python numbers have no width, so they take the wanted dtype: floats any
floating type, whole numbers any type that holds their values exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.client.calls import Array
from moxserve.errors import InvalidArgument, UsageError, did_you_mean
from moxserve.protocol.tensors import to_array
from moxserve.types import DType, Signature, TensorSpec, dtype_of

__all__ = ["check_outputs", "fit_inputs", "fit_tensor", "pick_signature", "unchecked_inputs"]


def pick_signature(signatures: Mapping[str, Signature], name: str, model: str) -> Signature:
    """Return the signature of a name.

    Raises:
        UsageError: the model has none of that name; lists those that it has.
    """
    try:
        return signatures[name]
    except KeyError:
        raise UsageError(
            f"model {model!r} has no signature {name!r}; {did_you_mean(name, signatures)}",
            hint="\n      ".join(str(s) for s in signatures.values()) or None,
        ) from None


def fit_inputs(inputs: Any, signature: Signature) -> dict[str, Array]:
    """Check and convert all inputs of a call.

    Args:
        inputs: values by alias, or the value itself when the signature has one input.
        signature: what the model expects.

    Returns:
        Arrays by alias, of the signature's dtypes.

    Raises:
        UsageError: a name, dtype or shape does not fit; the message ends with the expected signature.
    """
    try:
        named = _by_name(inputs, signature.inputs)
        return {alias: fit_tensor(value, signature.inputs[alias]) for alias, value in named.items()}
    except UsageError as error:
        hint = f"expected {signature}"
        raise UsageError(error.message, hint=f"{error.hint}\n      {hint}" if error.hint else hint) from None


def _by_name(inputs: Any, specs: Mapping[str, TensorSpec]) -> Mapping[str, Any]:
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise UsageError(f"a bare array fits a signature with one input; this one has {len(specs)}: {_list(specs)}")
        return {next(iter(specs)): inputs}
    unknown = [name for name in inputs if name not in specs]
    if unknown:
        raise UsageError(f"no input is named {unknown[0]!r}; {did_you_mean(str(unknown[0]), specs)}")
    missing = [name for name in specs if name not in inputs]
    if missing:
        raise UsageError(
            f"missing {_plural('input', missing)} {_list(missing)}; got {_list(inputs)}",
            hint="if the model has a default for it, a client made with check=False may leave it out",
        )
    return inputs


def _plural(word: str, items: Sequence[object]) -> str:
    return word if len(items) == 1 else f"{word}s"


def _list(names: Any) -> str:
    return ", ".join(repr(n) for n in names) or "none"


def fit_tensor(value: Any, spec: TensorSpec) -> Array:
    """Check and convert one input.

    Raises:
        UsageError: the dtype cannot be converted without loss, or the shape does not fit.
    """
    array = _of_dtype(value, spec)
    if spec.shape is not None and not _shape_fits(array.shape, spec.shape):
        raise UsageError(
            f"input {spec.name!r} has shape {list(array.shape)}; expected {spec}", hint=_shape_hint(array, spec)
        )
    return array


def _shape_fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == s for s, w in zip(shape, wanted, strict=True))


def _shape_hint(array: Array, spec: TensorSpec) -> str:
    if spec.shape and spec.shape[0] is None and _shape_fits(array.shape, spec.shape[1:]):
        return "the first dimension counts rows: add it with array[None]"
    if spec.shape and _shape_fits((*array.shape, 1), spec.shape):
        return "the last dimension is missing: add it with array[..., None]"
    return "a client made with check=False sends it as it is"


def _of_dtype(value: Any, spec: TensorSpec) -> Array:
    try:
        plain = not isinstance(value, (np.ndarray, np.generic)) and not hasattr(value, "__array__")
        array = np.asarray(value)
        found = dtype_of(array)
    except ValueError as error:
        raise UsageError(
            f"input {spec.name!r} is ragged ({error}); expected lists of equal length at each level"
        ) from None
    except InvalidArgument as error:
        raise UsageError(f"input {spec.name!r}: {error.message}") from None
    if spec.dtype.name == "string" or found.name == "string":
        return _of_strings(value, found, spec)
    if found == spec.dtype:
        return array if array.dtype.isnative else array.astype(spec.dtype.numpy)
    if plain:
        return _of_numbers(array, spec)
    if not np.can_cast(array.dtype, spec.dtype.numpy, "safe"):
        raise UsageError(
            f"input {spec.name!r} is {found.name}, which {spec.dtype.name} cannot hold without loss",
            hint=f"convert it yourself if that is meant: array.astype({_numpy_name(spec.dtype)!r})",
        )
    return array.astype(spec.dtype.numpy)


def _numpy_name(dtype: DType) -> str:
    return str(dtype.numpy)


def _of_strings(value: Any, found: DType, spec: TensorSpec) -> Array:
    if found != spec.dtype:
        raise UsageError(f"input {spec.name!r} is {found.name}; expected {spec.dtype.name}")
    try:
        return to_array(value)
    except InvalidArgument as error:
        raise UsageError(f"input {spec.name!r}: {error.message}") from None


def _of_numbers(array: Array, spec: TensorSpec) -> Array:
    """Give plain Python numbers the wanted width; refuse what would change their values."""
    kind, wanted = array.dtype.kind, spec.dtype.numpy
    floating = spec.dtype.name in ("bfloat16", "float16", "float32", "float64")
    if array.size == 0 or (kind == "f" and floating) or (kind in "fc" and wanted.kind == "c"):
        return array.astype(wanted)
    if kind == "b" and wanted.kind != "b":
        raise UsageError(f"input {spec.name!r} holds true/false; expected {spec.dtype.name}")
    if kind in "iu" and wanted.kind != "b":
        with np.errstate(all="ignore"):
            cast = array.astype(wanted)
        if np.array_equal(cast.astype(object), array.astype(object)):
            return cast
        raise UsageError(
            f"input {spec.name!r} holds {_outlier(array, cast)}, which {spec.dtype.name} cannot hold exactly"
        )
    raise UsageError(f"input {spec.name!r} holds {dtype_of(array).name} values; expected {spec.dtype.name}")


def _outlier(array: Array, cast: Array) -> str:
    where = np.flatnonzero(cast.astype(object).reshape(-1) != array.astype(object).reshape(-1))
    return str(array.reshape(-1)[where[0]])


def check_outputs(outputs: Sequence[str] | None, signature: Signature) -> None:
    """Check the names of wanted outputs.

    Raises:
        UsageError: one is unknown or given twice.
    """
    for index, name in enumerate(outputs or ()):
        if name not in signature.outputs:
            raise UsageError(
                f"no output is named {name!r}; {did_you_mean(name, signature.outputs)}", hint=f"expected {signature}"
            )
        if name in (outputs or ())[:index]:
            raise UsageError(f"output {name!r} is asked for twice")


def unchecked_inputs(inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Turn inputs into arrays without a signature; dtypes stay as they are, Python floats become float32.

    Raises:
        UsageError: a value is ragged or of a type that no tensor carries.
    """
    try:
        return {str(alias): to_array(value) for alias, value in inputs.items()}
    except InvalidArgument as error:
        raise UsageError(error.message) from None
