"""Keeps the right versions loaded: polls the source, asks the policy, loads, unloads, and lends versions to requests.

One thread decides; loads and unloads run in threads of their own, so a slow or broken model holds up no other. A
version is START (known), LOADING (retries and warmup included), AVAILABLE, UNLOADING (no new requests, the old ones
finish) and END (unloaded, or failed with an error). What a request may use changes in one step under one lock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moxserve.errors import Cancelled, InvalidArgument, MoxserveError, NotFound, ServingError, UnknownError
from moxserve.serving.policy import Action, State, VersionPolicy, VersionView, aspired_versions, next_action
from moxserve.serving.servable import Servable
from moxserve.serving.source import FoundVersion, Listing, find_versions
from moxserve.types import ModelRef

__all__ = ["Loader", "Manager", "ManagerOptions", "ModelConfig", "VersionStatus"]

logger = logging.getLogger(__name__)

Loader = Callable[[str, int, str], Servable]
_REMIND_S = 60.0
_BASE = "base path"


@dataclass(frozen=True)
class ModelConfig:
    """A model to serve.

    Attributes:
        name: that requests use.
        base_path: directory of its versions.
        policy: which of them to serve.
    """

    name: str
    base_path: str
    policy: VersionPolicy = field(default_factory=VersionPolicy)


@dataclass(frozen=True)
class ManagerOptions:
    """How versions are found and loaded.

    Attributes:
        poll_interval_s: time between two looks at the disk; 0 looks once, below 0 never.
        max_load_retries: attempts after a first failed one.
        load_retry_interval_s: pause between two attempts.
        load_threads: loads at once; 0 takes one a CPU.
    """

    poll_interval_s: float = 1.0
    max_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    load_threads: int = 0


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
class _Record:
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
        return self.state is State.END and self.error is not None


@dataclass
class _Model:
    config: ModelConfig
    records: dict[int, _Record] = field(default_factory=dict)
    seen: dict[int, int] | None = None
    told: dict[object, tuple[str, float]] = field(default_factory=dict)


class Manager:
    """Loads the versions of some models and lends them out.

    `start` returns at once; `wait_until_ready` waits for the first version of each model. `stop` unloads everything.

    Args:
        models: what to serve.
        loader: makes a servable of name, version and path; runs warmup too. May raise.
        options: times and limits.
    """

    def __init__(self, models: Sequence[ModelConfig], loader: Loader, options: ManagerOptions | None = None) -> None:
        self._models = {config.name: _Model(config) for config in models}
        self._load_version = loader
        self._options = options or ManagerOptions()
        self._changed = threading.Condition(threading.RLock())
        self._load_slots = threading.Semaphore(self._options.load_threads or os.cpu_count() or 1)
        self._ready: dict[str, dict[int, Servable]] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="moxserve-manager", daemon=True)

    # Requests

    def borrow(self, ref: ModelRef) -> Servable:
        """Lend the version that a request means; use it in a `with` block, at whose end it is given back.

        Raises:
            InvalidArgument: the name is empty, or there is no such label.
            NotFound: no such model or version is available.
        """
        if not ref.name:
            raise InvalidArgument("ModelSpec has no name specified.")
        if ref.label:
            raise InvalidArgument(f"Unrecognized servable version label: {ref.label}")
        with self._changed:
            ready = self._ready.get(ref.name)
            if ref.version is None:
                if not ready:
                    raise NotFound(f"Servable not found for request: Latest({ref.name})")
                return ready[max(ready)].hold()
            if not ready or ref.version not in ready:
                raise NotFound(f"Servable not found for request: Specific({ref.name}, {ref.version})")
            return ready[ref.version].hold()

    def statuses(self, name: str) -> list[VersionStatus]:
        """Return what is known of a model's versions, highest first; empty for an unknown model."""
        with self._changed:
            model = self._models.get(name)
            records = model.records if model else {}
            return [VersionStatus(v, records[v].state, records[v].error) for v in sorted(records, reverse=True)]

    # Life

    def start(self) -> None:
        """Begin to look for versions and to load them."""
        self._thread.start()

    def wait_until_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until each model has an available version.

        Args:
            timeout_s: how long to wait; None for as long as it takes.

        Returns:
            False when the time was up, or `stop` was called.

        Raises:
            UnknownError: every wanted version of some model failed for good; tells each error.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or all(map(self._settled, self._models.values())), timeout_s)
            failed = [
                f"{{{{name: {m.config.name} version: {v}}} due to error: {_describe(r.error)}}}, "
                for m in self._models.values()
                if not self._ready.get(m.config.name)
                for v, r in sorted(m.records.items())
                if r.failed and r.aspired and self._settled(m)
            ]
            if failed:
                raise UnknownError(f"{len(failed)} servable(s) did not become available: {{{''.join(failed)}}}")
            return not self._stopping and all(self._ready.get(name) for name in self._models)

    def stop(self, timeout_s: float | None = None) -> bool:
        """Stop polling and unload everything, each version when its last request has finished.

        Args:
            timeout_s: how long to wait for requests; None for as long as it takes. Loads are not waited for.

        Returns:
            Whether nothing is left: every request finished in that time, and no load was under way.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(None if timeout_s is None else max(0.1, deadline - time.monotonic()))
        with self._changed:
            for model in self._models.values():
                for record in model.records.values():
                    if record.state is State.AVAILABLE:
                        self._begin_unload(model, record)
            left = None if timeout_s is None else max(0.0, deadline - time.monotonic())
            unloaded = self._changed.wait_for(
                lambda: not any(r.state is State.UNLOADING for r in self._all_records()), left
            )
            return unloaded and not any(r.state is State.LOADING and not r.paused for r in self._all_records())

    def _settled(self, model: _Model) -> bool:
        if self._ready.get(model.config.name):
            return True
        aspired = [r for r in model.records.values() if r.aspired]
        return bool(aspired) and all(r.failed for r in aspired)

    # The deciding thread

    def _run(self) -> None:
        poll_s = self._options.poll_interval_s
        next_poll = math.inf if poll_s < 0 else time.monotonic()
        while not self._stopping:
            if time.monotonic() >= next_poll:
                for model in self._models.values():
                    self._poll_safely(model)
                next_poll = time.monotonic() + poll_s if poll_s > 0 else math.inf
            with self._changed:
                if self._stopping:
                    return
                for model in self._models.values():
                    self._step(model)
                wake_at = min([next_poll, *(r.retry_at for r in self._all_records() if r.retry_at is not None)])
                if wake_at > (now := time.monotonic()):
                    self._changed.wait(None if wake_at == math.inf else wake_at - now)

    def _all_records(self) -> list[_Record]:
        return [record for model in self._models.values() for record in model.records.values()]

    def _poll_safely(self, model: _Model) -> None:
        try:
            self._poll(model)
        except Exception:
            # Without this thread nothing would ever be loaded again: say it, and look again at the next poll.
            logger.exception("looking for versions of %s failed", model.config.name)

    def _poll(self, model: _Model) -> None:
        config = model.config
        try:
            listing = find_versions(config.base_path)
        except OSError as error:
            # A base path that is away for a moment (a remounted volume) unloads nothing.
            self._tell(model, _BASE, f"Could not find base path {config.base_path} for servable {config.name}: {error}")
            model.seen = model.seen or {}
            return
        with self._changed:
            wanted = aspired_versions(self._trusted(model, listing), config.policy)
            for version, record in model.records.items():
                record.aspired = version in wanted
            for version in wanted:
                self._take_in(model, listing.versions[version])
        self._report(model, listing, bool(wanted))

    def _report(self, model: _Model, listing: Listing, served: bool) -> None:
        """Log what an operator may be surprised by."""
        config = model.config
        for name in listing.doubled:
            self._tell(model, name, f"{config.base_path}: {name} is ignored, another name has the same number")
        if not served:
            self._tell(model, _BASE, _nothing_found(config, listing))
            return
        model.told = {k: v for k, v in model.told.items() if k in listing.incomplete or k in listing.doubled}
        for version, why in listing.incomplete.items():
            label = f"{{name: {config.name} version: {version}}}"
            self._tell(model, version, f"{label} is not complete and is left out: {why}", again_when_changed=False)

    def _tell(self, model: _Model, about: object, text: str, *, again_when_changed: bool = True) -> None:
        """Log a lasting condition: once, when it changes, and again from time to time."""
        now = time.monotonic()
        before, at = model.told.get(about, ("", -math.inf))
        if now - at >= _REMIND_S or (again_when_changed and text != before):
            logger.warning("%s", text)
            model.told[about] = (text, now)

    def _trusted(self, model: _Model, listing: Listing) -> list[int]:
        """Return the versions that are complete and no longer being written.

        Without a manifest nobody vouches for a directory that turns up while we look: two polls in a row must see the
        same files. What was there before we started is taken as it is, and so is what we load or serve already.
        """
        before, model.seen = model.seen, {v: f.fingerprint for v, f in listing.versions.items()}
        in_use = {v for v, r in model.records.items() if r.state in (State.LOADING, State.AVAILABLE)}
        return [
            v
            for v, f in listing.versions.items()
            if f.sealed or before is None or v in in_use or before.get(v) == f.fingerprint
        ]

    def _take_in(self, model: _Model, found: FoundVersion) -> None:
        record = model.records.get(found.version)
        if record is None:
            model.records[found.version] = _Record(found)
            return
        rewritten = record.found.fingerprint != found.fingerprint
        if rewritten and record.paused:
            record.retry_at = time.monotonic()
        if record.state is State.END and (not record.failed or rewritten):
            # It came back, or what was wrong with it may have been put right.
            model.records[found.version] = _Record(found)
        elif record.state is not State.AVAILABLE:
            record.found = found

    def _step(self, model: _Model) -> None:
        for version, record in list(model.records.items()):
            if not record.aspired and record.state is State.START:
                del model.records[version]
            elif not record.aspired and (record.paused or record.failed):
                # Forgetting the error lets a version that is put back be tried again; the status keeps telling it.
                record.state, record.retry_at = State.END, None
                record.found = _forgotten(record.found)
            elif record.retry_at is not None and record.retry_at <= time.monotonic():
                self._begin_load(model, record)
        views = [VersionView(v, r.state, r.aspired) for v, r in model.records.items() if not r.paused]
        action = next_action(views)
        if action is None:
            return
        record = model.records[action[1]]
        if action[0] is Action.LOAD:
            self._begin_load(model, record)
        else:
            self._begin_unload(model, record)

    # Loading

    def _begin_load(self, model: _Model, record: _Record) -> None:
        record.state, record.retry_at = State.LOADING, None
        _thread(self._load, model, record)

    def _load(self, model: _Model, record: _Record) -> None:
        name, version = model.config.name, record.found.version
        logger.info("Loading servable: {name: %s version: %d} from %s", name, version, record.found.path)
        began = time.monotonic()
        servable, error, final = None, None, False
        with self._load_slots:
            try:
                servable = self._load_version(name, version, record.found.path)
            except ServingError as e:
                error = e
            except MoxserveError as e:
                error, final = UnknownError(str(e)), True
            except Exception as e:
                logger.debug("loading {name: %s version: %d} raised", name, version, exc_info=True)
                error = UnknownError(f"{type(e).__name__}: {e}")
        with self._changed:
            if servable is None:
                self._load_failed(model, record, error or UnknownError("no reason given"), final)
            elif self._stopping or not record.aspired:
                record.servable = servable
                self._begin_unload(model, record, Cancelled("Loading of servable cancelled"))
            else:
                record.servable, record.state, record.error = servable, State.AVAILABLE, None
                self._ready[name] = {**self._ready.get(name, {}), version: servable}
                seconds = time.monotonic() - began
                logger.info(
                    "Successfully loaded servable version {name: %s version: %d} in %.2f s", name, version, seconds
                )
            self._changed.notify_all()

    def _load_failed(self, model: _Model, record: _Record, error: ServingError, final: bool) -> None:
        record.attempts += 1
        record.error = error
        limit = 1 + max(0, self._options.max_load_retries)
        label = f"{{name: {model.config.name} version: {record.found.version}}}"
        if final or record.attempts >= limit or not record.aspired or self._stopping:
            record.state = State.END
            logger.error(
                "Servable %s failed to load, attempt %d of %d: %s", label, record.attempts, limit, _describe(error)
            )
            return
        pause = max(0.0, self._options.load_retry_interval_s)
        record.retry_at = time.monotonic() + pause
        logger.warning(
            "Servable %s failed to load, attempt %d of %d, next in %.0f s: %s",
            label, record.attempts, limit, pause, _describe(error),
        )  # fmt: skip

    # Unloading

    def _begin_unload(self, model: _Model, record: _Record, error: ServingError | None = None) -> None:
        record.state = State.UNLOADING
        name, version = model.config.name, record.found.version
        self._ready[name] = {v: s for v, s in self._ready.get(name, {}).items() if v != version}
        _thread(self._unload, model, record, error)

    def _unload(self, model: _Model, record: _Record, error: ServingError | None) -> None:
        if record.servable is not None:
            with contextlib.suppress(ServingError):
                record.servable.retire()
        with self._changed:
            record.servable, record.state, record.error = None, State.END, error
            if error is not None:
                record.found = _forgotten(record.found)
            logger.info("Unloaded servable version {name: %s version: %d}", model.config.name, record.found.version)
            self._changed.notify_all()


def _thread(target: Callable[..., None], *args: object) -> None:
    # Daemon: a load that hangs in foreign code must not keep the process alive after stop().
    threading.Thread(target=target, args=args, name=f"moxserve{target.__name__}", daemon=True).start()


def _forgotten(found: FoundVersion) -> FoundVersion:
    return FoundVersion(found.version, found.path, 0, found.sealed)


def _describe(error: ServingError | None) -> str:
    if error is None:
        return "unknown"
    return f"{error.status}: {error.message}"


def _nothing_found(config: ModelConfig, listing: Listing) -> str:
    text = (
        f"No versions of servable {config.name} found under base path {config.base_path}. "
        "Did you forget to name your leaf directory as a number (eg. '/1/')?"
    )
    if listing.incomplete:
        text += " Not complete yet: " + "; ".join(f"{v}: {why}" for v, why in sorted(listing.incomplete.items())) + "."
    if listing.versions:
        text += f" Complete, but not wanted or still changing: {', '.join(map(str, sorted(listing.versions)))}."
    if listing.others:
        more = f" and {len(listing.others) - 8} more" if len(listing.others) > 8 else ""
        text += f" No version numbers: {', '.join(listing.others[:8])}{more}."
    return text
