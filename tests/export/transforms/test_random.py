"""Transforms on networks put together at random, in random order: every answer stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moxserve.export.transforms import apply_transforms, output_check

ROWS = np.random.default_rng(0).standard_normal((2, 14, 15, 3)).astype(np.float32)
TRANSFORMS = [
    "remove_nodes(op=Identity)", "fold_constants", "fold_batch_norms", "flatten_atrous_conv", "fuse_convolutions",
    "merge_duplicate_nodes", "strip_unused_nodes", "sort_by_execution_order", "obfuscate_names",
]  # fmt: skip


class Layers:
    """One random layer after another."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def constant(self, *shape: int, low: float = -1.0) -> Any:
        import tensorflow as tf

        value = tf.constant(self._random.uniform(low, 1.5, shape).astype(np.float32))
        return tf.identity(value) if self._random.random() < 0.5 else value

    def convolution(self, x: Any) -> Any:
        import tensorflow as tf

        kernel = self.constant(self._random.choice([1, 3]), 3, x.shape[-1], self._random.integers(1, 6))
        return tf.nn.conv2d(x, kernel, int(self._random.choice([1, 2])), "SAME")

    def depthwise(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.nn.depthwise_conv2d(x, self.constant(3, 3, x.shape[-1], 2), [1, 1, 1, 1], "SAME")

    def padded(self, x: Any) -> Any:
        import tensorflow as tf

        mode = str(self._random.choice(["CONSTANT", "REFLECT"]))
        padded = tf.pad(x, [[0, 0], [1, 1], [1, 2], [0, 0]], mode)
        return tf.nn.conv2d(padded, self.constant(3, 3, x.shape[-1], 4), 2, "VALID")

    def dilated(self, x: Any) -> Any:
        import tensorflow as tf

        odd = [int(size) % 2 for size in x.shape[1:3]]
        pads = [[2, 2 + rest] for rest in odd]
        y = tf.raw_ops.SpaceToBatchND(input=x, block_shape=[2, 2], paddings=pads)
        y = tf.nn.conv2d(y, self.constant(3, 3, x.shape[-1], 3), 1, "VALID")
        return tf.raw_ops.BatchToSpaceND(input=y, block_shape=[2, 2], crops=[[0, rest] for rest in odd])

    def resized(self, x: Any) -> Any:
        import tensorflow as tf

        y = tf.raw_ops.ResizeBilinear(images=x, size=[int(x.shape[1]) + 3, int(x.shape[2]) + 1])
        return tf.nn.conv2d(y, self.constant(1, 1, x.shape[-1], max(1, x.shape[-1] - 1)), 1, "SAME")

    def norm(self, x: Any) -> Any:
        import tensorflow as tf

        channels = x.shape[-1]
        gamma, beta, mean = (self.constant(channels) for _ in range(3))
        variance = self.constant(channels, low=0.5)
        if self._random.random() < 0.5:
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=mean, variance=variance, is_training=False
        ).y

    def arithmetic(self, x: Any) -> Any:
        import tensorflow as tf

        channels = x.shape[-1]
        forms: list[Callable[[], Any]] = [
            lambda: tf.nn.bias_add(x, self.constant(channels)),
            lambda: x * self.constant(1, 1, channels),
            lambda: self.constant(channels) - x,
            lambda: x / self.constant(low=0.5),
            lambda: x + self.constant(1, x.shape[2], 1),
            lambda: tf.nn.relu(x),
        ]
        return forms[self._random.integers(len(forms))]()

    def joined(self, x: Any, other: Any) -> Any:
        import tensorflow as tf

        return x + other if x.shape.as_list() == other.shape.as_list() else tf.concat([x, x * 2.0], 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_random_networks(seed: int) -> None:
    import tensorflow as tf

    random = np.random.default_rng(seed)
    layers = Layers(random)
    kinds = [layers.convolution, layers.depthwise, layers.padded, layers.dilated, layers.resized]
    kinds += [layers.norm, layers.arithmetic, layers.arithmetic, layers.norm]
    with tf.Graph().as_default() as graph:
        made = [tf.compat.v1.placeholder(tf.float32, [None, 14, 15, 3], "x")]
        for _ in range(random.integers(4, 14)):
            y = made[-1] if random.random() < 0.8 else made[random.integers(len(made))]
            made.append(kinds[random.integers(len(kinds))](y))
            if random.random() < 0.2:
                made.append(layers.joined(made[-1], made[random.integers(len(made))]))
        outputs = [tf.identity(made[-1], "y").op.name, made[random.integers(1, len(made))].op.name]
        graph_def = graph.as_graph_def()
    before = graph_def.SerializeToString(deterministic=True)
    check = output_check(graph_def, {"x:0": ROWS}, [f"{name}:0" for name in dict.fromkeys(outputs)])
    order = " ".join(random.permutation(TRANSFORMS))
    result = apply_transforms(graph_def, ["x"], list(dict.fromkeys(outputs)), order, check)
    assert [step.outcome for step in result.steps if step.outcome not in ("applied", "nothing to do")] == []
    assert check(result.graph_def) < 1e-5
    assert graph_def.SerializeToString(deterministic=True) == before
