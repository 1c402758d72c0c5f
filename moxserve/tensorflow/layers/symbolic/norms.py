"""Norms under tensorpack's names: variables `gamma`, `beta`, and `mean/EMA`, `variance/EMA` of batch norms."""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers.images import Format
from moxserve.tensorflow.layers.normalization import Normalization, Normalized, StatisticNames, normalize
from moxserve.tensorflow.layers.symbolic.convolutions import format_of
from moxserve.tensorflow.layers.symbolic.registry import VariableHolder, layer_register
from moxserve.tensorflow.layers.symbolic.tower import TowerContext, required_tower
from moxserve.tensorflow.layers.variables import model_variable

__all__ = ["BNReLU", "BatchNorm", "BatchRenorm", "InstanceNorm", "LayerNorm"]

_OLD_NAMES = {"use_bias": "center", "use_scale": "scale", "gamma_init": "gamma_initializer"}
_OLD_BATCH = {**_OLD_NAMES, "decay": "momentum"}
_EMA_UPDATES = ("default", "collection", "internal", "skip")
_EMA = StatisticNames("mean/EMA", "variance/EMA")


@layer_register(old_names={**_OLD_BATCH, "use_local_stat": "training"}, positional=0)
def BatchNorm(
    inputs: Any,
    axis: int | None = None,
    training: bool | None = None,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    center: bool = True,
    scale: bool = True,
    beta_initializer: Any = None,
    gamma_initializer: Any = None,
    virtual_batch_size: int | None = None,
    data_format: str = "channels_last",
    ema_update: str = "default",
    sync_statistics: None = None,
    internal_update: bool | None = None,
) -> Any:
    """Normalise channels with the statistics of the batch in training, with their moving averages otherwise.

    (Ioffe, Szegedy 2015, arXiv:1502.03167.) Variables `gamma`, `beta`, `mean/EMA`, `variance/EMA`; the averages are in
    MODEL_VARIABLES. Only the first tower that trains updates them.

    Args:
        inputs: `[B, H, W, C]` or `[B, C]` floats.
        axis: index of the channels, in place of `data_format`.
        training: whether with the statistics of the batch; None: as the tower. False in a tower that trains fixes the
            averages (warned about once); True in one that does not leaves them as they are.
        momentum: of the averages.
        epsilon: added to variances.
        center: whether there is a beta.
        scale: whether there is a gamma.
        beta_initializer: None: zeros.
        gamma_initializer: None: ones.
        virtual_batch_size: rows whose statistics are taken together in training; None: all.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.
        ema_update: `default` or `collection`: updates are put into UPDATE_OPS, which the executor runs with each step.
            `internal`: they run whenever the result is computed. `skip`: there are none.
        sync_statistics: None: statistics are those of each device's own rows.
        internal_update: old name of `ema_update="internal"` (True) and `"collection"` (False).

    Raises:
        UsageError: an argument is wrong, or nothing says whether this is a training.
    """
    scope = tf1.get_variable_scope().name
    if sync_statistics is not None:
        raise UsageError(
            f"BatchNorm {scope!r}: sync_statistics={sync_statistics!r}; statistics are those of each device's own rows"
        )
    if internal_update is not None:
        ema_update = "internal" if internal_update else "collection"
    if ema_update not in _EMA_UPDATES:
        raise UsageError(f"BatchNorm {scope!r}: ema_update={ema_update!r}; {did_you_mean(ema_update, _EMA_UPDATES)}")
    tower = required_tower("BatchNorm")
    norm = Normalization(
        decay=momentum,
        epsilon=epsilon,
        center=center,
        scale=scale,
        fused=True,
        gamma_initializer=gamma_initializer,
        beta_initializer=beta_initializer,
        virtual_batch_size=virtual_batch_size,
        names=_EMA,
    )
    local = tower.is_training if training is None else bool(training)
    if tower.is_main_training_tower and not local:
        tf1.logging.log_first_n(tf1.logging.WARN, "BatchNorm %s trains with fixed averages", 1, scope)
    made = normalize(inputs, norm, local, _format(inputs, axis, data_format, "BatchNorm"))
    return _updated(made, tower, ema_update)


@layer_register(old_names=_OLD_BATCH, positional=2)
def BatchRenorm(
    inputs: Any,
    rmax: Any,
    dmax: Any,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    center: bool = True,
    scale: bool = True,
    gamma_initializer: Any = None,
    data_format: str = "channels_last",
) -> Any:
    """Normalise channels with corrections towards the moving averages (Ioffe 2017, arXiv:1702.03275).

    Variables `gamma`, `beta`, `moving_mean`, `moving_variance`, `moving_stddev`, `renorm_mean`, `renorm_stddev`.

    Args:
        inputs: `[B, H, W, C]` or `[B, C]` floats.
        rmax: bound of the correction's factor, a number or a scalar tensor (1: a batch norm).
        dmax: bound of the correction's offset, likewise (0: a batch norm).
        momentum: of the averages.
        epsilon: added to variances.
        center: whether there is a beta.
        scale: whether there is a gamma.
        gamma_initializer: None: ones.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.
    """
    tower = required_tower("BatchRenorm")
    norm = Normalization(
        decay=momentum,
        epsilon=epsilon,
        center=center,
        scale=scale,
        renorm=True,
        r_max=rmax,
        d_max=dmax,
        gamma_initializer=gamma_initializer,
    )
    made = normalize(inputs, norm, tower.is_training, _format(inputs, None, data_format, "BatchRenorm"))
    return _updated(made, tower, "collection")


