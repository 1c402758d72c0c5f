"""What the shipped classifiers share: parameters, images to floats, and the ModelSpec of a network's logits.

TensorFlow and the executor are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from moxserve.errors import ModelSpecError
from moxserve.pipeline.slots import InputBundle, ModelPlugin, ParameterError

__all__ = ["Classifier", "classifier_spec", "two_inputs"]


class Classifier(ModelPlugin):
    """Parameters of every classifier: inputs are images and labels, outputs are scores of classes."""

    num_classes: int | None = Field(
        default=None, ge=2, description="Number of classes; by default as many as the input has labels."
    )

    def classes(self, data: InputBundle) -> int:
        """Return the number of classes.

        Raises:
            ParameterError: it is not given and not known, or differs from the input's labels.
        """
        known = len(data.labels) if data.labels is not None else None
        if self.num_classes is None and known is None:
            raise ParameterError("model.num_classes", "is needed: the input has no labels to count")
        if self.num_classes is not None and known is not None and self.num_classes != known:
            labels = ", ".join(data.labels[:5]) if data.labels else ""
            raise ParameterError(
                "model.num_classes", f"expected {known}, the classes of the input ({labels}, …), got {self.num_classes}"
            )
        return self.num_classes or known or 0

    def model_fn(self, data: InputBundle, network: Callable[[Any, int, bool], tuple[Any, Any]]) -> Callable[..., Any]:
        """Return the model_fn around a network.

        Args:
            data: the input.
            network: images `[batch, height, width, channels] float32` in [0, 1], number of classes, whether training ->
                logits `[batch, classes] float32`, and a scalar that is added to the loss (0.0 for none).
        """
        classes = self.classes(data)
        labels = data.labels

        def model_fn(inputs: Sequence[Any], mode: str, **_: Any) -> Any:
            images, targets = two_inputs(inputs)
            logits, penalty = network(_as_float(images), classes, mode == "TRAIN")
            return classifier_spec(images, targets, logits, penalty, labels)

        return model_fn


def two_inputs(inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Return images and labels.

    Raises:
        ModelSpecError: the input gives something else.
    """
    if len(inputs) != 2:
        raise ModelSpecError(f"expected two inputs, images and labels, got {len(inputs)}")
    return inputs[0], inputs[1]


def _as_float(images: Any) -> Any:
    """Integers are scaled to [0, 1] by their type's range; floats are taken as they are."""
    import tensorflow as tf

    if images.shape.rank not in (None, 4):
        raise ModelSpecError(f"expected images [batch, height, width, channels], got shape {images.shape}")
    if images.dtype.is_floating:
        return tf.cast(images, tf.float32)
    return tf.cast(images, tf.float32) * (1.0 / images.dtype.max)


def classifier_spec(images: Any, targets: Any, logits: Any, penalty: Any, labels: Sequence[str] | None) -> Any:
    """Build loss, metrics, outputs and what is exported, the same in every mode.

    Args:
        images: as the input gives them; what the exported model takes.
        targets: index of the right class of each image.
        logits: `[batch, classes] float32`.
        penalty: scalar that is added to the loss.
        labels: class names by index; None for none.
    """
    import tensorflow as tf

    import moxserve.tensorflow as mox

    logits = tf.identity(logits, name="logits")
    probabilities = tf.nn.softmax(logits, name="probabilities")
    predicted = tf.argmax(logits, axis=1, output_type=tf.int64, name="classes")
    targets = tf.cast(targets, tf.int64)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)
    loss = tf.reduce_mean(entropy) + penalty
    accuracy = tf.reduce_mean(tf.cast(tf.equal(predicted, targets), tf.float32))
    outputs = {"logits": logits, "probabilities": probabilities, "classes": predicted}
    return mox.ModelSpec(
        loss=loss,
        log_info={"loss": loss, "accuracy": accuracy},
        output_info={**outputs, "labels": targets},
        export_spec=mox.ExportSpec(
            inputs_dict={"images": images}, outputs_dict=outputs, scores="probabilities", labels=labels
        ),
    )
