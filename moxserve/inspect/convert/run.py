"""Which conversion a source and a destination ask for, and doing it: the new file or folder is whole, or not there.

source                            pb, pbtxt   npz   checkpoint   SavedModel
SavedModel (a version)            yes         yes   yes
GraphDef                          yes         yes   yes
.meta file                        yes                            yes, with its checkpoint
checkpoint, run                               yes   yes          yes, with its .meta
npz                                                 yes
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from moxserve import file
from moxserve.errors import ExportError, MoxserveError, UsageError, did_you_mean
from moxserve.file.filesystem import is_remote
from moxserve.file.writable import require_writable
from moxserve.inspect.convert.arrays import write_checkpoint, write_npz
from moxserve.inspect.convert.needed import needed_keys
from moxserve.inspect.detect import Kind, Subject
from moxserve.inspect.operations import graph_file_of
from moxserve.inspect.protos import read_graph_file, to_text
from moxserve.inspect.stores import CheckpointStore, Entry, Store, checkpoint_prefix, open_store, picked

__all__ = ["Conversion", "Converted", "Form", "check_destination", "convert", "target_form"]

Form = Literal["pb", "pbtxt", "npz", "checkpoint", "savedmodel"]

_TO: Mapping[Kind, tuple[Form, ...]] = {
    "version": ("pb", "pbtxt", "npz", "checkpoint"),
    "graphdef": ("pb", "pbtxt", "npz", "checkpoint"),
    "metagraph": ("pb", "pbtxt", "savedmodel"),
    "checkpoint": ("npz", "checkpoint", "savedmodel"),
    "run": ("npz", "checkpoint", "savedmodel"),
    "npz": ("checkpoint",),
}
_SUFFIXES: Mapping[str, Form] = {".pb": "pb", ".pbtxt": "pbtxt", ".meta": "pb", ".npz": "npz", ".ckpt": "checkpoint"}
# What a destination without a telling suffix is, if the source can become it.
_FOLDERS: tuple[Form, ...] = ("savedmodel", "checkpoint")


@dataclass(frozen=True)
class Conversion:
    """What is asked for.

    Attributes:
        destination: file, folder or checkpoint prefix.
        to: form of it; empty goes by its suffix.
        force: replace what is there.
        everything: take all variables, not only those that signatures need.
        patterns: take the variables that fit these shell patterns.
        tags: of the MetaGraph.
        inputs: alias -> tensor, of a graph without signatures.
        outputs: the same.
        meta: the `.meta` file of a checkpoint; empty takes the one beside it.
    """

    destination: str
    to: str = ""
    force: bool = False
    everything: bool = False
    patterns: Sequence[str] = ()
    tags: Sequence[str] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    meta: str = ""


@dataclass(frozen=True)
class Converted:
    """What came of it.

    Attributes:
        path: what was written.
        form: of it.
        source: what was read.
        facts: how much, for people and JSON.
        notes: what the user should know, one sentence each.
    """

    path: str
    form: str
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def renamed(self, rename: Callable[[str], str]) -> Converted:
        """Return the same with each path as `rename` gives it."""
        notes = [rename(note) for note in self.notes]
        return replace(self, path=rename(self.path), source=rename(self.source), notes=notes)


def target_form(subject: Subject, asked: Conversion) -> Form:
    """Return what a source is to become.

    Raises:
        UsageError: it cannot become that; names what it can.
    """
    known = _TO.get(subject.kind, ())
    if not known:
        raise UsageError(
            f"{subject}, which nothing is converted from here",
            hint="moxserve export makes the forms that runtimes load",
        )
    suffix = os.path.splitext(asked.destination)[1]
    form = asked.to or _SUFFIXES.get(suffix, "") or next((f for f in _FOLDERS if f in known), "")
    if form not in get_args(Form):
        raise UsageError(f"--to {form!r}: no such form; {did_you_mean(form, get_args(Form))}")
    if form not in known:
        hint = "moxserve export makes a SavedModel of it, verified" if form == "savedmodel" else None
        raise UsageError(f"{subject}, which becomes {', '.join(known)}, not {form}", hint=hint)
    return form


def convert(subject: Subject, asked: Conversion) -> Converted:
    """Convert a source.

    Raises:
        UsageError: the source cannot become that, or the destination is there already.
        DataError: the source is damaged.
        CheckpointError: a checkpoint is missing or damaged.
        ExportError: no SavedModel can be made of a checkpoint and its graph, or the destination cannot be written.
    """
    form = target_form(subject, asked)
    check_destination(asked, form)
    file.sweep(os.path.dirname(os.path.abspath(asked.destination)))  # what a killed conversion left
    try:
        return _converted(subject, asked, form)
    except MoxserveError:
        raise
    except OSError as error:
        # A full disk does not say which file it was.
        raise ExportError(f"cannot convert {subject.path} to {asked.destination}: {error}") from error


def _converted(subject: Subject, asked: Conversion, form: Form) -> Converted:
    if form in ("pb", "pbtxt"):
        return _to_graph_file(subject, asked, form)
    if form == "savedmodel":
        from moxserve.inspect.convert.training_graph import to_saved_model

        facts, notes = to_saved_model(checkpoint_prefix(subject), asked.meta, asked)
        return Converted(asked.destination, form, subject.path, facts, [*subject.notes, *notes])
    store = open_store(subject)
    entries, notes = _chosen(subject, store, asked)
    values = ((entry.name, store.read(entry)) for entry in entries)
    if form == "npz":
        written = write_npz(asked.destination, values)
    else:
        written = write_checkpoint(asked.destination, dict(values))
    facts = {"variables": len(entries), "parameters": sum(e.parameters for e in entries), "size_bytes": written}
    return Converted(asked.destination, form, store.path, facts, [*subject.notes, *notes])


def check_destination(asked: Conversion, form: Form) -> None:
    """Refuse a destination that cannot be written, before any work is done.

    Raises:
        UsageError: its folder is missing, or it is there already.
    """
    path = asked.destination
    if is_remote(path):
        require_writable(path)
    else:
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise UsageError(
                f"{folder!r} is no directory; {path!r} is to be written into it", hint=f"mkdir -p {folder}"
            )
    taken = f"{path}.index" if form == "checkpoint" else path
    if not (os.path.lexists(taken) or file.exists(taken)):
        return
    is_folder = file.is_directory(taken)
    if is_folder != (form == "savedmodel"):
        what = "a directory" if is_folder else "a file"
        raise UsageError(f"{taken!r} is {what} and will not be replaced; give another destination")
    if not asked.force:
        raise UsageError(f"{taken!r} exists already", hint="--force replaces it")


def _to_graph_file(subject: Subject, asked: Conversion, form: Form) -> Converted:
    path = graph_file_of(subject)
    found = read_graph_file(path)
    data = to_text(found.message).encode() if form == "pbtxt" else found.message.SerializeToString(deterministic=True)
    file.write(asked.destination, data, binary=True)
    graphs = found.meta_graphs()
    facts = {"message": found.form, "graphs": max(1, len(graphs)), "size_bytes": len(data)}
    notes = list(subject.notes)
    if subject.kind == "version" and os.path.isdir(os.path.join(subject.path, "variables")):
        notes.append(f"the graph only: its variables stay in {os.path.join(subject.path, 'variables')}")
    return Converted(asked.destination, form, path, facts, notes)


def _chosen(subject: Subject, store: Store, asked: Conversion) -> tuple[list[Entry], list[str]]:
    """Return which variables to take, and what to tell of the others."""
    if asked.patterns:
        return picked(store.entries, asked.patterns), []
    if asked.everything or subject.kind in ("npz", "graphdef") or not isinstance(store, CheckpointStore):
        return list(store.entries), []
    keys = needed_keys(_graph_with_roots(subject, store, asked), asked.tags, asked.outputs)
    entries = [entry for entry in store.entries if entry.key in keys]
    if not entries:
        raise UsageError(f"{store.path}: no output needs any of its {len(store.entries)} variables", hint="--all")
    left = len(store.entries) - len(entries)
    return entries, [f"{left} variables that no output needs are left out (--all takes them)"] if left else []


def _graph_with_roots(subject: Subject, store: CheckpointStore, asked: Conversion) -> str:
    """Return the file with the graph that says which variables are needed."""
    if subject.kind == "version":
        return graph_file_of(subject)
    meta = asked.meta or f"{store.path}.meta"
    if asked.outputs and os.path.isfile(meta):
        return meta
    if asked.outputs:
        raise UsageError(
            f"{meta} is not there, and only the graph says what an output needs", hint="--meta FILE, or --all"
        )
    raise UsageError(
        f"checkpoint {store.path} does not say which of its {len(store.entries)} variables inference needs",
        hint="--all, --filter GLOB, or --output NAME=TENSOR where its .meta is there; or convert the exported version",
    )
