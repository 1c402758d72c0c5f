"""Our pipelines, and what the decoders can do at most: `input_ours.py THREADS BATCH PATHS_FILE CACHE`."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import cv2
import numpy as np
import simplejpeg
from input_worker import serve

import moxserve.tensorflow as mox
from moxserve.dataflow.order import EpochOrder
from moxserve.images.batch import BatchDecoder, read_bytes
from moxserve.images.cache import DecodedCache
from moxserve.images.crops import RandomResizedCrop
from moxserve.tensorflow.datasets.base import BaseDataset, numbered_rows
from moxserve.tensorflow.executor.env import tf, tf1

SIZE = 224
CROP = RandomResizedCrop(SIZE, SIZE, areas=(0.08, 1.0), aspect_ratios=(3 / 4, 4 / 3), least_covered=0.0, attempts=10)


class Windows:
    """An augmentation that only crops, resizes and flips."""

    geometry = CROP

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def __call__(self, image: Any) -> Any:
        """One image; a data set that looks at `geometry` never asks."""
        raise AssertionError("the windows are decoded in batches")

    def finish(self, images: Any) -> Any:
        """What is left for the device."""
        return images if self.dtype == tf.uint8 else (tf.cast(images, tf.float32) - 127.5) / 127.5


def run(images: Any, graph: Any) -> Iterator[Any]:
    """Batches that stay in the graph, as a training step takes them; a copy for Python would be nobody's."""
    with graph.as_default():
        # One value an image: of a result that nobody looks at, TensorFlow would not compute the scaling.
        give = tf1.Session(graph=graph).make_callable(images[:, 0, 0, 0])
    while True:
        yield give()


class Pipelines:
    """Endless iterators of batches, by what they do."""

    def __init__(self, paths: list[str], threads: int, batch: int, cache: str) -> None:
        self.paths, self.threads, self.batch, self.cache = paths, threads, batch, cache

    def decoded(self, dtype: Any, cache: bool = False) -> Iterator[Any]:
        """The raw data set of a folder, through its graph."""
        folder = str(Path(self.paths[0]).parent.parent)
        kept = {"cache_dir": self.cache, "cache_decoded": True} if cache else {}
        with tf.Graph().as_default() as graph:
            dataset = mox.ImageClassificationRawDataset(
                mox.ImageClassificationRawMetadata(folder), batch_size=self.batch, augmentation_fn=Windows(dtype),
                shuffle=True, preprocess_threads=self.threads, **kept,
            )  # fmt: skip
            (image,) = dataset.get(["image"])
        return run(image, graph)

    def batches(self, cache: bool = False) -> Iterator[Any]:
        """A BatchDecoder under numpy_function: the shortest way."""
        kept = DecodedCache(self.cache) if cache else None
        decoder = BatchDecoder(CROP, (SIZE, SIZE), threads=self.threads, cache=kept)
        order = EpochOrder(len(self.paths), seed=0)

        def load(positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
            paths = [self.paths[row] for row in rows]
            return decoder.decode(paths, paths, [(0, int(position)) for position in positions]).images

        with tf.Graph().as_default() as graph:
            rows = numbered_rows(order, None).batch(self.batch)
            images = rows.map(
                lambda *row: {"image": tf.numpy_function(load, row, tf.uint8)}, num_parallel_calls=2, deterministic=True
            )
            (image,) = BaseDataset(images.prefetch(2)).get(["image"])
        return run(image, graph)

    def bytes(self) -> Iterator[list[bytes]]:
        """Files as they are."""
        for rows in self._rows():
            yield [read_bytes(self.paths[row]) for row in rows]

    def single(self, decode: Callable[[bytes], Any]) -> Iterator[list[None]]:
        """One decoder in one thread, from memory: what no pipeline on top of it can beat."""
        cv2.setNumThreads(0)
        data = [read_bytes(path) for path in self.paths]
        for rows in self._rows():
            for row in rows:
                decode(data[row])
            yield [None] * len(rows)

    def _rows(self) -> Iterator[list[int]]:
        rows = EpochOrder(len(self.paths), seed=0).iterate()
        while True:
            yield list(itertools.islice(rows, self.batch))


def opencv(data: bytes) -> np.ndarray:
    """Decode with OpenCV."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def turbo(data: bytes) -> np.ndarray:
    """Decode with simplejpeg."""
    return simplejpeg.decode_jpeg(data, "RGB")


if __name__ == "__main__":
    made = Pipelines(Path(sys.argv[3]).read_text().splitlines(), int(sys.argv[1]), int(sys.argv[2]), sys.argv[4])
    serve({
        "limit_opencv": lambda: made.single(opencv),
        "limit_simplejpeg": lambda: made.single(turbo),
        "uint8": lambda: made.decoded(tf.uint8),
        "float32": lambda: made.decoded(tf.float32),
        "cached_uint8": lambda: made.decoded(tf.uint8, cache=True),
        "batches": made.batches,
        "batches_cached": lambda: made.batches(cache=True),
        "bytes": made.bytes,
    })  # fmt: skip
