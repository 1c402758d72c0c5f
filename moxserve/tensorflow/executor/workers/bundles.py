"""Gradients on their way between workers: dense ones as one flat vector, with what else the workers tell each other.

A vector ends with four numbers: how much it weighs (1, or 0 from a worker that has left and says so) and one for each
reason to leave. The sum of all workers' vectors so gives the mean of those that have gradients, and tells everybody
that somebody leaves, in the same step for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.tensorflow.executor.devices import GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = [
    "END_OF_INPUT",
    "REASONS",
    "REQUEST_STOP",
    "SIGNAL",
    "Bundle",
    "Sparse",
    "contributors_of",
    "farewell",
    "leaving",
    "silence",
    "split",
    "told",
]

END_OF_INPUT, REQUEST_STOP, SIGNAL = 1, 2, 4
REASONS = {SIGNAL: "signal", REQUEST_STOP: "request_stop", END_OF_INPUT: "end_of_input"}
_BITS = (END_OF_INPUT, REQUEST_STOP, SIGNAL)
_TAIL = 1 + len(_BITS)


@dataclass
class Bundle:
    """Dense gradients that travel as one vector.

    Attributes:
        dtype: of the vector: float64 for such gradients, else float32, in which half precision is summed up, too.
        variables: whose gradients they are, in order; none for a vector that only tells what else is to be told.
        vector: `[n + 4]`, this worker's; may be fed.
    """

    dtype: Any
    variables: list[Any]
    vector: Any

    @property
    def size(self) -> int:
        """Length of the vector."""
        return int(self.vector.shape[0])

    def means(self, total: Any) -> list[Any]:
        """Take the sum of all vectors apart: the mean gradient of each variable, in its dtype."""
        if not self.variables:
            return []
        values = total[:-_TAIL] / contributors_of(total)
        parts = tf.split(values, [variable.shape.num_elements() for variable in self.variables])
        return [
            tf.cast(tf.reshape(part, variable.shape), variable.dtype.base_dtype)
            for part, variable in zip(parts, self.variables, strict=True)
        ]


@dataclass
class Sparse:
    """A gradient of some rows of a variable.

    Attributes:
        variable: whose gradient it is.
        values: `[n, ...]`, this worker's; may be fed.
        indices: `[n] int64`, which rows; may be fed.
    """

    variable: Any
    values: Any
    indices: Any


def split(
    gradients: GradsAndVars, place_of: Callable[[Any], int], places: int, *, keep_sparse: bool
) -> tuple[list[list[Bundle]], list[Sparse]]:
    """Bundle gradients by the place that their sums are made at, and by dtype.

    Args:
        gradients: of this worker.
        place_of: tells the number of the place of a variable.
        places: how many there are.
        keep_sparse: leave sparse gradients apart, as they are; otherwise they are made dense.

    Returns:
        The bundles of each place, at least one at the first; and the sparse gradients.
    """
    groups: list[dict[Any, GradsAndVars]] = [{} for _ in range(places)]
    sparse: list[Sparse] = []
    for gradient, variable in gradients:
        if keep_sparse and isinstance(gradient, tf.IndexedSlices):
            sparse.append(_sparse(gradient, variable))
            continue
        dtype = tf.float64 if gradient.dtype == tf.float64 else tf.float32
        groups[place_of(variable)].setdefault(dtype, []).append((tf.convert_to_tensor(gradient), variable))
    if not groups[0]:
        groups[0][tf.float32] = []
    return [[_bundle(dtype, pairs) for dtype, pairs in group.items()] for group in groups], sparse


def _bundle(dtype: Any, pairs: GradsAndVars) -> Bundle:
    flat = [tf.reshape(tf.cast(gradient, dtype), [-1]) for gradient, _ in pairs]
    vector = tf.concat([*flat, tf.constant([1.0] + [0.0] * len(_BITS), dtype)], axis=0)
    size = sum(variable.shape.num_elements() for _, variable in pairs) + _TAIL
    vector.set_shape([size])
    return Bundle(dtype, [variable for _, variable in pairs], tf1.placeholder_with_default(vector, [size]))


def _sparse(gradient: Any, variable: Any) -> Sparse:
    shape = [None, *variable.shape.as_list()[1:]]
    values = tf1.placeholder_with_default(gradient.values, shape)
    return Sparse(variable, values, tf1.placeholder_with_default(tf.cast(gradient.indices, tf.int64), [None]))


def silence(bundle: Bundle, reason: int) -> np.ndarray:
    """The vector of a worker that has no gradients, and leaves for a reason (0: it does not say so)."""
    vector = np.zeros(bundle.size, bundle.dtype.as_numpy_dtype)
    vector[-len(_BITS) :] = [bool(reason & bit) for bit in _BITS]
    return vector


def farewell(bundles: Sequence[Bundle], sparse: Sequence[Sparse], reason: int) -> dict[Any, np.ndarray]:
    """What a worker feeds that has no gradients any more, and says why it leaves."""
    feed: dict[Any, np.ndarray] = {bundle.vector: silence(bundle, reason) for bundle in bundles}
    for item in sparse:
        feed[item.values] = np.zeros([0, *item.variable.shape.as_list()[1:]], item.values.dtype.as_numpy_dtype)
        feed[item.indices] = np.zeros([0], np.int64)
    return feed


def contributors_of(total: Any) -> Any:
    """Take the number of workers that have gradients out of a sum of vectors."""
    return total[-_TAIL]


def leaving(total: Any) -> Any:
    """Take the reasons to leave out of a sum of vectors: a scalar `int64`, 0 where all go on."""
    given = tf.cast(total[-len(_BITS) :] > 0, tf.int64)
    return tf.reduce_sum(given * tf.constant(_BITS, tf.int64))


def told(total: np.ndarray) -> tuple[int, int]:
    """Read a sum of vectors: how many workers have gradients, and the reasons to leave."""
    left = sum(bit for bit, given in zip(_BITS, total[-len(_BITS) :], strict=True) if given > 0)
    return round(float(total[-_TAIL])), left
