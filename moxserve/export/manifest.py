"""`assets.extra/moxserve.json`: what a version directory holds, where it came from and how it was verified.

Written last into a staged version and read back by the server, which needs no TensorFlow for it. SavedModel loaders
ignore `assets.extra/`. Readers ignore keys that they do not know, so that later versions can add some; a breaking
change raises `SCHEMA_VERSION`. The version number is the directory's name and is not repeated here: it is only known
once the directory has been renamed into place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from moxserve import file
from moxserve.export.document import Document, read_document, write_document
from moxserve.export.facts import Figures, Measured, OutputCheck, Tolerance, Verification
from moxserve.types import Signature, TensorSpec, dtype_by_name

__all__ = [
    "MANIFEST_PATH",
    "MAX_WARMUP_RECORDS",
    "SCHEMA_VERSION",
    "WARMUP_PATH",
    "FileEntry",
    "Manifest",
    "OutputCheck",
    "SignatureEntry",
    "Source",
    "TensorEntry",
    "TensorNames",
    "Tolerance",
    "Variant",
    "Verification",
    "Warmup",
    "check_file",
    "check_files",
    "files_of",
    "list_files",
    "read_manifest",
    "take_stock",
    "write_manifest",
]

MANIFEST_PATH = os.path.join("assets.extra", "moxserve.json")
WARMUP_PATH = os.path.join("assets.extra", "tf_serving_warmup_requests")
# A server refuses a warmup file with more.
MAX_WARMUP_RECORDS = 1000
SCHEMA_VERSION = 1
_CHUNK_BYTES = 1 << 20
_SAVED_MODEL_PARTS = ("saved_model.pb", "saved_model.pbtxt", "variables", "assets")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class TensorEntry(_Entry):
    """One input or output of a signature.

    Attributes:
        dtype: TensorFlow's name, such as `float32`.
        shape: None in the place of a dimension that varies; None as a whole when the rank varies.
        tensor: name in the graph, such as `images:0`.
    """

    dtype: str
    shape: tuple[int | None, ...] | None
    tensor: str = ""

    @classmethod
    def from_spec(cls, spec: TensorSpec) -> TensorEntry:
        """Take dtype, shape and tensor name from a spec."""
        return cls(dtype=spec.dtype.name, shape=spec.shape, tensor=spec.tensor)

    def to_spec(self, alias: str) -> TensorSpec:
        """Return the spec under its alias.

        Raises:
            InvalidArgument: the dtype is unknown.
        """
        return TensorSpec(alias, dtype_by_name(self.dtype), self.shape, self.tensor)


class SignatureEntry(_Entry):
    """A named way to call the model."""

    method: str
    inputs: dict[str, TensorEntry]
    outputs: dict[str, TensorEntry]

    @classmethod
    def from_signature(cls, signature: Signature) -> SignatureEntry:
        """Take everything but the name, which is the key in the manifest."""
        return cls(
            method=signature.method,
            inputs={a: TensorEntry.from_spec(s) for a, s in signature.inputs.items()},
            outputs={a: TensorEntry.from_spec(s) for a, s in signature.outputs.items()},
        )

    def to_signature(self, name: str) -> Signature:
        """Return the signature under its name."""
        return Signature(
            name,
            self.method,
            {a: e.to_spec(a) for a, e in self.inputs.items()},
            {a: e.to_spec(a) for a, e in self.outputs.items()},
        )


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"expected paths below the version directory, got {name!r}")
    return name


class Source(_Entry):
    """What the artifact was made of.

    Attributes:
        checkpoint: prefix of the checkpoint; empty for a model that was whole on disk.
        global_step: of the checkpoint, where it has one.
        kind: `checkpoint`, `saved_model`, `frozen_graph` or `keras`.
        path: of the model that was whole on disk; empty for a checkpoint.
    """

    checkpoint: str = ""
    global_step: int | None = None
    kind: Literal["checkpoint", "saved_model", "frozen_graph", "keras"] = "checkpoint"
    path: str = ""


class FileEntry(_Entry):
    """One file of the version."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Warmup(_Entry):
    """The warmup records.

    Attributes:
        records: how many there are.
        batch_sizes: of those that were made of real rows, which come first.
        signatures: keys that they call.
        logged: how many of them are requests that a server had logged.
    """

    records: int = 0
    batch_sizes: tuple[int, ...] = ()
    signatures: tuple[str, ...] = ()
    logged: int = 0


