"""How fast our readers read a data set of images, and where the time goes.

Three things are measured one after the other, in CPU time of the process, which other work on the machine does not
change much: reading alone, decoding alone (of bytes in memory), and the whole data set, as `mox.run` takes it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.data.inspection.detect import Found, detect
from moxserve.errors import DataError, UsageError
from moxserve.images.batch import BatchDecoder, read_bytes

__all__ = ["Bench", "BenchOptions", "run_bench"]

_KINDS = ("image folder", "multilabel", "tfrecord")
_WARM_UP = 3
_SAMPLE = 256
_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class BenchOptions:
    """What to read, and how.

    Attributes:
        batch_size: images of a batch.
        image_size: height and width of what comes out; None: that of the network of `augment`, or 224.
        steps: batches that are measured, after some that are not.
        augment: name of a network whose training augmentation is applied; None only resizes.
        progress: told how many steps are done.
    """

    batch_size: int = 32
    image_size: int | None = None
    steps: int = 50
    augment: str | None = None
    progress: Callable[[int], None] = lambda _done: None


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        path: of the data set.
        kind: `image folder`, `multilabel` or `tfrecord`.
        images: how many were measured.
        images_per_s: through the whole data set.
        images_per_cpu_s: per second of CPU time, of all threads together.
        cores_busy: CPU seconds per second.
        read_ms: CPU milliseconds an image for reading alone.
        decode_ms: for decoding alone, and the crop or resize that is part of it.
        rest_ms: what is left of the whole: resize or colours, batches, hand-over.
        total_ms: the whole.
        shape: of a batch.
        dtype: of a batch.
        windows: whether only the windows of the augmentation are decoded, and resized in one go.
    """

    path: str
    kind: str
    images: int
    images_per_s: float
    images_per_cpu_s: float
    cores_busy: float
    read_ms: float
    decode_ms: float
    rest_ms: float
    total_ms: float
    shape: tuple[int, ...]
    dtype: str
    windows: bool


def run_bench(path: str, options: BenchOptions) -> Bench:
    """Read a data set of images, and measure it.

    Args:
        path: a folder of images, or TFRecord files; of several data sets in it, `train` is read, or the first.
        options: see there.

    Raises:
        DataError: there is no data set of images, or it is broken.
        UsageError: an option makes no sense.
    """
    for name in ("batch_size", "steps"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name}={getattr(options, name)}: expected at least 1")
    found = _choose(path)
    augmentation = _augmentation(options)
    # First, because it says better than TensorFlow what records lack.
    sample = list(itertools.islice(_encoded(found), _SAMPLE))
    if not sample:
        raise DataError(f"{found.path} holds no image")
    whole = _whole(found, options, augmentation)
    read_ms = _read(found, len(sample))
    geometry = getattr(augmentation, "geometry", None)
    decode_ms = _decode(sample, geometry)
    total_ms = whole.cpu_s / whole.images * 1e3
    return Bench(
        path=found.path,
        kind=found.kind,
        images=whole.images,
        images_per_s=whole.images / whole.wall_s,
        images_per_cpu_s=whole.images / whole.cpu_s,
        cores_busy=whole.cpu_s / whole.wall_s,
        read_ms=read_ms,
        decode_ms=decode_ms,
        rest_ms=max(total_ms - read_ms - decode_ms, 0.0),
        total_ms=total_ms,
        shape=whole.shape,
        dtype=whole.dtype,
        windows=geometry is not None,
    )


def _choose(path: str) -> Found:
    found = [part for part in detect(path) if part.kind in _KINDS]
    if not found:
        raise DataError(f"{path!r} holds no images with labels", hint=f"bench reads: {', '.join(_KINDS)}")
    return next((part for part in found if os.path.basename(part.path).startswith("train")), found[0])


# -- the whole data set


@dataclass(frozen=True)
class _Whole:
    """What the whole data set took."""

    images: int
    wall_s: float
    cpu_s: float
    shape: tuple[int, ...]
    dtype: str


def _augmentation(options: BenchOptions) -> Any:
    if options.augment is None:
        return None
    from moxserve.tensorflow.preprocessing import get_data_augmentation_fn

    return get_data_augmentation_fn(options.augment, "TRAIN", options.image_size, options.image_size)


