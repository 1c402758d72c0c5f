"""SavedModels as protocol buffers: read, found complete, cleaned and written, without a session.

The graph is never rebuilt, so whatever TensorFlow wrote (functions, object graph, tables) stays as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from moxserve import file
from moxserve.errors import ExportError, UsageError, did_you_mean
from moxserve.types import Signature, node_name

__all__ = [
    "check_operations",
    "check_signatures",
    "check_variables",
    "clear_devices",
    "needs_variables",
    "read_graph_def",
    "read_meta_graph",
    "select_signatures",
    "unknown_operations",
    "write_meta_graph",
]

SAVED_MODEL = "saved_model.pb"
_SAVED_MODEL_TEXT = "saved_model.pbtxt"
_VERSION = re.compile(r"[0-9]+\Z", re.ASCII)
_VARIABLE_OPS = frozenset(("VarHandleOp", "VariableV2", "Variable"))


def read_meta_graph(path: str, tags: Sequence[str]) -> Any:
    """Read the graph of a SavedModel that has just these tags.

    Args:
        path: the folder with `saved_model.pb` or `saved_model.pbtxt`.
        tags: the whole tag set.

    Returns:
        A MetaGraphDef.

    Raises:
        ExportError: there is no SavedModel, or it cannot be read.
        UsageError: no graph has these tags.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    saved = _parse(_find(path), saved_model_pb2.SavedModel())
    for meta in saved.meta_graphs:
        if set(meta.meta_info_def.tags) == set(tags):
            return meta
    known = [", ".join(sorted(meta.meta_info_def.tags)) or "no tags" for meta in saved.meta_graphs]
    if not known:
        raise ExportError(f"{path}: the SavedModel holds no graph")
    raise UsageError(
        f"{path} has no graph tagged {', '.join(tags) or 'nothing'}; it has graphs tagged: {'; '.join(known)}",
        hint="--tags TAG,TAG takes one of these",
    )


def _find(path: str) -> str:
    for name in (SAVED_MODEL, _SAVED_MODEL_TEXT):
        found = os.path.join(path, name)
        if os.path.isfile(found):
            return found
    if not os.path.isdir(path):
        raise ExportError(f"{path!r} is no folder; a SavedModel is a folder with {SAVED_MODEL}")
    names = os.listdir(path)
    if "export.meta" in names:
        raise ExportError(f"{path} holds a session bundle, the form before SavedModel; TensorFlow 2 cannot read it")
    versions = sorted((n for n in names if _VERSION.match(n) and os.path.isdir(os.path.join(path, n))), key=int)
    hint = f"it has versions: {os.path.join(path, versions[-1])} is the newest" if versions else None
    raise ExportError(f"{path} holds no SavedModel: neither {SAVED_MODEL} nor {_SAVED_MODEL_TEXT} is in it", hint=hint)


def _parse(path: str, message: Any) -> Any:
    """Read a message in either form.

    Raises:
        ExportError: the file cannot be read, or is something else.
    """
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    try:
        if path.endswith(".pbtxt"):
            text_format.Parse(file.read(path), message)
        else:
            message.ParseFromString(file.read(path, binary=True))
    except (OSError, DecodeError, UnicodeDecodeError, text_format.ParseError) as error:
        kind = type(message).__name__
        raise ExportError(f"{path} cannot be read as a {kind}: {type(error).__name__}: {error}") from error
    return message


def read_graph_def(path: str) -> Any:
    """Read a GraphDef from a `.pb` or `.pbtxt` file.

    Raises:
        ExportError: the file cannot be read, holds something else, or an empty graph.
    """
    from tensorflow.core.framework import graph_pb2

    if not os.path.isfile(path):
        raise ExportError(f"there is no file {path!r}; expected a frozen GraphDef, .pb or .pbtxt")
    graph_def = _parse(path, graph_pb2.GraphDef())
    if not graph_def.node or any(not node.op for node in graph_def.node):
        # A SavedModel, parsed as a GraphDef, gives no error, only nonsense.
        hint = "give the folder" if os.path.basename(path).startswith("saved_model.") else None
        raise ExportError(f"{path} holds no graph; expected a frozen GraphDef", hint=hint)
    return graph_def


