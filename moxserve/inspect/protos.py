"""SavedModel, MetaGraphDef and GraphDef files, binary and text, read and written without TensorFlow.

A binary file does not say which of the three it is: a SavedModel begins with its schema version, a varint field 1; the
other two begin with a message in field 1, which is a node of a GraphDef when it has the name of an operation. Text says
it with the name of its first field.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from moxserve import file
from moxserve.errors import DataError, UsageError
from moxserve.protocol import messages

__all__ = ["Form", "GraphFile", "form_of", "parse_graph", "read_graph_file", "tensors_in", "to_text"]

Form = Literal["SavedModel", "MetaGraphDef", "GraphDef"]

_EXPECTED = "expected a SavedModel, a GraphDef or a MetaGraphDef, in binary or text"
_FIRST_FIELD = re.compile(r"(?:\s|#.*\n)*([a-z_]+)\s*[:{]")
_OP_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9_.>/-]*\Z")
_FIELDS: dict[str, Form] = {
    "saved_model_schema_version": "SavedModel", "meta_graphs": "SavedModel",
    "meta_info_def": "MetaGraphDef", "graph_def": "MetaGraphDef", "saver_def": "MetaGraphDef",
    "signature_def": "MetaGraphDef", "collection_def": "MetaGraphDef", "object_graph_def": "MetaGraphDef",
    "asset_file_def": "MetaGraphDef",
    "node": "GraphDef", "versions": "GraphDef", "version": "GraphDef", "library": "GraphDef",
    "debug_info": "GraphDef",
}  # fmt: skip


@dataclass(frozen=True)
class GraphFile:
    """A file with one graph or several.

    Attributes:
        path: of the file.
        form: which message it holds.
        message: that message, of our own pool.
        text: whether it is text.
    """

    path: str
    form: Form
    message: Any
    text: bool

    def meta_graphs(self) -> list[Any]:
        """Return the MetaGraphDefs; none of a GraphDef."""
        if self.form == "SavedModel":
            return list(self.message.meta_graphs)
        return [self.message] if self.form == "MetaGraphDef" else []

    def meta_graph(self, tags: Collection[str] = ()) -> Any:
        """Return the MetaGraphDef with these tags; without tags that of `serve`, else the first. None of a GraphDef.

        Raises:
            UsageError: no graph has these tags; names those that there are.
        """
        metas = self.meta_graphs()
        wanted = set(tags) or {"serve"}
        for meta in metas:
            if set(meta.meta_info_def.tags) == wanted:
                return meta
        if tags:
            known = "; ".join(",".join(meta.meta_info_def.tags) or "none" for meta in metas) or "it has no tags"
            raise UsageError(f"{self.path}: no graph has the tags {','.join(tags)}; there are: {known}")
        return metas[0] if metas else None

    def graph_def(self, tags: Collection[str] = ()) -> Any:
        """Return the GraphDef, of a SavedModel that of `meta_graph`."""
        return self.message if self.form == "GraphDef" else self.meta_graph(tags).graph_def


def read_graph_file(path: str) -> GraphFile:
    """Read a `.pb`, `.pbtxt` or `.meta` file.

    Raises:
        DataError: it holds none of the three messages, or is damaged; says which one it began as.
        MoxFileNotExistsException: it is not there.
    """
    data = file.read(path, binary=True)
    if not data:
        raise DataError(f"{path} is empty; {_EXPECTED}")
    return parse_graph(data, path)


def parse_graph(data: bytes, path: str) -> GraphFile:
    """Read the bytes of a file; see `read_graph_file`."""
    text = _as_text(data)
    form = _form_of_text(text, path) if text is not None else None
    if text is not None and form is not None:
        return GraphFile(path, form, _parse_text(text, form, path), text=True)
    form, message = _parse_binary(data, path)
    return GraphFile(path, form, message, text=False)


def form_of(data: bytes, path: str) -> Form:
    """Tell which message a file begins as, reading no more of it than that takes.

    Raises:
        DataError: it begins as none.
    """
    text = _as_text(data)
    form = _form_of_text(text, path) if text is not None else None
    return form or _parse_binary(data, path)[0]


def _form_of_text(text: str, path: str) -> Form | None:
    match = _FIRST_FIELD.match(text)
    form = _FIELDS.get(match.group(1)) if match else None
    if form is None and path.endswith((".pbtxt", ".txt")):
        first = f"it begins with {text.strip()[:40]!r}"
        raise DataError(f"{path} is not the protobuf text of a graph: {first}; {_EXPECTED}")
    return form


def _as_text(data: bytes) -> str | None:
    if b"\0" in data[:4096]:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _parse_text(text: str, form: Form, path: str) -> Any:
    try:
        return messages.parse_text(text, getattr(messages, form)())
    except text_format.ParseError as error:
        raise DataError(f"{path} is damaged: the text of a {form} was expected: {error}") from None


def _parse_binary(data: bytes, path: str) -> tuple[Form, Any]:
    order: tuple[Form, ...] = ("SavedModel", "GraphDef", "MetaGraphDef")
    failed = ""
    for form in order:
        # A SavedModel is the only one whose first byte is that of a varint, and is nothing else.
        if (data[0] == 0x08) != (form == "SavedModel"):
            continue
        message = getattr(messages, form)()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            failed = failed or f"the bytes of a {form} were expected, and they end or break off in the middle ({error})"
            continue
        if _plausible(form, message):
            return form, message
    raise DataError(f"{path} cannot be read: {failed or 'it holds no graph'}; {_EXPECTED}")


def _plausible(form: Form, message: Any) -> bool:
    """Tell whether what was parsed makes sense: any bytes without a wrong length parse as any message."""
    if form == "SavedModel":
        return len(message.meta_graphs) > 0
    graph = message if form == "GraphDef" else message.graph_def
    nodes = graph.node
    return len(nodes) > 0 and all(n.name and _OP_NAME.match(n.op) for n in nodes)


def to_text(message: Any) -> str:
    """Write a message as protobuf text, from which the same message can be read.

    Raises:
        DataError: it cannot: it has fields that this program's schema does not know.
    """
    for tensor in tensors_in(message):
        _keep_nan_bits(tensor)
    text: str = text_format.MessageToString(message, descriptor_pool=messages.pool())
    again = text_format.Parse(text, type(message)(), descriptor_pool=messages.pool())
    if again.SerializeToString(deterministic=True) != message.SerializeToString(deterministic=True):
        raise DataError(
            f"this {type(message).DESCRIPTOR.name} cannot be written as text without loss: it has fields that are not "
            "in TensorFlow 2.21's schema",
            hint="it was written by a newer TensorFlow; keep it binary",
        )
    return text


def tensors_in(message: Any) -> Iterator[Any]:
    """Yield every TensorProto in the nodes of a SavedModel, MetaGraphDef or GraphDef."""
    name = type(message).DESCRIPTOR.name
    if name == "SavedModel":
        graphs = [meta.graph_def for meta in message.meta_graphs]
    else:
        graphs = [message if name == "GraphDef" else message.graph_def]
    for graph in graphs:
        bodies = [graph.node, *(function.node_def for function in graph.library.function)]
        for value in (value for body in bodies for node in body for value in node.attr.values()):
            kind = value.WhichOneof("value")
            if kind == "tensor":
                yield value.tensor
            elif kind == "list":
                yield from value.list.tensor


_FLOAT_FIELDS = {"float_val": 4, "double_val": 8, "scomplex_val": 4, "dcomplex_val": 8}


def _keep_nan_bits(tensor: Any) -> None:
    """Store a tensor with unusual NaNs as raw content: text knows one NaN only, without sign and payload."""
    import numpy as np

    from moxserve.protocol.tensors import from_proto, to_proto

    for name, size in _FLOAT_FIELDS.items():
        if not len(getattr(tensor, name)):
            continue
        values = np.array(getattr(tensor, name), dtype=f"f{size}")
        odd = np.isnan(values) & (values.view(f"u{size}") != np.array(np.nan, values.dtype).view(f"u{size}"))
        if odd.any():
            tensor.CopyFrom(to_proto(from_proto(tensor)))
        return
