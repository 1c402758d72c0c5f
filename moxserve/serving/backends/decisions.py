"""Remembers which variant of a version is the fastest on this machine, so that a restart need not measure again.

One small file a version, in the user's cache directory. Its name is made of everything that the decision depends on:
the version's files, the machine, the runtimes' versions and the options. A file also tells which variant is being
tried: one that twice took the process with it is not tried a third time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moxserve import __version__
from moxserve.export.manifest import MANIFEST_PATH
from moxserve.file import atomic_write
from moxserve.file.places import cache_directory
from moxserve.serving.machine import machine

__all__ = ["Decision", "DecisionFile", "cache_directory"]

logger = logging.getLogger(__name__)

_MAX_DEATHS = 2
_MAX_FILES = 512
_LOCK_S = 120.0


class Decision(BaseModel):
    """What is known of a version's variants on this machine.

    Attributes:
        order: names of those that may serve, the fastest first; empty when nothing is decided yet.
        signatures: variant -> the signatures in which it answered as it should.
        figures: variant -> requests a second, for people.
        refused: variant -> why it may not serve, for people.
        deaths: variant -> how often the process ended while it was tried.
        trying: the variant that is being tried, and by which process.
    """

    model_config = ConfigDict(extra="ignore")

    order: list[str] = Field(default_factory=list)
    signatures: dict[str, list[str]] = Field(default_factory=dict)
    figures: dict[str, float] = Field(default_factory=dict)
    refused: dict[str, str] = Field(default_factory=dict)
    deaths: dict[str, int] = Field(default_factory=dict)
    trying: str = ""
    pid: int = 0


class DecisionFile:
    """The decision on one version. A directory that cannot be written to only means that nothing is remembered.

    Args:
        version_dir: the version.
        options: whatever else the decision depends on.

    Attributes:
        decision: as it was read, or empty.
    """

    def __init__(self, version_dir: str, options: Mapping[str, Any]) -> None:
        self._path = os.path.join(cache_directory(), "variants", f"{_key(version_dir, options)}.json")
        self.decision = Decision()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from measuring the same version: each would slow the other down."""
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            logger.debug("decisions on variants are not kept: %s", error)
            yield
            return
        try:
            _wait_for(lock, self._path)
            self.decision = self._read()
            yield
        finally:
            os.close(lock)

    def _read(self) -> Decision:
        try:
            with open(self._path, "rb") as f:
                decision = Decision.model_validate_json(f.read())
        except (OSError, ValidationError):
            return Decision()
        if decision.trying and not _alive(decision.pid):
            name, decision.trying = decision.trying, ""
            decision.deaths[name] = decision.deaths.get(name, 0) + 1
            self._write(decision)
        return decision

    def dangerous(self, variant: str) -> bool:
        """Tell whether trying a variant ended the process too often."""
        return self.decision.deaths.get(variant, 0) >= _MAX_DEATHS

    @contextlib.contextmanager
    def trying(self, variant: str) -> Iterator[None]:
        """Leave a trace while a variant is tried: what runs next may end the process."""
        self.decision.trying, self.decision.pid = variant, os.getpid()
        self._write(self.decision)
        try:
            yield
        finally:
            self.decision.trying, self.decision.pid = "", 0

    def save(self) -> None:
        """Write the decision down."""
        self._write(self.decision)
        self._tidy()

    def _write(self, decision: Decision) -> None:
        try:
            atomic_write(self._path, orjson.dumps(decision.model_dump(), option=orjson.OPT_INDENT_2))
        except OSError as error:
            logger.debug("%s is not written: %s", self._path, error)

    def _tidy(self) -> None:
        folder = os.path.dirname(self._path)
        with contextlib.suppress(OSError):
            kept = sorted((e for e in os.scandir(folder) if e.is_file()), key=lambda e: e.stat().st_mtime)
            for entry in kept[: -2 * _MAX_FILES]:
                os.unlink(entry.path)


def _wait_for(lock: int, path: str) -> None:
    deadline = time.monotonic() + _LOCK_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.05)
        else:
            return
    logger.warning("%s is held by another process; going on without it", path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _key(version_dir: str, options: Mapping[str, Any]) -> str:
    facts = {
        "files": _fingerprint(version_dir),
        "machine": machine().model_dump(),
        "moxserve": __version__,
        "options": dict(options),
    }
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _fingerprint(version_dir: str) -> list[Any]:
    """Describe the files of a version; the manifest, which has their digests, by its content."""
    found: list[Any] = []
    manifest = os.path.join(version_dir, MANIFEST_PATH)
    sealed = os.path.isfile(manifest)
    if sealed:
        with open(manifest, "rb") as f:
            found.append(hashlib.sha256(f.read()).hexdigest())
    for folder, _, names in os.walk(version_dir, followlinks=True):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                when = 0 if sealed else stat.st_mtime_ns
                found.append([os.path.relpath(path, version_dir), stat.st_size, when])
    return sorted(found, key=str)
