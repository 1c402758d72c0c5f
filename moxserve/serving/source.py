"""Finds the versions of a model, on disk or in a bucket, and tells complete ones from those still being written.

A version is a directory below the base path whose whole name is a number (`export.versions.parse_version`). It counts
as complete when it holds a model that can be loaded:

* `saved_model.pb` or `saved_model.pbtxt` is there (or `export.meta`, the retired format, so that its error is told), or
  a model in another format: `model.onnx`, `model.tflite`, or `model.xml` with its `model.bin`, at the top or in a
  directory below `variants/`;
* a graph with variables has `variables/variables.index` and every shard of its data;
* with our manifest, `assets.extra/moxserve.json`, every file that it names is there with the size that it tells.

Our exporter renames a finished directory into place, so its versions are complete at first sight. One that another
program copies is checked against the rules above at each poll; the manager waits besides until two polls see the same
files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from moxserve import file
from moxserve.errors import DataError
from moxserve.export.manifest import MANIFEST_PATH, Manifest, read_manifest
from moxserve.export.versions import parse_version
from moxserve.file.filesystem import is_remote, locate
from moxserve.serving.backends.contents import GRAPH_FILES, model_files

__all__ = ["FoundVersion", "Listing", "find_versions"]

# Name, size in bytes, time of the last change in ns.
Files = tuple[tuple[str, tuple[int, int]], ...]

_SHARD = re.compile(r"variables/variables\.data-\d{5}-of-(\d{5})")
_VARIABLE_OPS = (b"VarHandleOp", b"VariableV2")


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A complete version.

    Attributes:
        version: its number.
        path: its directory.
        fingerprint: names, sizes and times of its files; differs when one of them was written again.
        sealed: whether a manifest vouches for its files.
    """

    version: int
    path: str
    fingerprint: int
    sealed: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """What is below a base path.

    Attributes:
        versions: the complete ones, by number.
        incomplete: number -> what is missing.
        doubled: directory names that lost against another name of the same number, such as `1` against `00001`.
        others: names that are no version numbers.
    """

    versions: Mapping[int, FoundVersion] = field(default_factory=dict)
    incomplete: Mapping[int, str] = field(default_factory=dict)
    doubled: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def find_versions(base_path: str) -> Listing:
    """List the versions below a base path.

    Raises:
        MoxFileNotExistsException: the base path does not exist.
        OSError: it cannot be read.
    """
    folders, others = _remote_folders(base_path) if is_remote(base_path) else _local_folders(base_path)
    names: dict[int, str] = {}
    doubled = []
    for name in sorted(folders):
        number = parse_version(name)
        if number is None:
            continue
        if number in names:
            doubled.append(names[number])
        names[number] = name
    versions, incomplete = {}, {}
    for number, name in names.items():
        path = os.path.join(base_path, name)
        files = folders[name]
        try:
            missing = _missing(path, files)
        except OSError as error:
            missing = f"it changed while it was looked at: {error}"
        if missing:
            incomplete[number] = missing
        else:
            sealed = any(name == MANIFEST_PATH for name, _ in files)
            versions[number] = FoundVersion(number, path, hash(files), sealed)
    return Listing(versions, incomplete, tuple(doubled), tuple(sorted(others)))


def _local_folders(base_path: str) -> tuple[dict[str, Files], list[str]]:
    """Return the files of each directory whose name is a number, and the other names."""
    folders, others = {}, []
    with file.scan_dir(base_path) as entries:
        for entry in entries:
            if parse_version(entry.name) is None or not entry.is_dir():
                others.append(entry.name)
            else:
                folders[entry.name] = _files(os.path.join(base_path, entry.name))
    return folders, others


def _remote_folders(base_path: str) -> tuple[dict[str, Files], list[str]]:
    """The same for a store, by one listing of everything below the base path: a request for each thousand files."""
    fs, path = locate(base_path)
    found: dict[str, list[tuple[str, tuple[int, int]]]] = {}
    others = set()
    for info in fs.contents(path):
        folder, sep, name = info.name.partition("/")
        if sep and parse_version(folder) is not None:
            found.setdefault(folder, []).append((name, (info.size_bytes, info.mtime_ns)))
        elif not folder.startswith(".moxserve-"):  # uploads and reservations of our exporter
            others.add(folder)
    return {folder: tuple(sorted(files)) for folder, files in found.items()}, list(others)


@lru_cache(maxsize=1024)
def _missing(path: str, files: Files) -> str:
    """Tell what a version lacks; empty when it is complete. Files that did not change are not read again."""
    names = {name for name, _ in files}
    graph = next((name for name in (*GRAPH_FILES, "export.meta") if name in names), None)
    models = model_files(names)
    if graph is None and not models:
        return "no saved_model.pb, and no model.onnx, model.xml or model.tflite"
    try:
        manifest = read_manifest(path) if MANIFEST_PATH in names else None
    except DataError as error:
        return error.message
    wrong = "" if manifest is None else _unlike(manifest, {name: size for name, (size, _) in files})
    if wrong:
        return wrong
    if graph is None:
        return _missing_weights(models, names)
    return "" if graph == "export.meta" else _missing_variables(os.path.join(path, graph), names)


def _unlike(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Tell the first file that is not as the manifest says, by its size; empty when all are."""
    for name, entry in manifest.files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != entry.size_bytes:
            return f"{name} has {sizes[name]} bytes; the manifest says {entry.size_bytes}"
    return ""


def _files(path: str) -> Files:
    """Return (relative name, (size in bytes, time of last change in ns)) of every file below a directory, sorted."""
    fs, path = locate(path)
    return tuple(sorted((info.name, (info.size_bytes, info.mtime_ns)) for info in fs.contents(path)))


def _missing_weights(models: Collection[str], names: Collection[str]) -> str:
    """Tell which of the models lacks its weights, unless one of them is whole."""
    lacking = [weights for name in models if name.endswith(".xml") and (weights := f"{name[:-4]}.bin") not in names]
    return f"{lacking[0]} is missing" if len(lacking) == len(models) else ""


def _missing_variables(graph: str, names: Collection[str]) -> str:
    shards = [m for name in names if (m := _SHARD.fullmatch(name))]
    if os.path.join("variables", "variables.index") not in names:
        if shards or _has_variables(graph):
            return "variables/variables.index is missing, and the graph has variables"
        return ""
    if not shards or len(shards) < int(shards[0][1]):
        return f"{len(shards)} of {int(shards[0][1]) if shards else 'its'} variables.data shards are there"
    return ""


def _has_variables(graph: str) -> bool:
    """Tell whether a graph names a variable operation. Op names stand in the file as they are, so no parsing."""
    data: bytes = file.read(graph, binary=True)
    return any(op in data for op in _VARIABLE_OPS)
