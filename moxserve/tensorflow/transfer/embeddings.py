"""Word vectors that others trained, as the initial value of an embedding.

The file is read once from front to back, and only the vectors of the vocabulary are kept: it may be larger than memory,
packed with gzip, or in a store. Formats:

    text       a word and its numbers a line: GloVe; with a first line `COUNT DIMENSION`: word2vec, fastText's .vec
    .bin       word2vec's binary format
    .npy       [words, dimension]; `words` names the rows, by default they are the vocabulary's own
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from moxserve.errors import DataError, UsageError
from moxserve.file.handle import File
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.start import give_initial_value
from moxserve.tensorflow.executor.variables import TowerContext
from moxserve.tensorflow.executor.warm_start import read_vocabulary

__all__ = ["PretrainedEmbedding"]

Words = str | os.PathLike[str] | Sequence[str]
_MISSING = ("normal", "zeros", "mean")
_LISTED = 8
_CHUNK_BYTES = 1 << 20
_LARGEST_CONSTANT = 1 << 30


class PretrainedEmbedding:
    """Vectors for a vocabulary out of a file: an initializer, with a report of what was not found.

        glove = mox.PretrainedEmbedding("glove.6B.100d.txt", "vocabulary.txt", buckets=1)
        table = tf.get_variable("words", glove.shape, initializer=glove, trainable=False)

    Nothing is read before it is needed: a run of EVAL, or an export, which take the values of a checkpoint, read the
    vocabulary and one line.

    Args:
        path: of the vectors.
        vocabulary: file with one word a line, or the words; row i is the vector of word i.
        buckets: rows after those of the vocabulary, for words that are not in it; treated as missing words.
        missing: what words get that the file lacks: "normal" (drawn with the mean and deviation of the vectors that
            were found, in each dimension), "zeros", or "mean".
        lowercase: look for the word in lower case where it is not there as it is.
        words: .npy only: file of the words of its rows, or the words.
        seed: of "normal".

    Raises:
        UsageError: an argument makes no sense.
        DataError: the file is not what its name says; with the line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        vocabulary: Words,
        *,
        buckets: int = 0,
        missing: str = "normal",
        lowercase: bool = False,
        words: Words | None = None,
        seed: int = 0,
    ) -> None:
        self._path = os.fspath(path)
        self._words = read_vocabulary(vocabulary)
        self._rows_of_file = words
        self._lowercase = lowercase
        self._seed = seed
        self._missing = missing
        self._buckets = buckets
        if missing not in _MISSING:
            raise UsageError(f"missing={missing!r}: expected one of {', '.join(_MISSING)}")
        if buckets < 0:
            raise UsageError(f"buckets={buckets!r}: expected 0 or more")
        if words is not None and not self._path.endswith(".npy"):
            raise UsageError(f"words is for .npy files; {self._path!r} has words of its own")

    @cached_property
    def dimension(self) -> int:
        """Numbers of a vector."""
        if self._path.endswith(".npy"):
            return int(_open_array(self._path).shape[1])
        with _opened(self._path) as file:
            line = file.readline()
            fields = line.split()
            if _is_header(fields):
                return int(fields[1])
        if len(fields) < 2:
            raise DataError(f"{self._path}:1: expected a word and its numbers, got {line[:40]!r}")
        return len(fields) - 1

    @property
    def shape(self) -> list[int]:
        """Of the variable: `[words + buckets, dimension]`."""
        return [len(self._words) + self._buckets, self.dimension]

    @cached_property
    def _found(self) -> dict[int, np.ndarray]:
        """Vector by the number of the word."""
        wanted = {word: number for number, word in enumerate(self._words)}
        second: dict[str, list[int]] = {}
        if self._lowercase:
            for word, number in wanted.items():
                second.setdefault(word.lower(), []).append(number)
        found: dict[int, np.ndarray] = {}
        lower: dict[int, np.ndarray] = {}
        for word, vector in self._vectors({*wanted, *second}):
            if word in wanted:
                found.setdefault(wanted[word], vector)
            for number in second.get(word, ()):
                lower.setdefault(number, vector)
            if len(found) == len(wanted):
                break
        result = {**lower, **found}
        for number, vector in result.items():
            if not np.isfinite(vector).all():
                raise DataError(f"{self._path}: the vector of {self._words[number]!r} has numbers that are not finite")
        if not result:
            raise DataError(
                f"{self._path} has none of the {len(self._words)} words of the vocabulary, such as {self._words[0]!r}",
                hint="is it of another language or spelling? lowercase=True also looks for words in lower case",
            )
        return result

    def _vectors(self, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        if self._path.endswith(".npy"):
            names = self._words if self._rows_of_file is None else read_vocabulary(self._rows_of_file)
            return _of_array(self._path, names, wanted)
        read = _of_binary if self._path.removesuffix(".gz").endswith(".bin") else _of_text
        return read(self._path, self.dimension, wanted)

    @property
    def missing(self) -> tuple[str, ...]:
        """Words of the vocabulary that the file lacks."""
        return tuple(word for number, word in enumerate(self._words) if number not in self._found)

    @property
    def report(self) -> str:
        """One line: how many words were found, and which were not."""
        missing, total = self.missing, len(self._words)
        told = f"{self._path}: {total - len(missing):,} of {total:,} words ({100 * (1 - len(missing) / total):.1f} %)"
        if not missing:
            return told
        more = f" and {len(missing) - _LISTED:,} more" if len(missing) > _LISTED else ""
        return f"{told}; missing: {', '.join(missing[:_LISTED])}{more}"

    @cached_property
    def values(self) -> np.ndarray:
        """The vectors, `[words + buckets, dimension] float32`."""
        found = np.stack(list(self._found.values())).astype(np.float32)
        values = np.zeros(self.shape, np.float32)
        empty = np.ones(len(values), bool)
        empty[list(self._found)] = False
        if self._missing == "mean":
            values[empty] = found.mean(0)
        elif self._missing == "normal":
            random = np.random.default_rng(self._seed)
            values[empty] = random.normal(found.mean(0), found.std(0), (int(empty.sum()), self.dimension))
        values[list(self._found)] = found
        tf1.logging.info("%s", self.report)
        return values

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Any:
        """Return the initial value, as initializers of TensorFlow do.

        Raises:
            UsageError: the variable has another shape.
        """
        whole = list(partition_info.full_shape) if partition_info is not None else tf.TensorShape(shape).as_list()
        if whole != self.shape:
            raise UsageError(f"the variable has the shape {whole}, {self._path} gives {self.shape}")
        begin = list(partition_info.var_offset) if partition_info is not None else [0, 0]
        size = tf.TensorShape(shape).as_list()
        dtype = tf.as_dtype(dtype or tf.float32)

        def part() -> np.ndarray:
            rows = slice(begin[0], begin[0] + size[0])
            taken: np.ndarray = self.values[rows, begin[1] : begin[1] + size[1]]
            return taken.astype(dtype.as_numpy_dtype)

        context = TowerContext.current()
        if context is None:
            return _constant(part())
        # In a run the graph stays small: the values are fed once. Other modes than TRAIN take those of a checkpoint.
        return give_initial_value(size, dtype, part) if context.training else tf.zeros(size, dtype)


def _constant(values: np.ndarray) -> Any:
    if values.nbytes > _LARGEST_CONSTANT:
        raise UsageError(f"an embedding of {values.nbytes / 2**30:.1f} GiB is too large for a graph outside of mox.run")
    return tf.constant(values)


def _opened(path: str) -> Any:
    file = File(path, "rb")
    return gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file


def _is_header(fields: Sequence[bytes]) -> bool:
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _open_array(path: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{path} has the shape {list(array.shape)} and type {array.dtype}; expected [words, dimension]")
    return array


def _of_array(path: str, names: Sequence[str], wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    array = _open_array(path)
    if len(names) != len(array):
        raise DataError(f"{path} has {len(array)} rows, and there are {len(names)} words for them")
    for row, name in enumerate(names):
        if name in wanted:
            yield name, np.array(array[row], np.float32)


def _of_text(path: str, dimension: int, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    spaced = any(" " in word for word in wanted)  # as some files have them
    known = {word.encode() for word in wanted}
    with _opened(path) as file:
        for number, line in enumerate(_lines(file), 1):
            word, _, rest = line.partition(b" ")
            if number == 1 and _is_header(line.split()):
                continue
            if word not in known and not spaced:
                continue
            fields = rest.split()
            if spaced and len(fields) != dimension:
                word, *fields = line.rstrip().rsplit(b" ", dimension)
            if word in known:
                yield word.decode(), _numbers(fields, dimension, f"{path}:{number}")


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in file if line.strip())


def _numbers(fields: Sequence[bytes], dimension: int, place: str) -> np.ndarray:
    try:
        vector = np.array(fields, dtype="S").astype(np.float32)
    except ValueError as error:
        raise DataError(f"{place}: expected {dimension} numbers after the word: {error}") from None
    if len(vector) != dimension:
        raise DataError(f"{place}: expected {dimension} numbers after the word, got {len(vector)}")
    return vector


def _of_binary(path: str, dimension: int, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    known = {word.encode() for word in wanted}
    with _opened(path) as file:
        header = file.readline().split()
        if not _is_header(header):
            raise DataError(f"{path} does not begin with a count and a dimension, as word2vec's binary files do")
        buffer = _Buffer(file.read, path)
        for _ in range(int(header[0])):
            word = buffer.until(b" ").lstrip(b"\n")
            vector = buffer.take(4 * dimension)
            if word in known:
                yield word.decode(), np.frombuffer(vector, "<f4").copy()


class _Buffer:
    """Takes bytes of a stream that come in pieces."""

    def __init__(self, read: Callable[[int], bytes], path: str) -> None:
        self._read = read
        self._path = path
        self._data = b""
        self._at = 0

    def _more(self) -> None:
        piece = self._read(_CHUNK_BYTES)
        if not piece:
            raise DataError(f"{self._path} ends in the middle: fewer words than it says", hint="copy it again")
        self._data, self._at = self._data[self._at :] + piece, 0

    def until(self, end: bytes) -> bytes:
        """Take what comes before a byte, and the byte."""
        while (at := self._data.find(end, self._at)) < 0:
            self._more()
        found, self._at = self._data[self._at : at], at + 1
        return found

    def take(self, count: int) -> bytes:
        """Take so many bytes."""
        while len(self._data) - self._at < count:
            self._more()
        self._at += count
        return self._data[self._at - count : self._at]
