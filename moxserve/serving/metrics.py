"""What the server counts, and the page that Prometheus reads.

Names, labels and buckets are those of tensorflow_model_server, so that its dashboards and alerts work. The page is
written here and not by prometheus-client, whose writer puts `_total` behind the name of every counter and adds lines
of its own: no dashboard would find `:tensorflow:serving:request_count` again. Counting is a lock, a dict and a binary
search: 1.3 us a request in all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve import file
from moxserve.errors import MoxserveError, status_name

__all__ = ["Counter", "Gauge", "Histogram", "ServingMetrics", "status_of"]

logger = logging.getLogger(__name__)

_SERVING = "/tensorflow/serving/"
_SAVED_MODEL = "/tensorflow/cc/saved_model/"
_BATCHING = _SERVING + "batching_session/"
_MICROS = 1e6
_MAX_STRANGERS = 1000
_MAX_NAME = 256


def _exponential(first: float, factor: float, count: int) -> tuple[float, ...]:
    return tuple(first * factor**i for i in range(count))


_LATENCIES_US = _exponential(10, 1.8, 33)
_EXAMPLES = _exponential(1, 2, 15)
_QUEUING_US = _exponential(100, 1.2, 52)
_BATCH_SIZES = _exponential(1, 2, 14)

Labels = tuple[str, ...]


class Counter:
    """A number for each combination of labels, which only grows.

    Args:
        name: with slashes, as TensorFlow has it.
        labels: their names.
    """

    kind = "counter"

    def __init__(self, name: str, *labels: str) -> None:
        self.name = name
        self._labels = labels
        self._lock = threading.Lock()
        self._values: dict[Labels, int] = {}

    def add(self, labels: Labels, amount: int = 1) -> None:
        """Count.

        Args:
            labels: their values, in the order of their names.
            amount: not negative.
        """
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, labels: Labels | None = None) -> int:
        """Return the number of these labels, 0 when nothing was counted; without labels, that of the first ones."""
        with self._lock:
            if labels is None:
                return next(iter(self._values.values()), 0)
            return self._values.get(labels, 0)

    def cells(self) -> list[list[Any]]:
        """Return what was counted, as JSON can hold it: `[labels, number]` each."""
        with self._lock:
            return [[list(labels), value] for labels, value in self._values.items()]

    def absorb(self, cells: Sequence[Sequence[Any]]) -> None:
        """Add what another one of these has counted; see `cells`."""
        for labels, value in cells:
            self.add(tuple(labels), value)

    def lines(self, name: str) -> Iterator[str]:
        """Write the samples.

        Args:
            name: as the page has it.
        """
        with self._lock:
            values = sorted(self._values.items())
        for labels, value in values:
            yield f"{name}{{{_pairs(self._labels, labels)}}} {value}"


class Gauge(Counter):
    """A number for each combination of labels, which is set."""

    kind = "gauge"

    def set(self, labels: Labels, value: int) -> None:
        """Set it.

        Args:
            labels: values of the labels, in the order of their names.
            value: any.
        """
        with self._lock:
            self._values[labels] = value

    def absorb(self, cells: Sequence[Sequence[Any]]) -> None:
        """Take over what another one of these says; see `cells`."""
        for labels, value in cells:
            self.set(tuple(labels), value)


@dataclass(slots=True)
class _Cell:
    counts: list[int]
    total: float = 0.0


class Histogram:
    """How many values fell into each bucket, and their sum, for each combination of labels.

    Args:
        name: with slashes, as TensorFlow has it.
        limits: upper limits of the buckets, growing; one more takes what is larger.
        labels: their names.

    Attributes:
        limits: as given.
    """

    kind = "histogram"

    def __init__(self, name: str, limits: Sequence[float], *labels: str) -> None:
        self.name = name
        self.limits = tuple(limits)
        self._labels = labels
        self._lock = threading.Lock()
        self._cells: dict[Labels, _Cell] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value.

        Args:
            labels: their values, in the order of their names.
            value: in the unit of the limits.
        """
        bucket = bisect_left(self.limits, value)
        with self._lock:
            cell = self._cells.get(labels)
            if cell is None:
                cell = self._cells[labels] = _Cell([0] * (len(self.limits) + 1))
            cell.counts[bucket] += 1
            cell.total += value

    def cells(self) -> list[list[Any]]:
        """Return what was counted, as JSON can hold it: `[labels, numbers in the buckets, sum]` each."""
        with self._lock:
            return [[list(labels), list(cell.counts), cell.total] for labels, cell in self._cells.items()]

    def absorb(self, cells: Sequence[Sequence[Any]]) -> None:
        """Add what another one of these, with the same limits, has counted; see `cells`."""
        with self._lock:
            for labels, counts, total in cells:
                cell = self._cells.setdefault(tuple(labels), _Cell([0] * (len(self.limits) + 1)))
                cell.counts = [mine + more for mine, more in zip(cell.counts, counts, strict=True)]
                cell.total += total

    def lines(self, name: str) -> Iterator[str]:
        """Write the samples; see `Counter.lines`."""
        with self._lock:
            cells = sorted((labels, list(cell.counts), cell.total) for labels, cell in self._cells.items())
        limits = [f"{limit:.6g}" for limit in self.limits] + ["+Inf"]
        for labels, counts, total in cells:
            pairs = _pairs(self._labels, labels)
            below = 0
            for limit, count in zip(limits, counts, strict=True):
                below += count
                yield f'{name}_bucket{{{pairs}{"," if pairs else ""}le="{limit}"}} {below}'
            yield f"{name}_sum{{{pairs}}} {total!r}"
            yield f"{name}_count{{{pairs}}} {below}"


