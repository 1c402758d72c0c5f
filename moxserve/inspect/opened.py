"""What is to be inspected, on this machine: what lies in a store is fetched, as much of it as is asked for.

While the block of `opened` runs, a folder here stands for the one in the store; `moxserve.file.standins` tells of what
is in it by its URL.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from moxserve import file
from moxserve.file.filesystem import is_remote, join, locate, text_of
from moxserve.file.standins import told_as
from moxserve.file.writable import require_writable
from moxserve.inspect.detect import Subject, detect, is_there, named
from moxserve.serving.backends.contents import VARIANTS_DIR

__all__ = ["Part", "delivered", "opened"]

# `files`: everything, of checkpoints only what a listing tells. `graph`: without weights. `values`: those too, and of
# a folder of checkpoints the newest one.
Part = Literal["files", "graph", "values"]

_LEFT_OUT: dict[Part, tuple[str, ...]] = {
    "files": (),
    "graph": ("variables/", f"{VARIANTS_DIR}/", "assets/"),
    "values": (f"{VARIANTS_DIR}/", "assets/"),
}
# What makes the other files of a folder a model or a checkpoint.
_MARKERS = (".index", "saved_model.pb")


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str], part: Part = "files", begin: Callable[[Subject], None] | None = None
) -> Iterator[Subject]:
    """Find out what a path or URL is, and give it as files of this machine while the block runs.

    Args:
        path: of anything that `detect` knows.
        part: how much is fetched of what is in a store.
        begin: called with what it is before anything large is fetched.

    Raises:
        UsageError: there is nothing, or nothing that can be inspected.
        DataError: a file is damaged, or cannot be fetched.
        CheckpointError: the values are asked for, and there is no complete checkpoint.
    """
    given = text_of(path)
    known = named(given)
    begin = begin or _pass
    if not is_remote(given):
        subject = known or detect(given)
        begin(subject)
        yield subject
        return
    with contextlib.ExitStack() as stack:
        if known is None:
            local = stack.enter_context(_files_here(given, _beside(given, part)))
            known = replace(detect(local), given=given)
            begin(known)
        else:
            begin(known)
            known = stack.enter_context(_model_here(known, part))
        yield known


def _pass(_subject: Subject) -> None:
    pass


@contextlib.contextmanager
def _model_here(subject: Subject, part: Part) -> Iterator[Subject]:
    """Fetch a version or the checkpoint that counts; what else names tell has nothing to fetch."""
    if subject.kind == "version":
        fs, url = locate(subject.path.rstrip("/"))
        names = [info.name for info in fs.contents(url) if not info.name.startswith(_LEFT_OUT[part])]
        with file.scratch_directory() as scratch:
            folder = os.path.join(scratch, os.path.basename(url))
            with told_as(folder, url):
                file.copy_parallel(url, folder, names)
                yield replace(subject, path=folder)
    elif part == "values":
        from moxserve.inspect.stores import newest_note
        from moxserve.tensorflow.executor.remote import checkpoint_here

        with checkpoint_here(subject.path) as (prefix, _):
            notes = [newest_note(prefix)] if file.is_directory(subject.path) else []
            yield replace(subject, path=prefix, notes=[*subject.notes, *notes])
    else:
        yield subject


@contextlib.contextmanager
def _files_here(url: str, beside: list[str]) -> Iterator[str]:
    """Fetch a file and what belongs to it."""
    base, _, name = url.rpartition("/")
    with file.scratch_directory() as folder, told_as(folder, base):
        for found in (name, *beside):
            file.copy(join(base, found), os.path.join(folder, found))
        yield os.path.join(folder, name)


def _beside(url: str, part: Part) -> list[str]:
    """Return the names of the files that belong to one: weights of ONNX and OpenVINO, the checkpoint of a `.meta`."""
    base, _, name = url.rpartition("/")
    stem, suffix = os.path.splitext(name)
    if suffix == ".meta" and part == "values":
        return [n for n in file.list_directory(base) if n.startswith((f"{stem}.index", f"{stem}.data-"))]
    names = {".onnx": [f"{name}.data"], ".xml": [f"{stem}.bin"]}.get(suffix, [])
    return [n for n in names if is_there(join(base, n))]


@contextlib.contextmanager
def delivered(path: str, *, whole: bool = True) -> Iterator[str]:
    """Give a local path to write a file, folder or checkpoint to, which goes to a URL when the block ends.

    What makes the other files a model is sent last, and is the first to go where something is replaced. A local path is
    given as it is.

    Args:
        path: or URL. After an error nothing is sent.
        whole: a folder replaces the one that is there; else it is merged into it.

    Raises:
        DataError: the store refuses, or cannot be reached.
    """
    path = text_of(path).rstrip("/")
    if not is_remote(path):
        yield path
        return
    require_writable(join(path, "part") if path.count("/") == 2 else path)
    with file.scratch_directory() as scratch:
        here = os.path.join(scratch, os.path.basename(path))
        with told_as(here, path):
            yield here
            written = [os.path.join(scratch, name) for name in file.list_directory(scratch, recursive=True)]
            files = {path + name.removeprefix(here): name for name in written if os.path.isfile(name)}
            _send(files, _below(path) if whole and os.path.isdir(here) else set())


def _send(files: Mapping[str, str], old: set[str]) -> None:
    """Upload files by their URLs, and remove those of what they replace."""
    markers = [url for url in files if url.endswith(_MARKERS)]
    if len(files) > 1:
        for url in markers:
            if is_there(url):
                file.remove(url)
    for url in sorted(files, key=lambda url: url in markers):
        file.copy(files[url], url)
    for url in old.difference(files):
        file.remove(url)


def _below(folder: str) -> set[str]:
    fs, url = locate(folder)
    return {join(url, info.name) for info in fs.contents(url)} if file.is_directory(url) else set()
