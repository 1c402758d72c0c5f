"""What an evaluator watches: the checkpoints in a `log_dir`, and whether the training there has ended.

A folder is looked at as it is. Of a directory in a store one listing tells what has changed; the state file is fetched
then, and a checkpoint when its turn comes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from moxserve import file
from moxserve.errors import CheckpointError, MoxserveError, first_line
from moxserve.file.filesystem import join
from moxserve.file.s3 import open_bucket
from moxserve.tensorflow.executor import checkpoint as checkpoints
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.located import is_complete, named_in_state, step_in_name
from moxserve.tensorflow.executor.lock import LOCK_FILE, ended_at
from moxserve.tensorflow.executor.mirror import STATE_FILE, Mirror

__all__ = ["Named", "Watched", "WatchedFolder", "WatchedStore"]

_LOOK_S = 5.0


@dataclass(frozen=True)
class Named:
    """A checkpoint that the training's state file names.

    Attributes:
        path: prefix or URL.
        step: its global step.
        mark: tells it from another one of the same name.
    """

    path: str
    step: int
    mark: int | str


class Watched(Protocol):
    """A `log_dir` that somebody else trains into.

    Attributes:
        url: path or URL of it.
        slack_s: how much later than elsewhere things are seen.
    """

    url: str
    slack_s: float

    def look(self) -> bool:
        """See what there is; false where it is too early for that, or nothing can be seen."""
        ...

    def ended(self) -> int | None:
        """Return the step that the last training ended at; None while it is going on, and after a crash."""
        ...

    def named(self) -> list[Named]:
        """Return the checkpoints that are there, oldest first."""
        ...

    def here(self, named: Named) -> AbstractContextManager[str | None]:
        """Give the prefix of a checkpoint on this machine while the block lasts; it may be gone, or going. None where
        it cannot be fetched now, which has been told.
        """
        ...

    def keep(self) -> None:
        """Send what was written beside the checkpoints to where it belongs."""
        ...


class WatchedFolder:
    """A folder that this process sees.

    Args:
        folder: the `log_dir`.
    """

    slack_s = 0.0

    def __init__(self, folder: str) -> None:
        self.url = folder

    def look(self) -> bool:
        """There is nothing to prepare."""
        return True

    def ended(self) -> int | None:
        """Read what the chief says."""
        return ended_at(self.url)

    def named(self) -> list[Named]:
        """Tell checkpoints by the time at which they were written."""
        return [named for prefix in named_in_state(self.url) if (named := _named(prefix)) is not None]

    def here(self, named: Named) -> AbstractContextManager[str | None]:
        """Give it as it is."""
        return contextlib.nullcontext(named.path)

    def keep(self) -> None:
        """It is there already."""


def _named(prefix: str) -> Named | None:
    try:
        written_ns = os.stat(f"{prefix}.index").st_mtime_ns
        return Named(prefix, checkpoints.global_step_of(prefix), written_ns) if is_complete(prefix) else None
    except (OSError, CheckpointError):
        return None


class WatchedStore:
    """A directory of a store. While the store does not answer there is nothing to see, which is told once.

    Args:
        mirror: of the directory, with what is sent there.
        folder: for what is fetched; made if missing.
    """

    slack_s = 2 * _LOOK_S

    def __init__(self, mirror: Mirror, folder: str) -> None:
        self.url = mirror.url
        self._mirror, self._folder = mirror, folder
        self._bucket, self._prefix = open_bucket(f"{mirror.url}/")
        self._there: dict[str, str] = {}  # tags by name
        self._fetched: dict[str, str] = {}
        self._due = 0.0
        self._failing = False
        self._unsent = False
        os.makedirs(folder, exist_ok=True)

    def look(self) -> bool:
        """List what is there, every few seconds, and fetch the small files that tell how the training goes."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + _LOOK_S
        with self._telling():
            if self._unsent:
                self._send()
            self._list()
            return True
        return False

    def _list(self) -> None:
        found = self._listed()
        if self._keeps_up(LOCK_FILE, found):
            # It may say that the training ended since this was listed: the last checkpoint is there by now.
            found = self._listed()
        self._there = found
        self._keeps_up(STATE_FILE, found)

    def _listed(self) -> dict[str, str]:
        pages = self._bucket.pages(self._prefix, delimiter="/")
        found = [entry for page in pages for entry in page.get("Contents", ())]
        return {entry["Key"][len(self._prefix) :]: str(entry["ETag"]) for entry in found}

    def _keeps_up(self, name: str, found: Mapping[str, str]) -> bool:
        """Have a small file here as it was listed, or later; tells whether it was fetched."""
        tag, known = found.get(name), self._fetched.get(name)
        if tag is None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self._folder, name))
        elif tag != known:
            self._fetch(name)
        self._fetched[name] = tag or ""
        return tag is not None and tag != known

    def _fetch(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # a training has removed it since it was listed
            file.copy(join(self.url, name), os.path.join(self._folder, name))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Go on when the store does not answer; told at the first time of several."""
        try:
            yield
        except (MoxserveError, OSError) as error:
            if not self._failing:
                tf1.logging.warning("%s cannot be watched: %s; trying again", self.url, first_line(error))
            self._failing = True
            return
        if self._failing:
            tf1.logging.info("%s answers again", self.url)
        self._failing = False

    def ended(self) -> int | None:
        """Read what the chief said when this was looked at."""
        return ended_at(self._folder)

    def named(self) -> list[Named]:
        """Tell checkpoints by the store's tags of their indexes."""
        names = map(os.path.basename, named_in_state(self._folder))
        return [
            Named(join(self.url, name), max(0, step_in_name(name)), tag)
            for name in names
            if (tag := self._there.get(f"{name}.index")) is not None
        ]

    @contextlib.contextmanager
    def here(self, named: Named) -> Iterator[str | None]:
        """Fetch it; one that has become another one since is left out like one that is gone."""
        name = os.path.basename(named.path)
        prefix: str | None = None
        parts = [part for part in self._there if part.startswith((f"{name}.index", f"{name}.data-"))]
        try:
            with self._telling():
                for part in parts:
                    self._fetch(part)
                info = self._bucket.info(f"{self._prefix}{name}.index")
                if info is None or info.etag != named.mark:
                    self._drop(parts)
                prefix = os.path.join(self._folder, name)
            yield prefix
        finally:
            self._drop(parts)

    def _drop(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self._folder, name))

    def keep(self) -> None:
        """Send it now, or when the store answers again."""
        self._unsent = True
        with self._telling():
            self._send()

    def _send(self) -> None:
        with self._mirror.snapshot() as frozen:
            self._mirror.send(frozen)
        self._unsent = False
