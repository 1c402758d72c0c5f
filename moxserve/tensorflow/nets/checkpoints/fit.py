"""A network held against a checkpoint, before anything is run."""

from __future__ import annotations

import os
from typing import Any

from moxserve.errors import CheckpointError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.located import find_checkpoint
from moxserve.tensorflow.executor.matching import CheckpointReport, RestoreRules
from moxserve.tensorflow.executor.matching import match as match_variables
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.executor.train_op import split_patterns
from moxserve.tensorflow.nets.catalog import network
from moxserve.tensorflow.nets.factory import get_model_fn

__all__ = ["match", "network_variables"]


def match(
    name: str,
    path: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    include: str = "",
    exclude: str = "",
    moving_averages: bool = False,
    **options: Any,
) -> CheckpointReport:
    """Tell what of a network a checkpoint would give.

    Args:
        name: of the network.
        path: a prefix, a single file such as TF-Slim's `resnet_v1_50.ckpt`, or a folder, whose newest is taken.
        num_classes: length of the logits; None for that of published checkpoints.
        include: comma-separated regular expressions: only variables whose names contain a match.
        exclude: the same: but none of these.
        moving_averages: take `NAME/ExponentialMovingAverage` for the variable NAME where the checkpoint has it.
        **options: of the network; see `get_model_fn`.

    Raises:
        UsageError: there is no such network or option, or a pattern is no regular expression.
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    rules = RestoreRules(
        split_patterns(include), split_patterns(exclude), partial=True, moving_averages=moving_averages
    )
    variables = network_variables(name, num_classes, **options)
    prefix = find_checkpoint(path)
    if prefix is None:
        raise CheckpointError(f"no checkpoint at {os.fspath(path)!r}", hint="give a prefix, a file or a folder")
    return match_variables(prefix, variables, rules).report


def network_variables(name: str, num_classes: int | None = None, **options: Any) -> list[Any]:
    """Return the variables of a network that evaluates images of its own size, in the order in which they are made.

    Args:
        name: of the network.
        num_classes: length of the logits; None for that of published checkpoints.
        **options: of the network.

    Raises:
        UsageError: there is no such network or option.
    """
    row = network(name)
    network_fn = get_model_fn(name, ModeKeys.EVAL, num_classes or row.num_classes, preprocess_fn=None, **options)
    with tf.Graph().as_default():
        network_fn(tf1.placeholder(tf.float32, [1, row.image_size, row.image_size, row.channels]))
        return list(tf1.global_variables())
