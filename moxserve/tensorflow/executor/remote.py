"""A `log_dir` in a store: a local folder stands for it while a run lasts, and what is written there is sent on.

    start    what a training goes on from is fetched: the checkpoints, what is known beside them, the best ones
    saved    after each checkpoint, and each minute for the event files, a snapshot of the folder (hard links) is handed
             to a thread that uploads what has changed
    end      the last snapshot is sent when the last step is done, before anything is exported, and the rest before the
             run returns

In the store a checkpoint counts once the file `checkpoint` beside it names it, and that is written last, when all files
of the checkpoints that it names are there: whoever dies at any moment leaves the checkpoint before. Files of
checkpoints that are named no more are removed after that.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from moxserve import file
from moxserve.errors import CheckpointError, MoxserveError, UsageError, first_line
from moxserve.file.filesystem import is_remote, join, locate
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.located import (
    find_checkpoint,
    is_complete,
    latest_checkpoint,
    named_in_state,
    without_part,
)
from moxserve.tensorflow.executor.lock import LOCK_FILE
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant, StepContext
from moxserve.tensorflow.executor.spec import ModeKeys

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.settings import Settings

__all__ = ["LogDirSender", "Mirror", "kept_here", "local_checkpoint", "mirrored"]

_STATE = "checkpoint"
_BEST = "best/"
_EVENTS = "events.out.tfevents"
_THREADS = 8
_EVERY_S = 60.0
_RETRY_S = 10.0
_OF_A_MODEL = re.compile(r"((?:\d+/)?)(?:saved_model\.pb|variables/.+)\Z")


class Mirror:
    """What a folder and a directory of a store have in common.

    Args:
        url: of the directory.
        folder: the local folder; made if missing.

    Attributes:
        stale: whether the store did not take what a run left when its steps were done.
    """

    def __init__(self, url: str, folder: str) -> None:
        self.url = url.rstrip("/")
        self.folder = folder
        self._there: dict[str, tuple[int, int]] = {}  # size and time of the local files that the store has
        self._lock = threading.Lock()
        self.stale = False
        os.makedirs(folder, exist_ok=True)

    def fetch(self, newest: bool = False) -> None:
        """Bring here what a run goes on from; what only people look at stays in the store.

        Args:
            newest: of the checkpoints only the one that counts, where it is whole.

        Raises:
            DataError: the store cannot be read.
            UsageError: there is no such bucket.
        """
        fs, path = locate(self.url)
        try:
            found = [info.name for info in fs.contents(path)]
        except FileNotFoundError:
            self._require_bucket()
            return
        names = [name for name in found if _is_state(name)]
        # The state file first: checkpoints that it names are removed only when it names them no more.
        if _STATE in names:
            self._fetch(_STATE)
        current = named_in_state(self.folder)[-1:] if newest else []
        for prefix in current:
            self._fetch_all(name for name in names if name.startswith(f"{os.path.basename(prefix)}."))
            if is_complete(prefix):
                return
        self._fetch_all(name for name in names if name != _STATE)
        if newest and latest_checkpoint(self.folder) is None:
            self._fetch_model(found)

    def _fetch_model(self, names: list[str]) -> None:
        """Bring a SavedModel's variables: of the folder itself, else of the newest of the versions in it."""
        roots = [name.removesuffix("saved_model.pb") for name in names if name.endswith("saved_model.pb")]
        ranks = {root: int(root[:-1] or -1) for root in roots if not root or root[:-1].isdecimal()}
        model = "" if "" in ranks else max(ranks, key=lambda root: ranks[root], default=None)
        if model is not None:
            self._fetch_all(n for n in names if (match := _OF_A_MODEL.match(n)) and match.group(1) == model)

    def _require_bucket(self) -> None:
        """A folder that is not there is made by the first upload; a bucket is not."""
        root = "/".join(self.url.split("/")[:3])
        if root.endswith("/") or not file.is_directory(root):
            raise UsageError(f"log_dir={self.url!r}: there is no bucket {root!r}", hint="make it first")

    def _fetch_all(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._fetch, names))

    def _fetch(self, name: str) -> None:
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a training elsewhere has removed it since it was listed
            file.copy(join(self.url, name), path)
            self._there[name] = _identity(path)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[str]:
        """Give a folder with everything as it is now, for as long as the block runs."""
        with file.staging_directory(os.path.dirname(self.folder)) as frozen:
            for name in _files(self.folder):
                target = os.path.join(frozen, name)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    os.link(os.path.join(self.folder, name), target)
            yield frozen

    def send(self, frozen: str) -> None:
        """Upload what has changed in a snapshot, the state file last, then remove old checkpoints from the store.

        Raises:
            DataError: the store refuses, or cannot be reached.
        """
        with self._lock:
            names = _files(frozen)
            identities = {name: _identity(os.path.join(frozen, name)) for name in names}
            changed = [name for name in names if self._there.get(name) != identities[name]]

            def upload(name: str) -> None:
                file.copy(os.path.join(frozen, name), join(self.url, name))
                self._there[name] = identities[name]

            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(upload, [name for name in changed if os.path.basename(name) != _STATE]))
            # That of the log_dir itself comes after those of the folders in it.
            for name in sorted((name for name in changed if os.path.basename(name) == _STATE), key=len, reverse=True):
                upload(name)
            for name in [name for name in self._there if name not in identities]:
                with contextlib.suppress(FileNotFoundError):
                    file.remove(join(self.url, name))
                del self._there[name]

    def url_of(self, path: str) -> str:
        """Return the URL of what is in the folder; any other path as it is."""
        inside = os.path.relpath(path, self.folder)
        return path if inside.startswith("..") else join(self.url, "" if inside == "." else inside)

    @property
    def state_identity(self) -> tuple[int, int] | None:
        """What tells that the state file was written again; None where there is none."""
        try:
            return _identity(os.path.join(self.folder, _STATE))
        except FileNotFoundError:
            return None


