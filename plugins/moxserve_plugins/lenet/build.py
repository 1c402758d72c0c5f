"""The network of `lenet`: the model zoo's, which has slim's variables, so that checkpoints of all three fit."""

from __future__ import annotations

from typing import Any

__all__ = ["network"]


def network(images: Any, classes: int, training: bool, *, keep_prob: float, weight_decay: float) -> tuple[Any, Any]:
    """Build the graph.

    Args:
        images: `[batch, height, width, channels] float32`, fixed but for the batch.
        classes: how many.
        training: whether units are dropped.
        keep_prob: probability that a unit of fc3 stays.
        weight_decay: factor of the L2 loss on weights.

    Returns:
        Logits `[batch, classes] float32`, and the L2 loss.

    Raises:
        UsageError: images are too small.
    """
    import tensorflow as tf

    import moxserve.tensorflow as mox
    from moxserve.tensorflow.nets.base import Build
    from moxserve.tensorflow.nets.lenet import lenet

    logits, _ = lenet(images, Build(classes, training, weight_decay), dropout_keep_prob=keep_prob)
    decays = mox.get_collection(tf.compat.v1.GraphKeys.REGULARIZATION_LOSSES)
    return logits, tf.add_n(decays) if decays else 0.0
