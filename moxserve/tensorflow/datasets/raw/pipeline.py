"""From the rows of a raw data set to a `tf.data.Dataset`.

    rows in their order
      -> fetched by a reader        where other threads read than those that decode
      -> decoded straight into a batch   windows that an augmentation tells, whose colours are left to the device;
                                         or whole images, resized
      or decoded one by one         -> augmentation_fn -> batch
      or read as they are           -> batch -> preprocess_fn

Bad images are dropped before batches are cut, so batches are full.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.tensorflow.datasets.base import BaseDataset, input_position, numbered_batches, numbered_rows
from moxserve.tensorflow.datasets.images import BATCHES_AT_ONCE, ImagePipeline, is_good, without_good
from moxserve.tensorflow.datasets.raw.fetching import ROW_AND_CONTENT, FetchedRows, fetched_of
from moxserve.tensorflow.datasets.raw.source import RawSource
from moxserve.tensorflow.datasets.raw.storage import is_remote
from moxserve.tensorflow.datasets.reader.raw_reader import AsyncRawGenerator, ParallelReader
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.epochs import samples_in_files
from moxserve.tensorflow.executor.python_calls import python_function, steps

__all__ = ["RawImageDataset"]

_FETCHED_AT_ONCE = 16


class RawImageDataset(BaseDataset):
    """Items `image`, `label`, `label_desc` and `image_name` of the samples of a source; see the subclasses.

    Args:
        source: what gives the samples.
        seed: the user's; random operations of an `augmentation_fn` follow it. None: they follow none.
    """

    def __init__(self, source: RawSource, seed: int | None) -> None:
        self._source = source
        pipeline = _Pipeline(source, seed)
        super().__init__(pipeline.build(), pipeline.finish)

    @property
    def items(self) -> tuple[str, ...]:
        """The names that `get` knows."""
        return tuple(name for name in super().items if name != "seed")

    @property
    def num_samples(self) -> int:
        """How many samples the data set has, over all workers, bad images included; or what samples_per_epoch(_eval)
        says.
        """
        return samples_in_files(len(self._source.samples), self._source.base)

    @property
    def num_bad_images(self) -> int:
        """How many different images were left out until now."""
        return len(self._source.log.names)


class _Pipeline(ImagePipeline):
    """Builds the data set; see the module."""

    def __init__(self, source: RawSource, seed: int | None) -> None:
        super().__init__(source.options, seed)
        self.source = source
        self.label_type = tf.as_dtype(source.label.dtype)

    def build(self) -> Any:
        """Return the data set."""
        if self.options.window is not None:
            return self._ahead(self._whole_batches(self.options.window))
        dataset = self._samples()
        if self.options.preprocess_fn is not None:
            return self._ahead(self._preprocessed(dataset))
        if self.options.augmentation_fn is not None:
            dataset = self._augmented(dataset)
        return self._ahead(self._batched(dataset))

    # ---- rows

    def _rows(self, at_once: int | None) -> Any:
        """Return (position, row), or with what a reader fetched (position, row, kind, content).

        Args:
            at_once: rows of an element; None: scalars.
        """
        options, order = self.options, self.source.order
        remote = any(key is not None for key in self.source.samples.keys) or is_remote(self.source.base)
        if options.inline_reading(remote):
            given = (options.position, self.source.skipped)
            if at_once is None:
                return numbered_rows(order, options.num_epochs, *given)
            return numbered_batches(order, options.num_epochs, at_once, *given)
        reader = options.reader_class or (AsyncRawGenerator if remote else ParallelReader)
        kwargs = {"num_readers": options.num_readers, "capacity": options.capacity, **(options.reader_kwargs or {})}
        size = at_once or min(_FETCHED_AT_ONCE, options.capacity)
        fetched = tf.data.Dataset.from_generator(
            steps(FetchedRows(self.source, reader, kwargs, size)),
            args=(input_position(options.position, self.source.skipped),),
            output_signature=tuple(tf.TensorSpec([None], dtype) for dtype in ROW_AND_CONTENT),
        )
        return self._endless(fetched.unbatch() if at_once is None else fetched)

    # ---- samples one by one

    def _samples(self) -> Any:
        image = "image_buf" if self.source.encoded else "image"
        types = [tf.bool, tf.string, self.label_type, tf.string, tf.string if self.source.encoded else tf.uint8]
        if self.wants_seed:
            types.append(tf.int64)

        def load(*row: Any) -> dict[str, Any]:
            good, name, label, text, value, *seed = python_function(self._load, row, types)
            for tensor, shape in (
                (good, []),
                (name, []),
                (text, []),
                (label, self.source.label.shape),
                (value, [] if self.source.encoded else [*(self.options.size or (None, None)), self.options.channels]),
                *((tensor, [2]) for tensor in seed),
            ):
                tensor.set_shape(shape)
            element = {"good": good, "image_name": name, "label": label, "label_desc": text, image: value}
            return {**element, "seed": seed[0]} if seed else element

        loaded = self._map(self._rows(None), load)
        if self.options.on_bad_image == "skip":
            loaded = self._endless(loaded.filter(is_good))
        return loaded.map(without_good)

    def _load(self, position: Any, row: Any, kind: Any = 0, content: bytes = b"") -> tuple[Any, ...]:
        sample = self.source.load(int(row), fetched_of(int(kind), content))
        if not self.wants_seed:
            return sample
        return *sample, np.asarray(self.source.pair(position, row), np.int64)

    # ---- whole batches

    def _whole_batches(self, window: tuple[int, int]) -> Any:
        options, label = self.options, self.source.label
        types = (tf.string, self.label_type, tf.string, tf.uint8, tf.int64)

        def load(*rows: Any) -> dict[str, Any]:
            names, labels, texts, images, seeds = python_function(self._load_batch, rows, types)
            for tensor, shape in (
                (names, [None]),
                (labels, [None, *label.shape]),
                (texts, [None]),
                (images, [None, *window, options.channels]),
                (seeds, [None, 2]),
            ):
                tensor.set_shape(shape)
            element = {"image_name": names, "label": labels, "label_desc": texts, "image": images}
            return element if self.finish is None else {**element, "seed": seeds}

        batches = self._map(self._rows(options.batch_size), load, BATCHES_AT_ONCE)
        return self._endless(batches.rebatch(options.batch_size, drop_remainder=options.full_batches))

    def _load_batch(
        self, positions: np.ndarray, rows: np.ndarray, kinds: Any = None, contents: Any = None
    ) -> tuple[np.ndarray, ...]:
        fetched = None if kinds is None else [fetched_of(*pair) for pair in zip(kinds, contents, strict=True)]
        good, images = self.source.load_batch(rows.tolist(), positions.tolist(), fetched)
        described = [self.source.describe(row) for row in rows[good].tolist()]
        names, texts = (np.asarray([one[column] for one in described], object) for column in (0, 2))
        labels = np.zeros((len(images), *self.source.label.shape), self.source.label.dtype)
        for place, one in enumerate(described):
            labels[place] = one[1]
        seeds = [self.source.pair(position, row) for position, row in zip(positions[good], rows[good], strict=True)]
        return names, labels, texts, images, np.asarray(seeds, np.int64).reshape(-1, 2)
