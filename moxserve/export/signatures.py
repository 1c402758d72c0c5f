"""Which signatures an ExportSpec gives, and their graphs.

    serving_default   predict: the ExportSpec's inputs and outputs as they are; another one, if the ExportSpec says so
    predict           predict: the same, where `serving_default` is another one; with `example_spec`, from tf.Examples
    predict_tensors   predict: the ExportSpec's tensors, where both of these names are taken
    classify          classify: scores and class names of tf.Examples, when the ExportSpec names its scores
    regress           regress: one value for each tf.Example, when it names one
    KEY               what ExportSpec.signatures says

Signatures on tf.Examples parse a vector of serialized ones, with one feature per input, and compute their outputs a
second time on a copy of what depends on the inputs; weights are shared. So the predict graph stays free of parsing, and
inputs may be any tensor of the graph. All signatures on the examples of the same inputs share one parser and one copy,
which MultiInference of TensorFlow Serving asks for.

Features, where `example_spec` does not say otherwise: integers and booleans are int64 lists, floating-point types are
float lists, strings are bytes lists; each has the shape of one row and is cast to the tensor's type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ModelSpecError, did_you_mean
from moxserve.export.graphs import Endpoints, copy_subgraph, spec_of
from moxserve.protocol.metadata import signature_from_def
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.types import CLASSIFY_METHOD, DEFAULT_SIGNATURE, PREDICT_METHOD, REGRESS_METHOD, Signature

__all__ = [
    "CLASSIFY",
    "CLASSIFY_INPUT",
    "REGRESS",
    "Planned",
    "SignatureGraph",
    "build_signatures",
    "check_signatures",
    "class_names",
    "main_key",
    "plan_signatures",
]

CLASSIFY = "classify"
REGRESS = "regress"
CLASSIFY_INPUT = "inputs"
LABELS_FILE = "labels.txt"
_PREDICT_AGAIN = "predict"
_PREDICT_TENSORS = "predict_tensors"
_PREDICT_EXAMPLES_INPUT = "examples"
_SCOPE = "examples"
_METHODS = {"predict": PREDICT_METHOD, "classify": CLASSIFY_METHOD, "regress": REGRESS_METHOD}


@dataclass(frozen=True)
class Planned:
    """One signature, in terms of the tensors that model_fn made.

    Attributes:
        key: its name.
        method: `predict`, `classify` or `regress`.
        inputs: what it takes, or, with `examples`, what is parsed.
        outputs: what it gives, by alias.
        examples: alias of the serialized tf.Examples; empty when it takes tensors.
    """

    key: str
    method: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    examples: str = ""


@dataclass(frozen=True)
class SignatureGraph:
    """Signatures built into the current graph.

    Attributes:
        protos: SignatureDef by key.
        asset: the string constant that holds the path of the labels file; None without one.
        signatures: by key.
    """

    protos: Mapping[str, Any]
    asset: Any = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)


def main_key(endpoints: Endpoints) -> str:
    """Return the key of the signature that takes and gives the ExportSpec's tensors."""
    if endpoints.default in ("", DEFAULT_SIGNATURE):
        return DEFAULT_SIGNATURE
    return _PREDICT_TENSORS if endpoints.example_spec else _PREDICT_AGAIN


