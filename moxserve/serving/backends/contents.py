"""What a version directory holds, told without loading any of it, and without a runtime.

    BASE/<version>/
      saved_model.pb (or .pbtxt), variables/, assets/      a SavedModel
      model.onnx  |  model.xml + model.bin  |  model.tflite    the same model, or the only one, in another format
      variants/<name>/model.onnx | model.xml + model.bin | model.tflite    further forms of it
      variants/<name>/saved_model.pb                       likewise, run by TensorFlow: frozen, or in another precision
      assets.extra/moxserve.json                           the manifest; its `variants` say more of each form

The manifest need not name a variant for it to be found; it tells what the files do not: precision, tolerance, which
signatures it serves, and what their tensors are called in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from moxserve import file
from moxserve.errors import DataError, DataLoss
from moxserve.export.manifest import Variant, read_manifest
from moxserve.file.filesystem import is_remote, join
from moxserve.types import Signature

__all__ = ["FORMATS", "GRAPH_FILES", "SAVED_MODEL", "Contents", "holds_model", "look", "model_files"]

SAVED_MODEL = "saved_model"
GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")
MODEL_FILES = {"model.onnx": "onnx", "model.xml": "openvino", "model.tflite": "tflite"}
VARIANTS_DIR = "variants"
FORMATS = frozenset(MODEL_FILES.values())


@dataclass(frozen=True, slots=True)
class Contents:
    """What a version directory holds.

    Attributes:
        path: the directory.
        graph: name of the file with the SavedModel's graph; empty when there is no SavedModel.
        variants: the other forms of the model, by name.
        signatures: of the manifest, by key; empty without one.
        own: what the manifest says of the SavedModel itself; None when it says nothing.
    """

    path: str
    graph: str
    variants: tuple[Variant, ...]
    signatures: Mapping[str, Signature]
    own: Variant | None = None

    def of(self, format_name: str) -> tuple[Variant, ...]:
        """Return the variants of a format."""
        return tuple(v for v in self.variants if v.format == format_name)

    def __str__(self) -> str:
        held = (["a SavedModel"] if self.graph else []) + [f"{v.name} ({v.format})" for v in self.variants]
        return ", ".join(held) or "no model"


def look(version_dir: str) -> Contents:
    """Look into a version directory.

    Raises:
        DataLoss: its manifest cannot be read.
    """
    try:
        manifest = read_manifest(version_dir)
    except DataError as error:
        raise DataLoss(error.message) from None
    told = manifest.variants if manifest else ()
    declared = [v for v in told if _stands_in(v)]
    paths = {os.path.normpath(v.path) for v in declared}
    found = [v for v in _found(version_dir) if v.path not in paths]
    graph = next((name for name in GRAPH_FILES if os.path.isfile(os.path.join(version_dir, name))), "")
    signatures = manifest.signature_map() if manifest else {}
    own = next((v for v in told if v.name == SAVED_MODEL and not _stands_in(v)), None)
    return Contents(version_dir, graph, tuple(sorted((*declared, *found), key=lambda v: v.name)), signatures, own)


def _stands_in(variant: Variant) -> bool:
    """Tell whether a declared variant is another form of the model, not the SavedModel that the version itself is."""
    return variant.format in FORMATS or (variant.format == SAVED_MODEL and os.path.normpath(variant.path) != ".")


def model_files(names: Iterable[str]) -> list[str]:
    """Return which files of a version, by relative path, are models in other formats where such models may lie."""
    return [name for name in names if _is_model(PurePath(name).parts)]


def _is_model(parts: tuple[str, ...]) -> bool:
    if len(parts) == 3 and parts[0] == VARIANTS_DIR:
        return parts[-1] in MODEL_FILES or parts[-1] in GRAPH_FILES
    return len(parts) == 1 and parts[0] in MODEL_FILES


def holds_model(version_dir: str) -> bool:
    """Tell whether a directory, here or in a store, is a version: a SavedModel, or a model in another format."""
    if is_remote(version_dir):
        names = file.list_directory(version_dir)
        if VARIANTS_DIR in names:
            below = file.list_directory(join(version_dir, VARIANTS_DIR), recursive=True)
            names += [join(VARIANTS_DIR, name) for name in below]
        return not set(GRAPH_FILES).isdisjoint(names) or bool(model_files(names))
    return any(os.path.isfile(os.path.join(version_dir, name)) for name in GRAPH_FILES) or bool(_found(version_dir))


def _found(version_dir: str) -> list[Variant]:
    """Return the variants that lie where variants lie, each named after its directory, or its format at the top."""
    folder = os.path.join(version_dir, VARIANTS_DIR)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    places = [("", "")] + [(name, os.path.join(VARIANTS_DIR, name)) for name in names]
    found = [
        Variant(name=name or format_name, format=format_name, path=os.path.join(place, model))
        for name, place in places
        for model, format_name in MODEL_FILES.items()
        if os.path.isfile(os.path.join(version_dir, place, model))
    ]
    return found + [
        Variant(name=name, format=SAVED_MODEL, path=place)
        for name, place in places[1:]
        if any(os.path.isfile(os.path.join(version_dir, place, graph)) for graph in GRAPH_FILES)
    ]
