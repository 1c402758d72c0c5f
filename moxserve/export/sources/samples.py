"""Real rows for a model that is whole on disk: from a file that the user names, or from the model's own warmup records.

No TensorFlow.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moxserve import file
from moxserve.client.fit import fit_inputs
from moxserve.errors import DataError, MoxserveError
from moxserve.export.job import ModelFileJob
from moxserve.export.manifest import WARMUP_PATH
from moxserve.file import local_copy
from moxserve.predict.readers import Label, Row, open_rows
from moxserve.protocol.prediction_log import parse_log, requests_of
from moxserve.protocol.tfrecord import read_records
from moxserve.types import Signature, TensorSpec

__all__ = [
    "Samples",
    "chunk_rows",
    "fixed_batches",
    "given_samples",
    "made_up_inputs",
    "read_requests",
    "read_samples",
    "recorded_samples",
]

_MAX_RECORDS = 1000
_MAX_BYTES = 1 << 30
_SIDES = (1, 32, 224)
_CHUNK_ROWS = 64


@dataclass(frozen=True)
class Samples:
    """Rows of one signature.

    Attributes:
        inputs: by alias, `[n, ...]` each.
        labels: `[n] int64`, the right class of each row; None when they are not known.
    """

    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()))) if self.inputs else 0


def read_samples(
    path: str | os.PathLike[str], signature: Signature, limit: int | None = None, classes: Sequence[str] = ()
) -> Samples:
    """Read rows for a signature from a file or folder.

    Args:
        path: `.npz` (an array an input by alias; `label` or `labels` holds the right classes), `.npy` (one input),
            `.jsonl` (an object a line), a folder of pictures, or whatever else `moxserve predict` reads.
        signature: what the rows are for.
        limit: only the first rows; None takes all.
        classes: the model's class names by index, for data sets that know the name of a row's class only.

    Raises:
        DataError: it cannot be read, a row does not fit the signature, or the rows differ in shape.
        UsageError: the data set's kind does not fit the signature.
    """
    with local_copy(path) as local:
        opened = open_rows(local, signature, limit)
        rows = list(opened.items)
        if not rows:
            raise DataError(f"{os.fspath(path)}: no rows in it")
        loaded = [row.load() for row in rows]
    inputs = {alias: _stack(alias, [row[alias] for row in loaded], rows) for alias in signature.inputs}
    known = classes or (opened.classes if opened.classes_listed else ())
    return Samples(inputs, _labels([row.label for row in rows], known))


def _stack(alias: str, values: list[np.ndarray], rows: list[Row]) -> np.ndarray:
    shapes = [np.shape(v) for v in values]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise DataError(
            f"{rows[odd].name}: input {alias!r} is {list(shapes[odd])}; in {rows[0].name} it is {list(shapes[0])}",
            hint="samples are run in batches: give all rows one shape",
        )
    return np.stack(values)


def _labels(labels: Sequence[Label | None], classes: Sequence[str]) -> np.ndarray | None:
    """Return numbers for all rows, or None when one of them has none that means the same to the model."""
    index = {name: i for i, name in enumerate(classes)}
    numbers = []
    for label in labels:
        if label is None:
            return None
        number = label.index if label.name is None else index.get(label.name)
        if number is None:
            return None
        numbers.append(number)
    return np.array(numbers, np.int64)


def given_samples(job: ModelFileJob, signature: Signature, classes: Sequence[str] = ()) -> Samples:
    """Return the rows that a job brings, fitted to the main signature; empty when it brings none.

    Args:
        job: has arrays, or a file to read.
        signature: the main one.
        classes: the model's class names by index, where they are known.

    Raises:
        DataError: the file cannot be read, or does not fit.
        UsageError: the arrays do not fit.
    """
    if job.samples_file:
        return read_samples(job.samples_file, signature, job.sample_limit, classes)
    if not job.samples:
        return Samples()
    return Samples(fit_inputs(job.samples, _of_any_batch(signature)), job.sample_labels)


def _of_any_batch(signature: Signature) -> Signature:
    """Return a signature that takes any number of rows: those of a fixed batch are cut into batches later."""
    inputs = {
        alias: replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec
        for alias, spec in signature.inputs.items()
    }
    return replace(signature, inputs=inputs)


def read_requests(directory: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the warmup records of a version, as far as they can be read: signature key, and inputs by alias."""
    path = os.path.join(directory, WARMUP_PATH)
    if not file.exists(path):
        return
    left = _MAX_BYTES
    for payload in itertools.islice(read_records(path), _MAX_RECORDS):
        left -= len(payload)
        if left < 0:
            return
        try:
            requests = list(requests_of(parse_log(payload)))
        except DataError:
            continue  # of a kind that cannot be replayed
        yield from ((request.signature, dict(request.inputs)) for request in requests)


