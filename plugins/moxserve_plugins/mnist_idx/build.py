"""Batches of MNIST images: the files are read once, when the first batch is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.inputs import array_table, batch_rows, gather_rows
from moxserve_plugins.mnist_idx.idx import read_array, read_headers

if TYPE_CHECKING:
    from moxserve_plugins.mnist_idx.config import MnistIdx

__all__ = ["bundle"]

_PARTS = {"TRAIN": "train", "EVAL": "t10k", "PREDICT": "t10k"}


def bundle(config: MnistIdx) -> InputBundle:
    """Return the input: image `[batch, height, width, 1] uint8`, label `[batch] int64`.

    Raises:
        DataError: a file is missing or of another kind.
    """
    shapes = read_headers(config.dir)

    # Not kept here: TensorFlow keeps its own copy, and one is enough.
    def load(part: str) -> list[Any]:
        images = read_array(config.dir, part, "images")
        return [images[..., np.newaxis], read_array(config.dir, part, "labels").astype(np.int64)]

    def input_fn(mode: str, **_: Any) -> Any:
        part = _PARTS[mode]
        rows, height, width = shapes[part]
        specs = [
            np.broadcast_to(np.uint8(0), (rows, height, width, 1)),
            np.broadcast_to(np.int64(0), (rows,)),
        ]
        table = array_table(lambda: load(part), specs)
        return batch_rows(config, mode, rows, lambda numbers: gather_rows(table, numbers))

    classes = int(max(read_array(config.dir, part, "labels").max() for part in ("train", "t10k"))) + 1
    return InputBundle(
        input_fn=input_fn,
        names=("image", "label"),
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        labels=tuple(str(index) for index in range(classes)),
        num_samples={mode: shapes[part][0] for mode, part in _PARTS.items()},
    )
