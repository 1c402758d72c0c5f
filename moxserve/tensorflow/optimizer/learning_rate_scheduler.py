"""Learning rates that change with the global step: what to give an optimizer as `learning_rate`.

All three return a scalar float32 tensor of the current graph, so call them inside `optimizer_fn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from moxserve.errors import UsageError
from moxserve.learning_rates import parse_stages
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["linear_cosine_decay", "piecewise_lr", "polynomial_decay"]


def piecewise_lr(lr_strategy: str, num_samples: int, global_batch_size: float, global_step: Any = None) -> Any:
    """Make a learning rate in stages of epochs: `5:0.1->0.4,10:0.4=>0.8,15:0.8,20:0.08`.

    A stage holds up to its epoch: here a line from 0.1 to 0.4, then an exponential to 0.8, 0.8 from epoch 10 to 15, and
    0.08 from there on. `moxserve.learning_rates` has the grammar.

    Args:
        lr_strategy: the stages.
        num_samples: rows of an epoch.
        global_batch_size: rows that all devices take while the global step goes on by 1: rows a device x devices x
            workers in synchronous runs, rows a device x devices in asynchronous ones, where each worker's steps count.
        global_step: the counter; None for the graph's own.

    Raises:
        UsageError: the strategy is wrong (the message points at the place), or a number is not positive.
    """
    stages = parse_stages(lr_strategy)
    for name, value in (("num_samples", num_samples), ("global_batch_size", global_batch_size)):
        if not value > 0:
            raise UsageError(f"piecewise_lr: {name}={value!r}, expected a number above 0")
    with tf1.name_scope("piecewise_lr"):
        epoch = _position(global_step) * (float(global_batch_size) / float(num_samples))
        table = [
            tf.constant([getattr(stage, field) for stage in stages], tf.float64)
            for field in ("start", "end", "first", "last")
        ]
        passed = tf.reduce_sum(tf.cast(epoch >= table[1], tf.int32))
        index = tf.minimum(passed, len(stages) - 1)
        start, end, first, last = (tf.gather(column, index) for column in table)
        share = tf.clip_by_value((epoch - start) / (end - start), 0.0, 1.0)
        line = first + (last - first) * share
        # Where it is not wanted the exponential may be 0 / 0; only its value is thrown away, there are no gradients.
        power = first * tf.pow(last / first, share)
        exponential = tf.gather(tf.constant([stage.exponential for stage in stages]), index)
        return tf.cast(tf.where(exponential, power, line), tf.float32, name="learning_rate")


def linear_cosine_decay(
    max_lr: float,
    min_lr: float,
    global_step: Any,
    max_step: int,
    warmup_ratio: float,
    decay_end_ratio: float,
) -> Any:
    """Make a learning rate that warms up in a line, then falls by linear cosine decay (Bello et al., "Neural Optimizer
    Search with Reinforcement Learning", 2017, arXiv:1709.07417).

    From step 0 to `warmup_ratio * max_step` it grows from `min_lr` to `max_lr`. With p going from 0 to 1 between there
    and `decay_end_ratio * max_step` it is min_lr + (max_lr - min_lr) * (1 - p) * (1 + cos(pi p)) / 2. After that it
    stays `min_lr`.

    Args:
        max_lr: the largest rate.
        min_lr: the smallest rate.
        global_step: the counter; None for the graph's own.
        max_step: steps of the whole training.
        warmup_ratio: share of the steps that warm up; 0 for none.
        decay_end_ratio: share of the steps after which the rate stays low; 1 for never.

    Raises:
        UsageError: a number is out of its range.
    """
    rates = (max_lr, min_lr, global_step, max_step, warmup_ratio, decay_end_ratio)
    return _warmed_up("linear_cosine_decay", rates, lambda p: (1.0 - p) * 0.5 * (1.0 + tf.cos(math.pi * p)))


def polynomial_decay(
    max_lr: float,
    min_lr: float,
    global_step: Any,
    max_step: int,
    warmup_ratio: float,
    decay_end_ratio: float,
    power: float = 2.0,
) -> Any:
    """Make a learning rate that warms up in a line, then falls by a power of what is left.

    As `linear_cosine_decay`, with min_lr + (max_lr - min_lr) * (1 - p) ** power.

    Args:
        max_lr: the largest rate.
        min_lr: the smallest rate.
        global_step: the counter; None for the graph's own.
        max_step: steps of the whole training.
        warmup_ratio: share of the steps that warm up; 0 for none.
        decay_end_ratio: share of the steps after which the rate stays low; 1 for never.
        power: 1 is a line; 2 is what trainings with large batches use (You et al., 2017, arXiv:1708.03888).

    Raises:
        UsageError: a number is out of its range.
    """
    if not power > 0:
        raise UsageError(f"polynomial_decay: power={power!r}, expected a number above 0")
    rates = (max_lr, min_lr, global_step, max_step, warmup_ratio, decay_end_ratio)
    return _warmed_up("polynomial_decay", rates, lambda p: tf.pow(1.0 - p, power))


def _warmed_up(name: str, arguments: tuple[Any, ...], fall: Callable[[Any], Any]) -> Any:
    """Make a rate that grows in a line, falls as `fall` says (1 at 0, 0 at 1), and stays low."""
    max_lr, min_lr, global_step, max_step, warmup_ratio, decay_end_ratio = arguments
    if not max_lr >= min_lr >= 0:
        raise UsageError(f"{name}: max_lr={max_lr!r}, min_lr={min_lr!r}: expected max_lr >= min_lr >= 0")
    if not max_step > 0:
        raise UsageError(f"{name}: max_step={max_step!r}, expected a number above 0")
    if not 0 <= warmup_ratio < decay_end_ratio <= 1:
        raise UsageError(
            f"{name}: warmup_ratio={warmup_ratio!r}, decay_end_ratio={decay_end_ratio!r}: expected shares of all "
            "steps, 0 <= warmup_ratio < decay_end_ratio <= 1"
        )
    with tf1.name_scope(name):
        position = _position(global_step) / float(max_step)
        up = position / warmup_ratio if warmup_ratio else tf.ones_like(position)
        down = fall(tf.clip_by_value((position - warmup_ratio) / (decay_end_ratio - warmup_ratio), 0.0, 1.0))
        share = tf.where(position < warmup_ratio, up, down)
        return tf.cast(min_lr + (max_lr - min_lr) * share, tf.float32, name="learning_rate")


def _position(global_step: Any) -> Any:
    """The step as float64, in which every whole number of steps is exact."""
    if global_step is None:
        global_step = tf1.train.get_or_create_global_step()
    return tf.cast(tf.convert_to_tensor(global_step), tf.float64)
