"""Data sets as TFRecord files with slim's features.

    OUT/<split>-00000-of-0000N.tfrecord      shuffled by the seed, in N files of nearly equal numbers of records
    OUT/labels.txt                           `0: name`, one line a class; where there are classes
    OUT/dataset.json                         where it comes from, how it is split, what was left out

The same source, seed and numbers write the same bytes. The directory appears at once or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.data.folder import labels_text, publish_data_set, write_bytes
from moxserve.data.record_sources import RecordSource, find_record_sources
from moxserve.errors import DataError, UsageError
from moxserve.protocol.examples import make_example
from moxserve.protocol.tfrecord import write_records

__all__ = ["RecordJob", "parse_split", "write_tfrecords"]

_log = logging.getLogger(__name__)
_FIRST, _EVERY = 10, 100


@dataclass
class RecordJob:
    """What is to be written.

    Attributes:
        source: a folder of images, a .csv or a .npz file, see `record_sources`.
        out: directory to make.
        shards: files of each split.
        split: part of each split, by name; empty: those that the source has, or `train`.
        seed: of the order, and of the choice of the parts.
        on_bad_image: `skip` with a counted warning, or `raise`.
        force: replace an earlier data set at `out`.
        progress: called with the samples that are done and those that there are.
        bad: how many samples were skipped until now.
    """

    source: str
    out: str
    shards: int = 1
    split: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    on_bad_image: str = "skip"
    force: bool = False
    progress: Callable[[int, int], None] = lambda _done, _total: None
    bad: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.shards < 1:
            raise UsageError(f"shards={self.shards}: expected at least 1")
        if self.seed < 0:
            raise UsageError(f"seed={self.seed}: expected at least 0")
        if self.on_bad_image not in ("skip", "raise"):
            raise UsageError(f"on_bad_image={self.on_bad_image!r}: expected 'skip' or 'raise'")


def parse_split(text: str) -> dict[str, float]:
    """Read `train=0.9,eval=0.1`.

    Raises:
        UsageError: it has another form, or the parts do not add up to 1.
    """
    parts: dict[str, float] = {}
    for entry in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = entry.partition("=")
        try:
            part = float(value)
        except ValueError:
            part = 0.0
        if not name.isidentifier() or not 0 < part <= 1 or name in parts:
            raise UsageError(f"split {entry!r}: expected NAME=PART, such as train=0.9,eval=0.1; each name once")
        parts[name] = part
    if parts and abs(sum(parts.values()) - 1) > 1e-6:
        raise UsageError(f"split {text!r}: the parts add up to {sum(parts.values()):g}; expected 1")
    return parts


def write_tfrecords(job: RecordJob) -> Mapping[str, Any]:
    """Write a data set as TFRecord files.

    Returns:
        What was written, as in `dataset.json`.

    Raises:
        DataError: the source cannot be read, `out` is taken, or all samples of a file are bad.
        UsageError: the source is split already, and shall be split.
    """
    sources = find_record_sources(job.source)
    if job.split and sources[0].split:
        raise UsageError(f"{job.source!r} is split already ({', '.join(s.split for s in sources)}); leave --split out")
    if len({source.labels for source in sources}) > 1:
        raise DataError(
            f"the splits of {job.source!r} have different classes", hint="write the same labels.txt into each split"
        )
    return publish_data_set(job.out, lambda folder: _write(job, sources, folder), force=job.force)


def _write(job: RecordJob, sources: Sequence[RecordSource], folder: str) -> Mapping[str, Any]:
    total = sum(source.count for source in sources)
    done = 0
    samples: dict[str, int] = {}
    for source in sources:
        for split, numbers in _parts(source, job).items():
            written = 0
            for shard, part in enumerate(np.array_split(numbers, job.shards)):
                name = f"{split}-{shard:05}-of-{job.shards:05}.tfrecord"
                written += write_records(os.path.join(folder, name), _records(source, part, job, done, total))
                done += len(part)
            if not written:
                raise DataError(f"{job.source!r}: no sample of the split {split!r} is left", hint="are its images bad?")
            samples[split] = written
    job.progress(total, total)
    if sources[0].labels:
        write_bytes(os.path.join(folder, "labels.txt"), labels_text(sources[0].labels))
    return {
        "name": os.path.basename(os.path.abspath(job.source)),
        "source": f"converted from {os.path.basename(os.path.abspath(job.source))}",
        "samples": samples,
        "skipped": job.bad,
        "shards": job.shards,
        "seed": job.seed,
        "labels": list(sources[0].labels),
    }


def _parts(source: RecordSource, job: RecordJob) -> dict[str, np.ndarray]:
    """Return the numbers of the samples of each split, in the order that they are written in."""
    random = np.random.default_rng(job.seed)
    parts = job.split or {source.split or "train": 1.0}
    chosen: dict[str, list[np.ndarray]] = {name: [] for name in parts}
    ends = np.cumsum(list(parts.values()))
    for group in np.unique(source.group):
        numbers = random.permutation(np.flatnonzero(source.group == group))
        cuts = np.rint(ends[:-1] * len(numbers)).astype(int)
        for name, piece in zip(parts, np.split(numbers, cuts), strict=True):
            chosen[name].append(piece)
    return {name: random.permutation(np.concatenate(pieces)) for name, pieces in chosen.items()}


def _records(source: RecordSource, numbers: np.ndarray, job: RecordJob, done: int, total: int) -> Iterator[bytes]:
    for place, number in enumerate(numbers):
        job.progress(done + place, total)
        try:
            features = source.read(int(number))
        except DataError as error:
            if job.on_bad_image == "raise":
                raise
            job.bad += 1
            if job.bad <= _FIRST or job.bad % _EVERY == 0:
                _log.warning("skipped (%d so far): %s", job.bad, error.message)
            continue
        yield make_example(features).SerializeToString(deterministic=True)