def plan_signatures(endpoints: Endpoints) -> dict[str, Planned]:
    """Say which signatures an ExportSpec gives.

    Returns:
        By key, in the order in which they are told.

    Raises:
        ModelSpecError: two signatures have one key, or the default one is none of them.
    """
    inputs, outputs = endpoints.inputs, endpoints.outputs
    plan = [Planned(main_key(endpoints), "predict", inputs, outputs)]
    if endpoints.scores is not None:
        plan.append(Planned(CLASSIFY, "classify", inputs, {"scores": outputs[endpoints.scores]}, CLASSIFY_INPUT))
    if endpoints.regression is not None:
        plan.append(Planned(REGRESS, "regress", inputs, {"outputs": outputs[endpoints.regression]}, CLASSIFY_INPUT))
    if endpoints.example_spec:
        plan.append(Planned(_PREDICT_AGAIN, "predict", inputs, outputs, _PREDICT_EXAMPLES_INPUT))
    for key, s in endpoints.signatures.items():
        if key in {planned.key for planned in plan} or key == DEFAULT_SIGNATURE:
            raise ModelSpecError(f"ExportSpec.signatures: the key {key!r} is taken; {_what_takes(key)}")
        takes_examples = s.method != "predict" and not _are_examples(s.inputs)
        plan.append(Planned(key, s.method, s.inputs, s.outputs, CLASSIFY_INPUT if takes_examples else ""))
    found = {planned.key: planned for planned in plan}
    if endpoints.default and endpoints.default not in {*found, DEFAULT_SIGNATURE}:
        known = sorted({*found, DEFAULT_SIGNATURE})
        raise ModelSpecError(
            f"ExportSpec(default_signature={endpoints.default!r}): {did_you_mean(endpoints.default, known)}"
        )
    if DEFAULT_SIGNATURE not in found:
        d = found[endpoints.default]
        found[DEFAULT_SIGNATURE] = Planned(DEFAULT_SIGNATURE, d.method, d.inputs, d.outputs, d.examples)
    return found


def _what_takes(key: str) -> str:
    return {
        DEFAULT_SIGNATURE: "it is given by default_signature=",
        CLASSIFY: "scores= adds it",
        REGRESS: "regression= adds it",
    }.get(key, "the ExportSpec's own tensors have it")


def _are_examples(inputs: Mapping[str, Any]) -> bool:
    """Tell whether a classify or regress signature gets the examples as they are, and parses them itself."""
    tensor = inputs.get(CLASSIFY_INPUT)
    return len(inputs) == 1 and tensor is not None and tensor.dtype == tf.string and tensor.shape.rank in (1, None)


def class_names(endpoints: Endpoints, classes: int) -> tuple[str, ...]:
    """Return the class names in index order: the labels, or the indices as text, as TensorFlow's estimators do."""
    return endpoints.labels or tuple(str(i) for i in range(classes))


# ---- checking


def check_signatures(endpoints: Endpoints) -> None:
    """Check that every signature can be built.

    Raises:
        ModelSpecError: keys that clash; scores that are not `[batch, classes]` floats, or a regression that is not one
            float a row; an input that no feature can hold; another number of labels than of classes, or a label that a
            labels file cannot hold.
    """
    for planned in plan_signatures(endpoints).values():
        where = _where(endpoints, planned)
        if planned.method == "classify" and "scores" in planned.outputs:
            _check_floats(where, planned.outputs["scores"], (2, None), "[batch, classes] floats")
        if planned.method == "regress":
            _check_regression(where, planned.outputs["outputs"])
        if planned.examples:
            _check_features(endpoints, planned, where)
    if endpoints.scores is not None:
        _check_labels(endpoints, endpoints.outputs[endpoints.scores])


def _where(endpoints: Endpoints, planned: Planned) -> str:
    if planned.key in endpoints.signatures:
        return f"ExportSpec.signatures[{planned.key!r}]"
    if planned.method == "classify":
        return f"ExportSpec(scores={endpoints.scores!r})"
    if planned.method == "regress":
        return f"ExportSpec(regression={endpoints.regression!r})"
    return "ExportSpec.example_spec"


def _check_floats(where: str, tensor: Any, ranks: tuple[int | None, ...], expected: str) -> None:
    if tensor.shape.rank not in ranks or not tensor.dtype.is_floating:
        alias = tensor.op.name.rpartition("/")[2]
        raise ModelSpecError(f"{where} is {spec_of(alias, tensor)}; expected {expected}")


def _check_regression(where: str, tensor: Any) -> None:
    expected = "one float a row, [batch] or [batch, 1]"
    _check_floats(where, tensor, (1, 2, None), expected)
    if tensor.shape.rank == 2 and tensor.shape[1] not in (1, None):
        _check_floats(where, tensor, (), expected)


