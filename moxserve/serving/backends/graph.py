"""A model with named tensors (ONNX, OpenVINO, TFLite) behind signatures.

A runtime knows inputs and outputs by its own names; requests know signatures and aliases. `bind` leads from one to the
other, `GraphBackend` keeps the rules of a request: which inputs, which element types, which shapes. So every runtime
answers the same request in the same way, whatever it would say itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moxserve.errors import InvalidArgument, MoxserveError
from moxserve.export.manifest import TensorNames
from moxserve.protocol import messages
from moxserve.protocol.metadata import signatures_from_map
from moxserve.serving.backends.calls import CallSignature, checked, find_call
from moxserve.types import DEFAULT_SIGNATURE, PREDICT_METHOD, Signature, TensorSpec

__all__ = ["DoesNotFitError", "Graph", "GraphBackend", "bind", "own_signature", "signature_map_of"]


class DoesNotFitError(MoxserveError):
    """A variant cannot stand in for the model: it lacks a tensor, or has another element type or shape."""


class Graph(Protocol):
    """A model loaded by a runtime. `run` may be called from many threads at once.

    Attributes:
        platform: name of the runtime.
        inputs: by the runtime's own names.
        outputs: likewise.
        names: signature -> names of its tensors, where the file tells.
        synonyms: other names of inputs and outputs -> the names that are used here.
        resizable: whether an input takes other sizes than the file tells.
    """

    platform: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    names: Mapping[str, TensorNames]
    synonyms: Mapping[str, str]
    resizable: bool

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Compute some outputs.

        Args:
            feeds: every input, of the element type that `inputs` tells.
            fetches: names of outputs.

        Returns:
            Their values, strings as object arrays of bytes; the caller's to keep.

        Raises:
            ServingError: the runtime refused or failed.
        """
        ...

    def close(self) -> None:
        """Free the model. No run may be under way."""
        ...


def signature_map_of(signatures: Mapping[str, Signature]) -> Any:
    """Return the SignatureDefMap message of signatures that no SavedModel tells of."""
    signature_map = messages.SignatureDefMap()
    for key, signature in signatures.items():
        definition = signature_map.signature_def[key]
        definition.method_name = signature.method
        for infos, specs in ((definition.inputs, signature.inputs), (definition.outputs, signature.outputs)):
            for alias, spec in specs.items():
                _describe(infos[alias], spec)
    return signature_map


def _describe(info: Any, spec: TensorSpec) -> None:
    info.name, info.dtype = spec.tensor or spec.name, spec.dtype.enum
    if spec.shape is None:
        info.tensor_shape.unknown_rank = True
        return
    info.tensor_shape.SetInParent()
    for size in spec.shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)