@layer_register(old_names=_OLD_NAMES, positional=0)
def LayerNorm(
    inputs: Any,
    epsilon: float = 1e-5,
    center: bool = True,
    scale: bool = True,
    gamma_initializer: Any = None,
    data_format: str = "channels_last",
) -> Any:
    """Normalise each row or image over all its values (Ba et al. 2016, arXiv:1607.06450).

    Variables `gamma [C]` and `beta [C]`.

    Args:
        inputs: `[B, H, W, C]` or `[B, C]` floats.
        epsilon: added to variances.
        center: whether there is a beta.
        scale: whether there is a gamma.
        gamma_initializer: None: ones.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.
    """
    given = _format(inputs, None, data_format, "LayerNorm")
    return _row_norm(inputs, list(range(1, inputs.shape.rank)), epsilon, (center, scale, gamma_initializer), given)


@layer_register(old_names=_OLD_NAMES, positional=0)
def InstanceNorm(
    inputs: Any,
    epsilon: float = 1e-5,
    center: bool = True,
    scale: bool = True,
    gamma_initializer: Any = None,
    data_format: str = "channels_last",
    use_affine: bool | None = None,
) -> Any:
    """Normalise each channel of each image (Ulyanov et al. 2016, arXiv:1607.08022).

    Variables `gamma [C]` and `beta [C]`.

    Args:
        inputs: `[B, H, W, C]` floats.
        epsilon: added to variances.
        center: whether there is a beta.
        scale: whether there is a gamma.
        gamma_initializer: None: ones.
        data_format: `channels_last` or `channels_first`, `NHWC` or `NCHW`.
        use_affine: both in one.
    """
    given = _format(inputs, None, data_format, "InstanceNorm")
    if inputs.shape.rank != 4:
        raise UsageError(f"InstanceNorm {tf1.get_variable_scope().name!r}: shape {inputs.shape}; expected images")
    if use_affine is not None:
        center = scale = use_affine
    return _row_norm(inputs, list(given.spatial_axes), epsilon, (center, scale, gamma_initializer), given)


@layer_register(use_scope=None)
def BNReLU(inputs: Any, name: str | None = None) -> Any:
    """Apply `BatchNorm('bn', ...)`, then ReLU; made to be the `activation` of other layers.

    Args:
        inputs: `[B, H, W, C]` or `[B, C]` floats.
        name: of the last operation.
    """
    return tf.nn.relu(BatchNorm("bn", inputs), name=name)


def _format(inputs: Any, axis: int | None, data_format: str, layer: str) -> Format:
    """Return where the channels are.

    Raises:
        UsageError: the input has neither two nor four axes, or its channels are elsewhere.
    """
    rank, scope = inputs.shape.rank, tf1.get_variable_scope().name
    if rank not in (2, 4):
        raise UsageError(f"{layer} {scope!r}: shape {inputs.shape}; expected [B, C] or images of four axes")
    if axis is None:
        return format_of(data_format) if rank == 4 else Format()
    place = axis % rank if -rank <= axis < rank else axis
    if place not in ((1, 3) if rank == 4 else (1,)):
        raise UsageError(f"{layer} {scope!r}: axis={axis} of shape {inputs.shape}; channels are at 1 or -1")
    return Format("NCHW" if rank == 4 and place == 1 else "NHWC")


def _updated(made: Normalized, tower: TowerContext, ema_update: str) -> Any:
    """See to the updates of averages; name the output."""
    updates = made.updates if tower.is_main_training_tower and ema_update != "skip" else []
    if ema_update == "internal":
        with tf.control_dependencies(updates):
            y = tf.identity(made.output, name="output")
    else:
        for update in updates:
            tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, update)
        y = tf.identity(made.output, name="output")
    variables = {"gamma": made.gamma, "beta": made.beta, "mean": made.mean, "variance": made.variance}
    variables |= {"moving_mean": made.mean, "moving_variance": made.variance}  # as tf.layers calls them
    y.variables = VariableHolder(**{name: v for name, v in variables.items() if v is not None})
    return y


def _row_norm(x: Any, axes: list[int], epsilon: float, affine: tuple[bool, bool, Any], given: Format) -> Any:
    """Normalise over axes of each row; statistics of half precision are float32."""
    center, scale, gamma_initializer = affine
    channels, narrow = given.channels(x), x.dtype in (tf.float16, tf.bfloat16)
    wide = tf.cast(x, tf.float32) if narrow else x
    mean, variance = tf.nn.moments(wide, axes, keepdims=True)
    channel_axis = given.channel_axis if x.shape.rank == 4 else 1
    shape = [channels if axis == channel_axis else 1 for axis in range(x.shape.rank)]
    variables = {}
    if center:
        variables["beta"] = model_variable("beta", [channels], wide.dtype, tf1.zeros_initializer())
    if scale:
        variables["gamma"] = model_variable(
            "gamma", [channels], wide.dtype, gamma_initializer or tf1.ones_initializer()
        )
    vectors = {name: tf.reshape(variable, shape) for name, variable in variables.items()}
    y = tf.nn.batch_normalization(wide, mean, variance, vectors.get("beta"), vectors.get("gamma"), epsilon)
    y = tf.identity(tf.cast(y, x.dtype), name="output")
    y.variables = VariableHolder(**variables)
    return y
