"""How wrong a graph has become: its answers to some rows against those of the graph before, as one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.export.transforms.steps import Check

__all__ = ["output_check", "relative_error"]


def output_check(graph_def: Any, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Check:
    """Remember what a graph answers, and compare others with it.

    Args:
        graph_def: the graph that is right.
        feeds: rows by tensor, such as `images:0`.
        fetches: tensors to compare.

    Returns:
        A function that runs a graph and returns `relative_error` of its worst output.
    """
    expected = _run(graph_def, feeds, fetches)

    def check(changed: Any) -> float:
        got = _run(changed, feeds, fetches)
        return max((relative_error(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)

    return check


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Return `|got - expected| / |expected|` in the Euclidean norm; of whole numbers and text, the share that differs.

    Infinite when shapes differ, or where one is finite and the other is not.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    if expected.dtype.kind not in "fcV":
        return float(np.mean(got != expected)) if expected.size else 0.0
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = got.astype(wide), expected.astype(wide)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return float("inf")
    difference = float(np.linalg.norm(a[finite] - b[finite]))
    size = float(np.linalg.norm(b[finite]))
    return difference / size if size else difference


def _run(graph_def: Any, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
    import tensorflow as tf

    tf1 = tf.compat.v1
    config = tf1.ConfigProto(allow_soft_placement=True, device_count={"GPU": 0})
    # The graph as it is, not what TensorFlow would make of it: that takes longer than the few rows.
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default(), tf1.Session(config=config) as session:
        tf1.import_graph_def(graph_def, name="")
        return [np.asarray(value) for value in session.run(list(fetches), dict(feeds))]
