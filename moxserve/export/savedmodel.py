"""Writing a SavedModel: signatures, weights, tables and assets, without devices and without what only training needs.

The model is built anew by model_fn in mode EXPORT and restored from the checkpoint; the training graph is never
exported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moxserve import file
from moxserve.errors import ExportError
from moxserve.export.graphs import Endpoints, ModelSession, all_variables, open_model
from moxserve.export.job import ExportJob
from moxserve.export.signatures import LABELS_FILE, SignatureGraph, build_signatures, plan_signatures
from moxserve.tensorflow.executor.env import tf1
from moxserve.types import Signature, node_name

__all__ = ["Written", "channels_first_notes", "write_saved_model"]

_SAVED_MODEL = "saved_model.pb"
# Collections that loaders read; everything else speaks about training.
_KEPT_COLLECTIONS = {"saved_model_assets", "saved_model_main_op", "asset_filepaths", "table_initializer"}
_VARIABLE_COLLECTIONS = {"variables", "trainable_variables"}


@dataclass(frozen=True)
class Written:
    """A SavedModel on disk.

    Attributes:
        signatures: by key.
        notes: what the caller should know about it.
    """

    signatures: Mapping[str, Signature]
    notes: tuple[str, ...] = ()


def write_saved_model(job: ExportJob, directory: str) -> Written:
    """Build the model in mode EXPORT and write it.

    Args:
        job: what to export.
        directory: empty directory to write into.

    Returns:
        Its signatures, and what is to be told.

    Raises:
        ModelSpecError: the ExportSpec is missing or cannot be exported.
        ExportError: an output cannot be computed from the inputs.
        CheckpointError: the checkpoint does not fit the model.
    """
    with file.scratch_directory() as assets, open_model(job) as model:
        labels_path = _write_labels(model.endpoints, assets)
        built = build_signatures(model.endpoints, labels_path)
        _build(model, built, directory)
    graph_def = _prune(os.path.join(directory, _SAVED_MODEL))
    return Written(built.signatures, tuple(channels_first_notes(graph_def)))


def channels_first_notes(graph_def: Any) -> Iterator[str]:
    """Yield what to tell of a graph that servers without a GPU may refuse."""
    formats = ((n.name, n.attr["data_format"].s) for n in graph_def.node if "data_format" in n.attr)
    channels_first = [name for name, data_format in formats if data_format.startswith(b"NCHW")]
    if channels_first:
        yield (
            f"{len(channels_first)} operations are in NCHW format (the first is {channels_first[0]!r}), which servers "
            "without a GPU may refuse; build the model in NHWC for mode EXPORT"
        )


def _write_labels(endpoints: Endpoints, folder: str) -> str | None:
    if endpoints.labels is None or not any(p.method == "classify" for p in plan_signatures(endpoints).values()):
        return None
    path = os.path.join(folder, LABELS_FILE)
    file.write(path, "".join(f"{label}\n" for label in endpoints.labels))
    return path


def _build(model: ModelSession, built: SignatureGraph, directory: str) -> None:
    if built.asset is not None:
        tf1.add_to_collection(tf1.GraphKeys.ASSET_FILEPATHS, built.asset)
    tables = tf1.get_collection(tf1.GraphKeys.TABLE_INITIALIZERS)
    variables = all_variables(model.endpoints)
    builder = tf1.saved_model.Builder(directory)
    builder.add_meta_graph_and_variables(
        model.session,
        [tf1.saved_model.tag_constants.SERVING],
        signature_def_map=dict(built.protos),
        assets_collection=tf1.get_collection(tf1.GraphKeys.ASSET_FILEPATHS),
        main_op=tf1.tables_initializer() if tables else None,
        clear_devices=True,
        strip_default_attrs=True,
        saver=tf1.train.Saver(variables, allow_empty=True),
    )
    builder.save()


def _prune(path: str) -> Any:
    """Drop every node that no signature, weight or table needs: losses, labels, summaries.

    Returns:
        The GraphDef that is left.

    Raises:
        ExportError: the file does not hold exactly one graph.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(file.read(path, binary=True))
    if len(saved.meta_graphs) != 1:
        raise ExportError(f"{path}: expected one graph, found {len(saved.meta_graphs)}")
    meta = saved.meta_graphs[0]
    kept_variables = _prune_variables(meta)
    roots = {node_name(name) for name in _referenced(meta)} | kept_variables
    graph_def = tf1.graph_util.extract_sub_graph(meta.graph_def, sorted(roots))
    names = {node.name for node in graph_def.node}
    for node in graph_def.node:
        _drop_dangling_colocation(node, names)
    _hide_asset_paths(meta, graph_def, os.path.join(os.path.dirname(path), "assets"))
    meta.graph_def.CopyFrom(graph_def)
    file.write(path, saved.SerializeToString(deterministic=True), binary=True)
    return graph_def


