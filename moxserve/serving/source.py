"""Finds the versions of a model on disk, and tells complete ones from those that are still being written.

A version is a directory below the base path whose whole name is a number (`export.versions.parse_version`). It counts
as complete when it holds a model that can be loaded:

* `saved_model.pb` or `saved_model.pbtxt` is there (or `export.meta`, the retired format, so that its error is told);
* a graph with variables has `variables/variables.index` and every shard of its data;
* with our manifest, `assets.extra/moxserve.json`, every file that it names is there with the size that it tells.

Our exporter renames a finished directory into place, so its versions are complete at first sight. One that another
program copies is checked against the rules above at each poll; the manager waits besides until two polls see the same
files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from moxserve import file
from moxserve.export.versions import parse_version

__all__ = ["FoundVersion", "Listing", "find_versions"]

MANIFEST = os.path.join("assets.extra", "moxserve.json")
_SHARD = re.compile(r"variables\.data-\d{5}-of-(\d{5})")
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
    names: dict[int, str] = {}
    doubled, others = [], []
    for entry in sorted(file.scan_dir(base_path), key=lambda e: e.name):
        number = parse_version(entry.name)
        if number is None or not entry.is_dir():
            others.append(entry.name)
            continue
        if number in names:
            doubled.append(names[number])
        names[number] = entry.name
    versions, incomplete = {}, {}
    for number, name in names.items():
        path = os.path.join(base_path, name)
        try:
            versions[number] = _inspect(number, path)
        except _Incomplete as missing:
            incomplete[number] = str(missing)
    return Listing(versions, incomplete, tuple(doubled), tuple(others))


class _Incomplete(Exception):  # noqa: N818 - a finding, which never leaves this module
    """A version lacks something."""


def _inspect(number: int, path: str) -> FoundVersion:
    files = _files(path)
    sizes = {name: size for name, (size, _) in files.items()}
    graph = next((name for name in ("saved_model.pb", "saved_model.pbtxt", "export.meta") if name in files), None)
    if graph is None:
        raise _Incomplete("no saved_model.pb")
    sealed = MANIFEST in files
    if sealed:
        _check_manifest(path, sizes)
    if graph != "export.meta":
        _check_variables(os.path.join(path, graph), files[graph], sizes)
    return FoundVersion(number, path, hash(tuple(sorted(files.items()))), sealed)


def _files(path: str) -> dict[str, tuple[int, int]]:
    """Return relative name -> (size in bytes, time of last change in ns) of every file below a directory."""
    found = {}
    for folder, _, names in file.walk(path, followlinks=True):
        for name in names:
            full = os.path.join(folder, name)
            try:
                stat = file.stat(full)
            except FileNotFoundError:
                continue  # removed between listing and looking: whatever needs it will miss it
            found[os.path.relpath(full, path)] = (stat.length, stat.mtime_nsec)
    return found


def _check_manifest(path: str, sizes: Mapping[str, int]) -> None:
    try:
        manifest = json.loads(file.read(os.path.join(path, MANIFEST), binary=True))
        expected = {os.path.normpath(name): int(entry["size_bytes"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise _Incomplete(f"{MANIFEST} is gone") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Incomplete(f"{MANIFEST} cannot be read: {type(error).__name__}: {error}") from None
    for name, size in expected.items():
        if name not in sizes:
            raise _Incomplete(f"{name} is missing; the manifest names it")
        if sizes[name] != size:
            raise _Incomplete(f"{name} has {sizes[name]} of {size} bytes")


def _check_variables(graph: str, identity: tuple[int, int], sizes: Mapping[str, int]) -> None:
    shards = [m for name in sizes if (m := _SHARD.fullmatch(os.path.relpath(name, "variables")))]
    index = os.path.join("variables", "variables.index") in sizes
    if not index and (shards or _has_variables(graph, identity)):
        raise _Incomplete("variables/variables.index is missing, and the graph has variables")
    if index and (not shards or len(shards) < int(shards[0][1])):
        raise _Incomplete(f"{len(shards)} of {shards[0][1] if shards else 'its'} variables.data shards are there")


@lru_cache(maxsize=1024)
def _has_variables(graph: str, identity: tuple[int, int]) -> bool:  # noqa: ARG001 - the key of the cache
    """Tell whether a graph names a variable operation. Op names stand in the file as they are, so no parsing."""
    data: bytes = file.read(graph, binary=True)
    return any(op in data for op in _VARIABLE_OPS)
