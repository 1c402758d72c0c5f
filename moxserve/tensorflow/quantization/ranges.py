"""Fake quantization: values rounded to the grid that int8 will give them, with gradients that pass through.

Kernels: symmetric, narrow range (-127 to 127), the range taken from the kernel itself at each step. Activations:
asymmetric, always with 0 on the grid, the range learned as a moving average of the batches' extremes.
See Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.variables import TowerContext
from moxserve.tensorflow.quantization.options import Quantization

__all__ = ["Range", "is_transposed", "quantize_constant", "quantize_kernel"]

_NARROWEST = 1e-4
_SMALLEST = 1e-6


def quantize_kernel(kernel: Any, operation: Any, options: Quantization, training: bool) -> Any:
    """Put a kernel on its grid.

    Args:
        kernel: `[height, width, in, out]`, of a depthwise convolution `[height, width, in, multiplier]`, of a
            transposed convolution `[height, width, out, in]`, of a product any two dimensions.
        operation: what uses it.
        options: whether each channel has its own range.
        training: whether gradients will be taken; else the grid can be read from the graph.

    Returns:
        The same shape, rounded.
    """
    # TensorFlow Lite's converter transposes the kernels of products, and then refuses a range for each channel.
    if not options.per_channel or operation.type == "MatMul":
        return _symmetric(kernel, tf.reduce_max(tf.abs(kernel)), training)
    # The operation of TensorFlow wants the channels last.
    if operation.type == "DepthwiseConv2dNative":
        height, width, channels, multiplier = kernel.shape.as_list()
        flat = tf.reshape(kernel, [height, width, channels * multiplier])
        return tf.reshape(_per_channel(flat, training), kernel.shape)
    if operation.type == "Conv2DBackpropInput":
        order = [0, 1, 3, 2]
        return tf.transpose(_per_channel(tf.transpose(kernel, order), training), order)
    return _per_channel(kernel, training)


def is_transposed(operation: Any) -> bool:
    """Whether an operation is a matrix product that takes its kernel as `[out, in]`."""
    return operation.type == "MatMul" and bool(operation.get_attr("transpose_b"))


def _per_channel(kernel: Any, training: bool) -> Any:
    largest = tf.reduce_max(tf.abs(kernel), axis=list(range(kernel.shape.rank - 1)))
    # A bias is stored in 32 bits in units of input scale times kernel scale: a channel of (almost) nothing but zeros,
    # pruned for example, must not make that unit so small that its bias does not fit.
    return _symmetric(kernel, tf.maximum(largest, tf.reduce_max(largest) * (1 / 256)), training)


def _symmetric(kernel: Any, largest: Any, training: bool) -> Any:
    """Round to 127 steps on either side of 0.

    Args:
        kernel: any shape.
        largest: magnitude of its largest element, or that of each of its last dimension.
        training: whether gradients will be taken.
    """
    largest = tf.stop_gradient(tf.maximum(largest, _SMALLEST))
    if training:
        # As the operations below, several times faster on large kernels; no element is beyond the range.
        scale = largest / 127.0
        return kernel + tf.stop_gradient(tf.round(kernel / scale) * scale - kernel)
    if largest.shape.rank == 0:
        return tf.quantization.fake_quant_with_min_max_vars(kernel, -largest, largest, narrow_range=True)
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(kernel, -largest, largest, narrow_range=True)


def quantize_constant(value: Any) -> Any:
    """Put an operand that is no activation, such as a learned factor, on a grid of its own extremes."""
    return tf.quantization.fake_quant_with_min_max_vars(value, *_extremes(value))


@dataclass
class Range:
    """One range, of one tensor or of several that must share it.

    Attributes:
        name: of its variables, below `quantization/`.
        fixed: lowest and highest value where they are prescribed; None to learn them.
        tensors: whose range it is.
    """

    name: str
    fixed: tuple[float, float] | None = None
    tensors: list[Any] = field(default_factory=list)

    def quantize(self, training: bool, decay: float) -> list[Any]:
        """Put the tensors on the grid.

        Args:
            training: whether the range is learned from these tensors, too; the updates go into UPDATE_OPS.
            decay: of the moving averages.

        Returns:
            One tensor for each.
        """
        with tf1.name_scope(f"quantization/{self.name}/"):
            if self.fixed is not None:
                return [_fake_quant(t, *self.fixed) for t in self.tensors]
            low, high, batches = self._variables()
            # Each variable is read once: a second read could see what an update has written meanwhile.
            low_value, high_value = low.read_value(), high.read_value()
            if not training:
                return [_fake_quant(t, low_value, high_value) for t in self.tensors]
            return self._learn((low, high, batches), (low_value, high_value, batches.read_value()), decay)

    def _variables(self) -> tuple[Any, Any, Any]:
        made, context = [], TowerContext.current()
        for name in ("min", "max", "batches"):
            variable = tf1.get_variable(
                f"quantization/{self.name}/{name}", [], tf.float32, tf1.zeros_initializer(), trainable=False
            )
            if context is not None:
                context.make_optional(variable)
            made.append(variable)
        return made[0], made[1], made[2]

    def _learn(self, variables: Sequence[Any], values: Sequence[Any], decay: float) -> list[Any]:
        low, high, count = values
        extremes = [_extremes(t) for t in self.tensors]
        # Weight of the new batch: a plain mean over the first ones, then the decay.
        weight = tf.maximum(1.0 - decay, 1.0 / (count + 1.0))
        new_low = low + weight * (tf.reduce_min([lowest for lowest, _ in extremes]) - low)
        new_high = high + weight * (tf.reduce_max([highest for _, highest in extremes]) - high)
        new_high = tf.maximum(new_high, new_low + _NARROWEST)
        for variable, value in zip(variables, (new_low, new_high, count + 1.0), strict=True):
            tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, tf1.assign(variable, value).op)
        # The range of the batches before this one, so that tensors that share a range may depend on each other.
        learned = count > 0
        return [
            _fake_quant(t, tf.where(learned, low, own_low), tf.where(learned, high, own_high))
            for t, (own_low, own_high) in zip(self.tensors, extremes, strict=True)
        ]


def _extremes(tensor: Any) -> tuple[Any, Any]:
    """Smallest and largest value, widened to hold 0."""
    value = tf.stop_gradient(tensor)
    low = tf.minimum(tf.reduce_min(value), 0.0)
    return low, tf.maximum(tf.maximum(tf.reduce_max(value), 0.0), low + _NARROWEST)


def _fake_quant(tensor: Any, low: Any, high: Any) -> Any:
    if isinstance(low, float):
        return tf.quantization.fake_quant_with_min_max_args(tensor, low, high)
    return tf.quantization.fake_quant_with_min_max_vars(tensor, low, high, name="FakeQuant")
