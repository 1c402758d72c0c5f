"""One batch of rows: read, stacked, sent, and taken apart again. Runs in a worker thread.

Rows of unequal shape go out in separate requests. A model exported with a fixed batch size gets full batches: the last
row is repeated, and the surplus of the answer dropped. When a batch is refused it is halved until the rows that cause
it stand alone, so one bad row costs only itself; a batch that is too large is halved in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moxserve.client import Client
from moxserve.client.calls import Array
from moxserve.errors import DataError, RequestError
from moxserve.predict.readers import Row
from moxserve.types import Signature

__all__ = ["BatchResult", "RowResult", "Sender"]

# Nothing about these rows: halving would not help.
_WHOLE_MODEL = frozenset({"NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "CANCELLED"})
_NOT_HALVED = _WHOLE_MODEL | {"DEADLINE_EXCEEDED"}


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one row.

    Attributes:
        row: the row.
        outputs: by alias, without the batch dimension; None when it failed.
        error: why it failed.
    """

    row: Row
    outputs: Mapping[str, Array] | None = None
    error: DataError | RequestError | None = None


@dataclass
class BatchResult:
    """What became of a batch.

    Attributes:
        rows: one result a row, in order.
        latencies_s: seconds of each request that was answered.
    """

    rows: list[RowResult] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sender:
    """Sends batches of one job.

    Attributes:
        client: where to.
        model: `NAME`, `NAME:VERSION` or `NAME@LABEL`.
        signature: what the rows were made for.
        outputs: wanted outputs; None means all.
        skip: go on after rows that fail.
    """

    client: Client
    model: str
    signature: Signature
    outputs: Sequence[str] | None = None
    skip: bool = False

    def run(self, rows: Sequence[Row]) -> BatchResult:
        """Read and predict rows.

        Raises:
            DataError: a row cannot be read, unless `skip`.
            RequestError: the server refused, unless `skip` and only these rows are concerned.
            ServerUnreachableError: nobody answers.
        """
        result = BatchResult()
        done: dict[int, RowResult] = {}
        groups: dict[object, list[tuple[int, Mapping[str, Array]]]] = {}
        for number, row in enumerate(rows):
            try:
                inputs = row.load()
            except DataError as error:
                if not self.skip:
                    raise
                done[number] = RowResult(row, error=error)
                continue
            groups.setdefault(tuple(inputs[name].shape for name in sorted(inputs)), []).append((number, inputs))
        for group in groups.values():
            answers = self._predict([inputs for _, inputs in group], result.latencies_s)
            for (number, _), answer in zip(group, answers, strict=True):
                if isinstance(answer, RequestError):
                    done[number] = RowResult(rows[number], error=answer)
                else:
                    done[number] = RowResult(rows[number], answer)
        result.rows = [done[number] for number in range(len(rows))]
        return result

    def _predict(
        self, rows: Sequence[Mapping[str, Array]], latencies_s: list[float]
    ) -> list[Mapping[str, Array] | RequestError]:
        try:
            return list(self._request(rows, latencies_s))
        except RequestError as error:
            if self._must_stop(error, len(rows)):
                raise
            if len(rows) == 1 or error.status in _NOT_HALVED:
                return [error] * len(rows)
        half = len(rows) // 2
        return self._predict(rows[:half], latencies_s) + self._predict(rows[half:], latencies_s)

    def _must_stop(self, error: RequestError, count: int) -> bool:
        if error.status in _WHOLE_MODEL:
            return True
        return not self.skip and not (error.status == "RESOURCE_EXHAUSTED" and count > 1)

    def _request(self, rows: Sequence[Mapping[str, Array]], latencies_s: list[float]) -> Sequence[Mapping[str, Array]]:
        size = fixed_batch(self.signature) or len(rows)
        padded = [*rows, *[rows[-1]] * (size - len(rows))]
        inputs = {name: np.stack([row[name] for row in padded]) for name in rows[0]}
        start = time.perf_counter()
        answer = self.client.predict(self.model, inputs, signature=self.signature.name, outputs=self.outputs)
        latencies_s.append(time.perf_counter() - start)
        for name, array in answer.items():
            if array.ndim == 0 or len(array) != size:
                raise DataError(
                    f"output {name!r} has shape {list(array.shape)}; expected one entry for each of {size} rows",
                    hint="choose outputs that follow the rows with --outputs",
                )
        # The ellipsis keeps a single value an array, strings included.
        return [{name: array[number, ...] for name, array in answer.items()} for number in range(len(rows))]


def fixed_batch(signature: Signature) -> int | None:
    """Return the batch size that a signature is fixed to; None when it is free."""
    sizes = [spec.shape[0] for spec in signature.inputs.values() if spec.shape]
    return next((size for size in sizes if size is not None), None)