def _referenced(meta: Any) -> Iterator[str]:
    """Yield the names of all nodes that a loader looks up."""
    for signature in meta.signature_def.values():
        for info in (*signature.inputs.values(), *signature.outputs.values()):
            yield info.name
    saver = meta.saver_def
    yield from (n for n in (saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name) if n)
    for key in [key for key in meta.collection_def if key not in _KEPT_COLLECTIONS | _VARIABLE_COLLECTIONS]:
        del meta.collection_def[key]
    for key in _KEPT_COLLECTIONS:
        if key in meta.collection_def:
            yield from meta.collection_def[key].node_list.value
    for asset in _assets(meta):
        yield asset.tensor_info.name


def _prune_variables(meta: Any) -> set[str]:
    """Keep the variables that are saved, and return the names of the nodes that belong to them."""
    from tensorflow.core.framework import variable_pb2

    saved = _saved_nodes(meta)
    nodes: set[str] = set()
    for key in _VARIABLE_COLLECTIONS:
        if key not in meta.collection_def:
            continue
        values = meta.collection_def[key].bytes_list.value
        kept = []
        for raw in values:
            definition = variable_pb2.VariableDef.FromString(raw)
            if node_name(definition.variable_name) in saved:
                kept.append(raw)
                parts = (definition.variable_name, definition.initializer_name, definition.snapshot_name)
                nodes |= {node_name(n) for n in (*parts, definition.initial_value_name) if n}
        del values[:]
        values.extend(kept)
    return nodes


def _saved_nodes(meta: Any) -> set[str]:
    """Return the names of all nodes that the saver writes, directly or through a read."""
    if not meta.saver_def.restore_op_name:
        return set()
    restore = tf1.graph_util.extract_sub_graph(meta.graph_def, [meta.saver_def.restore_op_name])
    return {node.name for node in restore.node}


def _drop_dangling_colocation(node: Any, names: set[str]) -> None:
    if "_class" not in node.attr:
        return
    kept = [c for c in node.attr["_class"].list.s if c.decode().removeprefix("loc:@") in names]
    if kept:
        del node.attr["_class"].list.s[:]
        node.attr["_class"].list.s.extend(kept)
    else:
        del node.attr["_class"]


def _assets(meta: Any) -> list[Any]:
    """Return the AssetFileDefs; the builder of TensorFlow 1 keeps them in a collection."""
    from tensorflow.core.protobuf import meta_graph_pb2

    found = list(meta.asset_file_def)
    for packed in meta.collection_def["saved_model_assets"].any_list.value if _has_assets(meta) else ():
        asset = meta_graph_pb2.AssetFileDef()
        packed.Unpack(asset)
        found.append(asset)
    return found


def _has_assets(meta: Any) -> bool:
    return "saved_model_assets" in meta.collection_def


def _hide_asset_paths(meta: Any, graph_def: Any, assets_dir: str) -> None:
    """Put the assets' names in the place of paths on this machine; loaders feed the real path."""
    files = {node_name(asset.tensor_info.name): asset.filename for asset in _assets(meta)}
    nodes = {node.name: node for node in graph_def.node}
    for name, filename in files.items():
        nodes[name].attr["value"].tensor.string_val[:] = [filename.encode()]
    for node in graph_def.node:
        if node.op == "InitializeTableFromTextFileV2" and node_name(node.input[1]) in files:
            path = os.path.join(assets_dir, files[node_name(node.input[1])])
            _name_by_content(nodes[node_name(node.input[0])], node, path)


def _name_by_content(table: Any, initializer: Any, path: str) -> None:
    """Rename a table that TensorFlow names after its file's path.

    A process that loads two versions shares tables of one name, so equal names must mean equal tables: the name goes by
    the file's content and by how it is read.
    """
    how = (initializer.attr[key].i for key in ("key_index", "value_index", "vocab_size"))
    described = "-".join([*map(str, how), initializer.attr["delimiter"].s.decode()])
    digest = hashlib.sha256(file.read(path, binary=True) + described.encode()).hexdigest()
    table.attr["shared_name"].s = f"table_{digest[:32]}".encode()
