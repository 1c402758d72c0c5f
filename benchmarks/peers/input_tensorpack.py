"""tensorpack's DataFlow with worker processes: `input_tensorpack.py WORKERS BATCH PATHS_FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from input_numpy import augment, load
from input_worker import serve
from tensorpack.dataflow import BatchData, DataFromList, MultiProcessMapData


def _uint8(point: list[Any]) -> list[Any]:
    return [augment(load(point[0]))]


def _float32(point: list[Any]) -> list[Any]:
    return [(augment(load(point[0])).astype(np.float32) - 127.5) / 127.5]


def _batches(paths: list[str], workers: int, batch: int, function: Any) -> Iterator[np.ndarray]:
    flow = DataFromList([[path] for path in paths], shuffle=True)
    flow = MultiProcessMapData(flow, workers, function, buffer_size=128)
    flow = BatchData(flow, batch)
    flow.reset_state()
    while True:
        for (images,) in flow:
            yield images


if __name__ == "__main__":
    workers, batch, listed = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_text().splitlines()
    serve({
        "uint8": lambda: _batches(listed, workers, batch, _uint8),
        "float32": lambda: _batches(listed, workers, batch, _float32),
    })  # fmt: skip
