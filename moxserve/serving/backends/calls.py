"""The rules of a call that need no runtime: which inputs must be sent, which outputs may be asked for.

Codes and texts are those of tensorflow_model_server, since clients look for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from moxserve.errors import FailedPrecondition, InvalidArgument
from moxserve.protocol.tensors import from_proto
from moxserve.types import Signature

__all__ = ["CallSignature", "checked", "find_call"]

_CPP_NAMES = {"float32": "float", "float64": "double", "float16": "half", "object": "string"}


class CallSignature:
    """A signature with the defaults of its inputs, ready to check requests against.

    Args:
        signature: what is called.
        defaults: values of inputs that a request may leave out, by alias.

    Attributes:
        signature: as given.
        input_names: aliases, sorted.
        output_names: aliases, sorted.
        defaults: as given.
    """

    def __init__(self, signature: Signature, defaults: Mapping[str, np.ndarray] | None = None) -> None:
        self.signature = signature
        self.defaults = dict(defaults or {})
        self.input_names = tuple(sorted(signature.inputs))
        self.output_names = tuple(sorted(signature.outputs))
        self._inputs = frozenset(self.input_names)
        self._outputs = frozenset(self.output_names)

    @classmethod
    def from_def(cls, signature: Signature, definition: Any) -> CallSignature:
        """Take the defaults from a SignatureDef message."""
        return cls(signature, {alias: from_proto(proto) for alias, proto in definition.defaults.items()})

    def match_inputs(self, sent: Collection[str]) -> None:
        """Check the names of the inputs of a request.

        Raises:
            InvalidArgument: one is missing and has no default, or one is not known.
        """
        names = frozenset(sent)
        if names == self._inputs:
            return
        if len(names) > len(self._inputs) or (len(names) < len(self._inputs) and not self.defaults):
            extra, missing = _listed(names - self._inputs), _listed(self._inputs - names)
            raise InvalidArgument(
                f"input size does not match signature: {len(names)}!={len(self._inputs)} "
                f"len({_listed(names)}) != len({_listed(self._inputs)}). "
                f"Sent extra: {extra}. Missing but required: {missing}."
            )
        for alias in self.input_names:
            if alias not in names and alias not in self.defaults:
                raise InvalidArgument(
                    f"Signature input alias: {alias}(feed name: {self.signature.inputs[alias].tensor}) not found in "
                    f"request and no default value provided. Inputs expected to be in the request {_listed(names)}, "
                    f"or default input alias set: {_listed(self.defaults)}."
                )
        if not names <= self._inputs:
            raise InvalidArgument(
                f"Inputs contains invalid name. Used request inputs: {_listed(names & self._inputs)}, "
                f"request input: {_listed(names)}"
            )

    def match_outputs(self, asked: Collection[str] | None) -> tuple[str, ...]:
        """Return the outputs to compute, in a stable order.

        Args:
            asked: the output filter; None or empty asks for all.

        Raises:
            InvalidArgument: one is not known, or is named twice.
        """
        if not asked:
            return self.output_names
        seen: set[str] = set()
        for alias in asked:
            if alias not in self._outputs:
                raise InvalidArgument(
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {_listed(self._outputs)}."
                )
            if alias in seen:
                raise InvalidArgument(f"duplicate output tensor alias: {alias}")
            seen.add(alias)
        return tuple(sorted(seen))


def checked(array: np.ndarray, dtype: np.dtype[Any], index: int, alias: str) -> np.ndarray:
    """Refuse an array of the wrong element type; shapes are the model's business.

    Args:
        array: as it came.
        dtype: that the model wants; `object` for strings.
        index: place of the input among those of the signature.
        alias: its name.

    Raises:
        InvalidArgument: with the text of tensorflow_model_server, and which input.
    """
    if array.dtype == dtype:
        return array
    if dtype.kind == "O" and array.dtype.kind in "SU":
        return array.astype(object)
    expected, came = (_CPP_NAMES.get(d.name, d.name) for d in (dtype, array.dtype))
    raise InvalidArgument(f"Expects arg[{index}] to be {expected} but {came} is provided (input {alias!r})")


def find_call(calls: Mapping[str, CallSignature], name: str) -> CallSignature:
    """Return the signature of a name.

    Raises:
        FailedPrecondition: there is none.
    """
    call = calls.get(name)
    if call is None:
        raise FailedPrecondition(f'Serving signature key "{name}" not found.')
    return call


def _listed(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
