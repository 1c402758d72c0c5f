"""The network of `resnet_v1_20`: the model zoo's, with the names that slim gives to variables of residual networks."""

from __future__ import annotations

from typing import Any

__all__ = ["network"]


def network(
    images: Any, classes: int, training: bool, *, batch_norm_decay: float, weight_decay: float
) -> tuple[Any, Any]:
    """Build the graph.

    Args:
        images: `[batch, height, width, channels] float32`, fixed but for the batch.
        classes: how many.
        training: whether batch norms take the statistics of the batch and keep their moving averages.
        batch_norm_decay: decay of those averages.
        weight_decay: factor of the L2 loss on weights.

    Returns:
        Logits `[batch, classes] float32`, and the L2 loss.
    """
    import tensorflow as tf

    import moxserve.tensorflow as mox
    from moxserve.tensorflow.nets.base import Build
    from moxserve.tensorflow.nets.catalog import network as row_of
    from moxserve.tensorflow.nets.resnet_small import resnet_small

    build = Build(classes, training, weight_decay, fused=True)
    logits, _ = resnet_small(images, build, **row_of("resnet_v1_20").arguments, batch_norm_decay=batch_norm_decay)
    decays = mox.get_collection(tf.compat.v1.GraphKeys.REGULARIZATION_LOSSES)
    return logits, tf.add_n(decays) if decays else 0.0
