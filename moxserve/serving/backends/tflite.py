"""TFLite models, run by LiteRT's interpreter, or by TensorFlow's own where that is not installed.

An interpreter runs one request at a time, so there are several of a model, made as requests need them. Inputs are
resized to what a request sends. Signatures come from TensorFlow Serving's metadata in the file; without it there is
one, `serving_default`, whose aliases are the names of the tensors up to the first colon.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from moxserve.errors import AlreadyExists, Internal, InvalidArgument, MissingExtraError
from moxserve.export.manifest import TensorNames
from moxserve.serving.backends.base import TfliteOptions
from moxserve.serving.backends.graph import GraphBackend, own_signature, signature_map_of
from moxserve.serving.backends.tflite_examples import CUSTOM_OPS, ExampleParser, cut_examples
from moxserve.serving.backends.tflite_file import TfliteFile, read_tflite
from moxserve.serving.cpus import cpus
from moxserve.types import TensorSpec, dtype_by_name, dtype_of

__all__ = ["TfliteGraph", "tflite_backend"]

logger = logging.getLogger(__name__)

_MAX_BATCH = 500


class TfliteGraph:
    """A TFLite model with its interpreters; see `Graph`.

    Args:
        path: the `.tflite` file.
        options: how many interpreters.
        threads: of each interpreter; 0 takes one.

    Attributes:
        file: what the file tells of signatures.

    Raises:
        MissingExtraError: neither LiteRT nor TensorFlow is installed.
        ServingError: it cannot be loaded.
    """

    platform = "tflite"
    resizable = True

    def __init__(self, path: str, options: TfliteOptions | None = None, threads: int = 0) -> None:
        options = options or TfliteOptions()
        make = _interpreter_class()
        try:
            with open(path, "rb") as f:
                data = f.read()
        except OSError as error:
            raise InvalidArgument(f"Cannot build FlatBufferModel from buffer: {error}") from None
        self.file: TfliteFile = read_tflite(data)
        self._parser: ExampleParser | None = None
        if any(name in CUSTOM_OPS for name in self.file.custom_ops):
            data, self._parser = cut_examples(data)

        def new() -> _Interpreter:
            return _Interpreter(_make(make, data, threads or 1, self.file), path)

        first = new()
        self.inputs: Mapping[str, TensorSpec] = _specs(first.raw.get_input_details(), "Input")
        if self._parser is not None:
            source = self._parser.source
            rest = {name: spec for name, spec in self.inputs.items() if name not in self._parser.tensors}
            self.inputs = {source: TensorSpec(source, dtype_by_name("string"), (None,), source), **rest}
        self.outputs: Mapping[str, TensorSpec] = _specs(first.raw.get_output_details(), "Output")
        self.names: Mapping[str, TensorNames] = self.file.names
        self.synonyms: Mapping[str, str] = {}
        self._native = frozenset(d["name"] for d in first.raw.get_input_details())
        pools, each = options.pools or cpus(), max(1, options.interpreters_per_pool)
        self._interpreters = _Interpreters(new, first, max(1, pools) * each)
        self._workers = ThreadPoolExecutor(each, "moxserve-tflite") if each > 1 else None
        own = {spec.shape[0] for spec in self.inputs.values() if spec.shape}
        fixed = own.pop() if len(own) == 1 else None
        self._piece = fixed if fixed is not None and fixed > 1 else max(1, _MAX_BATCH // each)

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Compute some outputs; see `Graph.run`. TFLite computes all, whatever is asked for."""
        rows = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
        if self._workers is None or len(rows) != 1 or (n := rows.pop()) <= self._piece:
            return self._run(feeds, fetches)
        starts = range(0, n, self._piece)
        pieces = [{name: array[i : i + self._piece] for name, array in feeds.items()} for i in starts]
        found = list(self._workers.map(lambda piece: self._run(piece, fetches), pieces))
        for values, piece in zip(found, pieces, strict=True):
            rows = {len(array) for array in piece.values()}
            if any(value.ndim == 0 or len(value) not in rows for value in values):
                return self._run(feeds, fetches)  # outputs that are not one a row cannot be put together
        return [np.concatenate(values) for values in zip(*found, strict=True)]

    def _run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        if self._parser is not None:
            parsed = self._parser.parse(feeds[self._parser.source])
            rest = [name for name in fetches if name not in parsed]
            others = {name: array for name, array in feeds.items() if name != self._parser.source}
            values = dict(zip(rest, self._run_rest({**others, **parsed}, rest), strict=True)) if rest else {}
            return [parsed[name] if name in parsed else values[name] for name in fetches]
        return self._run_rest(feeds, fetches)

    def _run_rest(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        feeds = {name: array for name, array in feeds.items() if name in self._native}
        with self._interpreters.borrow(feeds) as interpreter:
            return interpreter.run(feeds, fetches)

    def close(self) -> None:
        """Free the interpreters."""
        if self._workers is not None:
            self._workers.shutdown()
        self._interpreters.close()


class _Interpreter:
    """One interpreter with the shapes that its inputs have now."""

    def __init__(self, raw: Any, path: str) -> None:
        self.raw = raw
        self._path = path
        self._inputs = {d["name"]: d["index"] for d in raw.get_input_details()}
        self._outputs = {d["name"]: d["index"] for d in raw.get_output_details()}
        self.shapes = {d["name"]: tuple(int(n) for n in d["shape"]) for d in raw.get_input_details()}

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        raw = self.raw
        try:
            stale = [name for name, array in feeds.items() if array.shape != self.shapes[name]]
            for name in stale:
                raw.resize_tensor_input(self._inputs[name], feeds[name].shape)
                self.shapes[name] = feeds[name].shape
            if stale:
                raw.allocate_tensors()
            for name, array in feeds.items():
                raw.set_tensor(self._inputs[name], _native(array))
            raw.invoke()
            return [_as_array(raw.get_tensor(self._outputs[name])) for name in fetches]
        except (RuntimeError, ValueError) as error:
            raise Internal(f"Failed to invoke TfLite interpreter: {error}") from None


class _Interpreters:
    """The interpreters of a model: lent one request each, made when all are lent, up to a limit."""

    def __init__(self, new: Callable[[], _Interpreter], first: _Interpreter, limit: int) -> None:
        self._new = new
        self._free = [first]
        self._left = limit - 1
        self._changed = threading.Condition()

    @contextmanager
    def borrow(self, feeds: Mapping[str, np.ndarray]) -> Iterator[_Interpreter]:
        interpreter = self._take(feeds)
        try:
            yield interpreter
        except BaseException:
            # A failed resize leaves tensors without memory: this one is not used again.
            with self._changed:
                self._left += 1
                self._changed.notify()
            raise
        with self._changed:
            self._free.append(interpreter)
            self._changed.notify()

    def _take(self, feeds: Mapping[str, np.ndarray]) -> _Interpreter:
        shapes = {name: array.shape for name, array in feeds.items()}
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._left > 0)
            if self._free:
                # One that has these shapes already need not get new memory.
                place = next((i for i, free in enumerate(self._free) if free.shapes == shapes), -1)
                return self._free.pop(place)
            self._left -= 1
        try:
            return self._new()
        except BaseException:
            with self._changed:
                self._left += 1
                self._changed.notify()
            raise

    def close(self) -> None:
        with self._changed:
            self._free.clear()


