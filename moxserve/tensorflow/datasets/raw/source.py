"""Samples of a raw image data set by their row: read, decoded, labelled. Called from many threads of tf.data.

What is random in a sample is drawn from (seed of the data set, epoch, row), so no thread can change it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moxserve.dataflow.order import EpochOrder
from moxserve.errors import DataError
from moxserve.images.bad import BadImageLog
from moxserve.images.batch import BatchDecoder
from moxserve.images.cache import BytesCache, DecodedCache, FileKey
from moxserve.images.header import BadImageError, check_complete, read_header
from moxserve.images.pool import each
from moxserve.tensorflow.datasets.raw.caching import Cache, open_cache
from moxserve.tensorflow.datasets.raw.metadata import Samples
from moxserve.tensorflow.datasets.raw.options import RawOptions
from moxserve.tensorflow.datasets.raw.storage import read_file
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.skipped import SkippedRows

__all__ = ["Fetched", "LabelForm", "RawSource", "resize_nearest"]


_INT64 = (1 << 63) - 1

# Content of a file, or why it could not be read.
Fetched = bytes | OSError


class _Fetch:
    """Gives what a reader has fetched."""

    def __init__(self, fetched: Mapping[str, Fetched]) -> None:
        self._fetched = fetched

    def __call__(self, path: str) -> bytes:
        """Return a file's content, or raise why there is none."""
        found = self._fetched.get(path)
        if isinstance(found, OSError):
            raise found
        return read_file(path) if found is None else found


@dataclass(frozen=True)
class LabelForm:
    """What a label looks like.

    Attributes:
        num_classes: how many there are.
        hot: `[num_classes] float32` with 1 at the classes of the sample, instead of an `int64` scalar.
    """

    num_classes: int
    hot: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one label."""
        return (self.num_classes,) if self.hot else ()

    @property
    def dtype(self) -> type[np.generic]:
        """Type of one label."""
        return np.float32 if self.hot else np.int64

    def encode(self, indices: np.ndarray) -> np.ndarray:
        """Make a label of the indices of its classes."""
        if not self.hot:
            return indices
        label = np.zeros(self.num_classes, np.float32)
        label[indices] = 1
        return label


def resize_nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image as `tf.compat.v1.image.resize_nearest_neighbor` does, to the last pixel.

    Row i of the result is row floor(i * height / out_height); the factor is rounded to float32, as TensorFlow does it.

    Args:
        image: `[height, width, channels]`.
        size: height and width of the result.
    """
    for axis, (old, new) in enumerate(zip(image.shape, size, strict=False)):
        if old != new:
            factor = np.float32(old / np.float32(new))
            pixels = np.floor(np.arange(new, dtype=np.float32) * factor).astype(np.intp)
            image = image.take(np.minimum(pixels, old - 1), axis)
    return image


