"""Masks of weights: which stay, chosen by a schedule inside the graph, and applied after each step's updates.

The weights themselves are made zero. Whoever reads them (other modes, checkpoints, the export) needs to know nothing of
masks, and an optimizer's momentum cannot bring a pruned weight back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.variables import TowerContext
from moxserve.tensorflow.pruning.options import Pruning

__all__ = ["Mask", "make_masks", "prune", "share_of_zeros"]

_NEVER = -1


@dataclass(frozen=True)
class Mask:
    """A kernel and what stays of it.

    Attributes:
        weights: the kernel's variable.
        stays: variable of the same shape, bool.
    """

    weights: Any
    stays: Any


def make_masks(kernels: Sequence[Any]) -> list[Mask]:
    """Make a mask for each kernel; at first everything stays."""
    return [Mask(v, _variable(f"{v.op.name}/mask", v.shape, tf.bool, tf1.ones_initializer())) for v in kernels]


def _variable(name: str, shape: Any, dtype: Any, initializer: Any) -> Any:
    made = tf1.get_variable(f"pruning/{name}", shape, dtype, initializer, trainable=False)
    context = TowerContext.current()
    if context is not None:
        context.make_optional(made)
    return made


def chosen_at() -> Any:
    """Make the variable that remembers which step of the schedule the masks are of."""
    return _variable("chosen_at", [], tf.int64, tf1.constant_initializer(_NEVER))


def prune(masks: Sequence[Mask], last: Any, options: Pruning) -> Any:
    """Build what follows the updates of a step: masks chosen anew if it is time, then applied.

    Args:
        masks: of all kernels.
        last: the variable of `chosen_at`.
        options: the schedule.

    Returns:
        An operation.
    """
    with tf1.name_scope("pruning/"):
        step = tf.cast(tf1.train.get_or_create_global_step().read_value(), tf.int64)
        planned = tf.cast(_in_graph(options.planned_step, step, tf.int64), tf.int64)
        due = planned > last.read_value()

        def choose() -> Any:
            share = _in_graph(options.sparsity_at, planned, tf.float64)
            assigned = [tf1.assign(mask.stays, _largest(mask.weights.read_value(), share)).op for mask in masks]
            with tf1.control_dependencies([*assigned, tf1.assign(last, planned).op]):
                return tf.constant(True)

        # A schedule that begins before the step that training starts at catches up in one go.
        with tf1.control_dependencies([tf1.cond(due, choose, lambda: tf.constant(False))]):
            return tf.group(*(_apply(mask) for mask in masks))


def _in_graph(function: Any, step: Any, dtype: Any) -> Any:
    """Compute a function of the step, outside of TensorFlow: it is the one that the schedule is told with, too."""
    numpy_type = dtype.as_numpy_dtype

    def compute(value: np.ndarray) -> np.ndarray:
        return np.asarray(function(int(value)), numpy_type)

    result = tf.numpy_function(compute, [step], dtype)
    result.set_shape([])
    return result


def _largest(weights: Any, sparsity: Any) -> Any:
    """Choose what stays: all but the smallest weights, an exact number of them."""

    def compute(values: np.ndarray, share: np.ndarray) -> np.ndarray:
        stays = np.ones(values.size, bool)
        zeros = round(float(share) * values.size)
        if zeros:
            stays[np.argpartition(np.abs(values).ravel(), zeros - 1)[:zeros]] = False
        return stays.reshape(values.shape)

    # Many times faster than TensorFlow's sort, and in place of a full one.
    mask = tf.numpy_function(compute, [tf.cast(weights, tf.float32), sparsity], tf.bool)
    mask.set_shape(weights.shape)
    return mask


def _apply(mask: Mask) -> Any:
    weights = mask.weights.read_value()
    return tf1.assign(mask.weights, tf.where(mask.stays.read_value(), weights, tf.zeros_like(weights))).op


def share_of_zeros(tensors: Sequence[Any]) -> Any:
    """Return the share of elements, over all tensors, that are zero or False: a scalar, float32."""
    total = sum(t.shape.num_elements() for t in tensors)
    left = tf.add_n([tf.math.count_nonzero(t) for t in tensors])
    return 1.0 - tf.cast(left, tf.float32) / float(total)
