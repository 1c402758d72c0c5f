"""A model_fn of one's own, as `custom_model.yaml` uses it: one hidden layer."""

import tensorflow.compat.v1 as tf

import moxserve.tensorflow as mox


def model_fn(inputs, mode, hidden=32, **kwargs):  # noqa: ARG001 - the executor passes them by name
    """Classify images into ten classes.

    Args:
        inputs: images `[batch, height, width, channels] uint8` and labels `[batch] int64`.
        mode: TRAIN, EVAL, PREDICT or EXPORT.
        hidden: units of the hidden layer.
        kwargs: whatever else the executor passes.

    Returns:
        A ModelSpec.
    """
    images, labels = inputs
    pixels = images.shape[1] * images.shape[2] * images.shape[3]
    x = tf.reshape(tf.cast(images, tf.float32) / 255.0, [-1, pixels])
    w1 = tf.get_variable("w1", [pixels, hidden])
    b1 = tf.get_variable("b1", [hidden], initializer=tf.zeros_initializer())
    w2 = tf.get_variable("w2", [hidden, 10])
    b2 = tf.get_variable("b2", [10], initializer=tf.zeros_initializer())
    logits = tf.matmul(tf.nn.relu(tf.matmul(x, w1) + b1), w2) + b2
    classes = tf.argmax(logits, axis=1)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    accuracy = tf.reduce_mean(tf.cast(tf.equal(classes, labels), tf.float32))
    return mox.ModelSpec(
        loss=loss,
        log_info={"loss": loss, "accuracy": accuracy},
        output_info={"classes": classes, "labels": labels},
        export_spec=mox.ExportSpec(inputs_dict={"images": images}, outputs_dict={"logits": logits}),
    )
