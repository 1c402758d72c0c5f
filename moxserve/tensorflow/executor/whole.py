"""Values of an evaluation that are no mean over batches, and the area under the ROC curve, which is one.

`log_info` holds scalars of one batch, and an evaluation averages them. A scalar made by `over_all_rows` is not
averaged: the evaluation keeps what it is computed from, row by row, and computes it once over all rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["OverRows", "auc", "over_all_rows", "over_rows_of"]


@dataclass(frozen=True)
class OverRows:
    """How a value is computed over all rows.

    Attributes:
        parts: tensors, `[batch, ...]` each.
        compute: gets an array for each of them, `[rows, ...]`, and returns the value.
    """

    parts: tuple[Any, ...]
    compute: Callable[..., float]


_KNOWN: weakref.WeakKeyDictionary[Any, dict[str, OverRows]] = weakref.WeakKeyDictionary()


def over_all_rows(value: Any, parts: Sequence[Any], compute: Callable[..., float]) -> Any:
    """Mark a scalar of `log_info` as one that an evaluation computes over all rows.

    Args:
        value: scalar tensor of one batch: what a training step logs.
        parts: tensors, `[batch, ...]`, that an evaluation keeps.
        compute: gets an array for each part with all rows, and returns the value of the evaluation.

    Returns:
        The scalar, to be put into `log_info`.

    Raises:
        ModelSpecError: there are no parts, or one has no batch dimension.
    """
    if not parts or any(part.shape.rank == 0 for part in parts):
        raise ModelSpecError(f"over_all_rows({value.name}): expected tensors with a row for each row of the batch")
    _KNOWN.setdefault(value.graph, {})[value.name] = OverRows(tuple(parts), compute)
    return value


def over_rows_of(value: Any) -> OverRows | None:
    """Return how a scalar is computed over all rows; None for one that is averaged."""
    return _KNOWN.get(getattr(value, "graph", None), {}).get(getattr(value, "name", ""))


def auc(labels: Any, scores: Any) -> Any:
    """Return the area under the ROC curve: how likely a row of the class has a higher score than one that is not.

    Exact, not from a number of thresholds; equal scores count half (Hanley and McNeil, 1982). In an evaluation it is
    that of all rows; NaN where only one of the classes is there.

    Args:
        labels: `[batch]`, true or not 0 for rows of the class.
        scores: `[batch]`, higher for rows that are taken for the class.
    """
    with tf1.name_scope("auc"):
        positive = tf.cast(tf.not_equal(labels, tf.zeros_like(labels)), tf.float64)
        values = tf.cast(scores, tf.float64)
        ordered = tf.sort(values)
        ranks = tf.searchsorted(ordered, values, "left") + tf.searchsorted(ordered, values, "right") + 1
        positives = tf.reduce_sum(positive)
        negatives = tf.reduce_sum(1.0 - positive)
        wins = tf.reduce_sum(positive * tf.cast(ranks, tf.float64) / 2.0) - positives * (positives + 1.0) / 2.0
        area = tf.cast(wins / (positives * negatives), tf.float32)
    return over_all_rows(area, [labels, scores], _auc)


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    positive = labels != 0
    values = scores.astype(np.float64)
    ordered = np.sort(values)
    ranks = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1) / 2
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