class RawSource:
    """Gives samples by their row.

    Args:
        base: the data set, for messages and the cache.
        samples: of the data set.
        order: in which rows are read; here for the seed and the number of rows of an epoch.
        label: how labels look.
        options: what the user asked for.

    Raises:
        DataError: the worker has no row, or the cache cannot be made.
    """

    def __init__(self, base: str, samples: Samples, order: EpochOrder, label: LabelForm, options: RawOptions) -> None:
        if not order.rows:
            raise DataError(f"shard {order.shard[0]} of {order.shard[1]} has no image: {base} has {len(samples)}")
        self.base, self.samples, self.order, self.label, self.options = base, samples, order, label, options
        self.encoded = options.preprocess_fn is not None
        self.skipped = SkippedRows()
        self.skipped.of_rows(order, lambda: samples.paths)
        self.log = BadImageLog(base, tf1.logging.warning, self.skipped.note)
        self.cache: Cache | None = None
        if options.cache_folder is not None:
            decoded, remove = options.cache_decoded, options.remove_cache_on_finish
            self.cache = open_cache(self, options.cache_folder, base, decoded, remove)
        geometry = options.geometry
        self._decoder = BatchDecoder(
            geometry,
            size=None if geometry is None else options.window,
            channels=options.channels,
            threads=options.threads,
            on_bad=options.on_bad_image,
            cache=self.cache,
            log=self.log,
            fetch=read_file,
        )

    def seed(self, position: int, row: int) -> tuple[int, int, int]:
        """Return what is random in a sample is drawn from.

        Args:
            position: how many rows this worker was given before.
            row: of the sample.
        """
        return self.order.base_seed, int(position) // max(self.order.rows, 1), int(row)

    def pair(self, position: int, row: int) -> tuple[int, int]:
        """Return the same as two `int64`, as TensorFlow's stateless operations take a seed."""
        seed, epoch, row = self.seed(position, row)
        return seed & _INT64, (epoch * len(self.samples) + row) & _INT64

    def describe(self, row: int) -> tuple[bytes, np.ndarray, bytes]:
        """Return name, label and text of the label of a sample."""
        label = self.label.encode(self.samples.labels[row])
        return os.fsencode(self.samples.names[row]), label, self.samples.texts[row].encode()

    def is_cached(self, row: int) -> bool:
        """Tell whether the image of a row need not be fetched."""
        path = self.samples.paths[row]
        try:
            key = self.samples.keys[row] or FileKey.of(path)
        except OSError:
            return False
        if isinstance(self.cache, DecodedCache):
            return self.cache.get(key, self.options.channels) is not None
        return self.cache is not None and self.cache.store.get(key.digest()) is not None

    def load(self, row: int, fetched: Fetched | None = None) -> tuple[Any, ...]:
        """Return one sample.

        Args:
            row: of the sample.
            fetched: of its file, where a reader has it.

        Returns:
            Whether the image is good, then name, label and text of the label, and the image: encoded as bytes where a
            `preprocess_fn` decodes it, else `[height, width, channels] uint8`.

        Raises:
            BadImageError: the image is bad, and that is an error.
            DataError: no image is good, or the bucket cannot be read.
        """
        try:
            image = self._encoded(row, fetched) if self.encoded else self._decoded(row, fetched)
        except BadImageError as error:
            self._skip(error)
            size = self.options.size or (0, 0)
            empty: Any = b"" if self.encoded else np.zeros((*size, self.options.channels), np.uint8)
            return False, *self.describe(row), empty
        return True, *self.describe(row), image

    def load_batch(
        self, rows: Sequence[int], positions: Sequence[int], fetched: Sequence[Fetched | None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a batch of windows of images, or of resized ones, without those that are bad.

        Args:
            rows: of the samples; `[batch]`.
            positions: how many rows this worker was given before each.
            fetched: of their files, where a reader has them.

        Returns:
            Which rows have good images, `[batch] bool`; and those, `[good, height, width, channels] uint8`.

        Raises:
            BadImageError: an image is bad, and that is an error.
            DataError: no image is good, or the bucket cannot be read.
        """
        fetched = fetched or [None] * len(rows)
        images, bad = (self._resized if self.options.geometry is None else self._cut)(rows, positions, fetched)
        if not bad.any():
            return ~bad, images
        self._check_any_good()
        return ~bad, images[~bad]

    def _resized(
        self, rows: Sequence[int], _: Sequence[int], fetched: Sequence[Fetched | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(rows), *(self.options.size or (0, 0)), self.options.channels), np.uint8)
        errors: list[BadImageError | None] = [None] * len(rows)

        def decode(number: int) -> None:
            try:
                images[number] = self._decoded(rows[number], fetched[number])
            except BadImageError as error:
                errors[number] = error

        each(len(rows), decode, self.options.threads)
        for error in errors:
            if error is not None:
                self._skip(error)
        return images, np.array([error is not None for error in errors], bool)

    def _cut(
        self, rows: Sequence[int], positions: Sequence[int], fetched: Sequence[Fetched | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        sources = [self._source(row, one) for row, one in zip(rows, fetched, strict=True)]
        paths = [self.samples.paths[row] for row in rows]
        decoder = self._decoder_of({path: one for path, one in zip(paths, fetched, strict=True) if one is not None})
        seeds = [self.seed(position, row) for position, row in zip(positions, rows, strict=True)]
        return decoder.decode(paths, sources, seeds)

    def _source(self, row: int, fetched: Fetched | None) -> Any:
        """Return what the decoder takes: a path, the key of a file that is fetched or cached, or its content."""
        path, key = self.samples.paths[row], self.samples.keys[row]
        if fetched is None:
            return key or path
        if self.cache is None and isinstance(fetched, bytes):
            return fetched
        try:
            return key or FileKey.of(path)
        except OSError:
            return FileKey(path, 0, 0)

    def _decoder_of(self, fetched: Mapping[str, Fetched]) -> BatchDecoder:
        return replace(self._decoder, fetch=_Fetch(fetched)) if fetched else self._decoder

    def _encoded(self, row: int, fetched: Fetched | None) -> bytes:
        path = self.samples.paths[row]
        fetch = read_file if fetched is None else _Fetch({path: fetched})
        try:
            if isinstance(self.cache, BytesCache):
                data = self.cache.read(path, self.samples.keys[row], fetch)
            else:
                data = fetch(path)
        except OSError as error:
            raise BadImageError(path, f"cannot be read: {error.strerror or error}") from error
        # A broken image would stop whatever decodes it: what can be told without decoding is left out here.
        check_complete(data, read_header(data, path), path)
        return data

    def _decoded(self, row: int, fetched: Fetched | None) -> np.ndarray:
        path = self.samples.paths[row]
        decoder = self._decoder_of({} if fetched is None else {path: fetched})
        image = decoder.one(path, self._source(row, fetched))
        return resize_nearest(image, self.options.size) if self.options.size else image

    def _skip(self, error: BadImageError) -> None:
        if self.options.on_bad_image == "raise":
            raise error
        self.log.skip(error)
        self._check_any_good()

    def _check_any_good(self) -> None:
        """An endless data set without a good image would be searched for one for ever."""
        # Without shuffling a worker sees no others than those of its shard.
        total = len(self.samples) if self.order.shuffle else self.order.rows
        if self.log.count >= total and len(self.log.names) >= total:
            part = "" if total == len(self.samples) else f"shard {self.order.shard[0]} of {self.order.shard[1]} of "
            raise DataError(f"none of the {total} images of {part}{self.base} can be decoded")
