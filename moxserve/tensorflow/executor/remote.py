"""A `log_dir` in a store: a local folder stands for it while a run lasts, and what is written there is sent on.

    start    what a training goes on from is fetched: the checkpoints, what is known beside them, the best ones
    saved    after each checkpoint, and each minute for the event files, a snapshot of the folder (hard links) is handed
             to a thread that uploads what has changed
    end      the last snapshot is sent before the run returns

In the store a checkpoint counts once the file `checkpoint` names it, and that is written last, when all files of the
checkpoints that it names are there: whoever dies at any moment leaves the checkpoint before. Files of checkpoints that
are named no more are removed after that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from moxserve import file
from moxserve.errors import CheckpointError, MoxserveError, first_line
from moxserve.file.filesystem import is_remote, join, locate
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.located import latest_checkpoint
from moxserve.tensorflow.executor.lock import LOCK_FILE
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant, StepContext

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.settings import Settings

__all__ = ["LogDirSender", "Mirror", "fetched_checkpoint", "kept_here", "mirrored"]

_STATE = "checkpoint"
_BEST = "best/"
_EVENTS = "events.out.tfevents"
_THREADS = 8
_EVERY_S = 60.0


class Mirror:
    """What a folder and a directory of a store have in common.

    Args:
        url: of the directory.
        folder: the local folder; made if missing.
    """

    def __init__(self, url: str, folder: str) -> None:
        self.url = url.rstrip("/")
        self.folder = folder
        self._there: dict[str, tuple[int, int]] = {}  # size and time of the local files that the store has
        self._lock = threading.Lock()
        os.makedirs(folder, exist_ok=True)

    def fetch(self) -> None:
        """Bring here what a run goes on from; what only people look at stays in the store.

        Raises:
            DataError: the store cannot be read.
        """
        fs, path = locate(self.url)
        try:
            names = [info.name for info in fs.contents(path) if _is_state(info.name)]
        except FileNotFoundError:
            return
        # The state file first: checkpoints that it names are removed only when it names them no more.
        names.sort(key=lambda name: name != _STATE)
        for name in names[:1]:
            self._fetch(name)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._fetch, names[1:]))

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
            first = [name for name in changed if name != _STATE]
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda name: file.copy(os.path.join(frozen, name), join(self.url, name)), first))
            if _STATE in changed:
                file.copy(os.path.join(frozen, _STATE), join(self.url, _STATE))
            gone = [name for name in self._there if name not in identities]
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    file.remove(join(self.url, name))
            self._there = identities

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
        self._last = time.monotonic()
        self._error: MoxserveError | OSError | None = None
        self._busy = threading.Semaphore(1)

    def next_step(self, clock: Clock) -> int:
        """The next one, when a checkpoint was written."""
        return clock.run_step if self._mirror.state_identity != self._seen else NEVER

    def next_time(self) -> float:
        """Each minute, for who watches the training."""
        return self._last + _EVERY_S

    def step_done(self, context: StepContext) -> None:
        """Hand a snapshot to a thread; while one is still being sent, the next one waits its turn."""
        if not self._busy.acquire(blocking=False):
            self._last = time.monotonic() - _EVERY_S + 1.0  # asked again soon
            return
        self._seen, self._last = self._mirror.state_identity, time.monotonic()
        stack = contextlib.ExitStack()
        frozen = stack.enter_context(self._mirror.snapshot())
        threading.Thread(target=self._send, args=(frozen, stack), name="moxserve-log-dir", daemon=True).start()

    def _send(self, frozen: str, stack: contextlib.ExitStack) -> None:
        try:
            with stack:
                self._mirror.send(frozen)
            self._error = None
        except (MoxserveError, OSError) as error:
            if self._error is None:
                tf1.logging.warning("%s is not up to date: %s; trying again", self._mirror.url, first_line(error))
            self._error, self._seen = error, None
        finally:
            self._busy.release()

    def finish(self, ok: bool) -> None:
        """Wait for what is being sent; the rest is sent when the run is over."""
        self._busy.acquire()


# The mirrors of this process by their local folders: several runs may go into one, of a pipeline for example.
_mirrors: dict[str, Mirror] = {}


@contextlib.contextmanager
def mirrored(url: str) -> Iterator[str]:
    """Give a local folder that stands for a `log_dir` in a store, for all runs that are made while the block lasts.

    Raises:
        DataError: the store cannot be read.
        CheckpointError: the store does not take what was left at the end.
    """
    with file.scratch_directory() as scratch:
        mirror = Mirror(url, os.path.join(scratch, "log_dir"))
        mirror.fetch()
        tf1.logging.info("log_dir %s is kept in %s while the run lasts", url, mirror.folder)
        _mirrors[mirror.folder] = mirror
        try:
            yield mirror.folder
        except BaseException:
            # A checkpoint of before the error is good; the error itself is what is told.
            with contextlib.suppress(MoxserveError, OSError):
                _send_all(mirror)
            raise
        finally:
            del _mirrors[mirror.folder]
        _send_all(mirror)


@contextlib.contextmanager
def kept_here(settings: Settings) -> Iterator[Settings]:
    """Let a local folder stand for a `log_dir` or `checkpoint_path` that is in a store, while a run lasts.

    Args:
        settings: of the run.

    Yields:
        The settings of the same run with local paths.

    Raises:
        DataError: the store cannot be read.
        CheckpointError: there is nothing at `checkpoint_path`; or the store does not take what the run left at its end.
    """
    start = settings.checkpoint_path
    with contextlib.ExitStack() as stack:
        if settings.log_dir is not None and is_remote(settings.log_dir):
            folder = stack.enter_context(mirrored(settings.log_dir))
            settings = replace(settings, log_dir=folder, was_remote=True)
        settings = replace(settings, mirror=_mirrors.get(settings.log_dir or ""))
        if start is not None and is_remote(start) and latest_checkpoint(settings.log_dir) is None:
            scratch = stack.enter_context(file.scratch_directory())
            local = fetched_checkpoint(start, os.path.join(scratch, "checkpoint_path"))
            settings = replace(settings, checkpoint_path=local)
        yield settings


def _send_all(mirror: Mirror) -> None:
    with mirror.snapshot() as frozen:
        try:
            mirror.send(frozen)
        except (MoxserveError, OSError) as error:
            raise CheckpointError(f"log_dir {mirror.url!r} cannot be written: {first_line(error)}") from error


def fetched_checkpoint(url: str, folder: str) -> str:
    """Bring a checkpoint to a local folder.

    Args:
        url: a directory, or a prefix, as of `checkpoint_path`.
        folder: where to.

    Returns:
        The local path that means what the URL did.

    Raises:
        CheckpointError: there is nothing of that name.
    """
    fs, path = locate(url)
    if fs.is_directory(path):
        mirror = Mirror(url, folder)
        mirror.fetch()
        return folder
    base, _, name = url.rpartition("/")
    found = [path for path in file.glob(f"{url}*") if _belongs(path[len(base) + 1 :], name)]
    if not found:
        raise CheckpointError(f"no checkpoint at {url!r}", hint="give a prefix, a file or a folder")
    os.makedirs(folder, exist_ok=True)
    for path in found:
        file.copy(path, os.path.join(folder, os.path.basename(path)))
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
