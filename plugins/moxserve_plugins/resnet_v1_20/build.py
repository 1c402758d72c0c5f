"""The network of `resnet_v1_20`: He et al., Deep Residual Learning for Image Recognition, section 4.2, with n = 3.

One 3x3 convolution of 16 filters, then three blocks of three units of two 3x3 convolutions with 16, 32 and 64 filters,
the first unit of the second and third block with stride 2 and a 1x1 convolution as its shortcut; global mean; logits.
Each convolution has a batch norm and no bias. Variables are named as slim names those of its residual networks:

resnet_v1_20/conv1/weights                                      [3, 3, channels, 16]
resnet_v1_20/block1/unit_1/lite_bottleneck_v1/conv1/weights     [3, 3, 16, 16]       (and conv2; shortcut)
    .../BatchNorm/gamma, beta, moving_mean, moving_variance     [16]
resnet_v1_20/logits/weights, biases                             [1, 1, 64, classes], [classes]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["network"]

_FILTERS = (16, 32, 64)
_UNITS = 3
_EPSILON = 1e-5


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

    layers = _Layers(training, batch_norm_decay)
    scope = tf.compat.v1.variable_scope
    with scope("resnet_v1_20"):
        net = tf.nn.relu(layers.convolution(images, 16, 3, 1, "conv1"))
        for block, filters in enumerate(_FILTERS, 1):
            for unit in range(1, _UNITS + 1):
                with scope(f"block{block}/unit_{unit}/lite_bottleneck_v1"):
                    net = _unit(layers, net, filters, 2 if block > 1 and unit == 1 else 1)
        net = tf.reduce_mean(net, [1, 2], keepdims=True, name="pool5")
        logits = tf.squeeze(layers.logits(net, classes), [1, 2])
    penalty = weight_decay * tf.add_n([tf.nn.l2_loss(w) for w in layers.weights]) if weight_decay else 0.0
    return logits, penalty


def _unit(layers: _Layers, net: Any, filters: int, stride: int) -> Any:
    """Two convolutions beside a shortcut, which is a convolution only where the shape changes."""
    import tensorflow as tf

    shortcut = net
    if stride != 1 or int(net.shape[-1]) != filters:
        shortcut = layers.convolution(net, filters, 1, stride, "shortcut")
    residual = tf.nn.relu(layers.convolution(net, filters, 3, stride, "conv1"))
    residual = layers.convolution(residual, filters, 3, 1, "conv2")
    return tf.nn.relu(shortcut + residual)


@dataclass
class _Layers:
    """Makes layers, and remembers their weights.

    Attributes:
        training: whether batch norms train.
        decay: of their moving averages.
        weights: kernels so far.
    """

    training: bool
    decay: float
    weights: list[Any] = field(default_factory=list)

    def convolution(self, net: Any, filters: int, size: int, stride: int, name: str) -> Any:
        """Convolve, then normalise."""
        import tensorflow as tf

        with tf.compat.v1.variable_scope(name):
            kernel = self._kernel([size, size, int(net.shape[-1]), filters])
            return self._batch_norm(tf.nn.conv2d(net, kernel, stride, "SAME"))

    def logits(self, net: Any, classes: int) -> Any:
        """Convolve `[batch, 1, 1, channels]` to `[batch, 1, 1, classes]`, with a bias."""
        import tensorflow as tf

        with tf.compat.v1.variable_scope("logits"):
            kernel = self._kernel([1, 1, int(net.shape[-1]), classes])
            bias = _variable("biases", [classes], tf.compat.v1.zeros_initializer())
            return tf.nn.bias_add(tf.nn.conv2d(net, kernel, 1, "SAME"), bias)

    def _kernel(self, shape: list[int]) -> Any:
        import tensorflow as tf

        kernel = _variable("weights", shape, tf.compat.v1.variance_scaling_initializer(2.0))
        self.weights.append(kernel)
        return kernel

    def _batch_norm(self, net: Any) -> Any:
        import tensorflow as tf

        v1 = tf.compat.v1
        shape = [int(net.shape[-1])]
        with v1.variable_scope("BatchNorm"):
            gamma = _variable("gamma", shape, v1.ones_initializer())
            beta = _variable("beta", shape, v1.zeros_initializer())
            mean = _variable("moving_mean", shape, v1.zeros_initializer(), trainable=False)
            variance = _variable("moving_variance", shape, v1.ones_initializer(), trainable=False)
            if not self.training:
                return v1.nn.fused_batch_norm(net, gamma, beta, mean, variance, _EPSILON, is_training=False)[0]
            net, batch_mean, batch_variance = v1.nn.fused_batch_norm(net, gamma, beta, epsilon=_EPSILON)
            for average, value in ((mean, batch_mean), (variance, batch_variance)):
                update = v1.assign_sub(average, (average - value) * (1 - self.decay))
                v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
            return net


def _variable(name: str, shape: list[int], initializer: Any, trainable: bool = True) -> Any:
    import tensorflow as tf

    v1 = tf.compat.v1
    groups = [v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.MODEL_VARIABLES]
    return v1.get_variable(name, shape, tf.float32, initializer, trainable=trainable, collections=groups)
