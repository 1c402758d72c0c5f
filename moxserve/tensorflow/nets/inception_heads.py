"""What stands on top of the Inception networks: classifiers, and the auxiliary ones that help training.

Versions 1 to 3 classify by a 1x1 convolution of means over windows; version 4 and Inception-ResNet by a dense layer on
the means over all. Auxiliary classifiers (Szegedy et al. 2014, section 5; 2015, section 4) see an earlier stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import Layers
from moxserve.tensorflow.nets.inception_parts import Tower

__all__ = [
    "Finish",
    "HeadOptions",
    "aux_dense",
    "classify",
    "classify_dense",
    "fitted",
    "require_size",
    "squeezed",
]

# Shortest sides of images: the last layer without padding sees 3x3, the pool of an auxiliary classifier 5x5.
_LEAST, _LEAST_AUX = 75, 107


def require_size(layers: Layers, images: Any, network: str, aux: bool) -> None:
    """Refuse images of which the layers without padding of versions 3, 4 and Inception-ResNet would leave nothing.

    Args:
        layers: of the network.
        images: what it is given; a side that is not static is taken to be long enough.
        network: its name.
        aux: whether there is an auxiliary classifier, which needs 5x5 features of a stage in the middle.

    Raises:
        UsageError: a side is too short.
    """
    least = _LEAST_AUX if aux else _LEAST
    height, width = layers.spatial(images)
    if min(height or least, width or least) >= least:
        return
    what = f"{network} with its auxiliary classifier" if aux else network
    hint = "resize them, or take inception_v1 or inception_v2, which pad"
    raise UsageError(
        f"{what} needs images of at least {least}x{least} pixels, got {height}x{width}",
        hint=f"create_aux_logits=False takes {_LEAST}x{_LEAST}; or {hint}" if aux else hint,
    )


def fitted(layers: Layers, x: Any, side: int) -> tuple[int, int]:
    """Return a window of `side` x `side`, smaller where the features are smaller."""
    height, width = layers.spatial(x)
    return min(side, height or side), min(side, width or side)


def _static_size(layers: Layers, x: Any) -> tuple[int, int]:
    """Return height and width of features that a kernel covers whole.

    Raises:
        UsageError: they are not static.
    """
    height, width = layers.spatial(x)
    if height is None or width is None:
        raise UsageError(
            f"the auxiliary classifier has weights for each place of its features, whose shape is {x.shape}",
            hint="give images a static height and width, or create_aux_logits=False",
        )
    return height, width


def squeezed(layers: Layers, logits: Any) -> Any:
    """Return logits of images of 1x1 as `[batch, classes]`; those of larger ones are averaged."""
    if layers.spatial(logits) == (1, 1):
        return tf.squeeze(logits, layers.spatial_axes, name="SpatialSqueeze")
    return layers.global_pool(logits, "SpatialMean", keep=False)


@dataclass(frozen=True)
class Finish:
    """How the classifiers of versions 1 to 3 differ.

    Attributes:
        window: side of the windows of the mean; smaller features have a smaller one.
        stride: from one window to the next, in larger features.
        end_point: name of the means.
        digit: in slim's names of the layers.
        pre_logits: whether features after the dropout are an end point.
    """

    window: int
    stride: int
    end_point: str
    digit: int
    pre_logits: bool = False


@dataclass(frozen=True)
class HeadOptions:
    """What users choose of the classifiers of versions 1 to 3.

    Attributes:
        dropout_keep_prob: share of the features that dropout keeps in training.
        prediction_fn: from logits to predictions; None for the softmax over classes.
        spatial_squeeze: whether logits are `[batch, classes]`; otherwise images with a pixel for each window.
        global_pool: whether the mean is over all places instead of over windows.
    """

    dropout_keep_prob: float
    prediction_fn: Callable[[Any], Any] | None
    spatial_squeeze: bool
    global_pool: bool


def classify(tower: Tower, x: Any, num_classes: int | None, finish: Finish, options: HeadOptions) -> Any:
    """Build a classifier in the scope `Logits`, record its end points and return its logits.

    Args:
        tower: what the features come from.
        x: the features of the last stage.
        num_classes: length of the logits; None returns the means instead.
        finish: what the version does.
        options: what the user chose.
    """
    layers, ends = tower.layers, tower.end_points
    with layers.scope("Logits"):
        x = _means(tower, x, finish, options.global_pool)
        if not num_classes:
            return x
        x = layers.dropout(x, options.dropout_keep_prob, f"Dropout_{finish.digit}b")
        if finish.pre_logits:
            ends["PreLogits"] = x
        logits = layers.conv2d(x, num_classes, 1, f"Conv2d_{finish.digit}c_1x1", activation=None, norm=None)
        if options.spatial_squeeze:
            logits = squeezed(layers, logits)
    ends["Logits"] = logits
    with tf1.name_scope("Predictions"):
        ends["Predictions"] = (options.prediction_fn or _softmax(layers))(logits)
    return logits


def _means(tower: Tower, x: Any, finish: Finish, everywhere: bool) -> Any:
    layers, ends = tower.layers, tower.end_points
    if everywhere:
        ends["global_pool"] = layers.global_pool(x)
        return ends["global_pool"]
    height, width = fitted(layers, x, finish.window)
    name = f"AvgPool_{finish.digit}a_{height}x{width}"
    ends[finish.end_point] = layers.avg_pool(x, (height, width), name, stride=finish.stride)
    return ends[finish.end_point]


def _softmax(layers: Layers) -> Callable[[Any], Any]:
    def softmax(logits: Any) -> Any:
        return tf.nn.softmax(logits, axis=layers.channel_axis if logits.shape.rank == 4 else -1)

    return softmax


def aux_dense(tower: Tower, x: Any, num_classes: int, names: tuple[str, str, str, str]) -> None:
    """Build an auxiliary classifier whose second convolution covers all places, and record its logits.

    Args:
        tower: what the features come from.
        x: the features of a stage.
        num_classes: length of the logits.
        names: of its pool, its two convolutions and its dense layer.

    Raises:
        UsageError: the shape of the features is not static.
    """
    layers, (pool, reduce, cover, dense) = tower.layers, names
    with layers.scope("AuxLogits"):
        x = layers.avg_pool(x, 5, pool, stride=3)
        x = layers.conv2d(x, 128, 1, reduce)
        x = layers.conv2d(x, 768, _static_size(layers, x), cover, padding="VALID")
        tower.end_points["AuxLogits"] = _dense(layers, layers.flatten(x), num_classes, dense)


def classify_dense(tower: Tower, x: Any, num_classes: int | None, keep_prob: float, dropout: str) -> Any:
    """Build the classifier of version 4 and of Inception-ResNet in the scope `Logits`, and return its logits.

    Args:
        tower: what the features come from.
        x: the features of the last stage.
        num_classes: length of the logits; None returns the means over all places instead.
        keep_prob: share of the means that dropout keeps in training.
        dropout: name of the dropout.
    """
    layers, ends = tower.layers, tower.end_points
    with layers.scope("Logits"):
        x = ends["global_pool"] = layers.global_pool(x)
        if not num_classes:
            return x
        x = layers.flatten(layers.dropout(x, keep_prob, dropout), "PreLogitsFlatten")
        ends["PreLogitsFlatten"] = x
        ends["Logits"] = _dense(layers, x, num_classes, "Logits")
        ends["Predictions"] = layers.softmax(ends["Logits"], "Predictions")
    return ends["Logits"]


def _dense(layers: Layers, x: Any, num_classes: int, name: str) -> Any:
    # Weights of dense layers start from Glorot's distribution, whatever those of convolutions start from.
    return layers.dense(x, num_classes, name, activation=None, norm=None, initializer=None)
