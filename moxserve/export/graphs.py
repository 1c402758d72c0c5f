"""Graphs of the model: built from model_fn, restored from a checkpoint, walked and copied. Not the SavedModel itself.

A `ModelSession` is the model in one mode with its weights, ready to be run on real rows: what is exported is built and
restored this way, and so is the reference that it is held against.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moxserve.errors import ExportError, InvalidArgument, ModelSpecError
from moxserve.export.job import ExportJob
from moxserve.tensorflow.executor import checkpoint
from moxserve.tensorflow.executor.branch import build_branch, build_export_branch
from moxserve.tensorflow.executor.devices import Place
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.spec import ModeKeys, SignatureSpec
from moxserve.types import TensorSpec, dtype_by_enum

__all__ = [
    "Endpoints",
    "ModelSession",
    "all_variables",
    "ancestors",
    "as_arrays",
    "copy_subgraph",
    "needed_variables",
    "open_model",
    "open_session",
    "spec_of",
]

_VARIABLE_OPS = {"VarHandleOp", "VariableV2", "Variable"}


@dataclass(frozen=True)
class Endpoints:
    """The tensors that an ExportSpec names, checked.

    Attributes:
        inputs: by alias.
        outputs: by alias.
        scores: key of `outputs` that holds `[batch, classes]` scores; None without a classify signature.
        labels: class names by index; None when there are none.
        regression: key of `outputs` that holds `[batch]` or `[batch, 1]` floats; None without a regress signature.
        signatures: further ones by key, their tensors checked.
        example_spec: how inputs are parsed from tf.Examples, by alias.
        default: key of the signature for callers who name none; empty for the one of `inputs` and `outputs`.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    scores: str | None = None
    labels: tuple[str, ...] | None = None
    regression: str | None = None
    signatures: Mapping[str, SignatureSpec] = field(default_factory=dict)
    example_spec: Mapping[str, Any] = field(default_factory=dict)
    default: str = ""

    def sides(self) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
        """Return where the ExportSpec names tensors, with the inputs and outputs there."""
        extra = [(f"ExportSpec.signatures[{k!r}]", s.inputs, s.outputs) for k, s in self.signatures.items()]
        return [("ExportSpec", self.inputs, self.outputs), *extra]


