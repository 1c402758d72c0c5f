"""The process of a probe: loads one form of a model, asks it all rows, measures it."""

from __future__ import annotations

import importlib
import logging
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from moxserve import file
from moxserve.errors import MissingExtraError, MoxserveError, NotFound, first_line
from moxserve.export.children import die_with_parent
from moxserve.export.manifest import Variant, take_stock
from moxserve.export.op_libraries import load_op_library
from moxserve.export.variants.work import Rows
from moxserve.file import atomic_write
from moxserve.probe.measure import ROUNDS, Meter
from moxserve.probe.request import ANSWER_FILE, REQUEST_FILE, Answer, Request, Stored
from moxserve.probe.result import ProbeOptions
from moxserve.serving.backends.base import Backend, LoadOptions
from moxserve.serving.backends.contents import SAVED_MODEL
from moxserve.serving.backends.loading import find_variant, load_variant
from moxserve.serving.backends.openvino import reports_withheld
from moxserve.types import dtype_of

__all__ = ["main"]

logger = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]

# What each format is run by; of several the first that is installed.
_RUNTIMES: Mapping[str, Sequence[str]] = {
    SAVED_MODEL: ("tensorflow",),
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "tflite": ("ai_edge_litert.interpreter", "tensorflow"),
}


def main(folder: str) -> None:
    """Answer the request in a folder, and end the process.

    Args:
        folder: of the files in `request`.
    """
    die_with_parent()
    request = Request.model_validate_json(file.read(os.path.join(folder, REQUEST_FILE), binary=True))
    if os.getppid() != request.parent:
        os._exit(1)  # it ended before this process could ask to end with it
    answering = _Answering(folder, request)
    try:
        answering.run()
    except MoxserveError as error:
        answering.fail(error)
    except Exception as error:  # noqa: BLE001 - runtimes raise anything; told, not lost
        traceback.print_exc()
        answering.fail(error)
    # Not the interpreter's own end: runtimes have crashed there, when everything was said and freed.
    logging.shutdown()
    os._exit(0)


@dataclass(frozen=True)
class _Batches:
    """The rows of a request, in the sizes that the model takes.

    Attributes:
        inputs: by alias, `[count, ...]` each.
        count: rows.
        fixed: the one batch size that the model takes; 0 when it takes any.
    """

    inputs: Arrays
    count: int
    fixed: int

    def at(self, start: int, size: int) -> dict[str, np.ndarray]:
        """Return some rows from a place on; beyond the last one it starts again at the first."""
        places = np.arange(start, start + size) % self.count
        return {alias: np.ascontiguousarray(array[places]) for alias, array in self.inputs.items()}


