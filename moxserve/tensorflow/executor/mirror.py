"""A folder and a directory of a store that are kept the same: what a run needs is fetched, what it leaves is sent.

In the store a checkpoint counts once the file `checkpoint` beside it names it, and that is written last, when all files
of the checkpoints that it names are there: whoever dies at any moment leaves the checkpoint before. Files of
checkpoints that are named no more are removed after that.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from moxserve import file
from moxserve.errors import MoxserveError, UsageError, first_line
from moxserve.file.filesystem import join
from moxserve.file.standins import url_of
from moxserve.tensorflow.executor.best import BEST_FILE
from moxserve.tensorflow.executor.claims import Claim
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks.states import HOOK_STATES
from moxserve.tensorflow.executor.located import is_complete, latest_checkpoint, named_in_state
from moxserve.tensorflow.executor.lock import LOCK_FILE

__all__ = ["EVALUATIONS", "JOB_FILE", "STATE_FILE", "Mirror"]

STATE_FILE = "checkpoint"
# What a job remembers of its trainings; see `job`.
JOB_FILE = ".moxserve-job"
# What an evaluator has done; see `evaluator`.
EVALUATIONS = "eval/evaluations.json"

_BEST = "best/"
_THREADS = 8
_MODEL = "saved_model.pb"
_VARIABLES = "variables/"
# What a run reads at its start, and what it leaves for the next: here and in the folder of the best checkpoints.
_STATE = (STATE_FILE, JOB_FILE, HOOK_STATES, BEST_FILE)
_PLACE = re.compile(r"input-\d+(?:\.json|-skipped\.jsonl)\Z")
# Files of checkpoints of any name; those of one file, as TensorFlow wrote them before 2017, have `.ckpt` in theirs.
_PART = re.compile(r"(?:.+\.(?:index|meta|data-\d+-of-\d+)|[^/]*\.ckpt[^/]*)\Z")
_Identity = tuple[int, int, int]
# Told of a training at its end: not before everything else is there.
_WORDS = (LOCK_FILE, JOB_FILE)


class Mirror:
    """What a folder and a directory of a store have in common.

    Args:
        url: of the directory.
        folder: the local folder; made if missing.
        claim: of the training that writes there; None for who does not train.
        owned: names of the files that may be removed from the store because they are gone here; None for all.

    Attributes:
        stale: whether the store did not take what a run left when its steps were done.
    """

    def __init__(self, url: str, folder: str, claim: Claim | None = None, owned: Sequence[str] | None = None) -> None:
        self.url = url.rstrip("/")
        self.folder = folder
        self.claim = claim
        self._owned = owned
        self._there: dict[str, _Identity] = {}  # of the local files that the store has
        self._lock = threading.Lock()
        self.stale = False
        self._keeps_all = False
        os.makedirs(folder, exist_ok=True)

    def fetch(self, newest: bool = False) -> None:
        """Bring here what a run goes on from; what only people look at stays in the store.

        Args:
            newest: of the checkpoints only the one that counts, where it is whole.

        Raises:
            DataError: the store cannot be read.
            UsageError: there is no such bucket.
        """
        try:
            there = self._names_in("")
        except FileNotFoundError:
            self._require_bucket()
            return
        # The state file first: checkpoints that it names are removed only when it names them no more.
        if STATE_FILE in there:
            self._fetch(STATE_FILE)
        current = [os.path.basename(prefix) for prefix in named_in_state(self.folder)]
        if newest:
            for prefix in current[-1:]:
                self._fetch_all(name for name in there if name.startswith(f"{prefix}."))
                if is_complete(os.path.join(self.folder, prefix)):
                    return
        best = self._names_in(_BEST) if _BEST in there else []
        self._fetch_all(name for name in there if name in current or (_is_state(name) and name != STATE_FILE))
        self._fetch_all(f"{_BEST}{name}" for name in best if _is_state(name))
        if newest and latest_checkpoint(self.folder) is None:
            self._fetch_model(there)

    def fetch_files(self, names: Sequence[str]) -> None:
        """Bring some files here, those that are there.

        Raises:
            DataError: the store cannot be read.
            UsageError: there is no such bucket.
        """
        self._fetch_all(names)
        if names and not self._there:
            self._require_bucket()

    @property
    def named(self) -> str | None:
        """The checkpoint that counts, by its name: its files may have stayed in the store. None if there is none."""
        return next(iter(named_in_state(self.folder)[-1:]), None)

    def _fetch_model(self, there: Sequence[str]) -> None:
        """Bring a SavedModel's variables: of the folder itself, else of the newest of the versions in it."""
        numbers = {name: int(name[:-1]) for name in there if name.endswith("/") and name[:-1].isdecimal()}
        for root in ("", *sorted(numbers, key=lambda name: numbers[name], reverse=True)):
            names = self._names_in(root) if root else there
            if _MODEL in names:
                parts = self._names_in(f"{root}{_VARIABLES}") if _VARIABLES in names else []
                self._fetch_all([root + _MODEL, *(f"{root}{_VARIABLES}{name}" for name in parts)])
                return

    def _names_in(self, folder: str) -> list[str]:
        """Return what is directly in a folder of the directory, folders with a slash at their ends."""
        return file.list_directory(join(self.url, folder), remove_sep=False)

    def _require_bucket(self) -> None:
        """A folder that is not there is made by the first upload; a bucket is not."""
        root = "/".join(self.url.split("/")[:3])
        with contextlib.suppress(PermissionError):  # who may see this folder alone: there is a bucket
            if not file.is_directory(root):
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
            ClaimLostError: another training writes there now.
            DataError: the store refuses, or cannot be reached.
        """
        with self._lock:
            identities = {name: _identity(os.path.join(frozen, name)) for name in _files(frozen)}
            changed = [name for name in identities if self._there.get(name) != identities[name]]
            gone = [name for name in self._there if name not in identities and self._owns(name)]
            if not changed and not gone:
                return
            self._require_claim()

            def upload(name: str) -> None:
                self._upload(name, frozen, identities[name])

            pointers = [name for name in changed if os.path.basename(name) == STATE_FILE]
            words = [name for name in changed if name in _WORDS]
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(upload, [name for name in changed if name not in pointers and name not in words]))
            if pointers:
                self._require_claim()  # the upload may have taken long
            # That of the log_dir itself comes after those of the folders in it.
            for name in (*sorted(pointers, key=len, reverse=True), *words):
                upload(name)
            self._remove(gone)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove what is named no more. A store that keeps everything, as some must, costs no training."""
        try:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    file.remove(join(self.url, name))
                del self._there[name]
        except PermissionError as error:
            if not self._keeps_all:
                tf1.logging.warning("old checkpoints stay in %s: %s", self.url, first_line(error))
            self._keeps_all = True

    def _owns(self, name: str) -> bool:
        return self._owned is None or name in self._owned

    def _upload(self, name: str, folder: str, identity: _Identity) -> None:
        file.copy(os.path.join(folder, name), join(self.url, name))
        self._there[name] = identity

    def _require_claim(self) -> None:
        if self.claim is not None:
            self.claim.renew()

    def tell(self, name: str) -> None:
        """Send a small file at once that others wait for, unless what came before it is not there.

        What cannot be sent now goes with the next upload.
        """
        if self.stale:
            return
        try:
            with self._lock:
                self._require_claim()
                self._upload(name, self.folder, _identity(os.path.join(self.folder, name)))
        except (MoxserveError, OSError) as error:
            tf1.logging.warning("%s is not up to date: %s", join(self.url, name), first_line(error))

    def begin(self) -> None:
        """Take back what an earlier training said of its end.

        Raises:
            DataError: the store refuses, or cannot be reached.
        """
        word = join(self.url, LOCK_FILE)
        try:
            file.remove(word)
        except FileNotFoundError:
            return
        except PermissionError:
            file.write(word, "")  # where nothing can be removed it can say nothing

    def url_of(self, path: str) -> str:
        """Return the URL of what is in the folder; any other path as it is."""
        return url_of(path, self.folder, self.url)

    @property
    def state_identity(self) -> _Identity | None:
        """What tells that the state file was written again; None where there is none."""
        try:
            return _identity(os.path.join(self.folder, STATE_FILE))
        except FileNotFoundError:
            return None


def _is_state(name: str) -> bool:
    """Whether a run goes on from a file, by its name alone: a bucket's root may hold anything else."""
    return name in _STATE or bool(_PLACE.match(name) or _PART.match(name))


def _files(folder: str) -> list[str]:
    """The names of all files that belong to a log_dir; those that are still being written do not."""
    found = []
    for parent, dirs, names in os.walk(folder):
        dirs[:] = [name for name in dirs if not name.startswith(file.TEMP_PREFIX) and not name.endswith("_temp")]
        whole = [n for n in names if not n.startswith(file.TEMP_PREFIX) and ".tempstate" not in n]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in whole]
    return sorted(found)


def _identity(path: str) -> _Identity:
    # With its number: a file that takes the place of another one of the same size may have its time, too, which the
    # kernel reads off a clock that stands still for milliseconds.
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino
