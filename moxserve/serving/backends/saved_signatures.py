"""The SignatureDefs of a SavedModel, read with our own messages: no TensorFlow, no graph, no variables."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from moxserve import file
from moxserve.errors import DataLoss, NotFound
from moxserve.protocol import messages

__all__ = ["no_such_tags", "read_signature_map"]


def read_signature_map(version_dir: str, graph: str, tags: Collection[str]) -> Any:
    """Read the signatures of the MetaGraph that has just these tags.

    Args:
        version_dir: where the SavedModel lies.
        graph: `saved_model.pb` or `saved_model.pbtxt`.
        tags: the whole tag set.

    Returns:
        A SignatureDefMap message.

    Raises:
        NotFound: no MetaGraph has these tags.
        DataLoss: the file is no SavedModel.
    """
    path = os.path.join(version_dir, graph)
    saved = messages.SavedModel()
    try:
        if graph.endswith(".pbtxt"):
            # A graph in text may hold the ops of any library; only its signatures are wanted.
            text_format.Parse(file.read(path), saved, descriptor_pool=messages.pool(), allow_unknown_field=True)
        else:
            saved.ParseFromString(file.read(path, binary=True))
    except (OSError, DecodeError, UnicodeDecodeError, text_format.ParseError) as error:
        raise DataLoss(f"{version_dir}: {graph} cannot be read: {error}") from error
    for meta_graph in saved.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            signature_map = messages.SignatureDefMap()
            for name, definition in meta_graph.signature_def.items():
                signature_map.signature_def[name].CopyFrom(definition)
            return signature_map
    raise no_such_tags(version_dir, tags)


def no_such_tags(version_dir: str, tags: Collection[str]) -> NotFound:
    """Return the error of a tag set that no MetaGraph has."""
    wanted = "{ " + " ".join(tags) + " }"
    return NotFound(
        f"Could not find meta graph def matching supplied tags: {wanted}. To inspect available tag-sets in the "
        f"SavedModel, please use the SavedModel CLI: `saved_model_cli`; path: {version_dir}"
    )