def own_signature(inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> Signature:
    """Return the signature of a model that tells of none: `serving_default`, aliases as keys."""
    return Signature(DEFAULT_SIGNATURE, PREDICT_METHOD, inputs, outputs)


@dataclass(frozen=True, slots=True)
class _Feed:
    """Where an input goes: its alias, the runtime's name for it, and the element types on both sides."""

    alias: str
    name: str
    asked: np.dtype[Any]
    native: np.dtype[Any]
    shape: tuple[int | None, ...] | None


def bind(
    graph: Graph, signatures: Mapping[str, Signature], declared: Mapping[str, TensorNames]
) -> dict[str, TensorNames]:
    """Find out which signatures a graph serves, and under which names.

    Declared ones are taken at their word. Otherwise names are compared: what the file tells of signatures, then the
    alias, then the name of the graph's tensor; a single one that is left over belongs to a single one that is left
    over. That is done for `serving_default` (or the only signature); any other one is bound only when it uses tensors
    of that one or of the same name, since equal aliases in two signatures need not mean the same thing.

    Args:
        graph: that is to serve.
        signatures: of the model.
        declared: of the manifest; when not empty, only these are served.

    Raises:
        DoesNotFitError: it serves none; says why.
    """
    if declared:
        unknown = sorted(set(declared) - set(signatures))
        if unknown:
            raise DoesNotFitError(f"the manifest says that it serves {unknown[0]!r}, which the model does not have")
        bound = {key: _by_name(graph, signatures[key], names, loose=True) for key, names in declared.items()}
        for key, names in bound.items():
            _check_fit(graph, signatures[key], names)
        return bound
    main = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures or len(signatures) != 1 else next(iter(signatures))
    bound = {}
    reason: DoesNotFitError | None = None
    known = TensorNames()
    for key in sorted(signatures, key=lambda k: k != main):
        try:
            told = graph.names.get(key, known if key != main else TensorNames())
            names = _by_name(graph, signatures[key], told, loose=key == main and key not in graph.names)
            _check_fit(graph, signatures[key], names)
        except DoesNotFitError as error:
            reason = reason or error
            continue
        bound[key] = names
        if key == main:
            known = TensorNames(inputs=_by_tensor(signatures[key].inputs, names.inputs),
                                outputs=_by_tensor(signatures[key].outputs, names.outputs))  # fmt: skip
    if not bound:
        raise reason or DoesNotFitError("the model has no signature that a request could call")
    return bound


def _by_tensor(specs: Mapping[str, TensorSpec], names: Mapping[str, str]) -> dict[str, str]:
    return {specs[alias].tensor: name for alias, name in names.items() if specs[alias].tensor}


def _by_name(graph: Graph, signature: Signature, told: TensorNames, *, loose: bool) -> TensorNames:
    sides = (
        ("input", signature.inputs, graph.inputs, told.inputs),
        ("output", signature.outputs, graph.outputs, told.outputs),
    )
    inputs, outputs = (_match(signature.name, *side, graph.synonyms, loose=loose) for side in sides)
    return TensorNames(inputs=inputs, outputs=outputs)


def _match(
    signature: str, kind: str, specs: Mapping[str, TensorSpec], known: Mapping[str, TensorSpec],
    told: Mapping[str, str], synonyms: Mapping[str, str], *, loose: bool,
) -> dict[str, str]:  # fmt: skip
    found: dict[str, str] = {}
    for alias, spec in specs.items():
        bare = spec.tensor.removesuffix(":0")
        own = (alias, f"{alias}:0") if loose else ()
        ways = [told.get(alias, ""), told.get(spec.tensor, ""), *own, spec.tensor, bare]
        name = next((n for way in ways if (n := synonyms.get(way, way)) in known), None)
        if name is not None:
            found[alias] = name
    left = [alias for alias in specs if alias not in found]
    free = [name for name in known if name not in found.values()]
    if loose and len(left) == 1 and len(free) == 1:
        found[left[0]] = free[0]
    elif left:
        raise DoesNotFitError(
            f"it has no {kind} for {left[0]!r} of signature {signature!r}; its {kind}s are {', '.join(known) or 'none'}"
        )
    return found


def _check_fit(graph: Graph, signature: Signature, names: TensorNames) -> None:
    for alias, spec in signature.inputs.items():
        native = graph.inputs[names.inputs[alias]]
        _check_dtype("input", alias, spec, native)
        if not graph.resizable:
            _check_shape(alias, spec, native)
    for alias, spec in signature.outputs.items():
        native = graph.outputs[names.outputs[alias]]
        _check_dtype("output", alias, spec, native)
        if spec.shape is not None and native.shape is not None and len(spec.shape) != len(native.shape):
            raise DoesNotFitError(f"output {alias!r}: expected {spec}, it has {native}")
    missing = sorted(set(graph.inputs) - set(names.inputs.values()))
    if missing:
        raise DoesNotFitError(f"it has an input more, {missing[0]!r}, that signature {signature.name!r} does not feed")


def _check_dtype(kind: str, alias: str, spec: TensorSpec, native: TensorSpec) -> None:
    if _family(spec.dtype.numpy) != _family(native.dtype.numpy):
        raise DoesNotFitError(f"{kind} {alias!r}: expected {spec.dtype.name}, it has {native.dtype.name}")


def _family(dtype: np.dtype[Any]) -> str:
    # Custom types such as bfloat16 are of kind V.
    return {"V": "f", "u": "i"}.get(dtype.kind, dtype.kind)


def _check_shape(alias: str, spec: TensorSpec, native: TensorSpec) -> None:
    if native.shape is None:
        return
    wide = spec.shape is None or len(spec.shape) != len(native.shape)
    if wide or any(n is not None and n != s for s, n in zip(spec.shape or (), native.shape, strict=True)):
        raise DoesNotFitError(f"input {alias!r}: it takes only {_shown(native.shape)}, the signature has {spec}")


class GraphBackend:
    """A graph of some runtime behind signatures. See `Backend` for the interface.

    Args:
        graph: loaded; closed by `close`.
        signature_map: SignatureDefMap of the model; those that the graph serves are in `signatures`.
        names: signature -> names of its tensors in the graph, from `bind`.
        variant: name of this form of the model.

    Attributes:
        variant: as given.
    """

    def __init__(self, graph: Graph, signature_map: Any, names: Mapping[str, TensorNames], variant: str) -> None:
        self.platform = graph.platform
        self.variant = variant
        self.signature_defs = signature_map
        known = signatures_from_map(signature_map)
        self.signatures: Mapping[str, Signature] = {key: known[key] for key in sorted(names)}
        definitions = signature_map.signature_def
        self.calls: Mapping[str, CallSignature] = {
            key: CallSignature.from_def(s, definitions[key]) for key, s in self.signatures.items()
        }
        self._graph = graph
        self._names = names
        self._feeds = {key: _feeds(graph, s, names[key]) for key, s in self.signatures.items()}

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Backend.run`."""
        call = find_call(self.calls, signature)
        call.match_inputs(inputs)
        return self._run(call, inputs, call.match_outputs(outputs))

    def run_here(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Backend.run_here`."""
        return self.run(signature, inputs, outputs)

    def run_together(self, signatures: Sequence[str], array: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once; see `Backend.run_together`."""
        calls = [find_call(self.calls, name) for name in signatures]
        fed = [{feed.name for feed in self._feeds[call.signature.name]} for call in calls]
        if any(names != fed[0] for names in fed):
            return [self._run(call, dict.fromkeys(call.input_names, array), call.output_names) for call in calls]
        first = calls[0]
        feeds = self._checked(first, dict.fromkeys(first.input_names, array))
        wanted = list(dict.fromkeys(n for c in calls for n in self._names[c.signature.name].outputs.values()))
        values = dict(zip(wanted, self._graph.run(feeds, wanted), strict=True))
        return [self._answer(call, call.output_names, values) for call in calls]

    def close(self) -> None:
        """Free the graph."""
        self._graph.close()

    def _run(
        self, call: CallSignature, inputs: Mapping[str, np.ndarray], wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        names = self._names[call.signature.name].outputs
        # Two aliases may mean one tensor.
        fetches = list(dict.fromkeys(names[alias] for alias in wanted))
        values = dict(zip(fetches, self._graph.run(self._checked(call, inputs), fetches), strict=True))
        return self._answer(call, wanted, values)

    def _checked(self, call: CallSignature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if call.defaults:
            inputs = {**call.defaults, **inputs}
        feeds = {}
        for index, feed in enumerate(self._feeds[call.signature.name]):
            array = checked(inputs[feed.alias], feed.asked, index, feed.alias)
            if feed.shape is not None and not self._graph.resizable and not _fits(array.shape, feed.shape):
                raise InvalidArgument(
                    f"input {feed.alias!r} has shape {_shown(array.shape)}; expected {_shown(feed.shape)}"
                )
            feeds[feed.name] = array if feed.native == feed.asked else _converted(array, feed)
        return feeds

    def _answer(
        self, call: CallSignature, wanted: Sequence[str], values: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        names, specs = self._names[call.signature.name].outputs, call.signature.outputs
        return {alias: _as_dtype(values[names[alias]], specs[alias].dtype.numpy) for alias in wanted}


def _feeds(graph: Graph, signature: Signature, names: TensorNames) -> tuple[_Feed, ...]:
    natives = {alias: graph.inputs[names.inputs[alias]] for alias in signature.inputs}
    return tuple(
        _Feed(alias, names.inputs[alias], spec.dtype.numpy, natives[alias].dtype.numpy, natives[alias].shape)
        for alias, spec in signature.inputs.items()
    )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == n for n, w in zip(shape, wanted, strict=True))


def _converted(array: np.ndarray, feed: _Feed) -> np.ndarray:
    """Convert to the element type of the variant; a whole number that does not fit into it is refused."""
    if feed.native.kind in "iu" and array.size:
        limits = np.iinfo(feed.native)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidArgument(
                f"input {feed.alias!r} has values from {array.min()} to {array.max()}; this variant of the model takes "
                f"{limits.min} to {limits.max}"
            )
    return array.astype(feed.native)


def _as_dtype(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return array if array.dtype == dtype else array.astype(dtype)


def _shown(shape: Sequence[int | None]) -> str:
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"