class TensorNames(_Entry):
    """What the tensors of a signature are called inside a variant.

    Attributes:
        inputs: alias -> name of the variant's input.
        outputs: alias -> name of the variant's output.
    """

    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)


class Variant(_Entry):
    """One form of the model inside the version; further forms come beside the SavedModel, each verified.

    Attributes:
        name: such as `saved_model` or `onnx_int8`.
        format: what loads it: `saved_model`, `onnx`, `openvino` or `tflite`.
        path: directory or file relative to the version; `.` is the version directory itself.
        verification: against the source; None when nobody has compared it yet.
        precision: of the arithmetic; `bfloat16` lets OpenVINO compute in bfloat16, `dynamic` is int8 weights with
            activations quantized while it runs. Empty is float32.
        tolerance: how near its answers must be to the SavedModel's before a server takes it by itself; None takes what
            its precision allows.
        signatures: the signatures that it serves, with the names of their tensors in it; those that it does not serve
            are served by the SavedModel. Empty: the server finds out by the names.
        enabled: false keeps servers from taking it by themselves.
        size_bytes: of its files, without those of other variants; filled in when the manifest is written.
        digest: SHA-256 over the digests and names of its files; filled in when the manifest is written.
        figures: how far its answers were from the source's; None when nobody has compared them.
        measured: what it costs, and where that was measured; None when nobody has.
        details: how it was made, such as `opset` and which operations stayed in floating point.
    """

    name: str
    format: str
    path: str = "."
    verification: Verification | None = None
    precision: Literal["", "float32", "bfloat16", "float16", "dynamic", "int8"] = ""
    tolerance: Tolerance | None = None
    signatures: dict[str, TensorNames] = Field(default_factory=dict)
    enabled: bool = True
    size_bytes: int = Field(default=0, ge=0)
    digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    figures: Figures | None = None
    measured: Measured | None = None
    details: dict[str, Any] = Field(default_factory=dict)

    @field_validator("path")
    @classmethod
    def _stay_inside(cls, value: str) -> str:
        return _inside(value)


