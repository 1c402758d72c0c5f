"""Weights by the rule under which golden numbers were computed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moxserve.tensorflow.executor.env import tf1


def _by_rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    kind = name.rsplit("/", 1)[1]
    if kind in ("weights", "depthwise_weights", "pointwise_weights"):
        fan_in = np.prod(shape[:2]) if kind == "depthwise_weights" else np.prod(shape[:-1])
        return normal * np.sqrt(2.0 / fan_in)
    if kind == "gamma":
        return 1 + 0.1 * normal
    return 1 + 0.5 * np.abs(normal) if kind == "moving_variance" else 0.1 * normal


@pytest.fixture
def computed() -> Callable[[Any], Any]:
    """Values of tensors of the default graph, whose variables have the values that their names give (see test_zoo)."""

    def call(fetches: Any) -> Any:
        variables = tf1.global_variables()
        values = {v.initializer.inputs[1]: _by_rule(v.op.name, tuple(v.shape.as_list())) for v in variables}
        with tf1.Session() as session:
            session.run([v.initializer for v in variables], values)
            return session.run(fetches)

    return call


@pytest.fixture
def image() -> Callable[[int, int], np.ndarray]:
    """The image of golden numbers, `[1, height, width, 3]` float32 in [-1, 1)."""
    return lambda height, width: np.random.RandomState(7).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)
