"""The model_fn of `network`: images through `mox.get_model_fn`, then what every shipped classifier has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moxserve.errors import UsageError
from moxserve.pipeline.slots import InputBundle, ParameterError
from moxserve_plugins.classifier import classifier_spec, two_inputs

if TYPE_CHECKING:
    from moxserve_plugins.network.config import Network

__all__ = ["model_fn"]


def model_fn(config: Network, data: InputBundle) -> Callable[..., Any]:
    """Return the model_fn.

    Raises:
        ParameterError: a parameter does not go with the network or with the input.
    """
    if config.labels_offset and data.labels is not None:
        if config.labels_offset > len(data.labels) - 2:
            raise ParameterError("model.labels_offset", f"leaves none of {len(data.labels)} labels to choose from")
        data = replace(data, labels=data.labels[config.labels_offset :])
    classes, labels = config.classes(data), data.labels
    _check(config, classes)

    def build(inputs: Sequence[Any], mode: str, **_: Any) -> Any:
        import tensorflow as tf

        images, targets = two_inputs(inputs)
        targets = tf.cast(targets, tf.int64) - config.labels_offset
        logits, end_points = _network_fn(config, mode, classes, _size(images))(images)
        return classifier_spec(images, targets, logits, _penalty(config, targets, mode, end_points), labels)

    return build


def _check(config: Network, classes: int) -> None:
    """Try the parameters before any graph is built."""
    try:
        _network_fn(config, "EVAL", classes, None)
    except UsageError as error:
        raise ParameterError("model", error.message) from error


def _network_fn(config: Network, mode: str, classes: int, size: tuple[int, int] | None) -> Any:
    import moxserve.tensorflow as mox

    options = dict(config.options)
    if config.batch_norm_decay is not None:
        options["batch_norm_decay"] = config.batch_norm_decay
    return mox.get_model_fn(
        config.name,
        mode,
        classes,
        weight_decay=config.weight_decay,
        data_format=config.data_format,
        batch_norm_fused=config.batch_norm_fused,
        batch_renorm=config.batch_renorm,
        image_height=size[0] if size else None,
        image_width=size[1] if size else None,
        **options,
    )


def _size(images: Any) -> tuple[int, int] | None:
    """Return the size that the input gives its images, which is the exported model's, too."""
    if images.shape.rank != 4 or None in images.shape[1:3].as_list():
        return None
    height, width = images.shape[1:3].as_list()
    return height, width


def _penalty(config: Network, targets: Any, mode: str, end_points: dict[str, Any]) -> Any:
    """Add up the L2 losses and, in training, the loss of a second classifier."""
    import tensorflow as tf

    import moxserve.tensorflow as mox

    terms = mox.get_collection(tf.compat.v1.GraphKeys.REGULARIZATION_LOSSES) if config.weight_decay else []
    aux = end_points.get("AuxLogits")
    if mode == "TRAIN" and aux is not None and config.aux_weight:
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=aux)
        terms = [*terms, config.aux_weight * tf.reduce_mean(entropy)]
    return tf.add_n(terms) if terms else 0.0