def _all_nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def unknown_operations(graph_def: Any) -> list[str]:
    """Return the operations of a graph that this TensorFlow does not have, sorted."""
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name for function in graph_def.library.function}
    gradients = {gradient.gradient_func for gradient in graph_def.library.gradient}
    used = {node.op for node in _all_nodes(graph_def)} - functions - gradients
    return sorted(op for op in used if op_def_registry.get(op) is None)


def check_operations(graph_def: Any, path: str, libraries: Sequence[str] = ()) -> None:
    """Check that this TensorFlow can run a graph.

    Args:
        graph_def: the graph.
        path: of the model.
        libraries: those that the model brings, relative to it; they are named, not loaded.

    Raises:
        ExportError: it lacks an operation.
    """
    unknown = unknown_operations(graph_def)
    if unknown:
        raise ExportError(
            f"{path} needs operations that TensorFlow does not have: {', '.join(unknown)}",
            hint="name the shared object that holds them, which runs native code here: --op-library "
            + (os.path.join(path, libraries[0]) if libraries else "FILE.so"),
        )


def check_signatures(graph_def: Any, signatures: Iterable[Signature], path: str) -> None:
    """Check that the tensors that signatures name are in the graph.

    Raises:
        ExportError: one is not.
    """
    names = {node.name for node in graph_def.node}
    for signature in signatures:
        for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
            for alias, spec in specs.items():
                node = node_name(spec.tensor)
                if node not in names:
                    raise ExportError(
                        f"{path}: signature {signature.name!r}, {side} {alias!r}: the graph has no tensor "
                        f"{spec.tensor!r}; {did_you_mean(node, sorted(names))}"
                    )


def needs_variables(meta: Any) -> bool:
    """Tell whether a graph has variables that are restored from files."""
    return bool(meta.saver_def.restore_op_name) and any(n.op in _VARIABLE_OPS for n in _all_nodes(meta.graph_def))


def check_variables(meta: Any, path: str) -> None:
    """Check that the files with the variables are there.

    Raises:
        ExportError: one is missing.
    """
    if not needs_variables(meta):
        return
    folder = os.path.join(path, "variables")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if "variables.index" not in names:
        raise ExportError(f"{path}: variables/variables.index is missing, which holds the weights of this graph")
    shards = [m for m in (re.fullmatch(r"variables\.data-(\d+)-of-(\d+)", n) for n in names) if m]
    wanted = max((int(m[2]) for m in shards), default=1)
    missing = sorted(set(range(wanted)) - {int(m[1]) for m in shards if int(m[2]) == wanted})
    if missing:
        name = f"variables.data-{missing[0]:05d}-of-{wanted:05d}"
        raise ExportError(f"{path}: variables/{name} is missing, which holds weights of this graph")


def clear_devices(graph_def: Any) -> None:
    """Take the devices out of all nodes, functions included."""
    for node in _all_nodes(graph_def):
        node.device = ""


def select_signatures(meta: Any, keys: Mapping[str, str]) -> None:
    """Leave these signatures only, under new keys.

    Args:
        meta: changed in place.
        keys: key to be -> key that is.
    """
    kept = {new: type(meta.signature_def[old]).FromString(meta.signature_def[old].SerializeToString())
            for new, old in {**{k: k for k in meta.signature_def if k.startswith("__")}, **keys}.items()}  # fmt: skip
    meta.signature_def.clear()
    for key, definition in kept.items():
        meta.signature_def[key].CopyFrom(definition)
    _select_objects(meta.object_graph_def, keys)


def _select_objects(objects: Any, keys: Mapping[str, str]) -> None:
    """Do the same to the objects that tf.saved_model.load goes by; SavedModels of TensorFlow 1 have none."""
    if not objects.nodes:
        return
    found = [child.node_id for child in objects.nodes[0].children if child.local_name == "signatures"]
    for number in found:
        node = objects.nodes[number]
        ids = {child.local_name: child.node_id for child in node.children}
        del node.children[:]
        for new, old in keys.items():
            if old in ids:
                node.children.add(node_id=ids[old], local_name=new)


def write_meta_graph(meta: Any, directory: str) -> None:
    """Write `saved_model.pb` with one graph, tagged as servers expect it."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    saved.meta_graphs.add().CopyFrom(meta)
    del saved.meta_graphs[0].meta_info_def.tags[:]
    saved.meta_graphs[0].meta_info_def.tags.append("serve")
    file.write(os.path.join(directory, SAVED_MODEL), saved.SerializeToString(deterministic=True), binary=True)