class _Answering:
    def __init__(self, folder: str, request: Request) -> None:
        self._folder, self._request = folder, request
        self._options = ProbeOptions(**request.options)
        self._answer = Answer()

    def fail(self, error: BaseException) -> None:
        """Write down why this ended early."""
        known = isinstance(error, MoxserveError)
        hint = getattr(error, "hint", None)
        self._answer.error = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, MissingExtraError) and hint:
            self._answer.error += f" ({hint})"
        if self._answer.at:
            self._answer.error += f" ({self._answer.at})"
        self._write()

    def run(self) -> None:
        """Do everything, writing down what is known after each step."""
        request, options = self._request, self._options
        self._next("")
        variant = self._variant()
        rows = Rows(**request.rows)
        inputs = {alias: array[: rows.count] for alias, array in rows.load_inputs().items()}
        stock = take_stock(request.version_dir, variant)
        self._answer.size_bytes, self._answer.digest = stock.size_bytes, stock.digest
        _import_runtime(variant.format, options.op_libraries)
        self._next("while it was loaded")
        meter = Meter(options)
        backend = meter.load(lambda: self._load(variant))
        self._answer.platform = backend.platform
        batches = _Batches(inputs, rows.count, self._fixed_size(backend))
        if rows.count:
            self._ask(backend, batches, meter)
        else:
            self._answer.notes.append("no real rows: it was only loaded")
        self._next("when it was closed")
        backend.close()
        self._next("")

    def _next(self, at: str) -> None:
        self._answer.at = at
        self._write()

    def _write(self) -> None:
        atomic_write(os.path.join(self._folder, ANSWER_FILE), orjson.dumps(self._answer.model_dump()))

    def _variant(self) -> Variant:
        request = self._request
        if not request.name:
            return Variant(name=SAVED_MODEL, format=SAVED_MODEL)
        return request.variant or find_variant(request.version_dir, request.name)

    def _load(self, variant: Variant) -> Backend:
        options = LoadOptions(
            tags=tuple(self._options.tags),
            intra_op_threads=self._options.intra_op_threads,
            inter_op_threads=self._options.inter_op_threads,
        )
        return load_variant(self._request.version_dir, variant if self._request.name else None, options)

    def _fixed_size(self, backend: Backend) -> int:
        key = self._request.signature
        if key not in backend.signatures:
            known = ", ".join(sorted(backend.signatures)) or "none"
            raise NotFound(f"it does not serve signature {key!r}; it serves {known}")
        sizes = {spec.shape[0] for spec in backend.signatures[key].inputs.values() if spec.shape}
        return next((size for size in sizes if size is not None), 0) if len(sizes) == 1 else 0

    def _ask(self, backend: Backend, batches: _Batches, meter: Meter) -> None:
        options, key, notes = self._options, self._request.signature, self._answer.notes

        def call(inputs: Arrays) -> dict[str, np.ndarray]:
            return backend.run(key, inputs)

        size = batches.fixed or max(1, min(options.batch, batches.count))
        first = batches.at(0, batches.fixed or 1)
        self._next("when it was called first")
        meter.first(lambda: call(first))
        if batches.fixed > 1 and options.singles:
            notes.append(f"it takes batches of {batches.fixed} rows only: no row was asked by itself")
        elif options.singles:
            self._next("with one row at a time")
            singles = _answers(call, batches, 1, min(options.singles, batches.count))
            self._answer.singles = self._store("single", singles)
        self._next(f"with batches of {size}")
        self._answer.outputs = self._store("output", _answers(call, batches, size, batches.count))
        if not options.measure:
            return
        self._measure(call, batches, meter)
        self._answer.measured = meter.measured()

    def _measure(self, call: Callable[[Arrays], Arrays], batches: _Batches, meter: Meter) -> None:
        sizes = [batches.fixed] if batches.fixed else sorted(set(self._options.batch_sizes))
        inputs = {size: batches.at(0, size) for size in sizes}
        for _ in range(ROUNDS):
            for size in list(inputs):
                self._next(f"while batches of {size} were measured")
                try:
                    meter.time(size, lambda size=size: call(inputs[size]))  # type: ignore[misc]
                except MoxserveError as error:
                    # A batch size that nobody needs it to take.
                    self._answer.notes.append(f"batches of {size} were not measured: {first_line(error)}")
                    meter.forget(size)
                    del inputs[size]

    def _store(self, kind: str, arrays: Arrays) -> dict[str, Stored]:
        stored = {}
        for i, (alias, array) in enumerate(arrays.items()):
            name = f"{kind}_{i}.npy"
            np.save(os.path.join(self._folder, name), array, allow_pickle=array.dtype == object)
            stored[alias] = Stored(file=name, dtype=dtype_of(array).name)
        return stored


def _answers(call: Callable[[Arrays], Arrays], batches: _Batches, size: int, count: int) -> dict[str, np.ndarray]:
    """Ask some rows; what an output has that is not one a row is given as it came last."""
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, size):
        # The last one is filled up where the size is fixed, and shorter where it is not.
        rows = size if batches.fixed else min(size, count - start)
        for alias, value in call(batches.at(start, rows)).items():
            parts.setdefault(alias, []).append(value)
    return {alias: _joined(values, size, count) for alias, values in parts.items()}


def _joined(values: Sequence[np.ndarray], size: int, count: int) -> np.ndarray:
    rows = [value.shape[0] if value.ndim else 0 for value in values]
    if any(n != size for n in rows[:-1]) or not 0 < rows[-1] <= size:
        return values[-1]
    return np.concatenate(values)[:count]


def _import_runtime(format_name: str, op_libraries: Sequence[str]) -> None:
    """Import what runs a format: that takes seconds and memory which are not the model's."""
    for module in _RUNTIMES.get(format_name, ()):
        try:
            with reports_withheld():
                importlib.import_module(module)
        except ImportError as error:
            logger.debug("%s: %s", module, error)  # what loads the model says it better
        else:
            break
    for path in op_libraries if format_name == SAVED_MODEL else ():
        load_op_library(path)
