"""The batch run: rows in, several requests in flight, results out in the order of the rows."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from moxserve.client import Client
from moxserve.client.fit import check_outputs, pick_signature
from moxserve.errors import DataError, RequestError, UsageError
from moxserve.file import local_copy
from moxserve.predict.accuracy import Accuracy
from moxserve.predict.batches import BatchResult, Sender, fixed_batch
from moxserve.predict.readers import Row, Rows, open_rows
from moxserve.predict.writer import JsonLines, open_output
from moxserve.types import DEFAULT_SIGNATURE

__all__ = ["PredictJob", "PredictSummary", "Progress", "run_predict"]

# Batches waiting behind those in flight, so that a slow one does not idle the others.
_READ_AHEAD = 2

Progress = Callable[[int, int, int | None], None]


@dataclass(frozen=True)
class PredictJob:
    """What to predict, and how.

    Attributes:
        model: `NAME`, `NAME:VERSION` or `NAME@LABEL`.
        input: the data set, a path or URL; `readers.py` says what may be read.
        output: JSONL file to write, a path or URL.
        signature: key of the signature.
        outputs: names of the outputs to write; None means all.
        batch_size: rows a request; a signature with a fixed batch size overrules it.
        concurrency: requests in flight.
        limit: only the first rows; None means all.
        skip_errors: write error records for rows that fail and go on, instead of stopping at the first.
        label: name of the labels' column, array, key or feature; None: `label` or `labels`, if there is one.

    Raises:
        UsageError: a figure is below 1.
    """

    model: str
    input: str | os.PathLike[str]
    output: str | os.PathLike[str]
    signature: str = DEFAULT_SIGNATURE
    outputs: Sequence[str] | None = None
    batch_size: int = 32
    concurrency: int = 4
    limit: int | None = None
    skip_errors: bool = False
    label: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "concurrency", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected 1 or more")


@dataclass
class PredictSummary:
    """What a run did.

    Attributes:
        target: where the model was.
        model: as asked for.
        version: version that the signatures came from; None when the server does not tell.
        signature: key of the signature.
        source: what the data set was.
        output: the file that was written.
        rows: rows predicted.
        errors: rows that failed.
        accuracy: share of right answers; None when not known.
        accuracy_rows: rows that the accuracy counts.
        accuracy_how: what was compared with what, or why nothing was.
        seconds: from the first request to the last answer.
        rows_per_s: rows predicted a second.
        requests: answered requests.
        p50_ms: median latency of a request; None without requests.
        p95_ms: 95th percentile of the same.
        batch_size: rows a request.
        concurrency: requests in flight.
        first_error: message of the first row that failed.
    """

    target: str
    model: str
    version: int | None
    signature: str
    source: str
    output: str
    rows: int = 0
    errors: int = 0
    accuracy: float | None = None
    accuracy_rows: int = 0
    accuracy_how: str = ""
    seconds: float = 0.0
    rows_per_s: float = 0.0
    requests: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    batch_size: int = 0
    concurrency: int = 0
    first_error: str | None = None


@dataclass
class _Tally:
    accuracy: Accuracy
    latencies_s: list[float] = field(default_factory=list)
    first_error: str | None = None


def run_predict(client: Client, job: PredictJob, progress: Progress | None = None) -> PredictSummary:
    """Predict a data set and write the answers.

    Args:
        client: where the model is.
        job: what to do.
        progress: called with rows done, rows failed and rows in all (None when unknown) after each batch.

    Returns:
        Figures of the run. With `skip_errors`, `errors` counts the rows that failed.

    Raises:
        UsageError: signature, outputs or input do not fit the model.
        DataError: the data cannot be read (without `skip_errors`: any row of it). Nothing was written.
        RequestError: the server refused. Nothing was written.
        ServerUnreachableError: nobody answers. Nothing was written.
        KeyboardInterrupt: Ctrl-C. Requests in flight are broken off; nothing was written.
    """
    with local_copy(job.input) as source:
        return _run(client, job, source, progress)


def _run(client: Client, job: PredictJob, source: str, progress: Progress | None) -> PredictSummary:
    metadata = client.metadata(job.model)
    signature = pick_signature(metadata.signatures, job.signature, job.model)
    check_outputs(job.outputs, signature)
    rows = open_rows(source, signature, job.limit, job.label)
    batch_size = fixed_batch(signature) or job.batch_size
    sender = Sender(client, job.model, signature, job.outputs, job.skip_errors)
    tally = _Tally(Accuracy(rows.classes, rows.classes_listed))
    start = time.monotonic()
    with open_output(job.output) as out:
        with contextlib.closing(_in_order(sender, rows, batch_size, job.concurrency)) as results:
            for result in results:
                _take(result, out, tally)
                if progress:
                    progress(out.rows, out.errors, rows.count)
        if out.rows + out.errors == 0:
            raise DataError(f"{os.fspath(job.input)}: holds no rows")
    summary = PredictSummary(
        target=client.target,
        model=job.model,
        version=metadata.version,
        signature=signature.name,
        source=rows.source,
        output=os.fspath(job.output),
        batch_size=batch_size,
        concurrency=job.concurrency,
        seconds=time.monotonic() - start,
    )
    _fill_in(summary, out, tally)
    return summary


def _fill_in(summary: PredictSummary, out: JsonLines, tally: _Tally) -> None:
    summary.rows, summary.errors, summary.first_error = out.rows, out.errors, tally.first_error
    summary.rows_per_s = out.rows / summary.seconds if summary.seconds else 0.0
    summary.accuracy, summary.accuracy_rows = tally.accuracy.value, tally.accuracy.total
    summary.accuracy_how = tally.accuracy.how
    summary.requests = len(tally.latencies_s)
    summary.p50_ms = percentile_ms(tally.latencies_s, 50)
    summary.p95_ms = percentile_ms(tally.latencies_s, 95)


def _take(result: BatchResult, out: JsonLines, tally: _Tally) -> None:
    tally.latencies_s += result.latencies_s
    for done in result.rows:
        if done.outputs is not None:
            out.write(done.row.name, done.row.label, done.outputs)
            tally.accuracy.add(done.outputs, done.row.label)
        elif done.error is not None:
            status = done.error.status if isinstance(done.error, RequestError) else "UNREADABLE_INPUT"
            out.write_error(done.row.name, done.row.label, status, done.error.message)
            tally.first_error = tally.first_error or done.error.message


def _batches(items: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _in_order(sender: Sender, rows: Rows, batch_size: int, concurrency: int) -> Generator[BatchResult, None, None]:
    """Send batches from several threads and yield their results in the order of the rows."""
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="predict")
    waiting: deque[Future[BatchResult]] = deque()
    try:
        for batch in _batches(rows.items, batch_size):
            waiting.append(pool.submit(sender.run, batch))
            if len(waiting) >= concurrency * _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        # Requests in flight are broken off by the closed connection; threads would keep the process alive otherwise.
        pool.shutdown(wait=False, cancel_futures=True)
        sender.client.close()
        raise
    pool.shutdown()


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float | None:
    """Return a percentile of latencies in milliseconds, nearest rank; None without any."""
    if not latencies_s:
        return None
    ordered = sorted(latencies_s)
    rank = max(0, min(len(ordered) - 1, int(len(ordered) * percent / 100 + 0.5) - 1))
    return ordered[rank] * 1e3
