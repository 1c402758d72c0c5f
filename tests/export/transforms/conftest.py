"""Frozen graphs to transform: built from a function, with rows to feed and what they are answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest


@dataclass
class Net:
    """A frozen graph with rows."""

    graph_def: Any
    inputs: list[str]
    outputs: list[str]
    feeds: dict[str, np.ndarray]
    _right: list[np.ndarray] | None = None

    def apply(self, transforms: Any, **options: Any) -> Any:
        """Transform it, without any check of ours: tests compare themselves."""
        from moxserve.export.transforms import apply_transforms

        return apply_transforms(self.graph_def, self.inputs, self.outputs, transforms, **options)

    def checked(self, transforms: Any, **options: Any) -> Any:
        """Transform it as an export does."""
        return self.apply(transforms, check=self.check(), **options)

    def check(self) -> Any:
        from moxserve.export.transforms import output_check

        return output_check(self.graph_def, self._feeds(), [f"{name}:0" for name in self.outputs])

    def answers(self, graph_def: Any = None) -> list[np.ndarray]:
        """Run a graph as the server does, in a session with TensorFlow's own optimizers."""
        import tensorflow as tf

        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            tf.compat.v1.import_graph_def(self.graph_def if graph_def is None else graph_def, name="")
            fetched = session.run([f"{name}:0" for name in self.outputs], self._feeds())
            return [np.asarray(value) for value in fetched]

    def error(self, graph_def: Any) -> float:
        """Relative L2 error of the worst output."""
        if self._right is None:
            self._right = self.answers()
        pairs = zip(self.answers(graph_def), self._right, strict=True)
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)

    def _feeds(self) -> dict[str, np.ndarray]:
        return {f"{name}:0": value for name, value in self.feeds.items()}


@pytest.fixture(scope="session")
def net() -> Callable[..., Net]:
    """`net(lambda x: ..., rows)`: one input `x`, or several by name; outputs `y`, or several by name."""

    def build(function: Callable[..., Any], rows: np.ndarray | Mapping[str, np.ndarray], **options: Any) -> Net:
        import tensorflow as tf

        feeds = dict(rows) if isinstance(rows, Mapping) else {"x": rows}
        with tf.Graph().as_default() as graph:
            placeholders = [
                tf.compat.v1.placeholder(value.dtype, options.get("shape", [None, *value.shape[1:]]), name)
                for name, value in feeds.items()
            ]
            made = function(*placeholders)
            named = made if isinstance(made, Mapping) else {"y": made}
            outputs = [tf.identity(tensor, name).op.name for name, tensor in named.items()]
            return Net(graph.as_graph_def(), list(feeds), outputs, feeds)

    return build


@pytest.fixture(scope="session")
def operations() -> Callable[[Any], Counter[str]]:
    """Count the operations of a graph by type."""
    return lambda graph_def: Counter(node.op for node in graph_def.node)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Four pictures, `[4, 16, 16, 3] float32`."""
    return np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def weights() -> Callable[..., np.ndarray]:
    """`weights(3, 3, 8, 16)`: normal numbers that keep the size of what they are multiplied with."""

    def make(*shape: int, seed: int = 0) -> np.ndarray:
        size = max(1, int(np.prod(shape[:-1])))
        return (np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(size)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def statistics() -> Callable[..., Sequence[np.ndarray]]:
    """`statistics(channels)`: gamma, beta, mean and variance of a batch norm that has seen data."""

    def make(channels: int, seed: int = 0) -> Sequence[np.ndarray]:
        random = np.random.default_rng([seed, channels])
        ranges = ((0.7, 1.3), (-0.3, 0.3), (-0.3, 0.3), (0.5, 1.5))
        return [random.uniform(low, high, channels).astype(np.float32) for low, high in ranges]

    return make
