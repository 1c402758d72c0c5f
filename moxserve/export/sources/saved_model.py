"""Any SavedModel as a source: of TensorFlow 1 or 2, of Keras, or a version that moxserve published.

It is copied whole: graph, variables, assets and what others put into `assets.extra`. The copy has the one graph that
was asked for, under the tag `serve`, without devices; its signatures may be fewer, and under other keys. Source and
copy are run on the same rows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moxserve import file
from moxserve.errors import DataError, ExportError, UsageError, did_you_mean, first_line
from moxserve.export.job import SavedModelJob
from moxserve.export.manifest import MANIFEST_PATH, WARMUP_PATH, Manifest, Source, read_manifest
from moxserve.export.place import place
from moxserve.export.savedmodel import channels_first_notes
from moxserve.export.sources import protos
from moxserve.export.sources.answers import Answers, Origin, Others, collect, stage_answers
from moxserve.export.sources.base import StagedModel, main_signature
from moxserve.export.sources.parsing import example_requests
from moxserve.export.sources.samples import Samples, given_samples, read_requests, recorded_samples
from moxserve.export.verify import open_artifact
from moxserve.protocol.metadata import signature_from_def
from moxserve.types import INIT_SIGNATURES, Signature

__all__ = ["SavedModelSource", "copy_saved_model", "open_saved_model"]

_SERVE = "serve"
_LABELS_FILE = os.path.join("assets", "labels.txt")
# What a version of ours holds beside the model: it speaks of that version, and the new one gets its own.
_OWN = frozenset((MANIFEST_PATH, WARMUP_PATH))
_OWN_REPORT = os.path.join("assets.extra", "report", "")


@dataclass(frozen=True)
class SavedModelSource:
    """A SavedModel that was read but not loaded. See `OpenSource`.

    Attributes:
        job: what to export.
        meta: the MetaGraphDef that was asked for.
        signatures: those that can be called, by key of the source.
        keys: key in the artifact -> key in the source.
        manifest: of a version that moxserve published; None for others.
        notes: what the user should know.
    """

    job: SavedModelJob
    meta: Any
    signatures: Mapping[str, Signature]
    keys: Mapping[str, str]
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> int | str:
        """-1: a SavedModel asks for no number."""
        return -1

    def stage(self, directory: str) -> StagedModel:
        """Copy the SavedModel and compare the copy with it.

        Raises:
            UsageError: there are several signatures, and nothing says which one counts.
            DataError: the samples do not fit.
            ExportError: it cannot be loaded or copied.
            VerificationError: the copy answers differently.
        """
        renamed = {new: self.signatures[old] for new, old in self.keys.items()}
        free = not self.job.variants.targets and not self.job.samples and not self.job.samples_file
        main = main_signature(renamed, self.job.variants.signature, any_will_do=free)
        with place("loading the source"):
            answers = self._ask(main)
        with place("writing the SavedModel"):
            copy_saved_model(self.job.path, self.meta, self.keys, directory, ours=self.manifest is not None)
        notes = (*self.notes, *channels_first_notes(self.meta.graph_def))
        metadata = {} if self.manifest is None else self.manifest.metadata
        staged = stage_answers(
            self.job, answers, directory, Origin(main, self.keys, "source SavedModel", self._origin(), notes, metadata)
        )
        return staged if self.manifest is None else replace(staged, op_libraries=self.manifest.op_libraries)

    def _ask(self, main: str) -> Answers:
        key = self.keys[main]
        with contextlib.ExitStack() as stack:
            try:
                original = stack.enter_context(open_artifact(self.job.path, self.job.tags))
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                # What TensorFlow makes of a graph that does not fit together, or of a newer one.
                raise ExportError(f"{self.job.path} cannot be loaded: {first_line(error)}") from error
            wanted = {old: original.signatures[old] for old in self.keys.values()}
            samples = given_samples(self.job, wanted[key], _class_names(self.job.path))
            if not samples:
                samples = recorded_samples(self.job.path, wanted[key], self.job.sample_limit)
            with place("running the source"):
                return collect(original, wanted, key, samples, self._others(wanted, samples))

    def _others(self, signatures: Mapping[str, Signature], samples: Samples) -> Others:
        """Return requests to try with each signature: recorded ones, and tf.Examples of what its graph parses."""
        recorded = _one_request_each(self.job.path)
        return {
            key: [
                *([(recorded[key], True)] if key in recorded else []),
                *example_requests(self.meta.graph_def, signature, samples),
            ]
            for key, signature in signatures.items()
        }

    def _origin(self) -> Source:
        before = None if self.manifest is None else self.manifest.source
        path = os.path.abspath(self.job.path)
        if before is None:
            return Source(kind="saved_model", path=path)
        return Source(kind="saved_model", path=path, checkpoint=before.checkpoint, global_step=before.global_step)


@contextlib.contextmanager
def open_saved_model(job: SavedModelJob) -> Iterator[SavedModelSource]:
    """Read a SavedModel and find out whether it can be exported.

    Raises:
        UsageError: it has no graph with these tags, or not the signatures that were asked for.
        ExportError: it cannot be read, or something of it is missing.
    """
    with place("reading the SavedModel"):
        source = _read(job)
    yield source


def _read(job: SavedModelJob) -> SavedModelSource:
    meta = protos.read_meta_graph(job.path, job.tags)
    manifest = read_manifest(job.path)
    protos.check_operations(meta.graph_def, job.path, () if manifest is None else manifest.op_libraries)
    protos.check_variables(meta, job.path)
    found = {k: signature_from_def(k, d) for k, d in sorted(meta.signature_def.items()) if k not in INIT_SIGNATURES}
    signatures = {key: s for key, s in found.items() if s is not None}
    protos.check_signatures(meta.graph_def, signatures.values(), job.path)
    left_out = [key for key, s in found.items() if s is None]
    if not signatures:
        what = f"only ones with sparse or composite tensors ({', '.join(left_out)})" if left_out else "none"
        raise ExportError(
            f"{job.path}: expected signatures that can be called; the SavedModel has {what}",
            hint="save it with signatures: tf.saved_model.save(model, path, signatures={'serving_default': function})",
        )
    if job.signatures:
        notes = []
    else:
        notes = [f"signature {key!r} has sparse or composite tensors: copied, not verified" for key in left_out]
    if set(job.tags) != {_SERVE}:
        notes.append(f"the graph tagged {', '.join(job.tags)} is tagged {_SERVE} now, which is what servers look for")
    keys = _keys(job, signatures)
    return SavedModelSource(job, meta, signatures, keys, manifest, tuple(notes))


def _keys(job: SavedModelJob, signatures: Mapping[str, Signature]) -> Mapping[str, str]:
    for new, old in job.signatures.items():
        if not new or new.startswith("__saved_model"):
            raise UsageError(f"signature key {new!r} is empty or TensorFlow's own")
        if old not in signatures:
            raise UsageError(f"{job.path} has no signature {old!r}; {did_you_mean(old, signatures)}")
    return dict(job.signatures) or {key: key for key in signatures}


def _class_names(path: str) -> tuple[str, ...]:
    labels = os.path.join(path, _LABELS_FILE)
    return tuple(file.read(labels).splitlines()) if file.exists(labels) else ()


def _one_request_each(path: str) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the first recorded request of each signature, as far as the records can be read."""
    found: dict[str, Mapping[str, np.ndarray]] = {}
    with contextlib.suppress(DataError, OSError):
        for key, inputs in read_requests(path):
            found.setdefault(key, inputs)
    return found


def _is_own(name: str, ours: bool) -> bool:
    return name in _OWN or (ours and name.startswith(_OWN_REPORT))


def copy_saved_model(path: str, meta: Any, keys: Mapping[str, str], directory: str, *, ours: bool = False) -> None:
    """Write a SavedModel again, whole.

    Args:
        path: the source.
        meta: its graph; changed in place.
        keys: key in the artifact -> key in the source.
        directory: to write into.
        ours: leave out what moxserve put beside the model.
    """
    protos.clear_devices(meta.graph_def)
    if any(new != old for new, old in keys.items()) or len(keys) < len(meta.signature_def):
        protos.select_signatures(meta, keys)
    protos.write_meta_graph(meta, directory)
    for folder in ("variables", "assets", "assets.extra"):
        source = os.path.join(path, folder)
        if not file.is_directory(source):
            continue
        names = file.list_directory(source, recursive=True, skip_dir=True)
        kept = [name for name in names if not _is_own(os.path.join(folder, name), ours)]
        if kept:
            file.copy_parallel(source, os.path.join(directory, folder), file_list=kept)
    metadata = os.path.join(path, "keras_metadata.pb")
    if file.exists(metadata):
        file.copy(metadata, os.path.join(directory, "keras_metadata.pb"))
