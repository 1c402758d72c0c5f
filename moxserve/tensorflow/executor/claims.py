"""One training at a time into a `log_dir` in a store: what the lock of `lock` does for a folder.

Who trains keeps an object there that says who it is, and writes it again every now and then. Each writing is bound to
the one before (If-Match), so that of several only one succeeds. A claim counts as lapsed when it was not renewed for a
while, by the store's clock alone; that of a process of this machine that is gone lapses at once. Who finds its claim in
other hands must not write any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from moxserve import file
from moxserve.errors import CheckpointError, MoxserveError, UsageError, first_line
from moxserve.file.client import ConflictError
from moxserve.file.errors import MoxFileNotExistsException
from moxserve.file.filesystem import join
from moxserve.file.s3 import open_bucket
from moxserve.tensorflow.executor.env import tf1

__all__ = ["CLAIM_FILE", "Claim", "ClaimLostError", "claimed"]

CLAIM_FILE = ".moxserve-claim"

_RENEW_S = 15.0
_LAPSE_S = 45.0
_LOOK_S = 1.0
_RETRY_S = 5.0
_TRIES = 3
_sleep = time.sleep
# The tokens of the claims that this process holds.
_here: set[str] = set()


class ClaimLostError(CheckpointError):
    """Another training has taken over the `log_dir` of this one."""


@dataclass(frozen=True)
class _Found:
    """A claim as it stands in the store.

    Attributes:
        etag: changes with each renewal.
        token: of the holder; empty where it cannot be read.
        who: the holder, in words.
        idle_s: seconds since the last renewal, by the store's clock.
    """

    etag: str
    token: str
    who: str
    idle_s: float

    @property
    def is_own(self) -> bool:
        """Whether a run of this process holds it."""
        return self.token in _here

    @property
    def is_dead(self) -> bool:
        """Whether the holder was a process of this machine that is gone, or a run of this process that is over."""
        parts = self.token.removeprefix(file.TEMP_PREFIX).split("-")
        if not self.token.startswith(file.TEMP_PREFIX) or len(parts) != 4 or not parts[0].isdecimal():
            return False
        of_this_process = self.token.rpartition("-")[0] == file.temp_name().rpartition("-")[0]
        return not self.is_own if of_this_process else file.abandoned(self.token, time.time())


class Claim:
    """The claim on a `log_dir` in a store.

    Args:
        url: of the `log_dir`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket, self._key = open_bucket(join(url, CLAIM_FILE))
        self._token = file.temp_name()
        self._etag = ""
        self._renewals = 0
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._lost: ClaimLostError | None = None
        self._keeper = threading.Thread(target=self._keep, name="moxserve-claim", daemon=True)

    def take(self) -> None:
        """Wait until the claim is free, for as long as one lasts that nobody renews, and take it.

        Raises:
            UsageError: another training holds it.
            DataError: the store refuses, or cannot be reached.
        """
        _here.add(self._token)
        try:
            self._take()
        except BaseException:
            _here.discard(self._token)
            raise
        self._keeper.start()

    def _take(self) -> None:
        watched: _Found | None = None
        until = 0.0
        while True:
            found = self._look()
            if found is None:
                if self._put({"IfNoneMatch": "*"}):
                    return
                continue
            if found.is_own:
                raise self._refusal("another run of this process")
            if watched is not None and found.etag != watched.etag:
                raise self._refusal(found.who)
            if watched is None:
                watched, until = found, time.monotonic() + max(0.0, _LAPSE_S - found.idle_s)
            if found.is_dead or time.monotonic() >= until:
                if self._put({"IfMatch": found.etag}):
                    tf1.logging.info("log_dir %s is taken over from %s, which is gone", self.url, found.who)
                    return
                continue
            self._wait(until, tell=found if watched is found else None)

    def _wait(self, until: float, tell: _Found | None) -> None:
        left = until - time.monotonic()
        if tell is not None:
            tf1.logging.info(
                "log_dir %s: %s was training into it; waiting up to %.0f s to see whether it still does",
                self.url, tell.who, left,
            )  # fmt: skip
        _sleep(max(0.0, min(_LOOK_S, left)))

    def renew(self) -> None:
        """Write the claim again, and so make sure that it is still held: do this before something is uploaded.

        Raises:
            ClaimLostError: another training holds it now.
            DataError: the store cannot be reached.
        """
        with self._lock:
            if not self._ending.is_set():
                self._renew()

    def _renew(self) -> None:
        if self._lost is not None:
            raise self._lost
        for _ in range(_TRIES):
            if self._put(self._condition()):
                return
        self._lose(self._look())

    def _condition(self) -> dict[str, str]:
        """What binds the next writing to the one before. Asked first, since not every store looks at conditions."""
        info = self._bucket.info(self._key)
        if info is not None and info.etag == self._etag:
            return {"IfMatch": self._etag}
        found = self._look()
        if found is None:  # removed by hand
            return {"IfNoneMatch": "*"}
        if found.token != self._token:
            self._lose(found)
        return {"IfMatch": found.etag}  # the answer to a writing was lost

    @property
    def is_lost(self) -> bool:
        """Whether another training is known to hold it."""
        return self._lost is not None

    def check(self) -> None:
        """Raise what is known of a loss; asks nobody.

        Raises:
            ClaimLostError: another training holds it.
        """
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Give it up. Where the store is away it lapses by itself."""
        self._ending.set()
        try:
            with self._lock:
                self._renew()  # what is removed must be our own
                self._bucket.delete([self._key])
        except ClaimLostError:
            return  # told by whoever noticed
        except (MoxserveError, OSError) as error:
            tf1.logging.warning(
                "%s cannot be removed, and lapses in %.0f s: %s", self._name, _LAPSE_S, first_line(error)
            )
        finally:
            _here.discard(self._token)

    @property
    def _name(self) -> str:
        return self._bucket.url(self._key)

    def _keep(self) -> None:
        pause, told = _RENEW_S, False
        while not self._ending.wait(pause):
            try:
                self.renew()
                pause, told = _RENEW_S, False
            except ClaimLostError:
                return
            except (MoxserveError, OSError) as error:
                if not told:
                    tf1.logging.warning("%s cannot be renewed: %s; trying again", self._name, first_line(error))
                pause, told = _RETRY_S, True

    def _lose(self, found: _Found | None) -> NoReturn:
        who = found.who if found is not None else "another training"
        self._lost = ClaimLostError(
            f"log_dir={self.url!r}: {who} has taken it over; this training has not been heard of for "
            f"{_LAPSE_S:.0f} s or more, and writes nothing there any more",
            hint="stop one of the two, or give this one another log_dir",
        )
        raise self._lost

    def _refusal(self, who: str) -> UsageError:
        return UsageError(
            f"log_dir={self.url!r}: {who} is training into it",
            hint=f"wait for it or stop it, or choose another log_dir; if it is surely gone, remove {self._name}",
        )

    def _put(self, condition: Mapping[str, str]) -> bool:
        self._renewals += 1
        held = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": self._since,
            "token": self._token,
            "renewals": self._renewals,  # no two writings are the same
        }
        try:
            self._etag = self._bucket.put_if(self._key, (json.dumps(held) + "\n").encode(), condition)
        except ConflictError:
            return False
        except MoxFileNotExistsException as error:
            if getattr(getattr(error, "resp", None), "code", "") == "NoSuchBucket":
                raise _no_bucket(self.url) from error
            if "IfMatch" not in condition:
                raise
            return False  # what was to be replaced is gone
        return True

    def _look(self) -> _Found | None:
        """Read the claim that is there."""
        try:
            content, etag = self._bucket.read(self._key)
            head = self._bucket.store.ask(self._name, "head_object", Bucket=self._bucket.name, Key=self._key)
        except MoxFileNotExistsException:
            return None
        # When it changes between the two it was renewed just now.
        idle_s = _idle_s(head) if head.get("ETag") == etag else 0.0
        try:
            held = json.loads(content)
            who = f"process {held['pid']} on {held['host']} (since {held['since']})"
            return _Found(etag, str(held["token"]), who, idle_s)
        except (ValueError, KeyError, TypeError):
            return _Found(etag, "", "another process", idle_s)


def _idle_s(head: Any) -> float:
    """How long an object has not been written, by the clock of its store; 0 where that does not tell the time."""
    try:
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        return max(0.0, (now - head["LastModified"]).total_seconds())
    except (KeyError, TypeError, ValueError):
        return 0.0


def _no_bucket(url: str) -> UsageError:
    root = "/".join(url.split("/")[:3])
    return UsageError(f"log_dir={url!r}: there is no bucket {root!r}", hint="make it first")


@contextlib.contextmanager
def claimed(url: str) -> Iterator[Claim]:
    """Hold the claim on a `log_dir` while the block lasts.

    Args:
        url: of the `log_dir`.

    Raises:
        UsageError: another training holds it; or there is no such bucket.
        DataError: the store refuses, or cannot be reached.
    """
    claim = Claim(url)
    claim.take()
    try:
        yield claim
    finally:
        claim.release()
