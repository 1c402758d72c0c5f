"""The graph of `wide_and_deep`: inputs by name, two parts, the head of a classification or a regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.errors import did_you_mean
from moxserve.pipeline.slots import InputBundle, ParameterError
from moxserve.tabular.columns import Numeric
from moxserve.tabular.declared import needed_columns
from moxserve_plugins.table.config import LABEL, WEIGHT

if TYPE_CHECKING:
    from moxserve.tensorflow.feature_columns import FeatureColumns
    from moxserve_plugins.wide_and_deep.config import WideAndDeep

__all__ = ["model_function"]


def model_function(config: WideAndDeep, data: InputBundle) -> Callable[..., Any]:
    """Return the model_fn.

    Raises:
        ParameterError: a column reads what the input does not give, there is nothing to learn, or the classes disagree.
    """
    import tensorflow as tf

    import moxserve.tensorflow as mox

    every = mox.feature_columns(config.columns)
    # What no part uses is no input of the exported model.
    columns = mox.FeatureColumns(needed_columns(every.columns, every.check([*config.wide, *config.deep])))
    for name, column in columns.columns.items():
        for key in columns.inputs([name]) if not column.sources() else ():
            if key not in data.names:
                raise ParameterError(
                    f"model.columns.{name}",
                    f"reads {key!r}; the input gives no such tensor; {did_you_mean(key, data.names)}",
                )
        if isinstance(column, Numeric) and column.missing is None and (column.key or name) in data.missing:
            # It would not be seen: a NaN is lost behind the first ReLU, and the weights are lost with it.
            raise ParameterError(
                f"model.columns.{name}.missing",
                f"is needed: {data.missing[column.key or name]} has no number {column.key or name!r}",
            )
    if LABEL not in data.names:
        raise ParameterError("input", f"gives no tensor {LABEL!r} to learn; set input.label")
    classes = _classes(config, data)
    weights = _class_weights(config, data, classes)

    def model_fn(inputs: Sequence[Any], mode: str, **_: Any) -> Any:
        if config.seed is not None:
            tf.compat.v1.set_random_seed(config.seed)
        named = dict(zip(data.names, inputs, strict=True))
        raw = _as_read(columns, named)
        moments = _moments(columns, data) if mode == "TRAIN" else None
        features = columns.prepare(raw, moments, training=mode == "TRAIN")
        outputs = _network(config, features, 1 if classes in (0, 2) else classes, mode == "TRAIN")
        batch = _Batch(raw, named[LABEL], named.get(WEIGHT), columns.example_spec(several=_several(columns, raw)))
        head = _classification(outputs, batch, weights, data) if classes else _regression(outputs, batch)
        return _spec(config, head)

    return model_fn


def _classes(config: WideAndDeep, data: InputBundle) -> int:
    """Return the number of classes; 0 for a regression."""
    known = len(data.labels) if data.labels is not None else 0
    if config.num_classes is not None and known and config.num_classes != known:
        raise ParameterError(
            "model.num_classes", f"expected {known}, the classes of the input, got {config.num_classes}"
        )
    classes = config.num_classes or known
    if classes == 1:
        raise ParameterError("input", "has one class only; there is nothing to tell apart")
    return classes


def _class_weights(config: WideAndDeep, data: InputBundle, classes: int) -> np.ndarray | None:
    if config.class_weights is None:
        return None
    names = data.labels or tuple(str(number) for number in range(classes))
    found = np.ones(classes, np.float32)
    for name, weight in config.class_weights.items():
        if name not in names:
            key = f"model.class_weights.{name}"
            raise ParameterError(
                key, f"no class {name!r}; {did_you_mean(name, names)}" if names else "there are no classes"
            )
        found[names.index(name)] = weight
    return found


@dataclass(frozen=True)
class _Batch:
    """What a head needs of a batch beside the network's outputs.

    Attributes:
        raw: the inputs that columns read, as a request gives them.
        label: `[batch]`.
        weight: `[batch]`; None where all rows weigh the same.
        example_spec: how the inputs are parsed from tf.Examples.
    """

    raw: Mapping[str, Any]
    label: Any
    weight: Any
    example_spec: Mapping[str, Any]


@dataclass(frozen=True)
class _Head:
    """What a head gives: a loss, values to log, what is predicted, and what is exported."""

    loss: Any
    log_info: Mapping[str, Any]
    output_info: Mapping[str, Any]
    export_spec: Any


def _as_read(columns: FeatureColumns, named: Mapping[str, Any]) -> dict[str, Any]:
    """Give the inputs the types that columns read, and any number of values where there are several.

    These tensors are what an exported model takes: a whole number of the table that is read as a number may be any
    number there, and a request need not have as many values as the longest row of the table.
    """
    import tensorflow as tf

    filled = {c.key or n for n, c in columns.columns.items() if isinstance(c, Numeric) and c.missing is not None}
    several = _several(columns, named)
    found = {}
    for key, dtype in columns.inputs().items():
        tensor = named[key]
        if dtype == "float32" and tensor.dtype != tf.float32:
            number = tf.cast(tensor, tf.float32)
            absent = tf.equal(tensor, -1) if key in filled and tensor.dtype.is_integer else None
            tensor = number if absent is None else tf.where(absent, np.float32(np.nan), number)
        if key in several:
            tensor = tf.compat.v1.placeholder_with_default(tensor, [None, None])
        found[key] = tensor
    return found


def _several(columns: FeatureColumns, tensors: Mapping[str, Any]) -> set[str]:
    """Return the inputs with several values a row, but for numbers of a fixed shape."""
    fixed = {c.key or n for n, c in columns.columns.items() if isinstance(c, Numeric)}
    return {
        key
        for key in columns.inputs()
        if key not in fixed and tensors.get(key) is not None and tensors[key].shape.rank == 2
    }


def _moments(columns: FeatureColumns, data: InputBundle) -> dict[str, tuple[Any, Any]]:
    found = {}
    for name in columns.fitted:
        if data.moments is None:
            raise ParameterError(f"model.columns.{name}.fit", "the input cannot tell means; give mean and std instead")
        column = columns.columns[name]
        found[name] = data.moments(column.key or name if isinstance(column, Numeric) else name)
    return found


def _network(config: WideAndDeep, features: Any, units: int, training: bool) -> Any:
    """Return `[batch, units] float32`, the sum of the parts that there are."""
    import tensorflow as tf

    parts = []
    if config.wide:
        with tf.compat.v1.variable_scope("wide"):
            parts.append(features.linear(config.wide, units))
    if config.deep:
        with tf.compat.v1.variable_scope("deep"):
            hidden = features.dense(config.deep)
            activation = getattr(tf.nn, config.activation)
            for number, width in enumerate(config.hidden_units):
                hidden = activation(_layer(hidden, width, f"hidden_{number}"))
                if training and config.dropout:
                    hidden = tf.nn.dropout(hidden, rate=config.dropout)
            parts.append(_layer(hidden, units, "logits"))
    return tf.add_n(parts)


def _layer(inputs: Any, width: int, name: str) -> Any:
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.variable_scope(name):
        weights = v1.get_variable("weights", [inputs.shape[1], width], initializer=v1.glorot_uniform_initializer())
        return tf.matmul(inputs, weights) + v1.get_variable("biases", [width], initializer=v1.zeros_initializer())


def _classification(outputs: Any, batch: _Batch, class_weights: np.ndarray | None, data: InputBundle) -> _Head:
    import tensorflow as tf

    import moxserve.tensorflow as mox

    binary = outputs.shape[1] == 1
    # The softmax of 0 and x is the logistic function of x: two classes need one output.
    logits = tf.identity(tf.concat([tf.zeros_like(outputs), outputs], 1) if binary else outputs, name="logits")
    probabilities = tf.nn.softmax(logits, name="probabilities")
    predicted = tf.argmax(logits, axis=1, output_type=tf.int64, name="classes")
    label = tf.cast(batch.label, tf.int64)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=logits)
    if class_weights is not None:
        entropy *= tf.gather(tf.constant(class_weights), label)
    loss = _mean(entropy, batch.weight)
    log_info = {"loss": loss, "accuracy": tf.reduce_mean(tf.cast(tf.equal(predicted, label), tf.float32))}
    found = {"logits": logits, "probabilities": probabilities, "classes": predicted}
    exported = dict(found)
    if binary:
        log_info["auc"] = mox.auc(label, probabilities[:, 1])
        exported["logistic"] = tf.identity(probabilities[:, 1], name="logistic")
    export_spec = mox.ExportSpec(
        inputs_dict=batch.raw,
        outputs_dict=exported,
        scores="probabilities",
        labels=data.labels,
        regression="logistic" if binary else None,
        example_spec=batch.example_spec,
    )
    return _Head(loss, log_info, {**found, "labels": label}, export_spec)


def _regression(outputs: Any, batch: _Batch) -> _Head:
    import tensorflow as tf

    import moxserve.tensorflow as mox

    predictions = tf.squeeze(outputs, [1], name="predictions")
    targets = tf.cast(batch.label, tf.float32)
    error = predictions - targets
    loss = _mean(tf.square(error), batch.weight)
    log_info = {
        "loss": loss,
        "mean_squared_error": tf.reduce_mean(tf.square(error)),
        "mean_absolute_error": tf.reduce_mean(tf.abs(error)),
    }
    export_spec = mox.ExportSpec(
        inputs_dict=batch.raw,
        outputs_dict={"predictions": predictions},
        regression="predictions",
        example_spec=batch.example_spec,
    )
    return _Head(loss, log_info, {"predictions": predictions, "targets": targets}, export_spec)


def _mean(losses: Any, weight: Any) -> Any:
    """Return the mean over the rows; not divided by the weights, so that batches can be averaged."""
    import tensorflow as tf

    return tf.reduce_mean(losses if weight is None else losses * tf.cast(weight, tf.float32))


def _spec(config: WideAndDeep, head: _Head) -> Any:
    import moxserve.tensorflow as mox

    # With both parts the loss is given twice, once for the variables of each: each can have an optimizer of its own.
    scopes = [[part] for part in ("wide", "deep") if getattr(config, part)]
    return mox.ModelSpec(
        loss=[head.loss for _ in scopes],
        var_scopes=scopes,
        log_info=head.log_info,
        output_info=head.output_info,
        export_spec=head.export_spec,
    )
