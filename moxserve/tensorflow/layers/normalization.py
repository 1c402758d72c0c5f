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
from moxserve.tensorflow.layers.variables import model_variable

__all__ = ["Normalization", "Normalized", "StatisticNames", "batch_norm", "normalize", "stored_variable"]

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
        r_max: bound of its factor, a number or a scalar tensor; None: the paper's schedule.
        d_max: bound of its offset, likewise.
        virtual_batch_size: rows whose statistics are taken together in training (ghost batch norm, Hoffer et al. 2017,
            arXiv:1705.08741); None: all. It must divide the batch. It is never fused.
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
    r_max: Any = None
    d_max: Any = None
    virtual_batch_size: int | None = None
    gamma_initializer: Any = None
    beta_initializer: Any = None
    names: StatisticNames = field(default_factory=StatisticNames)

    def __post_init__(self) -> None:
        for name in ("decay", "renorm_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} of a batch norm is {getattr(self, name)!r}; expected a number from 0 to 1")
        if self.epsilon < 0:
            raise UsageError(f"epsilon of a batch norm is {self.epsilon!r}; expected none below 0")
        if self.virtual_batch_size is not None and (self.renorm or self.virtual_batch_size < 1):
            raise UsageError(
                f"virtual_batch_size of a batch norm is {self.virtual_batch_size!r}; expected 1 or more, without renorm"
            )


@dataclass
class Normalized:
    """What a batch norm made.

    Attributes:
        output: the result, of the shape and dtype of what was normalised.
        gamma: variable of factors, or None.
        beta: variable of offsets, or None.
        mean: variable of the moving mean.
        variance: variable of the moving variance.
        updates: in training, the two operations that move the averages.
    """

    output: Any
    gamma: Any
    beta: Any
    mean: Any
    variance: Any
    updates: list[Any] = field(default_factory=list)

    def update(self, moments: tuple[Any, Any], decay: float) -> None:
        """Make the operations that move the averages towards the mean and variance of a batch."""
        mean, variance = moments
        self.updates = [_moved(self.mean, mean, decay), _moved(self.variance, variance, decay)]


