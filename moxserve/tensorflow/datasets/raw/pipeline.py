"""From the rows of a raw data set to a `tf.data.Dataset`.

    rows in their order
      -> fetched by a reader        where other threads read than those that decode
      -> windows of whole batches   where the augmentation tells them; its colours are left to the device
      or decoded one by one         -> augmentation_fn -> batch
      or read as they are           -> batch -> preprocess_fn

Bad images are dropped before batches are cut, so batches are full.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moxserve.errors import UsageError
from moxserve.tensorflow.datasets.base import BaseDataset, input_position, numbered_rows
from moxserve.tensorflow.datasets.raw.fetching import ROW_AND_CONTENT, FetchedRows, fetched_of
from moxserve.tensorflow.datasets.raw.source import RawSource
from moxserve.tensorflow.datasets.raw.storage import is_remote
from moxserve.tensorflow.datasets.reader.raw_reader import AsyncRawGenerator, ParallelReader
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["RawImageDataset"]

_PREFETCHED_BATCHES = 2
_FETCHED_AT_ONCE = 16
# Two batches overlap, so that no thread waits for the last image of one.
_BATCHES_AT_ONCE = 2

Element = Mapping[str, Any]


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
    def num_samples(self) -> int:
        """How many samples the data set has, over all workers; bad images included."""
        return len(self._source.samples)

    @property
    def num_bad_images(self) -> int:
        """How many different images were left out until now."""
        return len(self._source.log.names)


class _Pipeline:
    """Builds the data set; see the module."""

    def __init__(self, source: RawSource, seed: int | None) -> None:
        self.source, self.options, self.seed = source, source.options, seed
        self.label_type = tf.as_dtype(source.label.dtype)
        self.finish = self._finish if self.options.geometry is not None else None
        self.wants_seed = _takes_seed(self.options.augmentation_fn) and self.finish is None

    def build(self) -> Any:
        """Return the data set."""
        if self.finish is not None:
            return self._ahead(self._windows())
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
            rows = numbered_rows(order, options.num_epochs, options.position)
            return rows if at_once is None else rows.batch(at_once)
        reader = options.reader_class or (AsyncRawGenerator if remote else ParallelReader)
        kwargs = {"num_readers": options.num_readers, "capacity": options.capacity, **(options.reader_kwargs or {})}
        size = at_once or min(_FETCHED_AT_ONCE, options.capacity)
        fetched = tf.data.Dataset.from_generator(
            FetchedRows(self.source, reader, kwargs, size),
            args=(input_position(options.position),),
            output_signature=tuple(tf.TensorSpec([None], dtype) for dtype in ROW_AND_CONTENT),
        )
        return self._endless(fetched.unbatch() if at_once is None else fetched)

    def _endless(self, dataset: Any) -> Any:
        """Tell that a data set never ends, where that got lost."""
        if self.options.num_epochs is not None:
            return dataset
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    # ---- samples one by one

    def _samples(self) -> Any:
        image = "image_buf" if self.source.encoded else "image"
        types = [tf.bool, tf.string, self.label_type, tf.string, tf.string if self.source.encoded else tf.uint8]
        if self.wants_seed:
            types.append(tf.int64)

        def load(*row: Any) -> dict[str, Any]:
            good, name, label, text, value, *seed = tf.numpy_function(self._load, row, types)
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
            loaded = self._endless(loaded.filter(_is_good))
        return loaded.map(_without_good)

    def _load(self, position: Any, row: Any, kind: Any = 0, content: bytes = b"") -> tuple[Any, ...]:
        sample = self.source.load(int(row), fetched_of(int(kind), content))
        if not self.wants_seed:
            return sample
        seed = np.random.SeedSequence(self.source.seed(position, row)).generate_state(2, np.uint64)
        return *sample, (seed >> np.uint64(1)).astype(np.int64)

    def _preprocessed(self, dataset: Any) -> Any:
        options = self.options

        def preprocess(element: Element) -> dict[str, Any]:
            result = options.preprocess_fn(  # type: ignore[misc]
                *(element[name] for name in ("image_name", "image_buf", "label", "label_desc"))
            )
            if not isinstance(result, (tuple, list)) or len(result) != 4:
                raise UsageError(
                    f"preprocess_fn returned {_describe(result)}",
                    hint="expected (image_name, image, label, label_desc), all of them tensors",
                )
            made = dict(zip(("image_name", "image", "label", "label_desc"), result, strict=True))
            return {**element, **made, "image": self._resized(tf.convert_to_tensor(made["image"]))}

        if options.batch_size is not None:
            dataset = dataset.batch(options.batch_size, drop_remainder=options.full_batches)
        dataset = self._map(dataset, preprocess)
        if options.augmentation_fn is None:
            return dataset
        if options.batch_size is None:
            return self._augmented(dataset)
        return self._batched(self._augmented(dataset.unbatch()))

    def _resized(self, image: Any) -> Any:
        size = self.options.size
        if size is None or tuple(image.shape[-3:-1]) == size:
            return image
        return tf1.image.resize(image, size, tf1.image.ResizeMethod.NEAREST_NEIGHBOR)

    def _augmented(self, dataset: Any) -> Any:
        stateful = False

        def augment(element: Element) -> dict[str, Any]:
            nonlocal stateful
            rest = {name: value for name, value in element.items() if name != "seed"}
            graph = tf1.get_default_graph()
            if self.seed is not None and graph.seed is None:
                graph.seed = self.seed
            kwargs = {"seed": element["seed"]} if self.wants_seed else {}
            image = self.options.augmentation_fn(element["image"], **kwargs)  # type: ignore[misc]
            if not tf.is_tensor(image):
                raise UsageError(f"augmentation_fn returned {_describe(image)}; expected the image, a tensor")
            stateful = any(_is_random(op) for op in graph.get_operations())
            return {**rest, "image": image}

        augmented = self._map(dataset, augment)
        if stateful and self.seed is not None:
            # Random operations with a state give numbers in the order in which they are called.
            return dataset.map(tf.autograph.experimental.do_not_convert(augment))
        return augmented

    def _batched(self, dataset: Any) -> Any:
        options = self.options
        if options.batch_size is None:
            return dataset
        shape = dataset.element_spec["image"].shape
        if not shape.is_fully_defined():
            raise UsageError(
                f"batch_size={options.batch_size}: augmentation_fn gives images of shape {shape}, and only images of"
                " one known shape can be a batch",
                hint="give image_size, or resize in augmentation_fn and tell it: image.set_shape([height, width, 3])",
            )
        return dataset.batch(options.batch_size, drop_remainder=options.full_batches)

    # ---- whole batches of windows

    def _windows(self) -> Any:
        options, label = self.options, self.source.label
        types = (tf.string, self.label_type, tf.string, tf.uint8)

        def load(*rows: Any) -> dict[str, Any]:
            names, labels, texts, images = tf.numpy_function(self._load_batch, rows, types)
            for tensor, shape in (
                (names, [None]),
                (labels, [None, *label.shape]),
                (texts, [None]),
                (images, [None, *(self.source.window or (None, None)), options.channels]),
            ):
                tensor.set_shape(shape)
            return {"image_name": names, "label": labels, "label_desc": texts, "image": images}

        batches = self._map(self._rows(options.batch_size), load, _BATCHES_AT_ONCE)
        return self._endless(batches.rebatch(options.batch_size, drop_remainder=options.full_batches))

    def _load_batch(
        self, positions: np.ndarray, rows: np.ndarray, kinds: Any = None, contents: Any = None
    ) -> tuple[np.ndarray, ...]:
        fetched = None if kinds is None else [fetched_of(*pair) for pair in zip(kinds, contents, strict=True)]
        good, images = self.source.load_batch(rows.tolist(), positions.tolist(), fetched)
        described = [self.source.describe(row) for row in good]
        names, texts = (np.asarray([one[column] for one in described], object) for column in (0, 2))
        labels = np.zeros((len(good), *self.source.label.shape), self.source.label.dtype)
        for place, one in enumerate(described):
            labels[place] = one[1]
        return names, labels, texts, images

    def _finish(self, element: Element) -> Element:
        return {**element, "image": self.options.augmentation_fn.finish(element["image"])}  # type: ignore[union-attr]

    # ---- tf.data

    def _map(self, dataset: Any, function: Callable[..., Any], at_once: int | None = None) -> Any:
        # Users' functions run as they are, as they did when this API was made: nothing rewrites their source.
        plain = tf.autograph.experimental.do_not_convert(function)
        return dataset.map(plain, num_parallel_calls=at_once or self.options.threads, deterministic=True)

    def _ahead(self, dataset: Any) -> Any:
        """Read ahead, and give the data set its own threads where that is wanted."""
        options = self.options
        if options.batch_size is None:
            dataset = dataset.prefetch(min(options.capacity, 2 * options.threads))
        else:
            dataset = dataset.prefetch(min(_PREFETCHED_BATCHES, max(1, options.capacity // options.batch_size)))
        settings = tf.data.Options()
        settings.deterministic = True
        if options.private_num_threads:
            settings.threading.private_threadpool_size = options.private_num_threads
        return dataset.with_options(settings)


@tf.autograph.experimental.do_not_convert
def _is_good(element: Element) -> Any:
    return element["good"]


@tf.autograph.experimental.do_not_convert
def _without_good(element: Element) -> Element:
    return {name: value for name, value in element.items() if name != "good"}


def _takes_seed(function: Callable[..., Any] | None) -> bool:
    """Tell whether a function has a parameter that is named `seed`."""
    if function is None:
        return False
    try:
        return "seed" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _is_random(op: Any) -> bool:
    return any(name in op.node_def.attr for name in ("seed", "seed2"))


def _describe(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