class Manifest(_Entry, Document):
    """The whole of `moxserve.json`.

    Attributes:
        schema_version: of this format.
        created: UTC, ISO 8601.
        tools: program -> version.
        model_name: as the exporter was told.
        signatures: by key.
        source: where the model came from.
        variants: the forms of the model in this version.
        warmup: the records written.
        files: every file but this one, by path relative to the version, with forward slashes.
        metadata: whatever the caller gave.
        op_libraries: shared objects with custom operations that the model needs, relative to the version.
    """

    schema_version: int = SCHEMA_VERSION
    created: datetime = Field(default_factory=lambda: datetime.now(timezone.utc).replace(microsecond=0))
    tools: dict[str, str] = Field(default_factory=dict)
    model_name: str
    signatures: dict[str, SignatureEntry]
    source: Source
    variants: tuple[Variant, ...]
    warmup: Warmup = Warmup()
    files: dict[str, FileEntry] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    op_libraries: tuple[str, ...] = ()

    @field_validator("op_libraries")
    @classmethod
    def _libraries_inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_inside(name) for name in value)

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, value: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in value:
            _inside(name)
        return value

    def signature_map(self) -> Mapping[str, Signature]:
        """Return the signatures as the rest of moxserve knows them."""
        return {name: entry.to_signature(name) for name, entry in self.signatures.items()}


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with file.File(path, "rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(version_dir: str) -> dict[str, FileEntry]:
    """Describe every file below a version directory but its manifest, by relative path, sorted."""
    own = MANIFEST_PATH.replace(os.sep, "/")
    names = [n for n in file.list_directory(version_dir, recursive=True, skip_dir=True) if n != own]
    return {name: _describe(os.path.join(version_dir, name)) for name in names}


def _describe(path: str) -> FileEntry:
    return FileEntry(size_bytes=file.get_size(path), sha256=_sha256(path))


def files_of(variant: Variant, names: Iterable[str]) -> list[str]:
    """Return which files of a version are a variant's own, sorted.

    Args:
        variant: a SavedModel of the version directory itself has no part in `variants/` and `assets.extra/`; a file has
            what lies beside it, or, at the top, its weights (`model.bin` of `model.xml`, `model.onnx.data`).
        names: of all files, relative to the version, with forward slashes.
    """
    path = PurePosixPath(variant.path)
    if variant.format == "saved_model" and not path.parts:
        return sorted(n for n in names if PurePosixPath(n).parts[0] in _SAVED_MODEL_PARTS)
    if variant.format == "saved_model" or path.parent.parts:
        folder = path if variant.format == "saved_model" else path.parent
        return sorted(n for n in names if folder in PurePosixPath(n).parents)
    weights = str(path.with_suffix(".bin")) if path.suffix == ".xml" else f"{path.name}.data"
    return sorted(n for n in names if n in (variant.path, weights))


def take_stock(version_dir: str, variant: Variant) -> Variant:
    """Return a variant with the size and the digest of its files, as `write_manifest` fills them in."""
    names = file.list_directory(version_dir, recursive=True, skip_dir=True)
    files = {name: _describe(os.path.join(version_dir, name)) for name in files_of(variant, names)}
    return variant.model_copy(update=_stock(variant, files))


def _stock(variant: Variant, files: Mapping[str, FileEntry]) -> dict[str, object]:
    own = files_of(variant, files)
    if not own:
        return {"size_bytes": 0, "digest": ""}
    lines = "".join(f"{files[name].sha256}  {name}\n" for name in own)
    return {"size_bytes": sum(files[n].size_bytes for n in own), "digest": hashlib.sha256(lines.encode()).hexdigest()}


def write_manifest(version_dir: str, manifest: Manifest) -> Manifest:
    """Take stock of a staged version's files, and of each variant's, and write its manifest, all or nothing.

    Args:
        version_dir: the staged directory, complete but for this file.
        manifest: everything else; its `files`, and the sizes and digests of its variants, are replaced.

    Returns:
        The manifest as written.

    Raises:
        DataError: the metadata cannot be written as JSON.
    """
    files = list_files(version_dir)
    variants = tuple(v.model_copy(update=_stock(v, files)) for v in manifest.variants)
    complete = manifest.model_copy(update={"files": files, "variants": variants})
    write_document(os.path.join(version_dir, MANIFEST_PATH), complete, "metadata")
    return complete


def read_manifest(version_dir: str) -> Manifest | None:
    """Read the manifest of a version directory.

    Returns:
        The manifest, or None when there is none: the version was not made by moxserve.

    Raises:
        DataError: it is no manifest, or of a newer schema than this program knows.
    """
    path = os.path.join(version_dir, MANIFEST_PATH)
    if not file.exists(path):
        return None
    return read_document(path, Manifest, SCHEMA_VERSION, "a moxserve manifest")


def check_files(version_dir: str, *, digests: bool = True) -> list[str]:
    """Compare a version directory with its manifest.

    Args:
        version_dir: the version directory.
        digests: also compare checksums, which reads every file.

    Returns:
        What is wrong, one sentence a file; empty when all is there, or when there is no manifest to compare with.

    Raises:
        DataError: the manifest cannot be read.
    """
    manifest = read_manifest(version_dir)
    if manifest is None:
        return []
    problems = (check_file(version_dir, name, entry, digests) for name, entry in manifest.files.items())
    return [p for p in problems if p]


def check_file(version_dir: str, name: str, entry: FileEntry, digests: bool = True) -> str:
    """Return what is wrong with a file of a version, in one sentence; empty when nothing is."""
    path = os.path.join(version_dir, name)
    if not os.path.isfile(path):
        return f"{name} is missing"
    size = file.get_size(path)
    if size != entry.size_bytes:
        return f"{name} has {size} bytes; the manifest says {entry.size_bytes}"
    if digests and _sha256(path) != entry.sha256:
        return f"{name} has another content than the manifest says (SHA-256 differs)"
    return ""