def _check_features(endpoints: Endpoints, planned: Planned, where: str) -> None:
    for alias, tensor in planned.inputs.items():
        feature = endpoints.example_spec.get(alias)
        if feature is not None:
            _check_feature(alias, feature, tensor)
        elif not tensor.shape.rank or not tensor.shape[1:].is_fully_defined() or tensor.dtype.is_complex:
            raise ModelSpecError(
                f"{where}: a {planned.method} signature parses tf.Examples, so each input needs a batch dimension and "
                f"a fixed row shape of numbers or strings; got {spec_of(alias, tensor)}",
                hint="set the shape in model_fn, say how it is parsed with example_spec, or leave "
                f"{_argument(where)} out to export tensors alone",
            )


def _argument(where: str) -> str:
    match = re.search(r"\((\w+)=", where)
    return match[1] if match else "it"


def _check_feature(alias: str, feature: Any, tensor: Any) -> None:
    kinds = (tf.io.FixedLenFeature, tf.io.VarLenFeature, tf.io.FixedLenSequenceFeature, tf.io.RaggedFeature)
    where = f"ExportSpec.example_spec[{alias!r}]"
    if not isinstance(feature, kinds):
        names = ", ".join(f"tf.io.{kind.__name__}" for kind in kinds)
        raise ModelSpecError(f"{where} is a {type(feature).__name__}; expected one of {names}")
    stored = tf.dtypes.as_dtype(feature.dtype)
    if (stored == tf.string) != (tensor.dtype == tf.string):
        raise ModelSpecError(
            f"{where} is a list of {stored.name}; the input is {spec_of(alias, tensor)}, and strings are not decoded",
            hint="take the string as the input, and decode it in model_fn",
        )


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


# ---- building


def build_signatures(endpoints: Endpoints, labels_path: str | None) -> SignatureGraph:
    """Add the signatures of an ExportSpec to the current graph.

    Args:
        endpoints: the checked ExportSpec.
        labels_path: the labels file, one name a line; None when there are no labels.

    Raises:
        ModelSpecError: an output or input does not fit its signature.
    """
    check_signatures(endpoints)
    plan = plan_signatures(endpoints)
    builder = _Builder(endpoints, labels_path, list(plan.values()))
    protos = {key: builder.definition(planned) for key, planned in plan.items()}
    found = {key: signature_from_def(key, proto) for key, proto in protos.items()}
    return SignatureGraph(protos, builder.asset, {key: s for key, s in found.items() if s is not None})


