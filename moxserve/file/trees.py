"""Directories from one file system to another: `copy_parallel`, and what moves directories.

Everything that can be known to be wrong is found before the first byte is written. Then many files are copied at once,
by threads, or by processes where there are so many that one interpreter would be the limit. A copy that is broken off
leaves a journal, by which the same copy goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any

from moxserve.errors import UsageError
from moxserve.file.atomic import sweep
from moxserve.file.copying import STREAMS, Place, absolute
from moxserve.file.errors import (
    MoxFileNameDuplicateException,
    MoxFileNotExistsException,
    MoxFileObjectNotExistsException,
    missing,
)
from moxserve.file.filesystem import Url, join, text_of
from moxserve.file.journal import Journal
from moxserve.file.quick import copier
from moxserve.file.stopping import working_together

__all__ = ["CopyOptions", "copy_tree", "move_tree"]


@dataclass(frozen=True)
class Plan:
    """What `copy_tree` will do.

    Attributes:
        source: directory.
        target: directory.
        dirs: names relative to both, with a slash at their ends.
        files: names relative to both, and what the listing told of each by which a change shows (None: ask).
    """

    source: Place
    target: Place
    dirs: Sequence[str]
    files: Mapping[str, str | None]


def plan(source: Place, target: Place, file_list: Iterable[Url] | None) -> Plan:
    """Look what there is to copy, and whether it can be.

    Raises:
        MoxFileNotExistsException: the source is no directory.
        MoxFileNameDuplicateException: a file would land on a directory, or two on one name.
        UsageError: a name that leads out of the directory; a directory that would be copied over itself.
    """
    if file_list is None:
        try:
            dirs, files = source.fs.tree(source.path)
        except MoxFileNotExistsException as error:
            raise _no_directory(source, error) from None
    else:
        if not source.fs.is_directory(source.path):
            raise _no_directory(source, missing(source.path))
        dirs, files = [], dict.fromkeys(_listed_names(source, file_list))
    if source.remote and not target.remote:
        _check_names(source, [*dirs, *files])
    made = Plan(source, target, dirs, files)
    if not target.remote:
        _check_duplicates(made)
    _check_overlap(made)
    return made


def _no_directory(source: Place, error: MoxFileNotExistsException) -> MoxFileNotExistsException:
    """Tell of a file that was given in place of a directory."""
    if isinstance(error, MoxFileObjectNotExistsException) or not source.fs.is_file(source.path):
        return error
    return MoxFileNotExistsException(f"{source.path!r} is a file; expected a directory", hint="copy copies one file")


def _listed_names(source: Place, file_list: Iterable[Url]) -> list[str]:
    if isinstance(file_list, (str, bytes)):
        raise UsageError(f"file_list={file_list!r}: expected a list of names relative to {source.path!r}")
    return sorted({_listed_name(source, name) for name in file_list})


def _listed_name(source: Place, name: Url) -> str:
    """Return an entry of a file list as a relative name; one that begins with the source's path is taken for it."""
    text = text_of(name)
    base = join(source.path, "") if source.path.endswith("/") else f"{source.path}/"
    text = text.removeprefix(base)
    if not source.remote:
        text = os.path.normpath(text)
    if text in ("", ".") or text.startswith("/") or "://" in text or ".." in text.split("/"):
        raise UsageError(f"file_list: {text!r} is no path relative to {source.path!r}")
    if text.endswith("/"):
        raise UsageError(f"file_list: {text!r} is a directory; expected the names of files")
    return text


def _check_names(source: Place, names: Iterable[str]) -> None:
    for name in names:
        parts = name.removesuffix("/").split("/")
        if ".." in parts:
            raise UsageError(f"{join(source.path, name)!r} would be written outside of the target directory")
        if "" in parts or "." in parts:
            raise MoxFileNameDuplicateException(
                f"{join(source.path, name)!r} has no name of its own in a local directory",
                hint="copy the files that are needed one by one, or leave it out with file_list",
            )


def _check_duplicates(made: Plan) -> None:
    """Find names that are a file here and a directory there, in the source (a store allows that) or the target."""
    folders = {name[:-1] for name in made.dirs}
    folders.update(parent for name in made.files for parent in _parents(name))
    clashes = sorted(folders.intersection(made.files))
    base = made.target.path
    if os.path.exists(base) and not os.path.isdir(base):
        raise MoxFileNameDuplicateException(f"{base!r} is a file; a directory of this name would be made")
    if not clashes and os.path.isdir(base):
        clashes = [name for name in made.files if os.path.isdir(os.path.join(base, name))]
        clashes += [name for name in sorted(folders) if _taken_by_file(os.path.join(base, name))]
    if clashes:
        raise MoxFileNameDuplicateException(
            f"file and directory of one name below {base!r}: {', '.join(clashes[:5])}"
            + (f" and {len(clashes) - 5} more" if len(clashes) > 5 else "")
        )


def _taken_by_file(path: str) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)


def _parents(name: str) -> Iterator[str]:
    while (name := name.rpartition("/")[0]) != "":
        yield name


def _check_overlap(made: Plan) -> None:
    """Refuse to write over files of the source that are still to be read."""
    source, target = absolute(made.source), absolute(made.target)
    if source == target or not (source.startswith(target) or target.startswith(source)):
        return
    sources = {source + name for name in made.files}
    doubled = sorted(sources.intersection(target + name for name in made.files))
    if doubled:
        raise UsageError(
            f"copying {made.source.path!r} to {made.target.path!r} would write over what is copied: "
            + join(made.source.path, doubled[0].removeprefix(source))
        )


