"""A frozen GraphDef as a source: wrapped as a SavedModel with one signature.

A frozen graph says neither what its inputs and outputs are called nor which they are. What the user does not name is
guessed, and told: inputs are the placeholders, outputs the tensors that nothing else uses.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moxserve.errors import ExportError, UsageError, did_you_mean, first_line
from moxserve.export.graphs import open_session
from moxserve.export.job import GraphJob
from moxserve.export.manifest import Source
from moxserve.export.place import place
from moxserve.export.savedmodel import channels_first_notes
from moxserve.export.sources import protos
from moxserve.export.sources.answers import Answers, Origin, collect, stage_answers
from moxserve.export.sources.base import StagedModel
from moxserve.export.sources.samples import given_samples
from moxserve.export.verify import Artifact
from moxserve.protocol.metadata import signature_from_def
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.types import DEFAULT_SIGNATURE, node_name

__all__ = ["GraphSource", "open_graph"]

_INPUT_OPS = ("Placeholder", "PlaceholderV2")
_VARIABLE_OPS = ("VarHandleOp", "VariableV2", "Variable")
_TABLE_INITIALIZERS = re.compile(r"InitializeTable|LookupTableImport")
# Nobody uses these, and nobody wants them.
_NO_OUTPUTS = frozenset(("NoOp", "Assert", "Const", "Placeholder", "PlaceholderV2", "Assign", "SaveV2", "RestoreV2"))
_NO_OUTPUT_WORDS = ("Summary", "Print")
_GUARD = "/AssertGuard/"


@dataclass(frozen=True)
class GraphSource:
    """A frozen graph that was read. See `OpenSource`.

    Attributes:
        job: what to export.
        graph_def: the graph.
        inputs: alias -> tensor name.
        outputs: alias -> tensor name.
        notes: what was guessed.
    """

    job: GraphJob
    graph_def: Any
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> int | str:
        """-1: a graph asks for no number."""
        return -1

    def stage(self, directory: str) -> StagedModel:
        """Write the graph as a SavedModel, and compare it with the graph.

        Raises:
            ExportError: TensorFlow cannot import or run the graph.
            DataError: the samples do not fit.
            VerificationError: the SavedModel answers differently.
        """
        with place("running the source"), self._loaded() as (session, definition):
            answers = self._ask(session, definition)
        protos.clear_devices(self.graph_def)
        with place("writing the SavedModel"), self._loaded() as (session, definition):
            _write(session, definition, self.graph_def, directory)
        keys = {DEFAULT_SIGNATURE: DEFAULT_SIGNATURE}
        source = Source(kind="frozen_graph", path=os.path.abspath(self.job.path))
        notes = (*self.notes, *channels_first_notes(self.graph_def))
        return stage_answers(
            self.job, answers, directory, Origin(DEFAULT_SIGNATURE, keys, "source graph", source, notes)
        )

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[tuple[Any, Any]]:
        """Yield a session on the graph, and its SignatureDef."""
        with open_session() as session:
            try:
                tf1.import_graph_def(self.graph_def, name="")
            except (ValueError, tf.errors.OpError) as error:
                raise ExportError(f"{self.job.path} cannot be imported: {first_line(error)}") from error
            sides = [
                {alias: session.graph.get_tensor_by_name(name) for alias, name in names.items()}
                for names in (self.inputs, self.outputs)
            ]
            initializers = _initializers(self.graph_def)
            if initializers:
                session.run(initializers)
            yield session, tf1.saved_model.predict_signature_def(*sides)

    def _ask(self, session: Any, definition: Any) -> Answers:
        signature = signature_from_def(DEFAULT_SIGNATURE, definition)
        if signature is None:
            raise ExportError("an input or output is of a type that no request can carry")
        samples = given_samples(self.job, signature)
        signatures = {DEFAULT_SIGNATURE: signature}
        return collect(Artifact(session, signatures), signatures, DEFAULT_SIGNATURE, samples)


def _initializers(graph_def: Any) -> list[str]:
    return [node.name for node in graph_def.node if _TABLE_INITIALIZERS.match(node.op)]


def _write(session: Any, definition: Any, graph_def: Any, directory: str) -> None:
    initializers = [session.graph.get_operation_by_name(name) for name in _initializers(graph_def)]
    builder = tf1.saved_model.Builder(directory)
    builder.add_meta_graph_and_variables(
        session,
        [tf1.saved_model.tag_constants.SERVING],
        signature_def_map={DEFAULT_SIGNATURE: definition},
        main_op=tf.group(*initializers) if initializers else None,
        strip_default_attrs=True,
    )
    builder.save()


@contextlib.contextmanager
def open_graph(job: GraphJob) -> Iterator[GraphSource]:
    """Read a frozen graph and find its inputs and outputs.

    Raises:
        UsageError: a tensor that was named is not in it, or nothing can be guessed.
        ExportError: it cannot be read, has variables, or operations that TensorFlow does not have.
    """
    with place("reading the graph"):
        graph_def = protos.read_graph_def(job.path)
        protos.check_operations(graph_def, job.path)
        _check_frozen(graph_def, job.path)
        tensors = _tensors(graph_def, job.path)
        inputs, told_inputs = _inputs(job, graph_def, tensors)
        outputs, told_outputs = _outputs(job, graph_def, tensors)
    yield GraphSource(job, graph_def, inputs, outputs, (*told_inputs, *told_outputs))


def _check_frozen(graph_def: Any, path: str) -> None:
    found = [node.name for node in graph_def.node if node.op in _VARIABLE_OPS]
    if found:
        raise ExportError(
            f"{path} has {len(found)} variables (the first is {found[0]!r}) and no values for them: it is not frozen",
            hint="export its checkpoint with --model-fn, or its SavedModel",
        )


def _tensors(graph_def: Any, path: str) -> dict[str, int]:
    """Return how many outputs each node has."""
    with tf.Graph().as_default() as graph:
        try:
            tf1.import_graph_def(graph_def, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise ExportError(f"{path} cannot be imported: {first_line(error)}") from error
        return {op.name: len(op.outputs) for op in graph.get_operations()}


def _check_names(given: Mapping[str, str], tensors: Mapping[str, int], side: str, path: str) -> dict[str, str]:
    """Return full tensor names.

    Raises:
        UsageError: a node or its output is not in the graph.
    """
    full = {}
    for alias, name in given.items():
        node, colon, index = name.partition(":")
        if not alias or node not in tensors:
            raise UsageError(f"{side} {alias!r}: {path} has no tensor {name!r}; {did_you_mean(node, sorted(tensors))}")
        if (colon and not index.isdecimal()) or int(index or 0) >= tensors[node]:
            raise UsageError(f"{side} {alias!r}: node {node!r} of {path} has {tensors[node]} outputs; got {name!r}")
        full[alias] = f"{node}:{index or 0}"
    return full


def _inputs(job: GraphJob, graph_def: Any, tensors: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    if job.inputs:
        return _check_names(job.inputs, tensors, "input", job.path), []
    found = {node.name: f"{node.name}:0" for node in graph_def.node if node.op in _INPUT_OPS}
    if not found:
        raise UsageError(f"{job.path} has no placeholders to take for inputs", hint="name them: --input ALIAS=TENSOR")
    return _aliases(found), [f"inputs were not named: its placeholders are taken, {', '.join(sorted(found))}"]


def _outputs(job: GraphJob, graph_def: Any, tensors: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    if job.outputs:
        return _check_names(job.outputs, tensors, "output", job.path), []
    used = {node_name(text) for node in graph_def.node for text in node.input}
    sinks = [node for node in graph_def.node if node.name not in used and _is_output(node, tensors)]
    found = {node.name: f"{node.name}:0" for node in sinks}
    if not found:
        raise UsageError(f"{job.path} has no tensor that nothing else uses", hint="name them: --output ALIAS=TENSOR")
    return _aliases(found), [f"outputs were not named: what nothing else uses is taken, {', '.join(sorted(found))}"]


def _is_output(node: Any, tensors: Mapping[str, int]) -> bool:
    odd = node.op in _NO_OUTPUTS or _GUARD in node.name or any(word in node.op for word in _NO_OUTPUT_WORDS)
    return not odd and tensors.get(node.name, 0) > 0


def _aliases(nodes: Mapping[str, str]) -> dict[str, str]:
    """Shorten node names to their last part where that stays unique."""
    short: dict[str, list[str]] = {}
    for name in nodes:
        short.setdefault(name.rpartition("/")[2], []).append(name)
    return {(s if len(names) == 1 else name): nodes[name] for s, names in short.items() for name in names}
