"""Batch normalisation (Ioffe, Szegedy 2015, arXiv:1502.03167) and renormalisation (Ioffe 2017, arXiv:1702.03275), under
slim's names of variables.

In training the statistics are those of the batch, and two entries of `UPDATE_OPS` move the averages that everything
else uses. Statistics, averages, gamma and beta are float32 even for images of half precision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers.images import Format

__all__ = ["Normalization", "StatisticNames", "batch_norm", "stored_variable"]

_COLLECTIONS = [tf1.GraphKeys.GLOBAL_VARIABLES, tf1.GraphKeys.MODEL_VARIABLES]
# The schedule of section 3 of the paper: (step, bound), in between on a line.
_R_MAX = ((5_000, 1.0), (40_000, 3.0))
_D_MAX = ((5_000, 0.0), (25_000, 5.0))


@dataclass(frozen=True)
class StatisticNames:
    """Names of the variables of averages."""

    mean: str = "moving_mean"
    variance: str = "moving_variance"


@dataclass(frozen=True)
class Normalization:
    """How layers are normalised; the parameters of slim's batch_norm.

    Attributes:
        decay: of the moving averages.
        epsilon: added to variances.
        center: whether there is an offset, beta.
        scale: whether there is a factor, gamma.
        fused: whether it is one operation. That also updates the average with the variance of a sample (division by
            n - 1) rather than of the batch (n), as slim does.
        renorm: whether training uses batch renormalisation. It is never fused. Its bounds grow with the global step
            as in the paper; without a global step in the graph they have their final values, 3 and 5.
        renorm_decay: of the averages that renormalisation corrects with.
        gamma_initializer: of gamma; None: ones.
        beta_initializer: of beta; None: zeros.
        names: of the variables of averages.
    """

    decay: float = 0.999
    epsilon: float = 0.001
    center: bool = True
    scale: bool = False
    fused: bool = False
    renorm: bool = False
    renorm_decay: float = 0.99
    gamma_initializer: Any = None
    beta_initializer: Any = None
    names: StatisticNames = field(default_factory=StatisticNames)

    def __post_init__(self) -> None:
        for name in ("decay", "renorm_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} of a batch norm is {getattr(self, name)!r}; expected a number from 0 to 1")
        if self.epsilon < 0:
            raise UsageError(f"epsilon of a batch norm is {self.epsilon!r}; expected none below 0")


@dataclass
class _Variables:
    gamma: Any
    beta: Any
    mean: Any
    variance: Any


def batch_norm(x: Any, norm: Normalization, training: bool, data_format: Format) -> Any:
    """Normalise the channels of a tensor, with variables in the current variable scope.

    Args:
        x: `[B, H, W, C]` or `[B, C]` (or any rank from 2), floats; of the format.
        norm: how.
        training: whether with the statistics of the batch.
        data_format: of x, where it has more than two axes.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        UsageError: the rank or the number of channels of x is unknown.
    """
    channels = data_format.channels(x)
    variables = _make_variables(x, norm, channels)
    if norm.renorm:
        return _renorm(x, norm, variables, training, data_format)
    if norm.fused and x.shape.rank in (2, 4):
        return _fused(x, norm, variables, training, data_format)
    mean, variance = variables.mean, variables.variance
    wide = _widened(x)
    if training:
        mean, variance = tf.nn.moments(wide, _batch_axes(x, data_format))
        _update(variables, mean, variance, norm.decay)
    return tf.cast(_normalized(wide, variables, (mean, variance), norm.epsilon, data_format), x.dtype)


def _parameter(name: str, channels: int, dtype: Any, initializer: Any, trainable: bool = False) -> Any:
    return tf1.get_variable(
        name, [channels], dtype, initializer=initializer, trainable=trainable, collections=list(_COLLECTIONS)
    )


def _make_variables(x: Any, norm: Normalization, channels: int) -> _Variables:
    dtype = tf.float64 if x.dtype == tf.float64 else tf.float32
    zeros, ones = tf1.zeros_initializer(), tf1.ones_initializer()
    gamma = beta = None
    if norm.scale:
        gamma = _parameter("gamma", channels, dtype, norm.gamma_initializer or ones, trainable=True)
    if norm.center:
        beta = _parameter("beta", channels, dtype, norm.beta_initializer or zeros, trainable=True)
    mean = _parameter(norm.names.mean, channels, dtype, zeros)
    variance = _parameter(norm.names.variance, channels, dtype, ones)
    return _Variables(gamma, beta, mean, variance)


def _widened(x: Any) -> Any:
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def _batch_axes(x: Any, data_format: Format) -> list[int]:
    channel = 1 if data_format.name == "NCHW" and x.shape.rank > 2 else x.shape.rank - 1
    return [axis for axis in range(x.shape.rank) if axis != channel]


def _normalized(x: Any, variables: _Variables, moments: tuple[Any, Any], epsilon: float, data_format: Format) -> Any:
    vectors = [moments[0], moments[1], variables.beta, variables.gamma]
    if data_format.name == "NCHW" and x.shape.rank > 2:
        shape = [1, -1] + [1] * (x.shape.rank - 2)
        vectors = [None if v is None else tf.reshape(v, shape) for v in vectors]
    return tf.nn.batch_normalization(x, *vectors, variance_epsilon=epsilon)


def _fused(x: Any, norm: Normalization, variables: _Variables, training: bool, data_format: Format) -> Any:
    shape = [-1, 1, 1, x.shape[-1]] if data_format.name == "NHWC" else [-1, x.shape[-1], 1, 1]
    images = tf.reshape(x, shape) if x.shape.rank == 2 else x
    ones, zeros = tf.ones_like(variables.variance), tf.zeros_like(variables.mean)
    y, mean, variance = tf1.nn.fused_batch_norm(
        images,
        ones if variables.gamma is None else variables.gamma,
        zeros if variables.beta is None else variables.beta,
        mean=None if training else variables.mean,
        variance=None if training else variables.variance,
        epsilon=norm.epsilon,
        data_format=data_format.name,
        is_training=training,
    )
    if training:
        _update(variables, mean, variance, norm.decay)
    return tf.reshape(y, tf.shape(x)) if x.shape.rank == 2 else y


def _update(variables: _Variables, mean: Any, variance: Any, decay: float) -> None:
    for variable, value in ((variables.mean, mean), (variables.variance, variance)):
        tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, _moved(variable, value, decay))


def _moved(variable: Any, value: Any, decay: float) -> Any:
    """Move an average towards a value; return the operation."""
    stored = stored_variable(variable)
    with tf1.name_scope("AssignMovingAvg"), tf1.colocate_with(stored.handle):
        change = (stored - tf.cast(value, stored.dtype)) * (1.0 - decay)
        return stored.assign_sub(change, read_value=False)


def stored_variable(variable: Any) -> Any:
    """Return the variable itself, where a custom getter gave a tensor of it in another dtype."""
    if hasattr(variable, "assign_sub"):
        return variable
    handles = {v.handle.op.name: v for v in tf1.global_variables()}
    op = variable.op
    while op.name not in handles:
        if not op.inputs:
            raise UsageError(
                f"a custom getter replaced an average of the batch norm {tf1.get_variable_scope().name!r} by "
                f"{variable.name!r}, which is no variable: it cannot be updated"
            )
        op = op.inputs[0].op
    return handles[op.name]


def _renorm(x: Any, norm: Normalization, variables: _Variables, training: bool, data_format: Format) -> Any:
    channels, dtype = data_format.channels(x), variables.mean.dtype.base_dtype
    zeros, ones = tf1.zeros_initializer(), tf1.ones_initializer()
    moving_stddev = _parameter("moving_stddev", channels, dtype, ones)
    renorm_mean = _parameter("renorm_mean", channels, dtype, zeros)
    renorm_stddev = _parameter("renorm_stddev", channels, dtype, ones)
    wide = _widened(x)
    if not training:
        moments = (variables.mean, variables.variance)
        return tf.cast(_normalized(wide, variables, moments, norm.epsilon, data_format), x.dtype)
    mean, variance = tf.nn.moments(wide, _batch_axes(x, data_format))
    stddev = tf.sqrt(variance + norm.epsilon)
    floor = tf.maximum(renorm_stddev, tf.cast(tf.sqrt(norm.epsilon), dtype))
    r_max, d_max = (_bound(points, dtype) for points in (_R_MAX, _D_MAX))
    r = tf.stop_gradient(tf.clip_by_value(stddev / floor, 1 / r_max, r_max), name="renorm_r")
    d = tf.stop_gradient(tf.clip_by_value((mean - renorm_mean) / floor, -d_max, d_max), name="renorm_d")
    with tf.control_dependencies([r, d]):  # corrections are of the averages before this step
        first = [_moved(renorm_mean, mean, norm.renorm_decay), _moved(variables.mean, mean, norm.decay)]
        second = [_moved(renorm_stddev, stddev, norm.renorm_decay), _moved(moving_stddev, stddev, norm.decay)]
        with tf.control_dependencies(second):
            deviation = tf.identity(stored_variable(moving_stddev).read_value())
            squared = tf.nn.relu(tf.square(deviation) - norm.epsilon)
            second.append(stored_variable(variables.variance).assign(squared, read_value=False))
    tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, tf.group(*first))
    tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, tf.group(*second))
    # (x - mean) / stddev * r + d, times gamma, plus beta: a batch norm of other gamma and beta.
    gamma = r if variables.gamma is None else r * variables.gamma
    beta = d if variables.gamma is None else d * variables.gamma
    beta = beta if variables.beta is None else beta + variables.beta
    corrected = _Variables(gamma, beta, variables.mean, variables.variance)
    return tf.cast(_normalized(wide, corrected, (mean, variance), norm.epsilon, data_format), x.dtype)


def _bound(points: tuple[tuple[int, float], tuple[int, float]], dtype: Any) -> Any:
    """Return a bound at the current global step: the first value until its step, the last from its step on."""
    (start, low), (end, high) = points
    step = tf1.train.get_global_step()
    if step is None:
        return tf.constant(high, dtype)
    done = (tf.cast(step, tf.float64) - start) / (end - start)
    return tf.cast(low + (high - low) * tf.clip_by_value(done, 0.0, 1.0), dtype)
