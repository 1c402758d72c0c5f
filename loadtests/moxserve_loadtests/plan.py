"""What a load test sends: payloads encoded once, before the load begins, so that the generator only moves bytes.

No locust here: `moxserve loadtest` prepares the plan in its own process and hands it to the generator.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moxserve.client import Client, PredictCall
from moxserve.client.bodies import encode_predict, model_path
from moxserve.client.calls import Array
from moxserve.client.fit import pick_signature
from moxserve.client.transport import Target, parse_target
from moxserve.client.wire import encode
from moxserve.errors import DataError, UsageError
from moxserve.types import DEFAULT_SIGNATURE, ModelRef, Signature, TensorSpec

__all__ = ["MAX_PAYLOADS", "LoadSpec", "Plan", "prepare", "random_inputs"]

MAX_PAYLOADS = 64
_SEED = 0


@dataclass(frozen=True)
class LoadSpec:
    """What to load, and with what.

    Attributes:
        target: `grpc://HOST:PORT` or `http://HOST:PORT`.
        model: `NAME`, `NAME:VERSION` or `NAME@LABEL`.
        signature: key of the signature.
        batch_size: rows a request.
        input: data set that the rows come from; None sends random data of the right dtypes and shapes.
        timeout_s: seconds for a request.

    Raises:
        UsageError: the batch size is below 1, or the target is none that a load test can use.
    """

    target: str
    model: str
    signature: str = DEFAULT_SIGNATURE
    batch_size: int = 1
    input: str | None = None
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size={self.batch_size}: expected 1 or more")
        if self.parsed().kind == "local":
            raise UsageError(f"{self.target!r}: expected the address of a server, grpc://HOST:PORT or http://HOST:PORT")

    def parsed(self) -> Target:
        """Return the target in parts."""
        return parse_target(self.target)


@dataclass(frozen=True)
class Plan:
    """Everything that a generator needs.

    Attributes:
        kind: `grpc` or `rest`.
        target: the address, for people.
        address: `HOST:PORT` for gRPC, the base URL for REST.
        secure: TLS for gRPC.
        path: gRPC method, or path below the base URL.
        payloads: request bodies; users take turns through them.
        rows: rows a request.
        model: as asked for.
        source: where the payloads come from, in words.
        timeout_s: seconds for a request.
    """

    kind: str
    target: str
    address: str
    secure: bool
    path: str
    payloads: tuple[bytes, ...]
    rows: int
    model: str
    source: str
    timeout_s: float


def prepare(spec: LoadSpec) -> Plan:
    """Look at the model, build the payloads, and send the first one to see that it is taken.

    Raises:
        ServerUnreachableError: nobody answers.
        RequestError: the server refuses the model or the first payload.
        UsageError: the signature is unknown or the input does not fit it.
        DataError: the input cannot be read.
    """
    with Client(spec.target, timeout_s=spec.timeout_s) as client:
        metadata = client.metadata(spec.model)
        signature = pick_signature(metadata.signatures, spec.signature, spec.model)
        if spec.input is None:
            batches = list(_random_batches(signature, spec.batch_size))
            shapes = ", ".join(f"{name}: {_describe(array)}" for name, array in batches[0].items())
            source = f"random data ({shapes})"
        else:
            batches = _input_batches(spec.input, signature, spec.batch_size)
            source = f"{len(batches)} requests from {spec.input}"
        client.predict(spec.model, batches[0], signature=spec.signature)
    target = spec.parsed()
    call = PredictCall(ModelRef.parse(spec.model), {}, spec.signature)
    calls = [replace(call, inputs=batch) for batch in batches]
    if target.kind == "grpc":
        exchanges = [encode(c) for c in calls]
        path, payloads = exchanges[0].method, tuple(e.payload for e in exchanges)
    else:
        path, payloads = f"{model_path(call.model)}:predict", tuple(encode_predict(c) for c in calls)
    return Plan(
        target.kind, str(target), target.address, target.secure, path, payloads, spec.batch_size, spec.model, source,
        spec.timeout_s,
    )  # fmt: skip


def _describe(array: Array) -> str:
    name = "string" if array.dtype.kind == "O" else str(array.dtype)
    return f"{name}[{', '.join(map(str, array.shape))}]"


def _random_batches(signature: Signature, rows: int) -> Iterator[Mapping[str, Array]]:
    generator = np.random.default_rng(_SEED)
    for _ in range(MAX_PAYLOADS):
        yield random_inputs(signature, rows, generator)


def random_inputs(signature: Signature, rows: int, generator: np.random.Generator) -> dict[str, Array]:
    """Make one request's inputs: floats in 0..1, uint8 in 0..255, other integers in 0..9, free dimensions of 1.

    Raises:
        UsageError: the signature is fixed to another number of rows.
    """
    return {name: _random_tensor(spec, rows, generator) for name, spec in signature.inputs.items()}


def _random_tensor(spec: TensorSpec, rows: int, generator: np.random.Generator) -> Array:
    dims = (None,) if spec.shape is None else spec.shape
    if dims and dims[0] not in (None, rows):
        raise UsageError(f"input {spec} takes {dims[0]} rows a request; got --batch-size {rows}")
    shape = [rows if not i else d or 1 for i, d in enumerate(dims)]
    dtype, kind = spec.dtype.numpy, spec.dtype.numpy.kind
    if spec.dtype.name == "string":
        words = np.empty(shape, object)
        flat = generator.integers(97, 123, (words.size, 8), np.uint8)
        words.reshape(-1)[:] = [bytes(word) for word in flat]
        return words
    if kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if kind in "iu":
        return generator.integers(0, 256 if spec.dtype.name == "uint8" else 10, shape).astype(dtype)
    return generator.random(shape, np.float32).astype(dtype)


def _input_batches(path: str, signature: Signature, rows: int) -> list[Mapping[str, Array]]:
    from moxserve.predict import open_rows

    found = open_rows(path, signature, limit=rows * MAX_PAYLOADS)
    loaded = [row.load() for row in found.items]
    if not loaded:
        raise DataError(f"{os.fspath(path)}: holds no rows")
    endless = itertools.cycle(loaded)
    count = max(1, len(loaded) // rows)
    try:
        return [_stack([next(endless) for _ in range(rows)]) for _ in range(count)]
    except ValueError as error:
        raise DataError(
            f"{path}: rows of unequal shape cannot share a request ({error})", hint="--batch-size 1"
        ) from None


def _stack(rows: list[Mapping[str, Array]]) -> Mapping[str, Array]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