def batch_norm(x: Any, norm: Normalization, training: bool, data_format: Format) -> Any:
    """Normalise the channels of a tensor, with variables in the current variable scope and updates in UPDATE_OPS.

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
    made = normalize(x, norm, training, data_format)
    for update in made.updates:
        tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, update)
    return made.output


def normalize(x: Any, norm: Normalization, training: bool, data_format: Format) -> Normalized:
    """Do what `batch_norm` does, and leave it to the caller when the averages are updated."""
    made = _make_variables(x, norm, data_format.channels(x))
    if norm.renorm:
        _renorm(made, norm, training, data_format)
    elif norm.virtual_batch_size is not None and training:
        _ghost(made, norm, data_format)
    elif norm.fused and x.shape.rank in (2, 4):
        _fused(made, norm, training, data_format)
    else:
        wide, moments = _widened(x), (made.mean, made.variance)
        if training:
            moments = tf.nn.moments(wide, _batch_axes(x, data_format))
            made.update(moments, norm.decay)
        made.output = tf.cast(_spelled_out(wide, made, moments, norm.epsilon, data_format), x.dtype)
    return made


def _average(name: str, channels: int, dtype: Any, initializer: Any) -> Any:
    with tf1.variable_scope(tf1.get_variable_scope(), auxiliary_name_scope=False) as scope:
        scope.set_partitioner(None)  # an average is assigned to as one
        return model_variable(name, [channels], dtype, initializer, trainable=False)


def _make_variables(x: Any, norm: Normalization, channels: int) -> Normalized:
    dtype = tf.float64 if x.dtype == tf.float64 else tf.float32
    zeros, ones = tf1.zeros_initializer(), tf1.ones_initializer()
    gamma = beta = None
    if norm.scale:
        gamma = model_variable("gamma", [channels], dtype, norm.gamma_initializer or ones)
    if norm.center:
        beta = model_variable("beta", [channels], dtype, norm.beta_initializer or zeros)
    mean = _average(norm.names.mean, channels, dtype, zeros)
    variance = _average(norm.names.variance, channels, dtype, ones)
    return Normalized(x, gamma, beta, mean, variance)


def _widened(x: Any) -> Any:
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def _batch_axes(x: Any, data_format: Format) -> list[int]:
    channel = 1 if data_format.name == "NCHW" and x.shape.rank > 2 else x.shape.rank - 1
    return [axis for axis in range(x.shape.rank) if axis != channel]


def _spelled_out(x: Any, made: Normalized, moments: tuple[Any, Any], epsilon: float, data_format: Format) -> Any:
    vectors = [*moments, made.beta, made.gamma]
    if data_format.name == "NCHW" and x.shape.rank > 2:
        shape = [1, -1] + [1] * (x.shape.rank - 2)
        vectors = [None if v is None else tf.reshape(v, shape) for v in vectors]
    return tf.nn.batch_normalization(x, *vectors, variance_epsilon=epsilon)


def _fused(made: Normalized, norm: Normalization, training: bool, data_format: Format) -> None:
    x = made.output
    shape = [-1, 1, 1, x.shape[-1]] if data_format.name == "NHWC" else [-1, x.shape[-1], 1, 1]
    images = tf.reshape(x, shape) if x.shape.rank == 2 else x
    y, mean, variance = tf1.nn.fused_batch_norm(
        images,
        tf.ones_like(made.variance) if made.gamma is None else made.gamma,
        tf.zeros_like(made.mean) if made.beta is None else made.beta,
        mean=None if training else made.mean,
        variance=None if training else made.variance,
        epsilon=norm.epsilon,
        data_format=data_format.name,
        is_training=training,
    )
    if training:
        made.update((mean, variance), norm.decay)
    made.output = tf.reshape(y, tf.shape(x)) if x.shape.rank == 2 else y


def _ghost(made: Normalized, norm: Normalization, data_format: Format) -> None:
    x, wide = made.output, _widened(made.output)
    parts = tf.reshape(wide, tf.concat([[-1, norm.virtual_batch_size], tf.shape(x)[1:]], 0))
    parts.set_shape([None, norm.virtual_batch_size, *x.shape[1:]])
    axes = [axis + 1 for axis in _batch_axes(x, data_format)]
    mean, variance = tf.nn.moments(parts, axes, keepdims=True)
    shape = [-1 if axis not in (0, *axes) else 1 for axis in range(parts.shape.rank)]
    gamma, beta = (None if v is None else tf.reshape(v, shape) for v in (made.gamma, made.beta))
    y = tf.nn.batch_normalization(parts, mean, variance, beta, gamma, norm.epsilon)
    # One step for all parts, where one for each in turn would be exact: evaluation alone uses the averages.
    over_parts = [tf.reshape(tf.reduce_mean(v, 0), [-1]) for v in (mean, variance)]
    made.update((over_parts[0], over_parts[1]), norm.decay)
    made.output = tf.cast(tf.reshape(y, tf.shape(x)), x.dtype)
    made.output.set_shape(x.shape)


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


def _renorm(made: Normalized, norm: Normalization, training: bool, data_format: Format) -> None:
    x, dtype = made.output, made.mean.dtype.base_dtype
    channels = data_format.channels(x)
    zeros, ones = tf1.zeros_initializer(), tf1.ones_initializer()
    moving_stddev = _average("moving_stddev", channels, dtype, ones)
    renorm_mean = _average("renorm_mean", channels, dtype, zeros)
    renorm_stddev = _average("renorm_stddev", channels, dtype, ones)
    wide = _widened(x)
    if not training:
        y = _spelled_out(wide, made, (made.mean, made.variance), norm.epsilon, data_format)
        made.output = tf.cast(y, x.dtype)
        return
    mean, variance = tf.nn.moments(wide, _batch_axes(x, data_format))
    stddev = tf.sqrt(variance + norm.epsilon)
    floor = tf.maximum(renorm_stddev, tf.constant(norm.epsilon**0.5, dtype))
    r_max, d_max = _bound(norm.r_max, _R_MAX, dtype), _bound(norm.d_max, _D_MAX, dtype)
    r = tf.stop_gradient(tf.clip_by_value(stddev / floor, 1 / r_max, r_max), name="renorm_r")
    d = tf.stop_gradient(tf.clip_by_value((mean - renorm_mean) / floor, -d_max, d_max), name="renorm_d")
    with tf.control_dependencies([r, d]):  # corrections are of the averages before this step
        first = [_moved(renorm_mean, mean, norm.renorm_decay), _moved(made.mean, mean, norm.decay)]
        second = [_moved(renorm_stddev, stddev, norm.renorm_decay), _moved(moving_stddev, stddev, norm.decay)]
        with tf.control_dependencies(second):
            squared = tf.square(stored_variable(moving_stddev).read_value())
            average = tf.nn.relu(squared - norm.epsilon)
            second.append(stored_variable(made.variance).assign(average, read_value=False))
    made.updates = [tf.group(*first), tf.group(*second)]
    # (x - mean) / stddev * r + d, times gamma, plus beta: a batch norm of other gamma and beta.
    gamma = r if made.gamma is None else r * made.gamma
    offset = d if made.gamma is None else d * made.gamma
    beta = offset if made.beta is None else offset + made.beta
    corrected = Normalized(wide, gamma, beta, made.mean, made.variance)
    made.output = tf.cast(_spelled_out(wide, corrected, (mean, variance), norm.epsilon, data_format), x.dtype)


def _bound(given: Any, points: tuple[tuple[int, float], tuple[int, float]], dtype: Any) -> Any:
    """Return a bound: the one given, or what the schedule says of the global step, constant before and after it."""
    if given is not None:
        return tf.cast(given, dtype)
    (start, low), (end, high) = points
    step = tf1.train.get_global_step()
    if step is None:
        return tf.constant(high, dtype)
    done = (tf.cast(step, tf.float64) - start) / (end - start)
    return tf.cast(low + (high - low) * tf.clip_by_value(done, 0.0, 1.0), dtype)