def _pairs(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    # A line break, which the original lets through, would break the whole page.
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def status_of(error: BaseException) -> str:
    """Return the name of the status that an error is answered with."""
    return status_name(error.grpc_code) if isinstance(error, MoxserveError) else "INTERNAL"


def _latency(name: str, *labels: str) -> Histogram:
    return Histogram(name, _LATENCIES_US, *labels)


@dataclass
class ServingMetrics:
    """The metrics of one server. Latencies are in microseconds.

    Attributes:
        request_count: requests for inference over gRPC, and all of REST.
        request_latency: of those that succeeded, from the first look at their bytes to the answer's bytes.
        runtime_latency: of the run of the model alone; warmup does not count.
        example_counts: examples in each multi-inference.
        example_count_total: their sum.
        warmup_latency: of the replay of a version's recorded requests.
        warmup_records: recorded requests that were read.
        load_attempts: loads of a version, by how they ended: success or fail.
        load_latency: sum of the times of those that succeeded, without warmup.
        mlmd: 1 for each version that names its entry in ML Metadata, the name as a label. The original shows the
            number 0 instead of the name, which tells nobody anything.
        logged: requests that the configuration wants logged, by what became of that.
        records_dropped: requests that neither the access log nor a trace tells, since they came too fast.
        queuing_latency: of each request, or part of one, from its place in a batch until that is run.
        wrapped_runs: batches run.
        input_batch_sizes: rows of each input of each request.
        processed_batch_sizes: rows of each batch, with those that fill it up.
        padding_sizes: how many of those there are, by the rows of the batch.
    """

    request_count: Counter = field(default_factory=lambda: Counter(_SERVING + "request_count", "model_name", "status"))
    request_latency: Histogram = field(
        default_factory=lambda: _latency(_SERVING + "request_latency", "model_name", "API", "entrypoint")
    )
    runtime_latency: Histogram = field(
        default_factory=lambda: _latency(_SERVING + "runtime_latency", "model_name", "API", "runtime")
    )
    example_counts: Histogram = field(
        default_factory=lambda: Histogram(_SERVING + "request_example_counts", _EXAMPLES, "model")
    )
    example_count_total: Counter = field(
        default_factory=lambda: Counter(_SERVING + "request_example_count_total", "model")
    )
    warmup_latency: Histogram = field(
        default_factory=lambda: _latency(_SERVING + "model_warmup_latency", "model_path", "status")
    )
    warmup_records: Counter = field(
        default_factory=lambda: Counter(_SERVING + "model_warmup_records_read", "model_path", "status")
    )
    load_attempts: Counter = field(
        default_factory=lambda: Counter(_SAVED_MODEL + "load_attempt_count", "model_path", "status")
    )
    load_latency: Counter = field(default_factory=lambda: Counter(_SAVED_MODEL + "load_latency", "model_path"))
    mlmd: Gauge = field(default_factory=lambda: Gauge(_SERVING + "mlmd_map", "model_name", "version", "mlmd_uuid"))
    logged: Counter = field(
        default_factory=lambda: Counter(_SERVING + "request_log_count", "model_name", "status_code")
    )
    records_dropped: Counter = field(default_factory=lambda: Counter("/moxserve/request_records_dropped"))
    queuing_latency: Histogram = field(
        default_factory=lambda: Histogram(_BATCHING + "queuing_latency", _QUEUING_US, "thread_pool_name")
    )
    wrapped_runs: Counter = field(default_factory=lambda: Counter(_BATCHING + "wrapped_run_count"))
    input_batch_sizes: Histogram = field(
        default_factory=lambda: Histogram(_BATCHING + "input_batch_size", _BATCH_SIZES)
    )
    processed_batch_sizes: Histogram = field(
        default_factory=lambda: Histogram(_BATCHING + "processed_batch_size", _BATCH_SIZES)
    )
    padding_sizes: Histogram = field(
        default_factory=lambda: Histogram(_BATCHING + "padding_size", _BATCH_SIZES, "execution_batch_size")
    )
    _names: set[str] = field(default_factory=set)

    def request(self, model: str, status: str, *, api: str, entrypoint: str, seconds: float) -> None:
        """Count a request.

        Args:
            model: name as the request has it; empty when it could not be read.
            status: name of its status, such as `OK`.
            api: what was asked for, such as `Predict`.
            entrypoint: `GRPC` or `REST`.
            seconds: how long it took.
        """
        if model not in self._names:
            model = self._admitted(model, status)
        self.request_count.add((model, status))
        if status == "OK":
            self.request_latency.observe((model, api, entrypoint), seconds * _MICROS)

    def _admitted(self, model: str, status: str) -> str:
        # Anyone can ask for any name: without a bound, asking would fill the memory. What answered once is no stranger.
        if status != "OK" and (len(model) > _MAX_NAME or len(self._names) >= _MAX_STRANGERS):
            return ""
        self._names.add(model)
        return model

    def run(self, model: str, api: str, platform: str, seconds: float) -> None:
        """Count a run of a model.

        Args:
            model: its name.
            api: what was asked for, such as `Predict`.
            platform: of its backend. TensorFlow is told as `TF1`, which is what the original calls a session.
            seconds: how long it took.
        """
        runtime = "TF1" if platform == "tensorflow" else platform
        self.runtime_latency.observe((model, api, runtime), seconds * _MICROS)

    def examples(self, model: str, count: int) -> None:
        """Count the examples of a multi-inference."""
        self.example_counts.observe((model,), count)
        self.example_count_total.add((model,), count)

    @contextlib.contextmanager
    def loading(self, path: str) -> Iterator[None]:
        """Count the load that happens in the block."""
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self.load_attempts.add((path, "fail"))
            raise
        self.load_attempts.add((path, "success"))
        self.load_latency.add((path,), int((time.monotonic() - began) * _MICROS))

    def warmup(self, path: str, status: str, records: int, seconds: float) -> None:
        """Count a replay of recorded requests, `records` of which were read."""
        self.warmup_latency.observe((path, status), seconds * _MICROS)
        self.warmup_records.add((path, status), records)

    def loaded(self, model: str, version: int, path: str) -> None:
        """Take note of a version that was loaded, and of its entry in ML Metadata where its directory names one.

        Args:
            model: its name.
            version: number.
            path: the version directory.
        """
        place = os.path.join(path, "assets.extra", "mlmd_uuid")
        try:
            if file.exists(place):
                uuid = file.read(place, binary=True)[:_MAX_NAME].decode(errors="replace").strip()
                self.mlmd.set((model, str(version), uuid), 1)
        except OSError as error:
            logger.warning("ML Metadata Key Found But couldn't be read. %s", error)

    def queued(self, seconds: float) -> None:
        """Count the time that a request waited in a batch. As in the original, the pool's name is empty."""
        self.queuing_latency.observe(("",), seconds * _MICROS)

    def batch(self, sizes: Iterable[int], rows: int, padding: int | None) -> None:
        """Count a batch that is run.

        Args:
            sizes: rows of each input of each request in it.
            rows: of the batch.
            padding: how many of them fill it up; None where batches are not filled up, so that not every number of
                rows that ever occurs becomes a label.
        """
        self.wrapped_runs.add(())
        for size in sizes:
            self.input_batch_sizes.observe((), size)
        self.processed_batch_sizes.observe((), rows)
        if padding is not None:
            self.padding_sizes.observe((str(rows),), padding)

    def page(self) -> bytes:
        """Write the page in Prometheus' text format, sorted by name."""
        lines = []
        for metric in sorted(self._all(), key=lambda m: m.name):
            name = re.sub(r"[^a-zA-Z0-9_]", ":", metric.name)
            lines.append(f"# TYPE {name} {metric.kind}")
            lines.extend(metric.lines(name))
        return ("\n".join(lines) + "\n").encode()

    def counts(self) -> dict[str, list[list[Any]]]:
        """Return all that was counted, as JSON can hold it: name -> cells."""
        return {metric.name: metric.cells() for metric in self._all()}

    def absorb(self, counts: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Add what another server process has counted; see `counts`."""
        for metric in self._all():
            metric.absorb(counts.get(metric.name, ()))

    def first_value(self, name: str) -> int:
        """Return the number of a counter's first labels; 0 when there is no such counter or nothing was counted.

        Args:
            name: with slashes, as a request to reload names it.
        """
        return next((m.value() for m in self._all() if isinstance(m, Counter) and m.name == name), 0)

    def _all(self) -> list[Counter | Histogram]:
        return [m for m in vars(self).values() if isinstance(m, (Counter, Histogram))]
