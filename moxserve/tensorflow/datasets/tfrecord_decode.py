"""What is made of records that hold images: decoded, resized, augmented, batched, with their labels.

The features are slim's: `image/encoded`, `image/class/label`, and where they are there `image/class/text` and
`image/filename`.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from moxserve.errors import DataError, UsageError
from moxserve.images.bad import BadImageLog
from moxserve.images.batch import BatchDecoder
from moxserve.images.decode import decode
from moxserve.images.header import BadImageError, check_complete, read_header
from moxserve.images.pool import available_cores
from moxserve.tensorflow.datasets.tfrecord_common import BaseTFRecordMetadata
from moxserve.tensorflow.datasets.tfrecord_reader import check_integer
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["ImageBuilder", "ImageOptions", "OnBadImage", "image_shape"]

OnBadImage = Literal["skip", "raise"]
_ENCODED, _LABEL, _TEXT, _NAME = "image/encoded", "image/class/label", "image/class/text", "image/filename"
_ITEMS = {"image": _ENCODED, "label": _LABEL, "label_desc": _TEXT, "image_name": _NAME}
_DOCUMENTED = ("image_name", "image", "label", "label_desc")
_CHANNELS = (1, 3, 4)
_BATCHES_AT_ONCE = 2  # each of which has all threads


@dataclass(frozen=True)
class ImageOptions:
    """What is made of the records; documented at `ImageClassificationTFRecordDataset`.

    Raises:
        UsageError: a value makes no sense, or the images of a batch could differ in size.
    """

    batch_size: int | None = None
    drop_remainder: Any = False
    num_parallel: int = 8
    preprocess_fn: Callable[..., Any] | None = None
    augmentation_fn: Callable[..., Any] | None = None
    image_size: Any = None
    label_one_hot: bool = False
    channels: int = 3
    on_bad_image: OnBadImage = "skip"
    seed: int | None = None
    size: tuple[int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("preprocess_fn", "augmentation_fn"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise UsageError(f"{name}={value!r} cannot be called")
        if self.on_bad_image not in get_args(OnBadImage):
            raise UsageError(f"on_bad_image={self.on_bad_image!r}: expected 'skip' or 'raise'")
        if self.channels not in _CHANNELS:
            raise UsageError(f"channels={self.channels!r}: expected 1 (gray), 3 (colour) or 4 (colour and alpha)")
        object.__setattr__(self, "size", image_shape(self.image_size))
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
            if not (self.size or self.preprocess_fn or self.augmentation_fn):
                raise UsageError(
                    f"batch_size={self.batch_size} without image_size: images of different sizes cannot be a batch",
                    hint="give image_size, preprocess_fn or augmentation_fn; or no batch_size, and let mox.run batch",
                )

    @property
    def geometry(self) -> Any:
        """The augmentation's windows, where batches can be decoded by them; None otherwise."""
        if self.batch_size is None or self.preprocess_fn is not None or self.size is not None:
            return None
        finish = getattr(self.augmentation_fn, "finish", None)
        return getattr(self.augmentation_fn, "geometry", None) if callable(finish) else None

    @property
    def skip(self) -> bool:
        """Whether bad images are skipped."""
        return self.on_bad_image == "skip"

    @property
    def decoders(self) -> int:
        """How many images are decoded at once."""
        return min(self.num_parallel, available_cores())


def image_shape(value: Any) -> tuple[int, int] | None:
    """Return height and width of an `image_size`: a number, or a pair.

    Raises:
        UsageError: it is none.
    """
    if value is None:
        return None
    sides = [value, value] if np.ndim(value) == 0 else list(value)
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side >= 1 for side in sides):
        raise UsageError(f"image_size={value!r}: expected [height, width] in pixels, or one number for both")
    return int(sides[0]), int(sides[1])


