"""Reading what an input plugin gives, as the executor does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def read_batches() -> Callable[..., list[list[np.ndarray]]]:
    """Run a bundle's input in a graph of its own: up to `count` batches, each a list of arrays."""

    def read(bundle: Any, mode: str, count: int = 10**6) -> list[list[np.ndarray]]:
        import tensorflow as tf

        from moxserve.tensorflow.executor.inputs import build_inputs

        batches: list[list[np.ndarray]] = []
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            source = build_inputs(bundle.input_fn, mode, bundle.rows_per_step(mode), bundle.auto_batch)
            source.start(session)
            while len(batches) < count:
                try:
                    batches.append(session.run(source.tensors))
                except tf.errors.OutOfRangeError:
                    break
        return batches

    return read
