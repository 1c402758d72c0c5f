"""Readers: what fetches the files of a raw data set, in the order that the data set decides.

A reader is a class that is called with the paths and with keywords, and whose object is iterated once:

    class MyReader:
        def __init__(self, paths, *, num_readers, capacity, **reader_kwargs): ...
        def __iter__(self):
            for path in self.paths:
                yield path, content

`paths` is an iterable of local paths and `s3://` URLs; it may be endless and must be consumed lazily, at most
`capacity` ahead of what was yielded. Pairs come in the order of `paths`, one for each. A file that cannot be read does
not end the iteration: the exception (an OSError or a DataError) is yielded in place of the content, and the data set
decides. When the data set is done before the paths are, the generator that `__iter__` is gets closed (GeneratorExit),
and a method `close()` is called if the reader has one. `iterator_of` holds readers to this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.datasets.raw.split import split_image_classification_dataset
from moxserve.tensorflow.datasets.raw.storage import read_file

__all__ = [
    "AsyncRawGenerator",
    "Content",
    "ParallelReader",
    "RawReader",
    "iterator_of",
    "split_image_classification_dataset",
]

Content = bytes | Exception
# How many requests an object store is sent at once for each of the reader's threads that the user asks for: a request
# waits some 50 ms and needs the processor for less than one.
_REQUESTS_PER_READER = 4


class RawReader(Protocol):
    """What iterating a reader gives; see the module."""

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        """Yield path and content."""
        ...


def fetch(path: str) -> Content:
    """Read one file; what goes wrong is returned."""
    try:
        return read_file(path)
    except (OSError, DataError) as error:
        return error


class ParallelReader:
    """Reads local files with a few threads. The default for local files.

    Args:
        paths: of the files.
        num_readers: threads.
        capacity: how many files are read ahead.
    """

    def __init__(self, paths: Iterable[str], *, num_readers: int = 8, capacity: int = 256) -> None:
        if num_readers < 1 or capacity < 1:
            raise UsageError(f"a reader needs num_readers and capacity of at least 1, got {num_readers} and {capacity}")
        self.paths, self.capacity = paths, capacity
        self.threads = min(num_readers, capacity)

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        """Yield path and content, in the order of the paths."""
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="moxserve-reader")
        pending: deque[tuple[str, Future[Content]]] = deque()
        try:
            for path in self.paths:
                pending.append((path, pool.submit(fetch, path)))
                if len(pending) >= self.capacity:
                    first, content = pending.popleft()
                    yield first, content.result()
            while pending:
                first, content = pending.popleft()
                yield first, content.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class AsyncRawGenerator(ParallelReader):
    """Reads from an object store, where a file takes long to come: many threads, far ahead. The default for buckets.

    Source: MoXing's class of this name, which fetches with processes; threads do the same here, since they only wait.

    Args:
        paths: of the files.
        num_readers: a quarter of the requests at once.
        capacity: how many files are read ahead.
        num_threads: how many requests at once, in place of `num_readers`.
    """

    def __init__(
        self, paths: Iterable[str], *, num_readers: int = 8, capacity: int = 256, num_threads: int | None = None
    ) -> None:
        threads = num_readers * _REQUESTS_PER_READER if num_threads is None else num_threads
        super().__init__(paths, num_readers=threads, capacity=capacity)


def iterator_of(
    reader_class: Callable[..., Any], kwargs: Mapping[str, Any], paths: Iterable[str]
) -> Generator[tuple[str, Content], None, None]:
    """Make a reader and iterate it, holding it to the protocol.

    Args:
        reader_class: the class.
        kwargs: its keywords.
        paths: what it shall read.

    Raises:
        UsageError: it cannot be made, or not be iterated.
        DataError: from the iterator: it gives another file than it should, or ends too early.
    """
    asked: deque[str] = deque()

    def noted() -> Iterator[str]:
        for path in paths:
            asked.append(path)
            yield path

    name = getattr(reader_class, "__name__", repr(reader_class))
    try:
        reader = reader_class(noted(), **kwargs)
        contents = iter(reader)
    except TypeError as error:
        raise UsageError(
            f"reader_class {name}: {error}",
            hint="it is called as READER(paths, num_readers=..., capacity=..., **reader_kwargs) and iterated",
        ) from error
    return _checked(reader, contents, asked, name)


def _checked(
    reader: Any, contents: Iterator[tuple[str, Content]], asked: deque[str], name: str
) -> Generator[tuple[str, Content], None, None]:
    try:
        for path, content in contents:
            expected = asked.popleft() if asked else None
            if path != expected:
                raise DataError(f"reader {name} gave {path!r} where {expected!r} was next: it must keep to the order")
            if not isinstance(content, (bytes, bytearray, memoryview, Exception)):
                raise DataError(f"reader {name} gave {type(content).__name__} for {path!r}; expected bytes")
            yield path, content if isinstance(content, Exception) else bytes(content)
        if asked:
            raise DataError(f"reader {name} ended before it gave {asked[0]!r}")
    finally:
        for owner in (contents, reader):
            if callable(close := getattr(owner, "close", None)):
                close()