class _Hope:
    """Notices when no image at all can be decoded: nobody waits for one that never comes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bad: set[str] | None = set()  # until the first good one
        self._lock = threading.Lock()

    def good(self) -> None:
        """An image was decoded."""
        self._bad = None

    def bad(self, name: str) -> None:
        """An image could not be decoded.

        Raises:
            DataError: the same one could not before, and no other could since.
        """
        with self._lock:
            if self._bad is None:
                return
            if name in self._bad:
                raise DataError(
                    f"no image of {self._what} can be decoded: all {len(self._bad)} are bad, such as {name}"
                )
            self._bad.add(name)


class ImageBuilder:
    """From serialized records to images, labels and custom features.

    Args:
        metadata: of the data set.
        options: what is made of the records.
        custom: further features.
    """

    def __init__(self, metadata: BaseTFRecordMetadata, options: ImageOptions, custom: Mapping[str, Any]) -> None:
        self.options, self.custom = options, dict(custom)
        self.names = list(getattr(metadata, "labels_list", []))
        self.num_classes: int = getattr(metadata, "num_classes", 0)
        self.log, self.hope = BadImageLog(metadata.base_dir), _Hope(metadata.base_dir)
        self.seed = secrets.randbits(62) if options.seed is None else options.seed
        scalar = tf.io.FixedLenFeature
        self.features = {
            _ENCODED: scalar([], tf.string),
            _LABEL: scalar([], tf.int64),
            _TEXT: scalar([], tf.string, ""),
            _NAME: scalar([], tf.string, ""),
            **self.custom,
        }

    def build(self, records: Any, num_epochs: int | None) -> tuple[Any, Callable[[Any], Any] | None]:
        """Return the data set of dicts, batched where that is wanted, and what is still to be done after it."""
        options = self.options
        samples = records.map(self.parse, num_parallel_calls=options.num_parallel, deterministic=True)
        full = True if num_epochs is None else options.drop_remainder
        sparse = any(not isinstance(spec, tf.io.FixedLenFeature) for spec in self.custom.values())
        if options.geometry is not None and not (sparse and options.skip):
            batches = self._known(samples.batch(options.batch_size, drop_remainder=full), num_epochs)
            return self._windows(batches, full), self._finish
        if options.preprocess_fn is not None:
            return self._preprocessed(self._kept(samples, self._whole), full), None
        decoded = self._map(self._kept(samples, self._decoded), self._shaped)
        return self._batched(self._known(self._public(decoded), num_epochs), full), None

    def parse(self, element: Mapping[str, Any]) -> dict[str, Any]:
        """Parse one record: the items, with the image encoded, and `place` and `position`."""
        parsed = tf.io.parse_single_example(element["record"], self.features)
        items = {item: parsed[key] for item, key in _ITEMS.items()}
        items["label_desc"] = self._text(items["label"], items["label_desc"])
        if self.options.label_one_hot:
            items["label"] = self._one_hot(items["label"], element["place"])
        return {**items, **{key: parsed[key] for key in self.custom}, **{k: element[k] for k in ("place", "position")}}

    def _text(self, label: Any, text: Any) -> Any:
        if not self.names or _TEXT in self.custom or _LABEL in self.custom:
            return text
        inside = tf.logical_and(label >= 0, label < len(self.names))
        name = tf.gather(tf.constant(self.names), tf.clip_by_value(label, 0, len(self.names) - 1))
        return tf.where(tf.equal(tf.strings.length(text), 0) & inside, name, text)

    def _one_hot(self, label: Any, place: Any) -> Any:
        inside = tf.logical_and(label >= 0, label < self.num_classes)
        check = tf.debugging.Assert(tf.reduce_all(inside), [place, "label out of range", label, self.num_classes])
        with tf.control_dependencies([check] if check is not None else []):
            return tf.one_hot(label, self.num_classes, dtype=tf.float32)

    # -- one image at a time

    def _kept(self, samples: Any, load: Callable[[bytes, bytes], np.ndarray | bytes]) -> Any:
        """Load the image of each sample, and leave out those that are bad."""
        dtype = tf.string if load == self._whole else tf.uint8
        empty: Any = b"" if dtype == tf.string else np.zeros((0, 0, self.options.channels), np.uint8)

        def guarded(place: bytes, data: bytes) -> tuple[Any, Any]:
            try:
                image = load(place, data)
            except BadImageError as error:
                if not self.options.skip:
                    raise
                self.log.skip(error)
                self.hope.bad(error.name)
                return np.False_, empty
            self.hope.good()
            return np.True_, image

        def loaded(element: Mapping[str, Any]) -> dict[str, Any]:
            good, image = tf.numpy_function(guarded, [element["place"], element["image"]], (tf.bool, dtype))
            good.set_shape([])
            image.set_shape([] if dtype == tf.string else [None, None, self.options.channels])
            return {**element, "image": image, "good": good}

        elements = self._map(samples, loaded)
        return elements.filter(lambda e: e["good"]) if self.options.skip else elements

    def _whole(self, place: bytes, data: bytes) -> bytes:
        # Whatever decodes it stops at the first broken image: those that can be told without decoding are left out.
        name = place.decode(errors="replace")
        check_complete(data, read_header(data, name), name)
        return data

    def _decoded(self, place: bytes, data: bytes) -> np.ndarray:
        return decode(data, self.options.channels, place.decode(errors="replace"))

    def _shaped(self, element: Mapping[str, Any]) -> dict[str, Any]:
        """Resize an image, then augment it, where that is wanted."""
        options, image = self.options, element["image"]
        if options.size is not None:
            image = tf1.image.resize_nearest_neighbor(image[tf.newaxis], options.size)[0]
        if options.augmentation_fn is not None:
            image = options.augmentation_fn(image)
        return {**element, "image": image}

    def _preprocessed(self, samples: Any, full: Any) -> Any:
        options = self.options

        def preprocess(element: Mapping[str, Any]) -> dict[str, Any]:
            made = options.preprocess_fn(*(element[item] for item in _DOCUMENTED))  # type: ignore[misc]
            if not isinstance(made, (list, tuple)) or len(made) != len(_DOCUMENTED):
                raise UsageError(
                    f"preprocess_fn returned {type(made).__name__}; expected {', '.join(_DOCUMENTED)}",
                    hint="def preprocess_fn(image_name, image_buf, label, label_desc): ... return all four",
                )
            made_items = dict(zip(_DOCUMENTED, made, strict=True))
            if options.augmentation_fn is not None:
                made_items["image"] = self._augmented(made_items["image"])
            return {**element, **made_items}

        return self._map(self._batched(self._public(samples), full), preprocess)

    def _augmented(self, image: Any) -> Any:
        augment: Any = self.options.augmentation_fn
        if self.options.batch_size is None:
            return augment(image)
        with tf.Graph().as_default():  # only to see the type of the result
            dtype = augment(tf1.placeholder(image.dtype, image.shape[1:])).dtype
        return tf.map_fn(augment, image, fn_output_signature=dtype)

    # -- a batch at a time

    def _windows(self, batches: Any, full: Any) -> Any:
        """Decode the window of each image of a batch."""
        options = self.options
        window = options.geometry.window(512, 512, np.random.default_rng(0))
        size = (window.out_height, window.out_width)
        decoder = BatchDecoder(
            options.geometry, size, options.channels, options.decoders, options.on_bad_image, log=self.log
        )

        def decoded(places: Any, datas: Any, positions: Any) -> tuple[np.ndarray, np.ndarray]:
            names = [place.decode(errors="replace") for place in places]
            batch = decoder.decode(names, list(datas), [(self.seed, int(position)) for position in positions])
            if not batch.bad.all():
                self.hope.good()
            for row in np.flatnonzero(batch.bad):
                self.hope.bad(names[row])
            return batch.images, ~batch.bad

        def images_of(element: Mapping[str, Any]) -> dict[str, Any]:
            inputs = [element[key] for key in ("place", "image", "position")]
            images, good = tf.numpy_function(decoded, inputs, (tf.uint8, tf.bool))
            images.set_shape([element["image"].shape[0], *size, options.channels])
            good.set_shape([element["image"].shape[0]])
            items = {key: value for key, value in element.items() if key not in ("place", "position")}
            items["image"] = images
            if not options.skip:
                return items
            whole = tf.reduce_all(good)
            return {k: tf.cond(whole, lambda v=v: v, lambda v=v: tf.boolean_mask(v, good)) for k, v in items.items()}

        found = batches.map(images_of, num_parallel_calls=_BATCHES_AT_ONCE, deterministic=True)
        return found.rebatch(options.batch_size, drop_remainder=full) if options.skip else found

    def _finish(self, element: Mapping[str, Any]) -> dict[str, Any]:
        augmentation: Any = self.options.augmentation_fn
        return {**element, "image": augmentation.finish(element["image"])}

    # -- all

    def _map(self, dataset: Any, function: Callable[[Any], Any]) -> Any:
        return dataset.map(function, num_parallel_calls=self.options.decoders, deterministic=True)

    def _public(self, samples: Any) -> Any:
        return samples.map(lambda e: {k: v for k, v in e.items() if k not in ("place", "position", "good")})

    def _batched(self, samples: Any, full: Any) -> Any:
        if self.options.batch_size is None:
            return samples
        return samples.batch(self.options.batch_size, drop_remainder=full)

    def _known(self, dataset: Any, num_epochs: int | None) -> Any:
        """Say again that a data set without an end has none, which filters forget."""
        if num_epochs is not None:
            return dataset
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
