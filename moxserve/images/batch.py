"""Batches of images, decoded, cropped, resized and flipped into one array by a bounded pool of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from moxserve.errors import DataError, UsageError
from moxserve.images.bad import BadImageLog
from moxserve.images.cache import BytesCache, DecodedCache, FileKey
from moxserve.images.decode import WindowDecoder, cut, opencv
from moxserve.images.ending import before_the_end
from moxserve.images.geometry import Geometry, Stretch
from moxserve.images.header import BadImageError
from moxserve.images.pool import each
from moxserve.images.rng import RowRandom

__all__ = ["BatchDecoder", "DecodedBatch", "read_bytes"]

Source: TypeAlias = "bytes | str | os.PathLike[str] | FileKey"
Seed: TypeAlias = "int | Sequence[int] | np.ndarray"

# TensorFlow takes an array over without a copy when it begins at a multiple of this.
_ALIGNMENT = 64
_random = RowRandom()


class DecodedBatch(NamedTuple):
    """A batch of images.

    Attributes:
        images: `[batch, height, width, channels] uint8`, RGB; rows that are bad are 0.
        bad: `[batch] bool`: rows whose image could not be decoded; the caller replaces or drops them.
    """

    images: np.ndarray
    bad: np.ndarray


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return a local file's bytes, in three system calls.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        expected = os.fstat(fd).st_size
        data = os.read(fd, expected + 1)
        if len(data) == expected:
            return data
        rest = [data]
        while chunk := os.read(fd, 1 << 20):
            rest.append(chunk)
        return b"".join(rest)
    finally:
        os.close(fd)


@dataclass
class BatchDecoder:
    """Decodes batches. The same rows and seeds give the same images, whatever number of threads works.

    Attributes:
        geometry: which window of each image; None takes the whole image.
        size: height and width of the result: every window must have it, and without a geometry images are resized to it
            (the aspect ratio is not kept). None: that of the first good row of a batch, which all must have.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).
        threads: how many at most; never more than the machine has cores. None: as many as there are cores.
        on_bad: `skip` marks rows that cannot be decoded and warns, `raise` raises.
        cache: keeps encoded bytes, or decoded images, of rows that are paths; see `cache`.
        exact: see WindowDecoder.
        log: counts the bad rows.
        fetch: reads a source that is a FileKey, such as a file in a bucket, by its path; `cache` keeps what it gives.

    Raises:
        UsageError: an argument is wrong.
    """

    geometry: Geometry | None = None
    size: tuple[int, int] | None = None
    channels: int = 3
    threads: int | None = None
    on_bad: Literal["skip", "raise"] = "skip"
    cache: BytesCache | DecodedCache | None = None
    exact: bool = True
    log: BadImageLog = field(default_factory=BadImageLog)
    fetch: Callable[[str], bytes] = read_bytes

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.on_bad not in ("skip", "raise"):
            raise UsageError(f"on_bad={self.on_bad!r}: expected 'skip' or 'raise'")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads}: expected at least 1, or None for as many as there are cores")
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"size={self.size}: expected height and width of at least 1")
        geometry = self.geometry
        if geometry is None and self.size is not None:
            geometry = Stretch(*self.size)
        self._window = WindowDecoder(geometry, self.channels, self.exact)
        opencv()

    def decode(self, names: Sequence[str], sources: Sequence[Source], seeds: Sequence[Seed]) -> DecodedBatch:
        """Decode a batch; the result depends on `sources` and `seeds` only, never on threads.

        Args:
            names: of the images, for messages; `[batch]`.
            sources: encoded bytes, or paths of files to be read, or keys of files that `fetch` reads; `[batch]`.
            seeds: a number or several (at least 0) for each row, from which its window is drawn; `[batch]` or
                `[batch, n]`.

        Raises:
            BadImageError: a row cannot be decoded and `on_bad` is `raise`; names it.
            DataError: images differ in size where there is neither a size nor a geometry.
            UsageError: the arguments differ in length.
            ProgramEndsError: the program ends.
        """
        count = len(sources)
        if not len(names) == len(seeds) == count:
            raise UsageError(f"{len(names)} names, {count} sources, {len(seeds)} seeds: expected as many of each")
        job = _Job(self, names, sources, seeds)
        with before_the_end(), _one_thread_in_opencv():
            if self.size is not None and count:
                job.images = self._empty(count, self.size)
                each(count, job.row, self.threads)
            else:
                each(count, job.row_of_any_size, self.threads)
                job.stack()
        bad = np.array([error is not None for error in job.errors], bool)
        self._tell([error for error in job.errors if error is not None])
        return DecodedBatch(job.images, bad)

    def _tell(self, errors: list[BadImageError]) -> None:
        if errors and self.on_bad == "raise":
            raise BadImageError(errors[0].name, errors[0].reason)
        for error in errors:
            self.log.skip(error)

    def one(self, name: str, source: Source, seed: Seed = 0, out: np.ndarray | None = None) -> np.ndarray:
        """Decode one image in this thread: `[height, width, channels] uint8`.

        Args:
            name: for messages.
            source: encoded bytes, a path, or the key of a file that `fetch` reads.
            seed: from which its window is drawn.
            out: where to write the result.

        Raises:
            BadImageError: it cannot be decoded, or read.
        """
        rng = _random(seed)
        try:
            if isinstance(self.cache, DecodedCache):
                return self._through(self.cache, name, source, rng, out)
            return self._window(self._bytes(source), rng, out, name)
        except OSError as error:
            raise BadImageError(name, f"cannot be read: {error.strerror or error}") from error

    def _bytes(self, source: Source) -> bytes:
        if isinstance(source, bytes):
            return source
        if isinstance(source, FileKey):
            if isinstance(self.cache, BytesCache):
                return self.cache.read(source.path, source, self.fetch)
            return self.fetch(source.path)
        if isinstance(self.cache, BytesCache):
            return self.cache.read(source)
        return read_bytes(source)

    def _through(
        self, cache: DecodedCache, name: str, source: Source, rng: np.random.Generator, out: np.ndarray | None
    ) -> np.ndarray:
        key = _key(name, source)
        image = cache.get(key, self.channels)
        if image is None:
            image = self._window.whole(self._bytes(source), name)
            cache.put(key, image)
        geometry = self._window.geometry
        if geometry is None:
            return image.copy()
        return cut(image, geometry.window(image.shape[0], image.shape[1], rng), out)

    def _empty(self, count: int, size: tuple[int, int]) -> np.ndarray:
        shape = (count, *size, self.channels)
        length = int(np.prod(shape))
        memory = np.empty(length + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + length].reshape(shape)


class _Job:
    """One batch under way."""

    def __init__(
        self, decoder: BatchDecoder, names: Sequence[str], sources: Sequence[Source], seeds: Sequence[Seed]
    ) -> None:
        self.decoder, self.names, self.sources, self.seeds = decoder, names, sources, seeds
        self.images = np.empty((len(sources), 0, 0, decoder.channels), np.uint8)
        self.errors: list[BadImageError | None] = [None] * len(sources)
        self.found: list[np.ndarray | None] = [None] * len(sources)

    def row(self, number: int) -> None:
        """Decode a row into its place."""
        out = self.images[number]
        try:
            self.decoder.one(self.names[number], self.sources[number], self.seeds[number], out)
        except BadImageError as error:
            out[...] = 0
            self._bad(number, error)

    def row_of_any_size(self, number: int) -> None:
        """Decode a row into an array of its own."""
        try:
            self.found[number] = self.decoder.one(self.names[number], self.sources[number], self.seeds[number])
        except BadImageError as error:
            self._bad(number, error)

    def _bad(self, number: int, error: BadImageError) -> None:
        # Without the frames that led to it, which hold this job and so the error: only a search for garbage would find
        # the images and the decoder then, and its log would say its sum whenever that is.
        self.errors[number] = BadImageError(error.name, error.reason)

    def stack(self) -> None:
        """Put rows of one size together."""
        first = next((number for number, image in enumerate(self.found) if image is not None), None)
        if first is None:
            return
        shape = self.found[first].shape  # type: ignore[union-attr]
        self.images = self.decoder._empty(len(self.found), shape[:2])
        for number, image in enumerate(self.found):
            if image is None:
                self.images[number] = 0
                continue
            if image.shape != shape:
                raise DataError(
                    f"{self.names[number]} is {_text(image.shape)}, {self.names[first]} is {_text(shape)}",
                    hint="images of different sizes make no batch: give a size, or a geometry that has one",
                )
            self.images[number] = image


def _key(name: str, source: Source) -> FileKey:
    if isinstance(source, FileKey):
        return source
    return FileKey.of_bytes(name, source) if isinstance(source, bytes) else FileKey.of(source)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


_opencv_lock = threading.Lock()
_opencv_users = 0
_opencv_threads = 0


def _forget_users() -> None:
    global _opencv_lock, _opencv_users
    if _opencv_users:
        opencv().setNumThreads(_opencv_threads)
    _opencv_lock, _opencv_users = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_users)


@contextmanager
def _one_thread_in_opencv() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own under ours; what it was is restored by the last one out."""
    global _opencv_users, _opencv_threads
    cv2 = opencv()
    with _opencv_lock:
        if _opencv_users == 0:
            _opencv_threads = cv2.getNumThreads()
            cv2.setNumThreads(0)
        _opencv_users += 1
    try:
        yield
    finally:
        with _opencv_lock:
            _opencv_users -= 1
            if _opencv_users == 0:
                cv2.setNumThreads(_opencv_threads)