def _data_set(found: Found, options: BenchOptions, augmentation: Any) -> Any:
    import moxserve.tensorflow as mox

    given: dict[str, Any] = {"batch_size": options.batch_size, "seed": 0}
    if augmentation is None:
        size = options.image_size or _DEFAULT_SIZE
        given["image_size"] = [size, size]
    else:
        given["augmentation_fn"] = augmentation
    if found.kind == "tfrecord":
        base = os.path.dirname(found.files[0])
        records = mox.ImageClassificationTFRecordMetadata(base, [os.path.basename(file) for file in found.files])
        return mox.ImageClassificationTFRecordDataset(records, **given)
    if found.kind == "multilabel":
        return mox.MultilabelClassificationRawDataset(mox.MultilabelClassificationRawMetadata(found.path), **given)
    return mox.ImageClassificationRawDataset(mox.ImageClassificationRawMetadata(found.path), **given)


def _whole(found: Found, options: BenchOptions, augmentation: Any) -> _Whole:
    """Take batches from the data set, in a graph and session as `mox.run` has them."""
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf1.Graph().as_default(), tf.device("/cpu:0"):
        images, label = _data_set(found, options, augmentation).get(["image", "label"])
        with tf1.Session() as session:
            session.run([tf1.local_variables_initializer(), tf1.tables_initializer()])
            step = session.make_callable([images, label])
            for _ in range(_WARM_UP):
                first = step()[0]
            count, wall, cpu = 0, time.perf_counter(), time.process_time()
            for done in range(options.steps):
                count += len(step()[0])
                options.progress(done + 1)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return _Whole(count, wall, cpu, first.shape, str(first.dtype))


# -- the stages


def _encoded(found: Found) -> Iterator[bytes]:
    """Yield encoded images in the order of the files."""
    if found.kind == "tfrecord":
        yield from _encoded_records(found.files)
        return
    folder = os.path.join(found.path, "images") if found.kind == "multilabel" else found.path
    for path in _spread(folder):
        yield read_bytes(path)


def _spread(folder: str) -> Iterator[str]:
    """Yield paths of images, from all folders by turns."""
    from moxserve.images.names import is_image
    from moxserve.tensorflow.datasets.raw.storage import list_tree

    by_class: dict[str, list[str]] = {}
    for name in filter(is_image, list_tree(folder).files):
        by_class.setdefault(os.path.dirname(name), []).append(os.path.join(folder, name))
    for paths in itertools.zip_longest(*by_class.values()):
        yield from filter(None, paths)


def _encoded_records(files: Sequence[str]) -> Iterator[bytes]:
    from moxserve.protocol.examples import parse_example
    from moxserve.protocol.tfrecord import read_records

    for file in files:
        for payload in read_records(file):
            features = parse_example(payload)
            for name in ("image/encoded", "image/class/label"):
                if len(features.get(name, ())) != 1:
                    raise DataError(f"{file}: a record has no {name}", hint="bench reads records of images with labels")
            yield features["image/encoded"][0]


def _cpu_ms(work: Callable[[], int]) -> float:
    """CPU milliseconds for each of the things that `work` says it did; the better of two times."""
    best = float("inf")
    for _ in range(2):
        began = time.process_time()
        count = work()
        best = min(best, (time.process_time() - began) / max(count, 1) * 1e3)
    return best


def _read(found: Found, count: int) -> float:
    return _cpu_ms(lambda: sum(1 for _ in itertools.islice(_encoded(found), count)))


def _decode(sample: Sequence[bytes], geometry: Any) -> float:
    """Decode as the data set does: only the windows of an augmentation that has such, else whole images."""
    names = [f"image {row}" for row in range(len(sample))]
    if geometry is not None:
        decoder = BatchDecoder(geometry)
        return _cpu_ms(lambda: len(decoder.decode(names, sample, list(range(len(sample)))).images))
    single = BatchDecoder()

    def one_by_one() -> int:
        for name, data in zip(names, sample, strict=True):
            np.asarray(single.one(name, data))
        return len(sample)

    return _cpu_ms(one_by_one)