class LogDirSender(Participant):
    """Sends a local log_dir on. The last in its list: what others write at a step is written when its turn comes.

    Args:
        mirror: of the folder.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._seen = mirror.state_identity
        self._due = time.monotonic() + _EVERY_S
        self._failing = False
        self._busy = threading.Semaphore(1)

    def next_step(self, clock: Clock) -> int:
        """The next one, when a checkpoint was written; while the store does not answer there are pauses."""
        return clock.run_step if self._mirror.state_identity != self._seen and not self._failing else NEVER

    def next_time(self) -> float:
        """Each minute, for who watches the training; sooner, where the last attempt failed."""
        return self._due

    def step_done(self, context: StepContext) -> None:
        """Hand a snapshot to a thread; while one is still being sent, the next one waits its turn."""
        if not self._busy.acquire(blocking=False):
            self._due = time.monotonic() + 1.0
            return
        self._seen, self._due = self._mirror.state_identity, time.monotonic() + _EVERY_S
        stack = contextlib.ExitStack()
        frozen = stack.enter_context(self._mirror.snapshot())
        threading.Thread(target=self._send, args=(frozen, stack), name="moxserve-log-dir", daemon=True).start()

    def _send(self, frozen: str, stack: contextlib.ExitStack) -> None:
        try:
            with stack:
                self._mirror.send(frozen)
            if self._failing:
                tf1.logging.info("%s is up to date again", self._mirror.url)
            self._failing = False
        except (MoxserveError, OSError) as error:
            if not self._failing:
                tf1.logging.warning("%s is not up to date: %s; trying again", self._mirror.url, first_line(error))
            self._failing, self._due = True, time.monotonic() + _RETRY_S
        finally:
            self._busy.release()

    def finish(self, ok: bool) -> None:
        """Send the last checkpoint, which was written just now: what comes after the steps may take long, or fail."""
        self._busy.acquire()
        stack = contextlib.ExitStack()
        self._send(stack.enter_context(self._mirror.snapshot()), stack)
        self._mirror.stale = self._failing


# The mirrors of this process by their local folders: several runs may go into one, of a pipeline for example.
_mirrors: dict[str, Mirror] = {}


@contextlib.contextmanager
def mirrored(url: str, newest: bool = False) -> Iterator[str]:
    """Give a local folder that stands for a `log_dir` in a store, for all runs that are made while the block lasts.

    Args:
        url: of the `log_dir`.
        newest: fetch only the checkpoint that counts; for blocks that do not train.

    Raises:
        DataError: the store cannot be read.
        UsageError: there is no such bucket.
        CheckpointError: the store does not take what was left at the end.
    """
    with file.scratch_directory() as scratch:
        mirror = Mirror(url, os.path.join(scratch, "log_dir"))
        mirror.fetch(newest)
        tf1.logging.info("log_dir %s is kept in %s while the run lasts", url, mirror.folder)
        _mirrors[mirror.folder] = mirror
        try:
            yield mirror.folder
        except BaseException:
            # A checkpoint of before the error is good; the error itself is what is raised.
            try:
                _send_all(mirror)
            except (MoxserveError, OSError) as lost:
                tf1.logging.error("%s; what came after the last upload is lost", first_line(lost))
            raise
        finally:
            del _mirrors[mirror.folder]
        _send_all(mirror)


@contextlib.contextmanager
def kept_here(settings: Settings) -> Iterator[Settings]:
    """Let local folders stand for what a run is given in a store, while it lasts: `log_dir`, `checkpoint_path`, the
    checkpoint of `warm_start`.

    Args:
        settings: of the run.

    Yields:
        The settings of the same run with local paths.

    Raises:
        DataError: the store cannot be read.
        UsageError: there is no such bucket.
        CheckpointError: there is no checkpoint to start from; or the store does not take what the run left at its end.
    """
    with contextlib.ExitStack() as stack:
        if settings.log_dir is not None and is_remote(settings.log_dir):
            folder = stack.enter_context(mirrored(settings.log_dir, newest=settings.mode != ModeKeys.TRAIN))
            settings = replace(settings, log_dir=folder, was_remote=True)
        settings = replace(settings, mirror=_mirrors.get(settings.log_dir or ""))
        start, warm = settings.checkpoint_path, settings.warm_start
        path = start if warm is None else os.fspath(warm.checkpoint)  # one of the two is None
        if path is not None and is_remote(path) and latest_checkpoint(settings.log_dir) is None:
            path = stack.enter_context(local_checkpoint(path))
            if warm is None:
                settings = replace(settings, checkpoint_path=path)
            else:
                settings = replace(settings, warm_start=replace(warm, checkpoint=path))
        yield settings


def _send_all(mirror: Mirror) -> None:
    try:
        with mirror.snapshot() as frozen:
            mirror.send(frozen)
    except (MoxserveError, OSError) as error:
        raise CheckpointError(f"log_dir {mirror.url!r} cannot be written: {first_line(error)}") from error


@contextlib.contextmanager
def local_checkpoint(path: str) -> Iterator[str]:
    """Give a path of this machine that means what a URL of a checkpoint does, while the block lasts; any other path as
    it is.

    Args:
        path: a folder, a prefix or a file of a checkpoint, or the folder of a SavedModel, as of `checkpoint_path`.

    Raises:
        DataError: the store cannot be read.
        CheckpointError: there is none.
    """
    if not is_remote(path):
        yield path
        return
    with file.scratch_directory() as scratch:
        local = _fetched(path, os.path.join(scratch, "checkpoint_path"))
        if local is None or find_checkpoint(local) is None:
            raise CheckpointError(f"no checkpoint at {path!r}", hint="give a prefix, a file or a folder")
        yield local


def _fetched(url: str, folder: str) -> str | None:
    fs, path = locate(url)
    if fs.is_directory(path):
        Mirror(url, folder).fetch(newest=True)
        return folder
    base, _, name = without_part(url).rpartition("/")
    if not file.is_directory(base):
        return None
    os.makedirs(folder, exist_ok=True)
    for found in file.list_directory(base):
        if _belongs(found, name):
            file.copy(join(base, found), os.path.join(folder, found))
    return os.path.join(folder, name)


def _belongs(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith((f"{prefix}.index", f"{prefix}.data-", f"{prefix}.meta"))


def _is_state(name: str) -> bool:
    """Whether a run goes on from a file: those at the top that are no events, and the best checkpoints."""
    if name.startswith(_BEST):
        return True
    return "/" not in name and not name.startswith((_EVENTS, file.TEMP_PREFIX)) and name != LOCK_FILE


def _files(folder: str) -> list[str]:
    """The names of all files that belong to a log_dir; those that are still being written do not."""
    found = []
    for parent, dirs, names in os.walk(folder):
        dirs[:] = [name for name in dirs if not name.startswith(file.TEMP_PREFIX) and not name.endswith("_temp")]
        whole = [n for n in names if n != LOCK_FILE and not n.startswith(file.TEMP_PREFIX) and ".tempstate" not in n]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in whole]
    return sorted(found)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