class _Builder:
    """Builds the parts that signatures share once.

    Args:
        endpoints: the checked ExportSpec.
        labels_path: the labels file; None without one.
        plan: all signatures.
    """

    def __init__(self, endpoints: Endpoints, labels_path: str | None, plan: Sequence[Planned]) -> None:
        self.asset: Any = None
        self._endpoints = endpoints
        self._labels_path = labels_path
        self._labels: Any = None
        self._classes: dict[str, Any] = {}
        self._plan = plan
        # By the inputs that are parsed: the placeholder, and the copy of each output by the name of the first one.
        self._parsed: dict[tuple[tuple[str, str], ...], tuple[Any, dict[str, Any]]] = {}

    def definition(self, planned: Planned) -> Any:
        """Return the SignatureDef of a planned signature."""
        inputs, outputs = dict(planned.inputs), dict(planned.outputs)
        if planned.examples:
            examples, copies = self._copies(planned)
            inputs = {planned.examples: examples}
            outputs = {alias: copies[tensor.name] for alias, tensor in outputs.items()}
        if planned.method != "predict":
            # The protocol's scores and regressions are float32, whatever the model computes in.
            outputs = {alias: _as_float32(tensor) for alias, tensor in outputs.items()}
        if planned.method == "classify" and "classes" not in outputs:
            outputs["classes"] = self._class_names(planned, outputs["scores"])
        infos = [
            {alias: tf1.saved_model.build_tensor_info(tensor) for alias, tensor in side.items()}
            for side in (inputs, outputs)
        ]
        return tf1.saved_model.build_signature_def(*infos, _METHODS[planned.method])

    def _copies(self, planned: Planned) -> tuple[Any, dict[str, Any]]:
        key = _identity(planned)
        if key not in self._parsed:
            wanted = {t.name: t for p in self._plan if p.examples and _identity(p) == key for t in p.outputs.values()}
            scope = _SCOPE if not self._parsed else f"{_SCOPE}_{len(self._parsed)}"
            examples, instead = self._parse(planned.inputs, scope)
            copies = copy_subgraph(list(wanted.values()), instead, f"{scope}/model")
            self._parsed[key] = (examples, dict(zip(wanted, copies, strict=True)))
        return self._parsed[key]

    def _parse(self, inputs: Mapping[str, Any], scope: str) -> tuple[Any, dict[str, Any]]:
        sizes = {t.shape[0] for t in inputs.values() if t.shape.rank}
        rows = sizes.pop() if len(sizes) == 1 else None
        with tf1.name_scope(scope + "/"):
            examples = tf1.placeholder(tf.string, [rows], "examples")
            features = {a: self._endpoints.example_spec.get(a) or _feature(t) for a, t in inputs.items()}
            parsed = tf.io.parse_example(examples, features)
            return examples, {t.name: _cast(_dense(parsed[a]), t) for a, t in inputs.items()}

    def _class_names(self, planned: Planned, scores: Any) -> Any:
        """Return `[batch, classes]` class names for scores, made once for each."""
        if scores.name not in self._classes:
            known = self._endpoints.labels
            fits = planned.key not in self._endpoints.signatures or (
                known is not None and scores.shape.rank == 2 and scores.shape[1] in (len(known), None)
            )
            with tf1.name_scope(f"{_SCOPE}/"):
                self._classes[scores.name] = self._named(scores, self._labels_path if fits else None)
        return self._classes[scores.name]

    def _named(self, scores: Any, labels_path: str | None) -> Any:
        shape = tf.shape(scores)
        indices = tf.range(tf.cast(shape[1], tf.int64), dtype=tf.int64)
        names = tf.strings.as_string(indices) if labels_path is None else self._table(labels_path).lookup(indices)
        classes = tf.tile(names[tf.newaxis, :], [shape[0], 1], name="classes")
        classes.set_shape(scores.shape)
        return classes

    def _table(self, labels_path: str) -> Any:
        if self._labels is None:
            self.asset = tf.constant(labels_path, name="labels_path")
            lines = tf.lookup.TextFileInitializer(
                self.asset,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
            )
            self._labels = tf.lookup.StaticHashTable(lines, "")
        return self._labels


def _identity(planned: Planned) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((alias, tensor.name) for alias, tensor in planned.inputs.items()))


def _as_float32(tensor: Any) -> Any:
    if not tensor.dtype.is_floating or tensor.dtype == tf.float32:
        return tensor
    return tf.cast(tensor, tf.float32, f"{tensor.op.name.rpartition('/')[2]}_float32")


def _feature(tensor: Any) -> Any:
    dtype = tensor.dtype
    stored = tf.string if dtype == tf.string else tf.float32 if dtype.is_floating else tf.int64
    return tf.io.FixedLenFeature(tensor.shape[1:].as_list(), stored)


def _dense(parsed: Any) -> Any:
    if isinstance(parsed, tf.SparseTensor):
        return tf.sparse.to_dense(parsed)
    return parsed.to_tensor() if isinstance(parsed, tf.RaggedTensor) else parsed


def _cast(parsed: Any, tensor: Any) -> Any:
    cast = parsed if parsed.dtype == tensor.dtype else tf.cast(parsed, tensor.dtype)
    try:
        cast.set_shape(tensor.shape)
    except ValueError:
        raise ModelSpecError(
            f"ExportSpec.example_spec gives {spec_of('it', cast)}; the input is {spec_of('it', tensor)}"
        ) from None
    return cast
