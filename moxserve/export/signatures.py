"""Which signatures an ExportSpec gives, and their graphs: predict on tensors, classify on serialized tf.Examples.

`serving_default` (predict) takes and gives the ExportSpec's tensors as they are. `classify` is added when the
ExportSpec names its scores: it parses `inputs`, a vector of serialized tf.Examples with one feature per predict input,
and computes the scores a second time on a copy of what depends on the inputs; weights are shared. So the predict graph
stays free of parsing, and inputs may be any tensor of the graph.

Features by element type: integers and booleans are int64 lists, floating-point types are float lists, strings are bytes
lists; each has the shape of one row and is cast to the tensor's type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.export.graphs import Endpoints, copy_subgraph, spec_of
from moxserve.protocol.metadata import signature_from_def
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.types import Signature

__all__ = [
    "CLASSIFY",
    "CLASSIFY_INPUT",
    "PREDICT",
    "SignatureGraph",
    "build_signatures",
    "check_classify",
    "class_names",
]

PREDICT = "serving_default"
CLASSIFY = "classify"
CLASSIFY_INPUT = "inputs"
_SCOPE = "classify"
LABELS_FILE = "labels.txt"


@dataclass(frozen=True)
class SignatureGraph:
    """Signatures built into the current graph.

    Attributes:
        protos: SignatureDef by key.
        asset: the string constant that holds the path of the labels file; None without one.
    """

    protos: Mapping[str, Any]
    asset: Any = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)


def class_names(endpoints: Endpoints, classes: int) -> tuple[str, ...]:
    """Return the class names in index order: the labels, or the indices as text, as TensorFlow's estimators do."""
    return endpoints.labels or tuple(str(i) for i in range(classes))


def build_signatures(endpoints: Endpoints, labels_path: str | None) -> SignatureGraph:
    """Add the signatures of an ExportSpec to the current graph.

    Args:
        endpoints: the checked ExportSpec.
        labels_path: the labels file, one name a line; None when there are no labels.

    Raises:
        ModelSpecError: scores or inputs do not fit a classify signature.
    """
    saved_model = tf1.saved_model
    protos = {PREDICT: saved_model.predict_signature_def(dict(endpoints.inputs), dict(endpoints.outputs))}
    asset = None
    if endpoints.scores is not None:
        examples, scores = _scores_of_examples(endpoints)
        classes, asset = _classes(scores, labels_path)
        protos[CLASSIFY] = saved_model.classification_signature_def(examples, classes, scores)
    signatures = {name: signature_from_def(name, proto) for name, proto in protos.items()}
    return SignatureGraph(protos, asset, {name: s for name, s in signatures.items() if s is not None})


def check_classify(endpoints: Endpoints) -> None:
    """Check that an ExportSpec with scores can have a classify signature.

    Raises:
        ModelSpecError: the scores are not `[batch, classes]` floats, an input has no fixed row shape, there is another
            number of labels than of classes, or a label that a labels file cannot hold.
    """
    if endpoints.scores is None:
        return
    scores = endpoints.outputs[endpoints.scores]
    where = f"ExportSpec(scores={endpoints.scores!r})"
    if scores.shape.rank not in (2, None) or not scores.dtype.is_floating:
        raise ModelSpecError(f"{where} is {spec_of(endpoints.scores, scores)}; expected [batch, classes] floats")
    for alias, tensor in endpoints.inputs.items():
        if not tensor.shape.rank or not tensor.shape[1:].is_fully_defined() or tensor.dtype.is_complex:
            raise ModelSpecError(
                f"{where}: a classify signature parses tf.Examples, so each input needs a batch dimension and a fixed "
                f"row shape of numbers or strings; got {spec_of(alias, tensor)}",
                hint="set the shape in model_fn, or leave scores out to export the predict signature alone",
            )
    _check_labels(endpoints, scores)


def _check_labels(endpoints: Endpoints, scores: Any) -> None:
    labels = endpoints.labels
    if labels is None:
        return
    classes = None if scores.shape.rank is None else scores.shape[1]
    if classes is not None and classes != len(labels):
        raise ModelSpecError(f"{len(labels)} labels for {classes} classes in output {endpoints.scores!r}")
    for index, label in enumerate(labels):
        # The reader of the file drops carriage returns and splits at newlines.
        if "\n" in label or "\r" in label:
            raise ModelSpecError(f"label {index} ({label!r}) has a line break, which a labels file cannot hold")


def _scores_of_examples(endpoints: Endpoints) -> tuple[Any, Any]:
    check_classify(endpoints)
    sizes = {t.shape[0] for t in endpoints.inputs.values()}
    rows = sizes.pop() if len(sizes) == 1 else None
    with tf1.name_scope(_SCOPE + "/"):
        examples = tf1.placeholder(tf.string, [rows], "examples")
        parsed = tf.io.parse_example(examples, {a: _feature(t) for a, t in endpoints.inputs.items()})
        replace = {t.name: _cast(parsed[a], t) for a, t in endpoints.inputs.items()}
    scores = copy_subgraph(endpoints.outputs[str(endpoints.scores)], replace, _SCOPE + "/model")
    with tf1.name_scope(_SCOPE + "/"):
        # The protocol's scores are float32, whatever the model computes in.
        return examples, tf.cast(scores, tf.float32, "scores")


def _feature(tensor: Any) -> Any:
    dtype = tensor.dtype
    stored = tf.string if dtype == tf.string else tf.float32 if dtype.is_floating else tf.int64
    return tf.io.FixedLenFeature(tensor.shape[1:].as_list(), stored)


def _cast(parsed: Any, tensor: Any) -> Any:
    cast = parsed if parsed.dtype == tensor.dtype else tf.cast(parsed, tensor.dtype)
    cast.set_shape(tensor.shape)
    return cast


def _classes(scores: Any, labels_path: str | None) -> tuple[Any, Any]:
    asset = None
    with tf1.name_scope(_SCOPE + "/"):
        shape = tf.shape(scores)
        indices = tf.range(tf.cast(shape[1], tf.int64), dtype=tf.int64)
        if labels_path is None:
            names = tf.strings.as_string(indices)
        else:
            asset = tf.constant(labels_path, name="labels_path")
            lines = tf.lookup.TextFileInitializer(
                asset,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
            )
            names = tf.lookup.StaticHashTable(lines, "").lookup(indices)
        classes = tf.tile(names[tf.newaxis, :], [shape[0], 1], name="classes")
    classes.set_shape(scores.shape)
    return classes, asset
