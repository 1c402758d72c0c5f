"""Requests that a server logged, as warmup records of the next version.

Reads what `moxserve serve` and TensorFlow Serving write for a model with a `logging_config`: TFRecords of
PredictionLogs, also compressed with gzip, also the one that is still being written or was cut off by a crash. Logs can
be larger than memory: they are read twice, once to see what there is, once to take what was chosen.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve import file
from moxserve.errors import DataError, MoxserveError, UsageError
from moxserve.file.filesystem import join
from moxserve.protocol.prediction_log import (
    parse_log,
    request_only,
)
from moxserve.protocol.tfrecord import read_records
from moxserve.types import CLASSIFY_METHOD, DEFAULT_SIGNATURE, PREDICT_METHOD, REGRESS_METHOD, Signature

__all__ = ["LogSelection", "find_logs", "select_requests"]

_Place = tuple[int, int]  # number of the file, number of the record in it
_METHODS = {"classify_log": CLASSIFY_METHOD, "regress_log": REGRESS_METHOD}
_ALL_METHODS = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)
_DAMAGED = "damaged or cut off"


@dataclass
class LogSelection:
    """Requests that were chosen, and what became of the others.

    Attributes:
        logs: PredictionLog messages with nothing but the request, in the order of the logs; read while they are taken.
        seen: how many records there were.
        reasons: why others were left out -> how many.
    """

    logs: Iterator[Any]
    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def left_out(self, reason: str, count: int = 1) -> None:
        """Note that requests were left out."""
        self.reasons[reason] += count


def find_logs(names: Sequence[str]) -> list[str]:
    """Return the files of request logs.

    Args:
        names: files; folders, which stand for the record files in them; patterns such as `/var/log/requests.*`; or the
            `filename_prefix` of a server's configuration; here or in a store.

    Raises:
        UsageError: there is none of a name.
    """
    found: list[str] = []
    for name in names:
        if file.is_directory(name):
            matches = [join(name, found) for found in file.list_directory(name, skip_dir=True) if ".tfrecord" in found]
        elif file.exists(name):
            matches = [name]
        else:
            matches = file.glob(name) or file.glob(f"{glob.escape(name)}.*")
            matches = [path for path in matches if not file.is_directory(path)]
        if not matches:
            raise UsageError(f"there is no request log {name!r}", hint="give a file, a folder or a filename_prefix")
        found += matches
    return list(dict.fromkeys(found))


def select_requests(
    names: Sequence[str], signatures: Mapping[str, Signature], model_name: str, limit: int, max_bytes: int
) -> LogSelection:
    """Choose requests of logs that fit a model: of each kind that occurs at least one, the rest evenly.

    A kind is a signature with shapes of inputs. What fits is decided by signature, method, names, element types and
    shapes; whether a request is answered can only be seen by running it.

    Args:
        names: as for `find_logs`.
        signatures: of the model.
        model_name: that the records are to carry.
        limit: how many at most.
        max_bytes: how large one may be.

    Raises:
        UsageError: there is no such file.
        DataError: a file has no record at all that can be read: it is no request log.
    """
    paths = find_logs(names)
    selection = LogSelection(iter(()))
    fitting: list[tuple[_Place, object]] = []
    for number, path in enumerate(paths):
        damaged: list[str] = []
        before = selection.seen
        for index, payload in enumerate(read_records(path, damaged.append)):
            selection.seen += 1
            try:
                fitting.append(((number, index), _kind(payload, signatures, max_bytes)))
            except _MisfitError as error:
                selection.left_out(error.message)
        if damaged and selection.seen == before:
            raise DataError(damaged[0], hint="a request log is a TFRecord of PredictionLogs")
        if damaged:
            selection.seen += len(damaged)
            selection.left_out(_DAMAGED, len(damaged))
    chosen = _choose(fitting, limit)
    if len(chosen) < len(fitting):
        selection.left_out(f"beyond the {limit} for which there is room", len(fitting) - len(chosen))
    selection.logs = _taken(paths, chosen, model_name)
    return selection


def _taken(paths: Sequence[str], chosen: set[_Place], model_name: str) -> Iterator[Any]:
    for number, path in enumerate(paths):
        if not any(place[0] == number for place in chosen):
            continue
        for index, payload in enumerate(read_records(path, lambda _: None)):
            if (number, index) in chosen:
                yield request_only(parse_log(payload), model_name)


def _choose(fitting: Sequence[tuple[_Place, object]], limit: int) -> set[_Place]:
    """Choose the first of each kind, then evenly among the rest."""
    first: dict[object, _Place] = {}
    for place, kind in fitting:
        first.setdefault(kind, place)
    needed = _evenly(list(first.values()), limit)
    kept = set(needed)
    rest = [place for place, _ in fitting if place not in kept]
    return kept | set(_evenly(rest, limit - len(kept)))


def _evenly(places: Sequence[_Place], count: int) -> list[_Place]:
    if count >= len(places):
        return list(places)
    return [places[i * len(places) // count] for i in range(max(0, count))]


# What fits


class _MisfitError(MoxserveError):
    """The request is none for this model; the message completes "12 ..."."""


def _kind(payload: bytes, signatures: Mapping[str, Signature], max_bytes: int) -> object:
    """Return what tells kinds of requests apart.

    Raises:
        _MisfitError: it does not fit the model.
    """
    try:
        log = parse_log(payload)
    except DataError:
        raise _MisfitError("held no request") from None
    if len(payload) > max_bytes and request_only(log, "").ByteSize() > max_bytes:
        raise _MisfitError(f"had more than {max_bytes} bytes")
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        return _predict_kind(log.predict_log.request, signatures)
    if kind in _METHODS:
        request = getattr(log, kind).request
        tasks = [(request.model_spec, _METHODS[kind])]
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        tasks = [(task.model_spec, task.method_name) for task in request.tasks]
    else:
        raise _MisfitError(f"were of kind {kind}, which servers do not replay")
    names = tuple(_signature(spec, method, signatures).name for spec, method in tasks)
    which = request.input.WhichOneof("kind")
    count = len(getattr(request.input, which).examples) if which else 0
    if not count or not names:
        raise _MisfitError("held no examples")
    return kind, names, count


def _predict_kind(request: Any, signatures: Mapping[str, Signature]) -> object:
    signature = _signature(request.model_spec, PREDICT_METHOD, signatures)
    if set(request.inputs) != set(signature.inputs):
        raise _MisfitError(f"had other inputs than signature {signature.name!r}")
    if not set(request.output_filter) <= set(signature.outputs):
        raise _MisfitError(f"asked for outputs that signature {signature.name!r} does not have")
    shapes = []
    for alias, spec in sorted(signature.inputs.items()):
        proto = request.inputs[alias]
        shape = tuple(dim.size for dim in proto.tensor_shape.dim)
        if proto.dtype != spec.dtype.enum or not _fits(shape, spec.shape):
            raise _MisfitError(f"had another type or shape than signature {signature.name!r}")
        shapes.append(shape)
    return signature.name, tuple(shapes)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    return wanted is None or (
        len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))
    )


def _signature(spec: Any, method: str, signatures: Mapping[str, Signature]) -> Signature:
    key = spec.signature_name or DEFAULT_SIGNATURE
    if key not in signatures:
        raise _MisfitError(f"were for signature {key!r}, which the model does not have")
    # Predict answers for signatures of every method, with the tensors that they take.
    if signatures[key].method != method and not (method == PREDICT_METHOD and signatures[key].method in _ALL_METHODS):
        raise _MisfitError(f"were not of the method of signature {key!r}")
    return signatures[key]