def recorded_samples(directory: str, signature: Signature, limit: int | None = None) -> Samples:
    """Make rows of the warmup records of a signature, none twice; empty when there are none that can be used.

    Args:
        directory: the version.
        signature: of the model there.
        limit: only the first rows; None takes all.
    """
    chunks: list[Mapping[str, np.ndarray]] = []
    seen: set[bytes] = set()
    try:
        for key, inputs in read_requests(directory):
            if key == signature.name:
                chunks += _new_rows(fit_inputs(inputs, signature), seen)
    except (MoxserveError, OSError):
        # Records of somebody else's making: they help where they are good, and are no reason to fail.
        return Samples()
    first = {alias: a.shape for alias, a in chunks[0].items()} if chunks else {}
    chunks = [c for c in chunks if {alias: a.shape for alias, a in c.items()} == first][:limit]
    return Samples({alias: np.stack([c[alias] for c in chunks]) for alias in first})


def _new_rows(inputs: Mapping[str, np.ndarray], seen: set[bytes]) -> Iterator[Mapping[str, np.ndarray]]:
    counts = {len(a) if a.ndim else 0 for a in inputs.values()}
    for i in range(counts.pop() if len(counts) == 1 else 0):
        row = {alias: values[i : i + 1] for alias, values in inputs.items()}
        # Objects are bytes; their array's own bytes are addresses.
        print_of = b"\0".join(b"\0".join(v.ravel()) if v.dtype == object else v.tobytes() for v in row.values())
        if print_of not in seen:
            seen.add(print_of)
            yield {alias: values[0] for alias, values in row.items()}


def fixed_batches(inputs: Iterable[TensorSpec]) -> set[int]:
    """Return the batch sizes that inputs insist on: none for a free batch, 0 standing for an input without one."""
    shapes = [spec.shape for spec in inputs if spec.shape is not None]
    return {(shape[0] if shape else 0) for shape in shapes if not shape or shape[0] is not None}  # type: ignore[misc]


def chunk_rows(inputs: Iterable[TensorSpec], rows: int) -> tuple[int, int, str]:
    """Tell in which chunks a model takes rows.

    Args:
        inputs: of what is to be run.
        rows: how many there are.

    Returns:
        Rows a chunk, how many of the rows fill chunks, and why none do; empty when some do or there are none.
    """
    fixed = fixed_batches(inputs)
    if not rows or not fixed:
        return _CHUNK_ROWS, rows, ""
    if len(fixed) > 1 or 0 in fixed:
        return 1, 0, "the inputs have no common batch dimension: samples were not compared"
    size = fixed.pop()
    usable = rows - rows % size
    why = "" if usable else f"{rows} samples do not fill the fixed batch of {size}: they were not compared"
    return size, usable, why


def made_up_inputs(signature: Signature) -> Iterator[dict[str, np.ndarray]]:
    """Yield requests of zeros that fit a signature; further ones have larger sides where these may vary.

    There are none for a tensor of any rank: TensorFlow's convolutions end the process when the rank is not theirs.
    """
    if any(spec.shape is None for spec in signature.inputs.values()):
        return
    varies = any(None in (spec.shape or ())[1:] for spec in signature.inputs.values())
    for side in _SIDES if varies else _SIDES[:1]:
        yield {alias: _zeros(spec, side) for alias, spec in signature.inputs.items()}


def _zeros(spec: TensorSpec, side: int) -> np.ndarray:
    sizes = [size if size is not None else side if i else 1 for i, size in enumerate(spec.shape or ())]
    return np.full(sizes, b"", dtype=object) if spec.dtype.name == "string" else np.zeros(sizes, spec.dtype.numpy)
