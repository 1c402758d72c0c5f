"""Rows whose files a reader has fetched, in the order of the rows: a Python generator for `tf.data`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from moxserve.tensorflow.datasets.raw.source import Fetched, RawSource
from moxserve.tensorflow.datasets.reader.raw_reader import iterator_of

__all__ = ["ROW_AND_CONTENT", "FetchedRows", "fetched_of"]

# Columns of what is yielded: position, row, what the content is, and the content.
ROW_AND_CONTENT = ("int64", "int64", "int64", "string")
_NOT_FETCHED, _CONTENT, _REASON = range(3)


def fetched_of(kind: int, content: bytes) -> Fetched | None:
    """Return what the last two columns of a row mean; None: the file is cached, and was not fetched."""
    if kind == _NOT_FETCHED:
        return None
    return content if kind == _CONTENT else OSError(content.decode(errors="replace"))


class FetchedRows:
    """Yields rows with their files' contents, several at a time.

    Args:
        source: the samples.
        reader_class: see `reader.raw_reader`.
        kwargs: its keywords.
        at_once: rows of an element.
    """

    def __init__(
        self, source: RawSource, reader_class: Callable[..., Any], kwargs: Mapping[str, Any], at_once: int
    ) -> None:
        self.source, self.reader_class, self.kwargs, self.at_once = source, reader_class, kwargs, at_once

    def __call__(self, position: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the columns `[rows]` of the next rows, from a position on.

        Raises:
            DataError: the reader breaks its protocol, or a bucket cannot be read.
        """
        rows: list[tuple[int, int, int, bytes]] = []
        with closing(self._contents(int(position))) as contents:
            for number, (row, content) in enumerate(contents, int(position)):
                rows.append((number, row, *_encode(content)))
                if len(rows) == self.at_once:
                    yield _columns(rows)
                    rows = []
            if rows:
                yield _columns(rows)

    def _contents(self, position: int) -> Generator[tuple[int, bytes | Exception | None], None, None]:
        order, epochs = self.source.order, self.source.options.num_epochs
        if self.source.cache is None:
            yield from self._read(order.iterate(position, epochs))
            return
        # The cache fills in the first epoch. Epoch by epoch, a reader ends when there is nothing more to fetch.
        number = position // order.rows
        while epochs is None or number < epochs:
            yield from self._read(order.iterate(max(position, number * order.rows), number + 1))
            number += 1

    def _read(self, rows: Iterator[int]) -> Generator[tuple[int, bytes | Exception | None], None, None]:
        """Yield rows and contents; rows whose images are cached are passed by the reader."""
        # What the reader has asked for or passed by, and not yet given.
        ahead: deque[tuple[int, bool]] = deque()
        paths = self.source.samples.paths

        def missing() -> Iterator[str]:
            for row in rows:
                cached = self.source.is_cached(row)
                ahead.append((row, cached))
                if not cached:
                    yield paths[row]

        with closing(iterator_of(self.reader_class, self.kwargs, missing())) as contents:
            for _, content in contents:
                while ahead[0][1]:
                    yield ahead.popleft()[0], None
                yield ahead.popleft()[0], content
        while ahead:
            yield ahead.popleft()[0], None


def _encode(content: bytes | Exception | None) -> tuple[int, bytes]:
    if content is None:
        return _NOT_FETCHED, b""
    if isinstance(content, OSError):
        return _REASON, f"{content.strerror or content}".encode(errors="replace")
    if isinstance(content, Exception):
        raise content
    return _CONTENT, content


def _columns(rows: list[tuple[int, int, int, bytes]]) -> tuple[np.ndarray, ...]:
    positions, numbers, kinds, contents = zip(*rows, strict=True)
    integers = [np.asarray(column, np.int64) for column in (positions, numbers, kinds)]
    return *integers, np.asarray(contents, object)
