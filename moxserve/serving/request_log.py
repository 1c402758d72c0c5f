"""Writes a share of the requests and their answers to files, for models whose configuration has a `logging_config`.

    logging_config {
      log_collector_config { filename_prefix: "/var/log/moxserve/requests" }
      sampling_config { sampling_rate: 0.01 }
    }

Files are TFRecords of PredictionLog messages, so that one can be put into a version directory as
`assets.extra/tf_serving_warmup_requests` as it is. They are called PREFIX.MODEL.TIME-PROCESS-NUMBER.tfrecord. The one
being written has `.partial` behind that; it is finished, flushed to disk and renamed when it holds as many records as
a warmup file may have, is large or old enough, when its model leaves the configuration, and when the server stops.

Requests never wait for this: they leave their arrays in a queue that one thread works through. When the queue is full,
requests are answered and not logged, and the server's log says how many.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote

import numpy as np

from moxserve.file import fsync_directory
from moxserve.protocol import messages
from moxserve.protocol.classify import fill_classification, fill_regression
from moxserve.protocol.tensors import to_proto
from moxserve.protocol.tfrecord import encode_record
from moxserve.serving.model_config import ModelConfig, RequestLogging

if TYPE_CHECKING:
    from moxserve.serving.classify import Classification, Inferred, Regression, Task
    from moxserve.serving.dataplane import Prediction

__all__ = ["LogLimits", "RequestLogs", "Sample"]

logger = logging.getLogger(__name__)

Read = TypeVar("Read", bound=Callable[..., Any])

_REMIND_S = 60.0


@dataclass(frozen=True)
class LogLimits:
    """How much is kept where, and for how long.

    Attributes:
        queue_records: requests that wait to be written.
        queue_bytes: size of their arrays.
        file_records: records of a finished file; a warmup file may have 1000.
        file_bytes: size at which a file is finished.
        file_age_s: age at which a file is finished.
    """

    queue_records: int = 1000
    queue_bytes: int = 64 << 20
    file_records: int = 1000
    file_bytes: int = 64 << 20
    file_age_s: float = 600.0


@dataclass(eq=False)
class _Log:
    """The log of one model; only the writing thread touches its file."""

    model: str
    settings: RequestLogging
    path: str = ""
    stream: BinaryIO | None = None
    opened_at: float = 0.0
    records: int = 0
    size: int = 0


@dataclass(frozen=True)
class _Entry:
    log: _Log
    size: int
    build: Callable[[], Any] = field(repr=False)


class RequestLogs:
    """The logs of all models.

    Args:
        tags: of the MetaGraphs that are served, for the metadata of the records.
        limits: sizes and times.
        counted: told the model of each request that was to be logged, and the name of the status with which it was.
    """

    def __init__(
        self,
        tags: Sequence[str] = (),
        limits: LogLimits | None = None,
        counted: Callable[[str, str], None] = lambda _model, _status: None,
    ) -> None:
        self._tags = tuple(tags)
        self._counted = counted
        self._limits = limits or LogLimits()
        self._logs: Mapping[str, _Log] = {}
        self._open: list[_Log] = []
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._dropped = 0
        self._told_dropped_at = -_REMIND_S
        self._told_at: dict[str, float] = {}
        self._number = 0
        self._wake = threading.Condition()
        # What is told while the thread is at work is looked at before it waits again.
        self._changed = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def configure(self, configs: Iterable[ModelConfig]) -> None:
        """Log the requests of these models from now on; a log whose settings stay goes on in its file."""
        with self._wake:
            logs = {}
            for config in configs:
                if config.logging is None:
                    continue
                if config.logging.sampling_rate == 0:
                    logger.warning("No requests of %s are logged: sampling_config.sampling_rate is 0", config.name)
                    continue
                log = self._logs.get(config.name)
                same = log is not None and log.settings == config.logging
                logs[config.name] = log if log is not None and same else _Log(config.name, config.logging)
            self._logs = logs
            if logs and self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="moxserve-request-log", daemon=True)
                self._thread.start()
            self._changed = True
            self._wake.notify()

    def sampled(self, model: str) -> Sample | None:
        """Decide whether a request is logged; cheap where nothing is."""
        log = self._logs.get(model)
        if log is None or random.random() >= log.settings.sampling_rate:
            return None
        return Sample(self, log)

    def close(self, timeout_s: float) -> bool:
        """Write what waits and finish all files.

        Returns:
            Whether that was done in time.
        """
        with self._wake:
            self._logs = {}
            self._closing = True
            self._wake.notify()
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def offer(self, log: _Log, size: int, build: Callable[[], Any]) -> None:
        """Put one request in the queue, unless it is full.

        Args:
            log: of its model.
            size: of what `build` holds on to, in bytes.
            build: makes the PredictionLog message, without metadata; called in another thread.
        """
        limits = self._limits
        with self._wake:
            if len(self._queue) >= limits.queue_records or self._queued_bytes + size > limits.queue_bytes:
                self._dropped += 1
                self._changed = True
                self._wake.notify()
                self._counted(log.model, "RESOURCE_EXHAUSTED")
                return
            self._queued_bytes += size
            self._queue.append(_Entry(log, size, build))
            self._wake.notify()

    # The writing thread

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._queue and not self._closing and not self._changed:
                    self._wake.wait(self._next_due_s())
                self._changed = False
                entries, self._queue = list(self._queue), deque()
                closing, current = self._closing, set(self._logs.values())
            for entry in entries:
                self._write(entry)
                with self._wake:
                    self._queued_bytes -= entry.size
            self._tell_dropped(now=closing)
            self._tidy(current)
            if closing and not entries:
                return

    def _next_due_s(self) -> float | None:
        if not self._open:
            return None
        return max(0.0, min(log.opened_at for log in self._open) + self._limits.file_age_s - time.monotonic())

    def _tell_dropped(self, *, now: bool) -> None:
        with self._wake:
            if not self._dropped or (not now and time.monotonic() < self._told_dropped_at + _REMIND_S):
                return
            dropped, self._dropped = self._dropped, 0
            self._told_dropped_at = time.monotonic()
        logger.warning("%d requests were not logged: the queue was full", dropped)

    def _tidy(self, current: set[_Log]) -> None:
        now = time.monotonic()
        for log in list(self._open):
            with self._reporting(log):
                if log not in current or now >= log.opened_at + self._limits.file_age_s:
                    self._finish(log)
                elif log.stream is not None:
                    log.stream.flush()

    def _write(self, entry: _Entry) -> None:
        log, status = entry.log, "UNKNOWN"
        with self._reporting(log):
            message = entry.build()
            self._add_metadata(message, log)
            record = encode_record(message.SerializeToString())
            if log.stream is None:
                self._begin(log)
            if log.stream is not None:
                log.stream.write(record)
            log.records += 1
            log.size += len(record)
            if log.records >= self._limits.file_records or log.size >= self._limits.file_bytes:
                self._finish(log)
            status = "OK"
        self._counted(log.model, status)

    def _begin(self, log: _Log) -> None:
        self._number += 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{quote(log.model, safe='')}.{stamp}-{os.getpid()}-{self._number}.tfrecord"
        log.path = f"{log.settings.filename_prefix}.{name}"
        log.stream = open(f"{log.path}.partial", "xb")  # noqa: SIM115 - open until it is finished
        log.opened_at, log.records, log.size = time.monotonic(), 0, 0
        self._open.append(log)

    def _finish(self, log: _Log) -> None:
        stream, log.stream = log.stream, None
        self._open.remove(log)
        if stream is None:
            return
        with stream:
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(f"{log.path}.partial", log.path)
        fsync_directory(os.path.dirname(log.path) or ".")
        logger.info("%d requests of %s are logged in %s", log.records, log.model, log.path)

    @contextlib.contextmanager
    def _reporting(self, log: _Log) -> Any:
        """Log an error of writing, now and then; the next record begins another file."""
        try:
            yield
        except Exception as error:
            if log.stream is not None:
                with contextlib.suppress(OSError):
                    log.stream.close()
            log.stream = None
            if log in self._open:
                self._open.remove(log)
            now = time.monotonic()
            if now >= self._told_at.get(log.model, -_REMIND_S) + _REMIND_S:
                self._told_at[log.model] = now
                logger.exception("requests of %s cannot be logged: %s", log.model, error)

    def _add_metadata(self, message: Any, log: _Log) -> None:
        metadata = message.log_metadata
        kind = message.WhichOneof("log_type")
        response = getattr(message, kind).response
        spec = response.results[0].model_spec if kind == "multi_inference_log" else response.model_spec
        metadata.model_spec.CopyFrom(spec)
        metadata.sampling_config.sampling_rate = log.settings.sampling_rate
        metadata.saved_model_tags.extend(self._tags)
        metadata.timestamp_secs = int(time.time())


class Sample:
    """One request that is going to be logged.

    Args:
        logs: where it goes.
        log: of its model.
    """

    def __init__(self, logs: RequestLogs, log: _Log) -> None:
        self._logs = logs
        self._log = log
        self._read: Any = None

    def keep(self, read: Read) -> Read:
        """Wrap the function that reads the inputs, so that what it reads is at hand when the answer is."""

        async def later(promised: Awaitable[Any]) -> Any:
            self._read = await promised
            return self._read

        def reading(*args: Any) -> Any:
            self._read = read(*args)
            return later(self._read) if isinstance(self._read, Awaitable) else self._read

        return reading  # type: ignore[return-value]

    def predict(self, prediction: Prediction, output_filter: Sequence[str]) -> None:
        """Log a prediction."""
        inputs, wanted = dict(self._read), list(output_filter)

        def build() -> Any:
            message = messages.PredictionLog()
            request, response = message.predict_log.request, message.predict_log.response
            for spec in (request.model_spec, response.model_spec):
                _fill_spec(spec, prediction)
            request.output_filter.extend(wanted)
            for tensors, arrays in ((request.inputs, inputs), (response.outputs, prediction.outputs)):
                for alias, array in arrays.items():
                    tensors[alias].CopyFrom(to_proto(array, typed=False))
            return message

        self._logs.offer(self._log, _size([*inputs.values(), *prediction.outputs.values()]), build)

    def classify(self, inferred: Inferred[Classification]) -> None:
        """Log a classification."""
        examples = self._read

        def build() -> Any:
            message = messages.PredictionLog()
            _fill_request(message.classify_log.request, inferred, examples)
            _fill_spec(message.classify_log.response.model_spec, inferred)
            fill_classification(message.classify_log.response.result, inferred.result.classes, inferred.result.scores)
            return message

        self._logs.offer(self._log, _size([examples]), build)

    def regress(self, inferred: Inferred[Regression]) -> None:
        """Log a regression."""
        examples = self._read

        def build() -> Any:
            message = messages.PredictionLog()
            _fill_request(message.regress_log.request, inferred, examples)
            _fill_spec(message.regress_log.response.model_spec, inferred)
            fill_regression(message.regress_log.response.result, inferred.result.values)
            return message

        self._logs.offer(self._log, _size([examples]), build)

    def multi_inference(self, tasks: Sequence[Task], answers: Sequence[Inferred[Classification | Regression]]) -> None:
        """Log several classifications and regressions of the same examples."""
        examples = self._read

        def build() -> Any:
            message = messages.PredictionLog()
            log = message.multi_inference_log
            _fill_examples(log.request.input, examples)
            for task, answer in zip(tasks, answers, strict=True):
                asked, told = log.request.tasks.add(method_name=task.method), log.response.results.add()
                for spec in (asked.model_spec, told.model_spec):
                    _fill_spec(spec, answer)
                if hasattr(answer.result, "values"):
                    fill_regression(told.regression_result, answer.result.values)
                else:
                    result = told.classification_result
                    fill_classification(result, answer.result.classes, answer.result.scores)
            return message

        if answers:
            self._logs.offer(self._log, _size([examples]), build)


def _fill_spec(spec: Any, answer: Any) -> None:
    spec.name, spec.version.value, spec.signature_name = answer.name, answer.version, answer.signature


def _fill_request(request: Any, inferred: Any, examples: np.ndarray) -> None:
    _fill_spec(request.model_spec, inferred)
    _fill_examples(request.input, examples)


def _fill_examples(message: Any, examples: np.ndarray) -> None:
    for example in examples:
        message.example_list.examples.add().MergeFromString(example)


def _size(arrays: Iterable[np.ndarray]) -> int:
    return sum(sum(map(len, a.ravel())) + a.nbytes if a.dtype == object else a.nbytes for a in map(np.asarray, arrays))
