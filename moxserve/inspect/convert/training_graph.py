"""A SavedModel from a checkpoint and its `.meta`, for models whose source is lost. The graph is that of training.

The exporter does the work, as if the stored graph were a model_fn: cut to the outputs, without devices, its variables
restored. What it cannot do is turn dropout off or take a batch norm's moving averages: those are in the graph as they
were written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moxserve import file
from moxserve.errors import CheckpointError, DataError, ExportError, UsageError, did_you_mean, first_line
from moxserve.inspect.graphs import ancestors, known_operations, look_at
from moxserve.inspect.protos import read_graph_file
from moxserve.types import node_name

if TYPE_CHECKING:
    from moxserve.inspect.convert.run import Conversion

__all__ = ["to_saved_model"]

_READERS = ("IteratorGetNext", "IteratorGetNextSync", "QueueDequeueV2", "QueueDequeueManyV2", "QueueDequeueUpToV2")
_RANDOM = (
    "RandomUniform",
    "RandomStandardNormal",
    "StatelessRandomUniform",
    "StatelessRandomUniformV2",
    "TruncatedNormal",
)


def to_saved_model(prefix: str, meta_path: str, asked: Conversion) -> tuple[dict[str, Any], list[str]]:
    """Write a SavedModel with one signature, `serving_default`.

    Args:
        prefix: of the checkpoint.
        meta_path: the MetaGraphDef; empty takes `PREFIX.meta`.
        asked: `inputs` and `outputs` by alias, and where to.

    Returns:
        Facts and notes.

    Raises:
        UsageError: there is no `.meta`, an endpoint is not in it, or an output needs an input that is not named.
        CheckpointError: the checkpoint is missing, or does not fit.
        ExportError: the graph cannot be loaded.
    """
    path = meta_path or f"{prefix}.meta"
    if not os.path.isfile(path):
        raise UsageError(
            f"{path} is not there: a checkpoint does not say what its graph is",
            hint="--meta FILE; where model_fn or the run is at hand, moxserve export makes a SavedModel for inference",
        )
    if not os.path.isfile(f"{prefix}.index"):
        raise CheckpointError(f"there is no checkpoint {prefix!r}: {os.path.basename(prefix)}.index is missing")
    found = read_graph_file(path)
    if found.form != "MetaGraphDef":
        raise DataError(f"{path} holds a {found.form}; expected a MetaGraphDef, which tf.train.Saver writes as .meta")
    graph_def = found.graph_def()
    _check_endpoints(path, graph_def, asked)
    signature = _write(path, prefix, asked)
    return {"signature": signature}, list(_warnings(graph_def, asked))


def _check_endpoints(path: str, graph_def: Any, asked: Conversion) -> None:
    """Refuse endpoints that the graph lacks, and outputs that need what nobody will feed."""
    nodes = {node.name: node for node in graph_def.node}
    placeholders = [n.name for n in graph_def.node if n.op == "Placeholder"]
    for option, endpoints in (("--input", asked.inputs), ("--output", asked.outputs)):
        if not endpoints:
            known = f"; its placeholders: {', '.join(placeholders[:8]) or 'none'}" if option == "--input" else ""
            raise UsageError(f"nothing says what {path} takes and gives{known}", hint=f"{option} NAME=TENSOR")
        for alias, tensor in endpoints.items():
            if node_name(tensor) not in nodes:
                near = did_you_mean(node_name(tensor), placeholders if option == "--input" else nodes)
                raise UsageError(f"{option} {alias}={tensor}: {path} has no such tensor; {near}")
    fed = {node_name(tensor) for tensor in asked.inputs.values()}
    cut = _without(graph_def, fed)
    for alias, tensor in asked.outputs.items():
        for name in sorted(ancestors(cut, [tensor]) - fed):
            if nodes[name].op in ("Placeholder", *_READERS):
                raise UsageError(
                    f"output {alias!r} needs {name!r} ({nodes[name].op}), which is no input",
                    hint=f"--input NAME={name}:0, or choose an output that does not depend on it",
                )
    unknown = sorted(set(look_at(graph_def).unknown) - known_operations())
    if unknown:
        raise ExportError(f"{path} needs operations that TensorFlow does not have: {', '.join(unknown)}")


def _without(graph_def: Any, fed: set[str]) -> Any:
    """Return the graph as it is when the values of some nodes are given: nothing lies behind these."""
    cut = type(graph_def)()
    cut.CopyFrom(graph_def)
    for node in cut.node:
        if node.name in fed:
            del node.input[:]
    return cut


def _write(meta_path: str, prefix: str, asked: Conversion) -> str:
    from moxserve.export.job import ExportJob
    from moxserve.export.savedmodel import write_saved_model
    from moxserve.types import TensorSpec, dtype_by_name

    unused = TensorSpec("moxserve_unused", dtype_by_name("float32"), ())
    model_fn = _model_fn(meta_path, asked.inputs, asked.outputs)
    parent = os.path.dirname(os.path.abspath(asked.destination))
    job = ExportJob(model_fn=model_fn, inputs=[unused], checkpoint=prefix, base_dir=parent)
    with file.staging_directory(parent) as staging:
        fresh = os.path.join(staging, "new")
        written = write_saved_model(job, fresh)
        if os.path.isdir(asked.destination):
            # With --force: the old one is put aside, and goes with the staging directory.
            os.rename(asked.destination, os.path.join(staging, "old"))
        file.publish_directory(fresh, asked.destination)
        shutil.rmtree(os.path.join(staging, "old"), ignore_errors=True)
    return str(next(iter(written.signatures.values())))


def _model_fn(meta_path: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Any:
    def stored_graph(_inputs: Sequence[Any], _mode: str) -> Any:
        from moxserve.tensorflow.executor.env import tf, tf1
        from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

        try:
            tf1.train.import_meta_graph(meta_path, clear_devices=True)
        except (tf.errors.OpError, ValueError, KeyError, OSError) as error:
            raise ExportError(f"{meta_path} cannot be loaded: {first_line(error)}") from error
        graph = tf1.get_default_graph()

        def tensors(endpoints: Mapping[str, str]) -> dict[str, Any]:
            return {alias: _tensor(graph, name) for alias, name in endpoints.items()}

        return ModelSpec(export_spec=ExportSpec(tensors(inputs), tensors(outputs)))

    return stored_graph


def _tensor(graph: Any, name: str) -> Any:
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError) as error:
        raise UsageError(f"there is no tensor {name!r} in the graph: {first_line(error)}") from None


def _warnings(graph_def: Any, asked: Conversion) -> Sequence[str]:
    """Say what in the outputs behaves as in training."""
    notes = ["this is the graph that was trained, not one for inference; moxserve export builds that from model_fn"]
    fed = {node_name(tensor) for tensor in asked.inputs.values()}
    cut = _without(graph_def, fed)
    reached = ancestors(cut, list(asked.outputs.values()))
    used = [node for node in cut.node if node.name in reached]
    training = [n.name for n in used if n.op.startswith("FusedBatchNorm") and n.attr["is_training"].b]
    if training:
        notes.append(f"{len(training)} batch norms normalise by the batch at hand, as in training ({training[0]} …)")
    random = [n.name for n in used if n.op.startswith(_RANDOM)]
    if random:
        notes.append(f"{len(random)} random operations, such as dropout's, change the answers ({random[0]} …)")
    return notes