@dataclass(frozen=True)
class ModelSession:
    """A model in one mode with its weights.

    Attributes:
        mode: EXPORT or EVAL.
        session: open, variables restored, tables filled.
        placeholders: the inputs of model_fn, in order.
        endpoints: what its ExportSpec names.
        version: the ExportSpec's.
    """

    mode: str
    session: Any
    placeholders: Sequence[Any]
    endpoints: Endpoints
    version: int | str

    def run(self, rows: Sequence[np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run rows of model_fn's inputs through the model.

        Args:
            rows: one array per input of model_fn.

        Returns:
            What the ExportSpec's inputs and outputs held, by alias.
        """
        fetches = (dict(self.endpoints.inputs), dict(self.endpoints.outputs))
        inputs, outputs = self.session.run(fetches, dict(zip(self.placeholders, rows, strict=True)))
        return as_arrays(inputs), as_arrays(outputs)

    def fetch(self, tensors: Mapping[str, Mapping[str, Any]], rows: Sequence[np.ndarray]) -> dict[str, Any]:
        """Run rows of model_fn's inputs and return what tensors held, in the mappings that they came in."""
        found = self.session.run(
            {key: dict(group) for key, group in tensors.items()}, dict(zip(self.placeholders, rows, strict=True))
        )
        return {key: as_arrays(group) for key, group in found.items()}

    def feed(
        self, tensors: Mapping[str, Any], inputs: Mapping[str, Any], values: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Feed input tensors directly and return what other tensors hold then, by alias."""
        return as_arrays(self.session.run(dict(tensors), {inputs[alias]: value for alias, value in values.items()}))


def as_arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Make arrays of what a session fetched, by alias."""
    # A scalar string comes out of a session as bytes, and np.asarray would make a fixed-width array of it.
    return {k: np.array(v, dtype=object) if isinstance(v, bytes) else np.asarray(v) for k, v in values.items()}


@contextmanager
def open_session() -> Iterator[Any]:
    """Give a fresh graph and a session on it, both current inside the block."""
    config = tf1.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    with tf.Graph().as_default(), tf1.Session(config=config) as session:
        yield session


@contextmanager
def open_model(job: ExportJob, mode: str = ModeKeys.EXPORT) -> Iterator[ModelSession]:
    """Build model_fn in a fresh graph and restore the job's checkpoint into it.

    Args:
        job: gives model_fn, the inputs and the checkpoint.
        mode: EXPORT, or EVAL for the graph that training evaluates with.

    Yields:
        The model, until the block ends.

    Raises:
        ModelSpecError: the ModelSpec has no ExportSpec, or names something that cannot be exported.
        ExportError: an output needs what is not among the inputs.
        CheckpointError: the checkpoint is missing something that the outputs need.
    """
    with open_session() as session:
        placeholders = [_placeholder(spec, i) for i, spec in enumerate(job.inputs)]
        spec = _build(job.model_fn, placeholders, mode)
        endpoints = _endpoints(spec, job.labels)
        _check_reachable(endpoints, job.inputs, placeholders)
        variables = all_variables(endpoints)
        if variables:
            checkpoint.restore(session, job.checkpoint, variables)
        session.run(tf1.tables_initializer())
        yield ModelSession(mode, session, placeholders, endpoints, spec.version)


def _build(model_fn: Callable[..., Any], placeholders: Sequence[Any], mode: str) -> Any:
    if mode == ModeKeys.EXPORT:
        built = build_export_branch(model_fn, placeholders)
    else:
        built = build_branch(model_fn, mode, [placeholders], [Place()])
    if built.spec.export_spec is None:
        raise ModelSpecError(f"model_fn gives no ExportSpec in mode {mode}")
    return built.spec.export_spec


def _placeholder(spec: TensorSpec, index: int) -> Any:
    name = re.sub(r"[^A-Za-z0-9_.]", "_", spec.name).lstrip("_") or f"input_{index}"
    return tf1.placeholder(tf.dtypes.as_dtype(spec.dtype.enum), spec.shape, name)


def spec_of(alias: str, tensor: Any) -> TensorSpec:
    """Describe a graph tensor.

    Raises:
        ModelSpecError: no request can carry its element type.
    """
    enum = tensor.dtype.base_dtype.as_datatype_enum
    try:
        dtype = dtype_by_enum(enum)
    except InvalidArgument:
        raise ModelSpecError(f"{alias!r} is {tensor.dtype.name}, which no request can carry") from None
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return TensorSpec(alias, dtype, shape, tensor.name)


def _endpoints(spec: Any, job_labels: Sequence[str] | None) -> Endpoints:
    inputs, outputs = _sides(spec.inputs_dict, spec.outputs_dict, "ExportSpec", ("inputs_dict", "outputs_dict"))
    extra = {}
    for key, signature in spec.signatures.items():
        where = f"ExportSpec.signatures[{key!r}]"
        sides = _sides(signature.inputs, signature.outputs, where, ("inputs", "outputs"))
        extra[key] = replace(signature, inputs=sides[0], outputs=sides[1])
    labels = spec.labels if spec.labels is not None else job_labels
    return Endpoints(
        inputs,
        outputs,
        spec.scores,
        None if labels is None else tuple(str(name) for name in labels),
        spec.regression,
        extra,
        spec.example_spec,
        spec.default_signature,
    )


def _sides(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], where: str, fields: tuple[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the tensors of one signature, and tell outputs that are inputs apart from them."""
    given = {alias: _as_tensor(alias, value, f"{where}.{fields[0]}", True) for alias, value in inputs.items()}
    wanted = {alias: _as_tensor(alias, value, f"{where}.{fields[1]}", False) for alias, value in outputs.items()}
    graph = tf1.get_default_graph()
    seen: dict[str, str] = {}
    for alias, tensor in given.items():
        if not graph.is_feedable(tensor):
            raise ModelSpecError(f"{where}.{fields[0]}[{alias!r}]: {tensor.name} cannot be fed")
        if tensor.name in seen:
            raise ModelSpecError(f"{where}.{fields[0]}: {seen[tensor.name]!r} and {alias!r} are both {tensor.name}")
        seen[tensor.name] = alias
    # The server refuses to fetch a tensor that it feeds.
    return given, {a: tf.identity(t, f"{_op_name(a)}_output") if t.name in seen else t for a, t in wanted.items()}


def _op_name(alias: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", alias).lstrip("_") or "tensor"


def _as_tensor(alias: str, value: Any, field: str, is_input: bool) -> Any:
    if not alias:
        raise ModelSpecError(f"{field} has an empty name")
    if isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
        raise ModelSpecError(
            f"{field}[{alias!r}] is a {type(value).__name__}; expected a dense tensor",
            hint="convert it, for example with tf.sparse.to_dense",
        )
    if not isinstance(value, tf.Tensor):
        if is_input:
            raise ModelSpecError(f"{field}[{alias!r}] is {type(value).__name__}; expected a tf.Tensor")
        value = tf.convert_to_tensor(value)
    if value.graph is not tf1.get_default_graph():
        raise ModelSpecError(
            f"{field}[{alias!r}] ({value.name}) belongs to another graph",
            hint="make every tensor inside model_fn, from its inputs",
        )
    spec_of(f"{field}[{alias!r}]", value)
    return value


def ancestors(tensors: Iterable[Any], stop: Iterable[Any] = ()) -> list[Any]:
    """Return the operations that tensors depend on, data and control, not looking behind the `stop` tensors."""
    cut = {t.name for t in stop}
    pending = [t.op for t in tensors if t.name not in cut]
    found: dict[str, Any] = {}
    while pending:
        op = pending.pop()
        if op.name in found:
            continue
        found[op.name] = op
        pending += [t.op for t in op.inputs if t.name not in cut]
        pending += op.control_inputs
    return list(found.values())


def _check_reachable(endpoints: Endpoints, specs: Sequence[TensorSpec], placeholders: Sequence[Any]) -> None:
    names = {p.op.name: spec.name for p, spec in zip(placeholders, specs, strict=True)}
    for where, inputs, outputs in endpoints.sides():
        field_name = "ExportSpec.inputs_dict" if where == "ExportSpec" else f"{where}.inputs"
        for alias, tensor in outputs.items():
            for op in ancestors([tensor], inputs.values()):
                if op.type != "Placeholder":
                    continue
                given = ", ".join(f"{a!r} ({t.name})" for a, t in inputs.items())
                what = f"model_fn's input {names[op.name]!r}" if op.name in names else f"the placeholder {op.name!r}"
                raise ExportError(
                    f"output {alias!r} needs {what}; {field_name} has only {given}",
                    hint=f"add it to {field_name.partition('.')[2]}, or leave the output out",
                )


def needed_variables(outputs: Iterable[Any], inputs: Iterable[Any]) -> list[Any]:
    """Return the variables that outputs depend on, in the order of their creation.

    Raises:
        ExportError: an output depends on a variable that no checkpoint holds.
    """
    reached = {op.name: op for op in ancestors(outputs, inputs) if op.type in _VARIABLE_OPS}
    variables = [v for v in tf1.global_variables() if v.op.name in reached]
    homeless = sorted(reached.keys() - {v.op.name for v in variables})
    if homeless:
        raise ExportError(
            f"an output needs the variable {homeless[0]!r}, which is not in the GLOBAL_VARIABLES collection, "
            "so checkpoints do not hold it",
            hint="make it with tf.compat.v1.get_variable, without collections=",
        )
    return variables


def all_variables(endpoints: Endpoints) -> list[Any]:
    """Return the variables that any signature depends on, in the order of their creation."""
    found = {v.op.name for _, i, o in endpoints.sides() for v in needed_variables(o.values(), i.values())}
    return [v for v in tf1.global_variables() if v.op.name in found]


def copy_subgraph(outputs: Sequence[Any], instead: Mapping[str, Any], scope: str) -> list[Any]:
    """Compute tensors a second time, from other inputs.

    Weights, tables and constants are shared with the first computation; only what depends on something is copied.

    Args:
        outputs: the tensors to have again.
        instead: name of a tensor -> the tensor to take in its place.
        scope: name scope of the copies.

    Returns:
        The copies, in the order of `outputs`.
    """
    graph = tf1.get_default_graph()
    stop = [graph.get_tensor_by_name(name) for name in instead]
    operations = ancestors(outputs, stop)
    shared = {op.name for op in operations if not op.inputs and not op.control_inputs}
    again = list(dict.fromkeys(t.name for t in outputs if t.name not in instead and t.op.name not in shared))
    if not again:
        return [instead.get(t.name, t) for t in outputs]
    copied = [op for op in operations if op.name not in shared]
    used = {t.name: t for op in copied for t in op.inputs}
    mapping = {name: instead.get(name, t) for name, t in used.items() if name in instead or t.op.name in shared}
    copies = tf1.import_graph_def(_graph_def_of(copied, graph), mapping, again, name=scope)
    found = {**instead, **dict(zip(again, copies, strict=True))}
    return [found.get(t.name, t) for t in outputs]


def _graph_def_of(operations: Sequence[Any], graph: Any) -> Any:
    """Take operations out of a graph, with the functions that they call."""
    # A control dependency cannot be mapped to another operation, so what is only waited for is copied as well.
    wanted = {op.name for op in operations} | {c.name for op in operations for c in op.control_inputs}
    whole = graph.as_graph_def()
    graph_def = tf1.GraphDef(versions=whole.versions, library=whole.library)
    graph_def.node.extend(node for node in whole.node if node.name in wanted)
    for node in graph_def.node:
        node.attr.pop("_class", None)  # colocation with operations that are not copied
    return graph_def