@dataclass(frozen=True)
class CopyOptions:
    """How a tree is copied.

    Attributes:
        threads: copies at once, of all processes together.
        processes: let processes share the work where there is enough of it.
        progress: show a bar; None: on a terminal, if it takes long enough for one to ask.
    """

    threads: int = 16
    processes: bool = False
    progress: bool | None = False


def copy_tree(
    source: Place, target: Place, file_list: Iterable[Url] | None = None, options: CopyOptions | None = None
) -> None:
    """Copy a directory into another one.

    Raises:
        MoxFileNotExistsException: the source is no directory, or a listed file is not there.
        MoxFileNameDuplicateException: names clash; nothing was written.
        UsageError: names that cannot be; nothing was written.
    """
    options = options or CopyOptions()
    if not isinstance(options.threads, Integral) or options.threads < 1:
        raise UsageError(f"copy_parallel(threads={options.threads!r}): expected at least 1")
    made = plan(source, target, file_list)
    if absolute(source) == absolute(target):
        return
    _make_directories(made)
    with Journal(absolute(source), absolute(target)) as journal, showing(options.progress, len(made.files)) as bar:
        left = journal.left(made)
        if journal.resumed and not target.remote:
            _sweep(made)
        bar(len(made.files) - len(left))
        for name in _copies(made, left, options):
            journal.done(name)
            bar(1)
        journal.complete()


def _copies(made: Plan, names: Sequence[str], options: CopyOptions) -> Iterator[str]:
    """Copy files, and yield their names when they are there."""
    if options.processes:
        from moxserve.file.copiers import copied_by_processes, worth_processes

        if worth_processes(made, len(names)):
            try:
                yield from copied_by_processes(made, names, options.threads)
            except BaseException:
                if not made.target.remote:
                    _sweep(made)
                raise
            return
    yield from copied_by_threads(made.source, made.target, names, options.threads)


def copied_by_threads(source: Place, target: Place, names: Sequence[str], threads: int) -> Iterator[str]:
    """Copy files, a few more in hand than there are threads; yields their names when they are there.

    Raises:
        OSError: the first that failed; no more are begun then, and those in hand are dropped.
    """
    # So many ranges of large objects come at once that all together are no more than the threads.
    streams = max(1, min(STREAMS, threads // max(1, len(names))))
    copy = copier(source, target, len(names), streams)
    waiting = iter(names)
    begun: dict[Future[None], str] = {}
    with working_together(threads, "moxserve-copy") as pool:
        while True:
            for name in islice(waiting, 2 * threads - len(begun)):
                begun[pool.submit(copy, source.below(name), target.below(name))] = name
            if not begun:
                return
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                name = begun.pop(future)
                future.result()
                yield name


@contextlib.contextmanager
def showing(progress: bool | None, total: int) -> Iterator[Bar]:
    """Give a function that counts files on a bar, which comes up when the copy takes longer than a moment."""
    bar = Bar(progress, total)
    try:
        yield bar
    finally:
        bar.close()


class Bar:
    """A bar of how many files are copied.

    Args:
        progress: whether to show it; None: on a terminal.
        total: how many files there are.
    """

    _AFTER_S = 2.0

    def __init__(self, progress: bool | None, total: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._wanted = self._console.is_terminal if progress is None else progress
        self._total, self._done = total, 0
        self._begin = time.monotonic()
        self._bar: Any = None

    def __call__(self, files: int) -> None:
        """Count files."""
        self._done += files
        if not self._wanted:
            return
        if self._bar is None and time.monotonic() - self._begin > self._AFTER_S:
            self._show()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def _show(self) -> None:
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("copying", total=self._total)
        self._bar.start()

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()


def _make_directories(made: Plan) -> None:
    if made.target.remote:
        # Directories with something in them are there by that; the others need something to hold their places.
        used = {f"{parent}/" for name in (*made.files, *(d[:-1] for d in made.dirs)) for parent in _parents(name)}
        for name in made.dirs:
            if name not in used:
                made.target.below(name).fs.make_dirs(made.target.below(name).path)
        if not made.files and not made.dirs:
            made.target.fs.make_dirs(made.target.path)
        return
    for folder in _local_folders(made):
        os.makedirs(folder, exist_ok=True)


def _local_folders(made: Plan) -> list[str]:
    wanted = {made.target.path, *(join(made.target.path, name) for name in made.dirs)}
    wanted.update(os.path.dirname(join(made.target.path, name)) for name in made.files)
    return sorted(wanted)


def _sweep(made: Plan) -> None:
    """Remove what was in the middle when a copy, or a process of it, was killed."""
    for folder in _local_folders(made):
        sweep(folder)


def move_tree(source: Place, target: Place) -> None:
    """Move a directory into another one.

    Raises:
        UsageError: one is inside the other.
    """
    old, new = absolute(source), absolute(target)
    if old.startswith(new) or new.startswith(old):
        raise UsageError(f"{source.path!r} cannot be moved to {target.path!r}: one is inside the other")
    held = source.fs.held(source.path)
    copy_tree(source, target)
    # Only when all of it is there, and only what was copied.
    source.fs.remove_files(source.path, held)
