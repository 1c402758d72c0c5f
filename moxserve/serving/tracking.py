"""What the manager knows of one model: its configuration, the versions that were found, and how far each has come.

Holds no lock and starts no thread: the manager calls these methods under its own lock, except where told otherwise.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

from moxserve.errors import ServingError
from moxserve.export.versions import parse_version
from moxserve.file.filesystem import is_remote
from moxserve.serving.model_config import ModelConfig
from moxserve.serving.policy import State, aspired_versions
from moxserve.serving.servable import Servable
from moxserve.serving.source import FoundVersion, Listing

__all__ = ["TrackedModel", "VersionRecord", "VersionStatus", "describe", "forgotten"]

logger = logging.getLogger(__name__)

_REMIND_S = 60.0
_SLOW_S = 5.0
# A look into a store is a request that is paid for.
_REMOTE_LOOK_S = 5.0
_BASE, _ABSENT = "base path", "absent versions"


@dataclass(frozen=True)
class VersionStatus:
    """What is told about a version.

    Attributes:
        version: its number.
        state: where it is in its life.
        error: why it ended, when it failed.
    """

    version: int
    state: State
    error: ServingError | None = None


@dataclass
class VersionRecord:
    """One version that was found.

    Attributes:
        found: where it is, and what its files looked like.
        state: where it is in its life.
        aspired: whether it should be there.
        error: of the last failed attempt to load it.
        servable: while it is loaded.
        attempts: how many loads have failed.
        retry_at: monotonic time of the next attempt, in s; None when none is due.
    """

    found: FoundVersion
    state: State = State.START
    aspired: bool = True
    error: ServingError | None = None
    servable: Servable | None = None
    attempts: int = 0
    retry_at: float | None = None

    @property
    def paused(self) -> bool:
        """Whether a failed load waits for its next attempt."""
        return self.state is State.LOADING and self.retry_at is not None

    @property
    def failed(self) -> bool:
        """Whether it was given up."""
        return self.state is State.END and self.error is not None


class TrackedModel:
    """One model.

    Args:
        config: what to serve of it.

    Attributes:
        config: as above; may be replaced by one with the same base path.
        records: version -> what is known of it.
        ready: version -> what requests may use. Replaced as a whole, never changed in place.
        lacking: why there is no version to load; empty when there is one.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.records: dict[int, VersionRecord] = {}
        self.ready: dict[int, Servable] = {}
        self.lacking = ""
        self._look_began: float | None = None
        self._answered = False
        self._next_look = -math.inf
        self._seen: dict[int, int] | None = None
        self._told: dict[object, tuple[str, float]] = {}

    # State

    @property
    def aspired(self) -> list[VersionRecord]:
        """The versions that should be there."""
        return [record for record in self.records.values() if record.aspired]

    @property
    def settled(self) -> bool:
        """Whether every wanted version was tried, and one serves or all were given up."""
        aspired = self.aspired
        tried = all(r.state is State.AVAILABLE or r.failed or r.paused for r in aspired)
        return bool(aspired) and tried and (bool(self.ready) or all(r.failed for r in aspired))

    @property
    def ended(self) -> bool:
        """Whether nothing of it is loaded, being loaded or being unloaded."""
        return all(record.state is State.END for record in self.records.values())

    def failures(self) -> list[str]:
        """Tell each wanted version that was given up, if none serves."""
        if self.ready or not self.settled:
            return []
        return [
            f"{{{{name: {self.config.name} version: {version}}} due to error: {describe(record.error)}}}, "
            for version, record in sorted(self.records.items())
            if record.failed and record.aspired
        ]

    def statuses(self) -> dict[int, VersionStatus]:
        """Return version -> what is told about it."""
        return {v: VersionStatus(v, r.state, r.error) for v, r in self.records.items()}

    def want_nothing(self) -> None:
        """Let every version go."""
        for record in self.records.values():
            record.aspired = False

    # What was found on disk

    def begin_look(self) -> bool:
        """Take note that its base path is being looked at, unless it still is; tell whether to go on."""
        now = time.monotonic()
        if self._look_began is None:
            if now < self._next_look:
                return False
            self._look_began, self._answered = now, False
            return True
        # One that has answered is only being reported.
        if not self._answered and now - self._look_began >= _SLOW_S:
            path = self.config.base_path
            self.lacking = f"Base path {path} for servable {self.config.name} does not answer."
            self._tell(_BASE, self.lacking)
        return False

    def end_look(self) -> None:
        """Take note that the look has ended."""
        self._look_began = None
        if is_remote(self.config.base_path):
            self._next_look = time.monotonic() + _REMOTE_LOOK_S

    def take(self, listing: Listing) -> None:
        """Take in what is on disk now."""
        self._answered = True
        wanted = aspired_versions(self._trusted(listing), self.config.policy)
        for version, record in self.records.items():
            record.aspired = version in wanted
        for version in wanted:
            self._take_in(listing.versions[version])
        self.lacking = "" if wanted else _nothing_found(self.config, listing)

    def unreachable(self, error: OSError) -> None:
        """Take note that the base path cannot be read. What is loaded stays.

        A base path that is away for a moment (a remounted volume) must not unload anything.
        """
        self._answered = True
        config = self.config
        self.lacking = f"Could not find base path {config.base_path} for servable {config.name}: {error}"
        self._seen = self._seen or {}

    def _trusted(self, listing: Listing) -> list[int]:
        """Return the versions that are complete and no longer being written.

        Without a manifest nobody vouches for a directory that turns up while we look: two polls in a row must see the
        same files. What was there before we started is taken as it is, and so is what we load or serve already.
        """
        before, self._seen = self._seen, {v: f.fingerprint for v, f in listing.versions.items()}
        in_use = {v for v, r in self.records.items() if r.state in (State.LOADING, State.AVAILABLE)}
        return [
            v
            for v, f in listing.versions.items()
            if f.sealed or before is None or v in in_use or before.get(v) == f.fingerprint
        ]

    def _take_in(self, found: FoundVersion) -> None:
        record = self.records.get(found.version)
        if record is None:
            self.records[found.version] = VersionRecord(found)
            return
        rewritten = record.found.fingerprint != found.fingerprint
        if rewritten and record.paused:
            record.retry_at = time.monotonic()
        if record.state is State.END and (not record.failed or rewritten):
            # It came back, or what was wrong with it may have been put right.
            self.records[found.version] = VersionRecord(found)
        elif record.state is not State.AVAILABLE:
            record.found = found

    # What an operator may be surprised by

    def report(self, listing: Listing | None) -> None:
        """Log what is odd about the base path. Needs no lock; only the thread that looked calls it.

        Args:
            listing: what is there; None when it cannot be read.
        """
        config = self.config
        if listing is None:
            self._tell(_BASE, self.lacking)
            return
        for name in listing.doubled:
            self._tell(name, f"{config.base_path}: {name} is ignored, another name has the same number")
        if self.lacking:
            self._tell(_BASE, self.lacking)
            return
        absent = sorted(set(config.policy.versions) - set(listing.versions))
        current = {*listing.incomplete, *listing.doubled, *([_ABSENT] if absent else [])}
        self._told = {key: value for key, value in self._told.items() if key in current}
        for version, why in listing.incomplete.items():
            label = f"{{name: {config.name} version: {version}}}"
            self._tell(version, f"{label} is not complete and is left out: {why}", again_when_changed=False)
        if absent:
            numbers = ", ".join(map(str, absent))
            self._tell(
                _ABSENT, f"{config.name}: versions that its policy names but {config.base_path} lacks: {numbers}"
            )

    def _tell(self, about: object, text: str, *, again_when_changed: bool = True) -> None:
        """Log a lasting condition: once, when it changes, and again from time to time."""
        now = time.monotonic()
        before, at = self._told.get(about, ("", -math.inf))
        if now - at >= _REMIND_S or (again_when_changed and text != before):
            logger.warning("%s", text)
            self._told[about] = (text, now)