def tflite_backend(graph: TfliteGraph, variant: str) -> GraphBackend:
    """Serve a TFLite model by what its file tells.

    Raises:
        InvalidArgument: a signature names a tensor that is not there.
    """
    stored = graph.file.signature_map
    if stored is None:
        inputs, outputs = _aliases(graph.inputs), _aliases(graph.outputs)
        signature = own_signature(
            {alias: graph.inputs[name] for alias, name in inputs.items()},
            {alias: graph.outputs[name] for alias, name in outputs.items()},
        )
        signature_map = signature_map_of({signature.name: signature})
        names = {key: TensorNames(inputs=inputs, outputs=outputs) for key in signature_map.signature_def}
        return GraphBackend(graph, signature_map, names, variant)
    names = {
        key: TensorNames(inputs=_tensors(key, d.inputs, graph.inputs), outputs=_tensors(key, d.outputs, graph.outputs))
        for key, d in stored.signature_def.items()
    }
    return GraphBackend(graph, stored, names, variant)


def _aliases(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    short = {name: name.partition(":")[0] for name in specs}
    unique = len(set(short.values())) == len(short)
    return {short[name] if unique else name: name for name in specs}


def _tensors(key: str, infos: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    found = {}
    for alias, info in infos.items():
        name = info.name if info.name in specs else info.name.removesuffix(":0")
        if name not in specs:
            raise InvalidArgument(f"signature {key!r} references an unknown tensor: {info.name!r} ({alias!r})")
        found[alias] = name
    return found


def _interpreter_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        pass
    else:
        return Interpreter
    try:
        from tensorflow.lite.python.interpreter import Interpreter as TensorFlowInterpreter
    except ImportError:
        raise MissingExtraError("ai-edge-litert or tensorflow", "tflite", "serving a TFLite model") from None
    return TensorFlowInterpreter


def _make(interpreter: Any, data: bytes, threads: int, file: TfliteFile) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow's tells its users to move to LiteRT
            raw = interpreter(model_content=data, num_threads=threads)
            raw.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        ops = f" (it has operations that are not built in: {', '.join(file.custom_ops)})" if file.custom_ops else ""
        raise Internal(f"Failed to create a TFLite interpreter with the given model{ops}: {error}") from None
    return raw


def _specs(details: Sequence[Mapping[str, Any]], kind: str) -> dict[str, TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for detail in details:
        name = detail["name"]
        if name in specs:
            raise AlreadyExists(f"{kind} tensor name: {name} has multiple indices")
        # A scalar has no shape_signature; `shape` is what it has before any resizing.
        dims = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
        shape = tuple(None if n < 0 else int(n) for n in dims)
        specs[name] = TensorSpec(name, dtype_of(np.empty(0, detail["dtype"])), shape, name)
    return specs


def _native(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "O":
        return array
    return np.array([i if isinstance(i, bytes) else str(i).encode() for i in array.reshape(-1)], object).reshape(
        array.shape
    )


def _as_array(value: np.ndarray) -> np.ndarray:
    return value.astype(object) if value.dtype.kind in "SU" else value
