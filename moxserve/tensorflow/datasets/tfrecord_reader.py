"""Serialized records as a `tf.data.Dataset`: in an exact permutation an epoch where records can be jumped to, otherwise
file by file through a shuffle buffer.

Each element is a dict of scalars: `record` (string, serialized), `place` (string, which record of which file it is) and
`position` (int64, how many this worker was given before, over all epochs). The elements and their order follow from the
seed, the shard and the files, and never from the number of threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from moxserve.dataflow.order import EpochOrder
from moxserve.dataflow.seeds import draw_seed
from moxserve.errors import DataError, UsageError
from moxserve.protocol.tfrecord import records_of
from moxserve.protocol.tfrecord_index import RecordIndex
from moxserve.tensorflow.datasets.base import input_position, numbered_batches, rows_left
from moxserve.tensorflow.datasets.tfrecord_files import open_source
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.python_calls import python_function, steps
from moxserve.tensorflow.executor.skipped import SkippedRows

__all__ = ["BadRecords", "Reading", "check_integer", "indexed_records", "streamed_records"]

_log = logging.getLogger(__name__)
_CHUNK_RECORDS = 32  # read at a time: enough that calling Python costs nothing
_FILES_AT_ONCE = 8  # whose records are mixed; not `num_parallel`, which must not change the order
_FIRST_WARNINGS = 10
_LATER_WARNINGS = 100


def check_integer(name: str, value: Any, least: int) -> None:
    """Check an argument.

    Raises:
        UsageError: it is no integer, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UsageError(f"{name}={value!r}: expected an integer of at least {least}")


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
        shuffle: another order each epoch.
        shuffle_buffer_size: records of the shuffle buffer, where there is no index.
        num_parallel: reads at once.
        num_epochs: how often; None for no end.
        seed: of the order; None draws one.
        shard: number of this worker, from 0, and how many there are.
        on_bad_record: `raise`, or `skip` with a counted warning.
        position: how many records this worker was given before, where a run does not tell; a tensor: as it says.
        skipped: notes the records that are left out.
    """

    shuffle: bool = True
    shuffle_buffer_size: int = 6400
    num_parallel: int = 8
    num_epochs: int | None = None
    seed: int | None = None
    shard: tuple[int, int] = (0, 1)
    on_bad_record: Literal["raise", "skip"] = "raise"
    position: Any = 0
    skipped: SkippedRows = field(default_factory=SkippedRows, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name, least in (("shuffle_buffer_size", 1), ("num_parallel", 1), ("position", 0)):
            if not tf.is_tensor(getattr(self, name)):
                check_integer(name, getattr(self, name), least)
        if self.num_epochs is not None:
            check_integer("num_epochs", self.num_epochs, 1)
        if self.on_bad_record not in ("raise", "skip"):
            raise UsageError(f"on_bad_record={self.on_bad_record!r}: expected 'raise' or 'skip'")


@dataclass
class BadRecords:
    """Counts what is skipped, and warns: of the first ten, and then of every hundredth.

    Attributes:
        limit: how many in a row are one too many: then nothing is left to read. None for no such number.
    """

    limit: int | None = None
    count: int = 0
    in_a_row: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def skip(self, message: str) -> None:
        """Note one that is skipped.

        Raises:
            DataError: all of an epoch's records are.
        """
        with self._lock:
            self.count += 1
            self.in_a_row += 1
            if self.count <= _FIRST_WARNINGS or self.count % _LATER_WARNINGS == 0:
                _log.warning("skipped (%d so far): %s", self.count, message)
            if self.limit is not None and self.in_a_row >= self.limit:
                raise DataError(f"every record of an epoch is damaged; the last: {message}")

    def good(self) -> None:
        """Note that records were read."""
        self.in_a_row = 0


def indexed_records(index: RecordIndex, reading: Reading) -> Any:
    """Read the records of an index, in the current graph; see the module.

    The records of an epoch are a permutation of all (with `shuffle`), of which each worker has its own part. A run that
    goes on starts where it was.

    Args:
        index: the records.
        reading: how.

    Raises:
        DataError: there are no records, or fewer than workers, or a shard without a seed.
    """
    order = EpochOrder(len(index), reading.shuffle, reading.seed, reading.shard)
    if not order.rows:
        raise DataError(f"worker {reading.shard[0]} of {reading.shard[1]} has no record: there are {len(index)} in all")
    bad = BadRecords(order.rows) if reading.on_bad_record == "skip" else None

    def read(positions: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        payloads = index.read(rows, bad.skip if bad else None)
        kept = [number for number, payload in enumerate(payloads) if payload is not None]
        for number in set(range(len(payloads))).difference(kept):
            reading.skipped.note(index.name(int(rows[number])))
        if bad and kept:
            bad.good()
        return (
            _strings([payloads[number] for number in kept]),
            _strings([index.name(int(rows[number])).encode() for number in kept]),
            positions[kept],
        )

    reading.skipped.of_rows(order, lambda: map(index.name, range(len(index))))
    position = input_position(reading.position, reading.skipped)
    chunks = numbered_batches(order, reading.num_epochs, _CHUNK_RECORDS, position).map(
        lambda positions, row: _element(python_function(read, [positions, row], _TYPES)),
        num_parallel_calls=reading.num_parallel,
        deterministic=True,
    )
    records = chunks.unbatch()
    if bad is not None and reading.num_epochs is not None:
        return records
    left = rows_left(order, reading.num_epochs, position)
    return records.apply(tf.data.experimental.assert_cardinality(left))


_TYPES = (tf.string, tf.string, tf.int64)


def _element(parts: Sequence[Any]) -> dict[str, Any]:
    for part in parts:
        part.set_shape([None])
    return dict(zip(("record", "place", "position"), parts, strict=True))


def _strings(values: Sequence[bytes | None]) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


class _RecordsOfFiles:
    """Reads one file after the other, each from its beginning, in several threads."""

    def __init__(self, paths: Sequence[str], bad: BadRecords | None) -> None:
        self._paths, self._bad = paths, bad
        self._empty: set[int] = set()

    def of(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        path = self._paths[int(number)]
        count = 0
        with open_source(path) as file:
            for count, payload in enumerate(records_of(file, path, self._bad.skip if self._bad else None), 1):
                yield payload, f"{path}: record {count - 1}".encode()
        if not count:
            self._empty.add(int(number))
            if len(self._empty) == len(self._paths):
                raise DataError(f"no record can be read from {path} and {len(self._paths) - 1} other files")


def streamed_records(paths: Sequence[str], reading: Reading) -> Any:
    """Read files from their beginnings, in the current graph: compressed ones, or those in buckets; see the module.

    With `shuffle` the files are permuted each epoch, the records of several files are mixed, and go through a buffer.
    Every worker reads all files and keeps its part of the records. A run that goes on reads over what it had.

    Args:
        paths: the files.
        reading: how.

    Raises:
        DataError: a shard shuffles without a seed.
    """
    EpochOrder(reading.shard[1], reading.shuffle, reading.seed, reading.shard)  # the same rules for shards as elsewhere
    seed = draw_seed() if reading.seed is None else reading.seed
    order = EpochOrder(len(paths), reading.shuffle, seed)
    records = _RecordsOfFiles(paths, BadRecords() if reading.on_bad_record == "skip" else None)

    def of_file(number: Any) -> Any:
        types, shapes = (tf.string, tf.string), (tf.TensorShape([]), tf.TensorShape([]))
        return tf.data.Dataset.from_generator(steps(records.of), types, shapes, args=(number,))

    def epoch(number: Any) -> Any:
        files = python_function(lambda n: order.epoch(int(n)), [number], tf.int64, stateful=False)
        files.set_shape([None])
        at_once = min(_FILES_AT_ONCE, len(paths)) if reading.shuffle else 1
        mixed = tf.data.Dataset.from_tensor_slices(files).interleave(
            of_file, at_once, num_parallel_calls=min(reading.num_parallel, at_once), deterministic=True
        )
        part = mixed.shard(reading.shard[1], reading.shard[0])
        if not reading.shuffle:
            return part
        return part.shuffle(reading.shuffle_buffer_size, seed=seed + number, reshuffle_each_iteration=False)

    position = input_position(reading.position)
    epochs = tf.data.Dataset.range((1 << 62) if reading.num_epochs is None else reading.num_epochs)
    found = epochs.flat_map(epoch).skip(position)
    counted = tf.data.Dataset.zip((found, tf.data.Dataset.counter(start=position)))
    elements = counted.map(lambda pair, at: {"record": pair[0], "place": pair[1], "position": at})
    if reading.num_epochs is not None:
        return elements
    return elements.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
