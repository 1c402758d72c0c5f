"""What is made of records that hold images: decoded, resized, augmented, batched, with their labels.

The features are slim's: `image/encoded`, `image/class/label`, and where they are there `image/class/text` and
`image/filename`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moxserve.dataflow.seeds import draw_seed
from moxserve.errors import DataError
from moxserve.images.bad import BadImageLog
from moxserve.images.batch import BatchDecoder
from moxserve.images.decode import decode
from moxserve.images.header import BadImageError, check_complete, read_header
from moxserve.tensorflow.datasets.images import BATCHES_AT_ONCE, ImagePipeline, is_good
from moxserve.tensorflow.datasets.raw.options import RawOptions
from moxserve.tensorflow.datasets.tfrecord_common import BaseTFRecordMetadata
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.python_calls import python_function
from moxserve.tensorflow.executor.skipped import SkippedRows

__all__ = ["RecordImages"]

_ENCODED, _LABEL, _TEXT, _NAME = "image/encoded", "image/class/label", "image/class/text", "image/filename"
_INTERNAL = ("encoded", "place", "position", "good")

Element = Mapping[str, Any]


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
                raise DataError(f"no image of {self._what} can be decoded, such as {name}")
            self._bad.add(name)


class RecordImages(ImagePipeline):
    """Makes items of serialized records (see `tfrecord_reader`).

    Args:
        metadata: of the data set.
        options: what is made of the images.
        custom: further features, by their names.
        label_one_hot: labels as `[num_classes] float32`.
        seed: of all that is random; None draws one.
        skipped: notes the records that are left out.
    """

    def __init__(
        self,
        metadata: BaseTFRecordMetadata,
        options: RawOptions,
        custom: Mapping[str, Any],
        label_one_hot: bool,
        seed: int | None,
        skipped: SkippedRows,
    ) -> None:
        super().__init__(options, seed)
        self.custom, self.label_one_hot = dict(custom), label_one_hot
        self.names = list(getattr(metadata, "labels_list", []))
        self.num_classes: int = getattr(metadata, "num_classes", 0)
        self.log, self.hope = BadImageLog(metadata.base_dir, told=skipped.note), _Hope(metadata.base_dir)
        self.draws = draw_seed() if seed is None else seed
        scalar = tf.io.FixedLenFeature
        self.features = {
            _ENCODED: scalar([], tf.string),
            _LABEL: scalar([], tf.int64),
            _TEXT: scalar([], tf.string, ""),
            _NAME: scalar([], tf.string, ""),
            **self.custom,
        }

    @property
    def skips(self) -> bool:
        """Whether bad images are left out."""
        return self.options.on_bad_image == "skip"

    def build(self, records: Any) -> Any:
        """Return the data set of dicts, batched where that is wanted."""
        samples = self._map(records, self._parsed)
        if self.finish is not None:
            return self._ahead(self._windows(samples))
        if self.options.preprocess_fn is not None:
            return self._ahead(self._preprocessed(self._checked(samples)))
        decoded = self._decoded(samples)
        if self.options.augmentation_fn is not None:
            decoded = self._augmented(decoded)
        return self._ahead(self._batched(decoded))

    # ---- records

    def _parsed(self, element: Element) -> dict[str, Any]:
        """Parse one record: the items, the encoded image, and where it is from."""
        parsed = tf.io.parse_single_example(element["record"], self.features)
        label = parsed[_LABEL]
        return {
            "image_name": parsed[_NAME],
            "label": self._one_hot(label, element["place"]) if self.label_one_hot else label,
            "label_desc": self._text(label, parsed[_TEXT]),
            **{key: parsed[key] for key in self.custom},
            "encoded": parsed[_ENCODED],
            "place": element["place"],
            "position": element["position"],
        }

    def _text(self, label: Any, text: Any) -> Any:
        """Return the class' name: the record's, else that of the file of labels."""
        if not self.names or _TEXT in self.custom or _LABEL in self.custom:
            return text
        inside = tf.logical_and(label >= 0, label < len(self.names))
        name = tf.gather(tf.constant(self.names), tf.clip_by_value(label, 0, len(self.names) - 1))
        return tf.where(tf.logical_and(tf.equal(tf.strings.length(text), 0), inside), name, text)

    def _one_hot(self, label: Any, place: Any) -> Any:
        inside = tf.reduce_all(tf.logical_and(label >= 0, label < self.num_classes))
        told = [place, ": the label is out of range; it is", label, "and num_classes is", self.num_classes]
        with tf.control_dependencies([tf1.Assert(inside, told)]):
            return tf.one_hot(label, self.num_classes, dtype=tf.float32)

    # ---- images one by one

    def _decoded(self, samples: Any) -> Any:
        def load(place: bytes, data: bytes) -> tuple[Any, Any]:
            return self._guarded(place, lambda name: decode(data, self.options.channels, name), self._no_pixels())

        def decoded(element: Element) -> dict[str, Any]:
            good, image = python_function(load, [element["place"], element["encoded"]], (tf.bool, tf.uint8))
            good.set_shape([])
            image.set_shape([None, None, self.options.channels])
            return {**element, "good": good, "image": image}

        def finished(element: Element) -> dict[str, Any]:
            items = {"image": element["image"], **_public(element)}
            if self.wants_seed:
                items["seed"] = self._seed(element["position"])
            if self.options.size is not None:
                items["image"] = self._nearest(items["image"])
            return items

        return self._endless(self._map(self._kept(self._map(samples, decoded)), finished))

    def _checked(self, samples: Any) -> Any:
        """Leave out images that are cut off or none: whatever decodes them stops at the first of those."""

        def load(place: bytes, data: bytes) -> tuple[Any, Any]:
            return self._guarded(place, lambda name: _whole(data, name), b"")

        def checked(element: Element) -> dict[str, Any]:
            good, image = python_function(load, [element["place"], element["encoded"]], (tf.bool, tf.string))
            good.set_shape([])
            image.set_shape([])
            return {**element, "good": good, "image_buf": image}

        def finished(element: Element) -> dict[str, Any]:
            items = {"image_buf": element["image_buf"], **_public(element)}
            return {**items, "seed": self._seed(element["position"])} if self.wants_seed else items

        return self._endless(self._map(self._kept(self._map(samples, checked)), finished))

    def _kept(self, samples: Any) -> Any:
        return samples.filter(is_good) if self.skips else samples

    def _guarded(self, place: bytes, load: Callable[[str], Any], nothing: Any) -> tuple[Any, Any]:
        """Load an image; tells whether it is good."""
        name = place.decode(errors="replace")
        try:
            image = load(name)
        except BadImageError as error:
            if not self.skips:
                raise
            self.log.skip(error)
            self.hope.bad(name)
            return np.False_, nothing
        self.hope.good()
        return np.True_, image

    def _no_pixels(self) -> np.ndarray:
        return np.zeros((0, 0, self.options.channels), np.uint8)

    def _nearest(self, image: Any) -> Any:
        return tf1.image.resize_nearest_neighbor(image[tf.newaxis], self.options.size)[0]

    def _seed(self, position: Any) -> Any:
        """Return what is random in a sample is drawn from: `[2] int64`."""

        def drawn(number: Any) -> np.ndarray:
            state = np.random.SeedSequence([self.draws, int(number)]).generate_state(2, np.uint64)
            return (state >> np.uint64(1)).astype(np.int64)

        seed = python_function(drawn, [position], tf.int64, stateful=False)
        seed.set_shape([2])
        return seed

    # ---- whole batches of windows

    def _windows(self, samples: Any) -> Any:
        options = self.options
        window = options.geometry.window(512, 512, np.random.default_rng(0))
        size = (window.out_height, window.out_width)
        decoder = BatchDecoder(
            options.geometry, size, options.channels, options.threads, options.on_bad_image, log=self.log
        )

        def load(places: Any, datas: Any, positions: Any) -> tuple[np.ndarray, np.ndarray]:
            names = [place.decode(errors="replace") for place in places]
            batch = decoder.decode(names, list(datas), [(self.draws, int(position)) for position in positions])
            if not batch.bad.all():
                self.hope.good()
            for row in np.flatnonzero(batch.bad):
                self.hope.bad(names[row])
            return batch.images, ~batch.bad

        def decoded(element: Element) -> dict[str, Any]:
            rows = element["encoded"].shape[0]
            inputs = [element[key] for key in ("place", "encoded", "position")]
            images, good = python_function(load, inputs, (tf.uint8, tf.bool))
            images.set_shape([rows, *size, options.channels])
            good.set_shape([rows])
            items = {"image": images, **_public(element)}
            if not self.skips:
                return items
            every = tf.reduce_all(good)
            return {name: _rows(value, good, every) for name, value in items.items()}

        batches = self._map(samples.batch(options.batch_size), decoded, BATCHES_AT_ONCE)
        return self._endless(batches.rebatch(options.batch_size, drop_remainder=options.full_batches))


def _public(element: Element) -> dict[str, Any]:
    return {name: value for name, value in element.items() if name not in _INTERNAL}


def _whole(data: bytes, name: str) -> bytes:
    check_complete(data, read_header(data, name), name)
    return data


def _rows(value: Any, good: Any, every: Any) -> Any:
    """Return the good rows of a tensor, or of a sparse one."""
    if not isinstance(value, tf.SparseTensor):
        return tf.cond(every, lambda: value, lambda: tf.boolean_mask(value, good))
    kept = tf.sparse.retain(value, tf.gather(good, value.indices[:, 0]))
    numbers = tf.cumsum(tf.cast(good, tf.int64)) - 1
    first = tf.gather(numbers, kept.indices[:, :1])
    shape = tf.concat([[tf.reduce_sum(tf.cast(good, tf.int64))], value.dense_shape[1:]], 0)
    return tf.SparseTensor(tf.concat([first, kept.indices[:, 1:]], 1), kept.values, shape)
