"""`DyMomentumWOptimizer`: dynamic momentum with weight decay apart from the gradient (Loshchilov and Hutter, "Decoupled
Weight Decay Regularization", 2019, arXiv:1711.05101).
"""

from __future__ import annotations

from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.optimizer.dynamic_momentum import _LARS_EPSILON, _LARS_RATIO, DyMomentumOptimizer
from moxserve.tensorflow.optimizer.lars import scaled_by_layer

__all__ = ["DyMomentumWOptimizer"]


class DyMomentumWOptimizer(DyMomentumOptimizer):
    """`DyMomentumOptimizer` that also takes `learning_rate * weight_decay * w` off the weights w at each step.

    The decay is no part of the gradient, so it does not go into the momentum, and `use_lars` does not see it. Leave
    regularization losses out of the loss. Variables of one dimension or none (biases, batch norms) do not decay; those
    with sparse gradients decay in the rows that are updated.

    Args:
        *args: as in `DyMomentumOptimizer`.
        **kwargs: as in `DyMomentumOptimizer`; `weight_decay` is the decay a step, times the learning rate.

    Raises:
        UsageError: a number is out of its range.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"name": "DyMomentumW", **kwargs})

    def _scaled(self, gradient: Any, variable: Any) -> Any:
        return scaled_by_layer(gradient, variable, _LARS_RATIO, 0.0, _LARS_EPSILON)

    def _resource_apply_dense(self, grad: Any, var: Any) -> Any:
        with tf1.control_dependencies(self._decay(var, None, grad)):
            return super()._resource_apply_dense(grad, var)

    def _resource_apply_sparse(self, grad: Any, var: Any, indices: Any) -> Any:
        with tf1.control_dependencies(self._decay(var, indices, grad)):
            return super()._resource_apply_sparse(grad, var, indices)

    def _decay(self, variable: Any, indices: Any, after: Any) -> list[Any]:
        """Make the operations that let a variable decay, or the rows of it that are updated, when its gradient is
        known: that is a function of the weights before.
        """
        if not self._weight_decay or self._skip(variable):
            return []
        factor = tf.cast(self._learning_rate_tensor * self._weight_decay, variable.dtype.base_dtype)
        with tf1.control_dependencies([after]):
            if indices is None:
                return [variable.assign_sub(factor * variable.read_value(), read_value=False)]
            lost = tf.IndexedSlices(factor * variable.sparse_read(indices), indices)
            return [tf.group(variable.scatter_sub(lost))]