def forgotten(found: FoundVersion) -> FoundVersion:
    """Return the same version as one that was never looked at, so that it counts as rewritten when it comes back."""
    return FoundVersion(found.version, found.path, 0, found.sealed)


def describe(error: ServingError | None) -> str:
    """Return an error as `STATUS: message`."""
    if error is None:
        return "unknown"
    return f"{error.status}: {error.message}"


def _nothing_found(config: ModelConfig, listing: Listing) -> str:
    text = (
        f"No versions of servable {config.name} found under base path {config.base_path}. "
        "Did you forget to name your leaf directory as a number (eg. '/1/')?"
    )
    parent, _, name = config.base_path.rstrip("/").rpartition("/")
    if parse_version(name) is not None and {"saved_model.pb", "variables"} & set(listing.others):
        text += f" This is a version itself: give the folder above it, {parent or '/'}."
    if listing.incomplete:
        text += " Not complete yet: " + "; ".join(f"{v}: {why}" for v, why in sorted(listing.incomplete.items())) + "."
    if listing.versions:
        text += f" Complete, but not wanted or still changing: {', '.join(map(str, sorted(listing.versions)))}."
    if config.policy.kind == "specific":
        text += f" Wanted: {', '.join(map(str, config.policy.versions)) or 'none, the policy names no version'}."
    if listing.others:
        more = f" and {len(listing.others) - 8} more" if len(listing.others) > 8 else ""
        text += f" No version numbers: {', '.join(listing.others[:8])}{more}."
    return text
