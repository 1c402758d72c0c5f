"""A `log_dir` in a store: a local folder stands for it while a run lasts, and what is written there is sent on.

At the start who trains claims it (see `claims`), and what the process needs is fetched (see `Share`). After each
checkpoint, and each minute for the event files, a snapshot of the folder (hard links) is handed to a thread that
uploads what has changed (see `mirror`). The last snapshot is sent when the last step is done, before anything is
exported, and the rest before the run returns.
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moxserve import file
from moxserve.errors import CheckpointError, MoxserveError, first_line
from moxserve.file.filesystem import is_remote, join
from moxserve.file.standins import known_as, told_as
from moxserve.tensorflow.executor.claims import Claim, ClaimLostError, claimed
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks.states import HOOK_STATES
from moxserve.tensorflow.executor.located import find_checkpoint, latest_checkpoint, without_part
from moxserve.tensorflow.executor.mirror import EVALUATIONS, JOB_FILE, STATE_FILE, Mirror
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant, StepContext
from moxserve.tensorflow.executor.position import PositionLog
from moxserve.tensorflow.executor.spec import ModeKeys

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.settings import Settings

__all__ = [
    "LogDirSender",
    "Share",
    "checkpoint_here",
    "kept_here",
    "local_checkpoint",
    "mirrored",
]

_EVERY_S = 60.0
_RETRY_S = 10.0
_CLAIM_LOOK_S = 5.0


class Share(enum.Enum):
    """What a process has to do with a `log_dir`, and so what it needs of it."""

    TRAINS = "checkpoints, the best ones, and what is known beside them; nobody else may train there"
    READS = "the checkpoint that counts"
    FOLLOWS = "its place in the input, and whether there is a checkpoint, which another process restores"
    LOOKS = "the same, and the checkpoint, which says what comes next in a training in phases"
    SERVES = "whether the training is over"
    EVALUATES = "what was evaluated; checkpoints one by one"

    @classmethod
    def of(cls, topology: Topology, *, training: bool, phased: bool) -> Share:
        """Return the share of a process in a run.

        Args:
            topology: of the process.
            training: whether the run is a training.
            phased: whether that may have phases.
        """
        if not training:
            return cls.SERVES if topology.job == "ps" else cls.READS
        if topology.is_chief:
            return cls.TRAINS
        return {"ps": cls.SERVES, "evaluator": cls.EVALUATES}.get(topology.job, cls.LOOKS if phased else cls.FOLLOWS)

    @property
    def restores(self) -> bool:
        """Whether the process looks at checkpoints to start from."""
        return self in (Share.TRAINS, Share.READS, Share.LOOKS)

    def mirror(self, url: str, folder: str, worker: int, claim: Claim | None) -> Mirror:
        """Bring here what is needed.

        Args:
            url: of the `log_dir`.
            folder: to bring it to.
            worker: number of this process among the workers.
            claim: of who trains.
        """
        known = PositionLog(folder, worker)
        place = [os.path.basename(path) for path in (known.path, known.skipped_path)]
        follows = self in (Share.FOLLOWS, Share.LOOKS)
        owned = None if self is Share.TRAINS else place if follows else ()
        mirror = Mirror(url, folder, claim, owned)
        if claim is not None:
            mirror.begin()
        if self.restores:
            mirror.fetch(newest=self is not Share.TRAINS)
        names = {
            Share.FOLLOWS: (STATE_FILE, JOB_FILE, HOOK_STATES, *place),
            Share.LOOKS: (JOB_FILE, HOOK_STATES, *place),
            Share.SERVES: (STATE_FILE, JOB_FILE),
            Share.EVALUATES: (EVALUATIONS,),
        }
        mirror.fetch_files(names.get(self, ()))
        return mirror


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
        self._claim = mirror.claim

    def next_step(self, clock: Clock) -> int:
        """The next one, when a checkpoint was written; while the store does not answer there are pauses."""
        return clock.run_step if self._mirror.state_identity != self._seen and not self._failing else NEVER

    def next_time(self) -> float:
        """Each minute, for who watches the training; sooner, where the last attempt failed, and to see to the claim."""
        if self._claim is None:
            return self._due
        return 0.0 if self._claim.is_lost else min(self._due, time.monotonic() + _CLAIM_LOOK_S)

    def step_done(self, context: StepContext) -> None:
        """Hand a snapshot to a thread; while one is still being sent, the next one waits its turn.

        Raises:
            ClaimLostError: another training writes into the log_dir now.
        """
        self._check_claim()
        if not self._busy.acquire(blocking=False):
            self._due = time.monotonic() + 1.0
            return
        self._seen, self._due = self._mirror.state_identity, time.monotonic() + _EVERY_S
        stack = contextlib.ExitStack()
        try:
            frozen = stack.enter_context(self._mirror.snapshot())
            threading.Thread(target=self._send, args=(frozen, stack), name="moxserve-log-dir", daemon=True).start()
        except (MoxserveError, OSError) as error:  # no room for it here
            self._failed(error)
            self._busy.release()
        except BaseException:
            self._busy.release()  # the end waits for whoever sends
            raise

    def _check_claim(self) -> None:
        if self._claim is not None:
            self._claim.check()

    def _send(self, frozen: str, stack: contextlib.ExitStack) -> None:
        try:
            with stack:
                self._mirror.send(frozen)
            if self._failing:
                tf1.logging.info("%s is up to date again", self._mirror.url)
            self._failing = False
        except ClaimLostError:
            self._failing = True  # it is told where the training notices, and ends
        except (MoxserveError, OSError) as error:
            self._failed(error)
        finally:
            self._busy.release()

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            tf1.logging.warning("%s is not up to date: %s; trying again", self._mirror.url, first_line(error))
        self._failing, self._due = True, time.monotonic() + _RETRY_S

    def finish(self, ok: bool) -> None:
        """Send the last checkpoint, which was written just now: what comes after the steps may take long, or fail.

        Raises:
            ClaimLostError: another training writes into the log_dir now.
        """
        self._busy.acquire()
        stack = contextlib.ExitStack()
        try:
            frozen = stack.enter_context(self._mirror.snapshot())
        except (MoxserveError, OSError) as error:
            self._failed(error)
        else:
            self._send(frozen, stack)
        self._mirror.stale = self._failing
        if ok:
            self._check_claim()


# The mirrors of this process by their local folders: several runs may go into one, of a pipeline for example.
_mirrors: dict[str, Mirror] = {}


@contextlib.contextmanager
def mirrored(url: str, share: Share, worker: int = 0, also: Sequence[str] = ()) -> Iterator[str]:
    """Give a local folder that stands for a `log_dir` in a store, for all runs that are made while the block lasts.

    Args:
        url: of the `log_dir`.
        share: what this process has to do with it.
        worker: number of this process among the workers.
        also: names of files that are needed besides.

    Raises:
        DataError: the store cannot be read.
        UsageError: there is no such bucket; or another training writes there.
        CheckpointError: the store does not take what was left at the end, or another training has taken over.
    """
    with contextlib.ExitStack() as stack:
        claim = stack.enter_context(claimed(url)) if share is Share.TRAINS else None
        scratch = stack.enter_context(file.scratch_directory())
        folder = os.path.join(scratch, "log_dir")
        stack.enter_context(told_as(folder, url.rstrip("/")))
        mirror = share.mirror(url, folder, worker, claim)
        mirror.fetch_files(also)
        tf1.logging.info("log_dir %s is kept in %s while the run lasts", url, folder)
        _mirrors[mirror.folder] = mirror
        try:
            yield mirror.folder
        except BaseException:
            # A checkpoint of before the error is good; the error itself is what is raised.
            try:
                _send_all(mirror)
            except (MoxserveError, OSError) as lost:
                if claim is None or not claim.is_lost:
                    tf1.logging.error("%s; what came after the last upload is lost", first_line(lost))
            raise
        finally:
            del _mirrors[mirror.folder]
        _send_all(mirror)


@contextlib.contextmanager
def kept_here(settings: Settings, topology: Topology, *, phased: bool = False) -> Iterator[Settings]:
    """Let local folders stand for what a run is given in a store, while it lasts: `log_dir`, `checkpoint_path`, the
    checkpoint of `warm_start`.

    Args:
        settings: of the run.
        topology: of this process.
        phased: whether the training has phases.

    Yields:
        The settings of the same run with local paths.

    Raises:
        DataError: the store cannot be read.
        UsageError: there is no such bucket; or another training writes there.
        CheckpointError: there is no checkpoint to start from; or the store does not take what the run left at its end.
    """
    share = Share.of(topology, training=settings.mode == ModeKeys.TRAIN, phased=phased)
    with contextlib.ExitStack() as stack:
        if settings.log_dir is not None and is_remote(settings.log_dir):
            folder = stack.enter_context(mirrored(settings.log_dir, share, topology.index))
            settings = replace(settings, log_dir=folder, was_remote=True)
        settings = replace(settings, mirror=_mirrors.get(settings.log_dir or ""))
        start, warm = settings.checkpoint_path, settings.warm_start
        path = start if warm is None else os.fspath(warm.checkpoint)  # one of the two is None
        if path is not None and is_remote(path) and not share.restores:
            settings = replace(settings, checkpoint_path=None, warm_start=None)  # another process restores it
        elif path is not None and is_remote(path) and latest_checkpoint(settings.log_dir) is None:
            # Without a checkpoint there the mode tells what that means, as with a local path.
            local, prefix = stack.enter_context(_brought(path))
            if warm is None:
                fetched = None if prefix is None else (prefix, known_as(prefix))
                settings = replace(settings, checkpoint_path=prefix or local, fetched=fetched)
            else:
                settings = replace(settings, warm_start=replace(warm, checkpoint=prefix or local))
        yield settings


def _send_all(mirror: Mirror) -> None:
    try:
        with mirror.snapshot() as frozen:
            mirror.send(frozen)
    except ClaimLostError:
        raise
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
    with checkpoint_here(path) as (local, _):
        yield local


@contextlib.contextmanager
def checkpoint_here(path: str) -> Iterator[tuple[str, str]]:
    """Give the checkpoint at a path or URL on this machine, while the block lasts; errors name the URL.

    Args:
        path: as for `local_checkpoint`.

    Yields:
        Its prefix here, and the prefix as it is known elsewhere.

    Raises:
        DataError: the store cannot be read.
        CheckpointError: there is none.
    """
    if not is_remote(path):
        yield path, known_as(path)
        return
    with _brought(path) as (_, prefix):
        if prefix is None:
            raise CheckpointError(f"no checkpoint at {path!r}", hint="give a prefix, a file or a folder")
        yield prefix, known_as(prefix)


@contextlib.contextmanager
def _brought(url: str) -> Iterator[tuple[str, str | None]]:
    """Bring here what is at the URL of a checkpoint, while the block lasts.

    Yields:
        The path that stands for it, and the prefix of the checkpoint there; None: there is none.

    Raises:
        DataError: the store cannot be read.
        CheckpointError: what is there is something else.
    """
    is_folder = file.is_directory(url)
    is_bucket = url.rstrip("/").count("/") == 2
    parent = url.rstrip("/") if is_folder or is_bucket else without_part(url).rpartition("/")[0]
    with file.scratch_directory() as scratch:
        folder = os.path.join(scratch, "checkpoint_path")
        local = folder if parent == url.rstrip("/") else os.path.join(folder, os.path.basename(without_part(url)))
        with told_as(folder, parent):
            if is_folder:
                Mirror(url, folder).fetch(newest=True)
            elif not is_bucket:
                _fetch_parts(parent, local)
            yield local, find_checkpoint(local)


def _fetch_parts(base: str, prefix: str) -> None:
    folder, name = os.path.split(prefix)
    os.makedirs(folder, exist_ok=True)
    for found in file.list_directory(base) if file.is_directory(base) else ():
        if _belongs(found, name):
            file.copy(join(base, found), os.path.join(folder, found))


def _belongs(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith((f"{prefix}.index", f"{prefix}.data-", f"{prefix}.meta"))
