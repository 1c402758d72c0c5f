"""Keeps the right versions loaded: polls the source, asks the policy, loads, unloads, and lends versions to requests.

One thread decides; looks at the disk, loads and unloads run in threads of their own, so a slow or broken model, or a
file system that does not answer, holds up no other. A
version is START (known), LOADING (retries and warmup included), AVAILABLE, UNLOADING (no new requests, the old ones
finish) and END (unloaded, or failed with an error). What a request may use changes in one step under one lock.

A change of configuration is all or nothing: models with a new name or another base path are staged, which means
loaded without being lent to requests, while everything goes on as before. When each of them has a version, all changes
take effect in one step; when one of them fails, the staged ones are dropped again.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from moxserve.errors import (
    Cancelled,
    InvalidArgument,
    MoxserveError,
    NotFound,
    ServingError,
    Unavailable,
    UnknownError,
)
from moxserve.serving.cpus import cpus
from moxserve.serving.model_config import ModelConfig
from moxserve.serving.policy import Action, State, VersionView, next_action
from moxserve.serving.servable import Servable
from moxserve.serving.source import Listing, find_versions
from moxserve.serving.tracking import TrackedModel, VersionRecord, VersionStatus, describe, forgotten
from moxserve.types import ModelRef

__all__ = ["Loader", "Manager", "ManagerOptions", "ModelConfig", "VersionStatus"]

logger = logging.getLogger(__name__)

Loader = Callable[[str, int, str], Servable]
Accept = Callable[[Callable[[str], Collection[int]]], None]


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


class Manager:
    """Loads the versions of some models and lends them out.

    `start` returns at once; `wait_until_ready` waits for the first versions of each model. `stop` unloads everything.

    Args:
        models: what to serve; None when that is not known yet.
        loader: makes a servable of name, version and path; runs warmup too. May raise.
        options: times and limits.
    """

    def __init__(
        self, models: Sequence[ModelConfig] | None, loader: Loader, options: ManagerOptions | None = None
    ) -> None:
        self._models = {config.name: TrackedModel(config) for config in models or ()}
        self._configured = models is not None
        self._staged: list[TrackedModel] = []
        self._leaving: list[TrackedModel] = []
        self._ended: dict[str, dict[int, VersionStatus]] = {}
        self._load_version = loader
        self._options = options or ManagerOptions()
        self._changed = threading.Condition(threading.RLock())
        self._load_slots = threading.Semaphore(self._options.load_threads or cpus())
        self._next_poll = math.inf if self._options.poll_interval_s < 0 else -math.inf
        self._frozen = False
        self._stopping = False
        self._started_up = False
        self._thread = threading.Thread(target=self._run, name="moxserve-manager", daemon=True)

    # Requests

    def borrow(self, ref: ModelRef) -> Servable:
        """Lend the version that a request means; use it in a `with` block, at whose end it is given back.

        Raises:
            InvalidArgument: the name is empty, or there is no such label.
            NotFound: no such model or version is available.
            Unavailable: it names a label, and there is no configuration yet; or nothing else is available because the
                server is still loading what it was started with.
        """
        if not ref.name:
            raise InvalidArgument("ModelSpec has no name specified.")
        with self._changed:
            model = self._models.get(ref.name)
            version = self._labelled(model, ref.label) if ref.label else ref.version
            ready = model.ready if model else {}
            if version is None:
                if not ready:
                    raise self._missing(model, f"Latest({ref.name})")
                return ready[max(ready)].hold()
            if version not in ready:
                raise self._missing(model, f"Specific({ref.name}, {version})")
            return ready[version].hold()

    def _missing(self, model: TrackedModel | None, request: str) -> ServingError:
        if model is None or self._started_up:
            return NotFound(f"Servable not found for request: {request}")
        return Unavailable(f"Servable for request {request} is loading, the server has just been started; try again")

    @property
    def started_up(self) -> bool:
        """Whether the wait for the first versions of each model is over."""
        return self._started_up

    def _labelled(self, model: TrackedModel | None, label: str) -> int:
        if not self._configured:
            raise Unavailable(f"Model labels does not init yet.{label}")
        version = model.config.labels.get(label) if model else None
        if version is None:
            raise InvalidArgument(f"Unrecognized servable version label: {label}")
        return version

    def statuses(self, name: str) -> list[VersionStatus]:
        """Return what is known of a model's versions, highest first; empty for an unknown model.

        Versions of a model that is served no more, or not yet, are among them.
        """
        with self._changed:
            known = dict(self._ended.get(name, {}))
            current = [self._models[name]] if name in self._models else []
            for model in (*self._leaving, *self._staged, *current):
                if model.config.name == name:
                    known |= model.statuses()
            return [known[version] for version in sorted(known, reverse=True)]

    def answering(self) -> dict[str, bool]:
        """Tell of each model of the configuration, in its order, whether it has a version that answers requests."""
        with self._changed:
            return {name: bool(model.ready) for name, model in self._models.items()}

    def configs(self) -> list[ModelConfig]:
        """Return the models that are configured, in the order of the configuration."""
        with self._changed:
            return [model.config for model in self._models.values()]

    def platform(self, name: str, version_dir: str) -> str:
        """Return the platform that the configuration of a version says, also of a model that is only being staged.

        Args:
            name: of the model.
            version_dir: the version's directory, below the base path of that model.
        """
        base = os.path.dirname(version_dir).rstrip("/")
        with self._changed:
            configs = [model.config for model in self._all_models()]
        return next((c.platform for c in configs if c.name == name and c.base_path.rstrip("/") == base), "")

    def available(self, name: str) -> set[int]:
        """Return the versions of a model that answer requests."""
        with self._changed:
            model = self._models.get(name)
            return set(model.ready) if model else set()

    # Life

    def start(self) -> None:
        """Begin to look for versions and to load them."""
        self._thread.start()

    def wait_until_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until the wanted versions of each model were tried, and one of each is available.

        Args:
            timeout_s: how long to wait; None for as long as it takes.

        Returns:
            False when the time was up, or `stop` was called.

        Raises:
            UnknownError: every wanted version of some model failed for good; tells each error.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or all(model.settled for model in self._models.values()), timeout_s
            )
            if self._stopping:
                return False  # a load that the stop broke off is no failure
            failed = [line for model in self._models.values() for line in model.failures()]
            if failed:
                raise UnknownError(f"{len(failed)} servable(s) did not become available: {{{''.join(failed)}}}")
            self._started_up = all(model.ready for model in self._models.values())
            return self._started_up

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
            for model in self._all_models():
                for record in model.records.values():
                    if record.state is State.AVAILABLE:
                        self._begin_unload(model, record)
            left = None if timeout_s is None else max(0.0, deadline - time.monotonic())
            unloaded = self._changed.wait_for(
                lambda: not any(r.state is State.UNLOADING for r in self._all_records()), left
            )
            return unloaded and not any(r.state is State.LOADING and not r.paused for r in self._all_records())

    # Changes of configuration

    def reconfigure(self, configs: Sequence[ModelConfig], wait_s: float, accept: Accept | None = None) -> None:
        """Serve these models from now on and no others; or change nothing and say why.

        Returns when the change is in effect: every model with a new name or another base path has a version that
        answers. Other changes (a policy, a model that is left out) begin then and take their time. One call at a time.

        Args:
            configs: all models to serve.
            wait_s: how long a model may have no version to load. Loading itself takes the time that it takes.
            accept: called before the change with a function that gives the available versions of a model as they
                will be; may raise to refuse.

        Raises:
            NotFound: a model had no version to load; tells what was found instead.
            UnknownError: every wanted version of some model failed for good; tells each error.
            Unavailable: the server is being stopped.
        """
        with self._changed:
            served = {model.config.name: model.config.base_path for model in self._models.values()}
            fresh = [c for c in configs if served.get(c.name) != c.base_path]
            self._staged = [TrackedModel(config) for config in fresh]
            if self._staged:
                self._poll_soon()
            try:
                self._wait_for_staged(wait_s)
                models = {**self._models, **{model.config.name: model for model in self._staged}}
                if accept:
                    accept(lambda name: models[name].ready)
            except BaseException:
                self._let_go(self._staged)
                raise
            else:
                self._commit(configs, models)
            finally:
                self._staged = []
                self._changed.notify_all()

    def freeze(self) -> None:
        """Refuse changes of configuration from now on, and end one that is waiting."""
        with self._changed:
            self._frozen = True
            self._changed.notify_all()

    def _wait_for_staged(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            if self._frozen or self._stopping:
                raise Unavailable("the server is being stopped; the configuration was not changed")
            if failed := [line for model in self._staged for line in model.failures()]:
                raise UnknownError(f"{len(failed)} model(s) did not become available: {{{''.join(failed)}}}")
            if all(model.settled for model in self._staged):
                return
            left = deadline - time.monotonic()
            lacking = [model for model in self._staged if not model.aspired]
            if lacking and left <= 0:
                raise _nothing_to_load(lacking, wait_s)
            self._changed.wait(left if lacking else None)

    def _commit(self, configs: Sequence[ModelConfig], models: dict[str, TrackedModel]) -> None:
        before = self._models
        self._models = {config.name: models[config.name] for config in configs}
        self._configured = True
        for config in configs:
            self._models[config.name].config = config
        self._let_go([model for name, model in before.items() if self._models.get(name) is not model])
        self._poll_soon()

    def _let_go(self, models: Iterable[TrackedModel]) -> None:
        for model in models:
            model.want_nothing()
            self._leaving.append(model)

    def _poll_soon(self) -> None:
        if self._options.poll_interval_s >= 0:
            self._next_poll = -math.inf
            self._changed.notify_all()

    # The deciding thread

    def _run(self) -> None:
        while True:
            for model in self._due():
                _thread(self._poll_safely, model)
            with self._changed:
                if self._stopping:
                    return
                for model in self._all_models():
                    self._step(model)
                self._bury()
                wake_at = min([self._next_poll, *(r.retry_at for r in self._all_records() if r.retry_at is not None)])
                if wake_at > (now := time.monotonic()):
                    self._changed.wait(None if wake_at == math.inf else wake_at - now)

    def _due(self) -> list[TrackedModel]:
        """Return the models whose base paths are to be looked at now, and set the time of the next look."""
        with self._changed:
            if self._stopping or time.monotonic() < self._next_poll:
                return []
            interval_s = self._options.poll_interval_s
            self._next_poll = time.monotonic() + interval_s if interval_s > 0 else math.inf
            return [model for model in (*self._models.values(), *self._staged) if model.begin_look()]

    def _bury(self) -> None:
        """Keep only the statuses of models that are gone altogether."""
        for model in [m for m in self._leaving if m.ended]:
            self._leaving.remove(model)
            self._ended.setdefault(model.config.name, {}).update(model.statuses())

    def _all_models(self) -> list[TrackedModel]:
        return [*self._models.values(), *self._staged, *self._leaving]

    def _all_records(self) -> list[VersionRecord]:
        return [record for model in self._all_models() for record in model.records.values()]

    def _poll_safely(self, model: TrackedModel) -> None:
        try:
            self._poll(model)
        except Exception:
            # Without this thread nothing would ever be loaded again: say it, and look again at the next poll.
            logger.exception("looking for versions of %s failed", model.config.name)
        finally:
            with self._changed:
                model.end_look()

    def _poll(self, model: TrackedModel) -> None:
        found: Listing | OSError
        try:
            found = find_versions(model.config.base_path)
        except OSError as error:
            found = error
        with self._changed:
            if self._stopping or model not in (*self._models.values(), *self._staged):
                return  # left out of the configuration meanwhile
            # What is wrong with a staged model is told by the error that refuses it.
            staged = model in self._staged
            if isinstance(found, OSError):
                model.unreachable(found)
            else:
                model.take(found)
                self._changed.notify_all()
        if not staged:
            model.report(None if isinstance(found, OSError) else found)

    def _step(self, model: TrackedModel) -> None:
        for version, record in list(model.records.items()):
            if not record.aspired and record.state is State.START:
                del model.records[version]
            elif not record.aspired and (record.paused or record.failed):
                # Forgetting the error lets a version that is put back be tried again; the status keeps telling it.
                record.state, record.retry_at = State.END, None
                record.found = forgotten(record.found)
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

    def _begin_load(self, model: TrackedModel, record: VersionRecord) -> None:
        record.state, record.retry_at = State.LOADING, None
        _thread(self._load, model, record)

    def _load(self, model: TrackedModel, record: VersionRecord) -> None:
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
                model.ready = {**model.ready, version: servable}
                seconds = time.monotonic() - began
                logger.info(
                    "Successfully loaded servable version {name: %s version: %d} in %.2f s", name, version, seconds
                )
            self._changed.notify_all()

    def _load_failed(self, model: TrackedModel, record: VersionRecord, error: ServingError, final: bool) -> None:
        record.attempts += 1
        record.error = error
        limit = 1 + max(0, self._options.max_load_retries)
        label = f"{{name: {model.config.name} version: {record.found.version}}}"
        if final or record.attempts >= limit or not record.aspired or self._stopping:
            record.state = State.END
            logger.error(
                "Servable %s failed to load, attempt %d of %d: %s", label, record.attempts, limit, describe(error)
            )
            return
        pause = max(0.0, self._options.load_retry_interval_s)
        record.retry_at = time.monotonic() + pause
        logger.warning(
            "Servable %s failed to load, attempt %d of %d, next in %.0f s: %s",
            label, record.attempts, limit, pause, describe(error),
        )  # fmt: skip

    # Unloading

    def _begin_unload(self, model: TrackedModel, record: VersionRecord, error: ServingError | None = None) -> None:
        record.state = State.UNLOADING
        version = record.found.version
        model.ready = {v: s for v, s in model.ready.items() if v != version}
        _thread(self._unload, model, record, error)

    def _unload(self, model: TrackedModel, record: VersionRecord, error: ServingError | None) -> None:
        if record.servable is not None:
            try:
                record.servable.retire()
            except Exception:
                # It is of no use any more either way; a status that says UNLOADING for ever would hold up a stop.
                logger.exception("freeing {name: %s version: %d} failed", model.config.name, record.found.version)
        with self._changed:
            record.servable, record.state, record.error = None, State.END, error
            if error is not None:
                record.found = forgotten(record.found)
            logger.info("Unloaded servable version {name: %s version: %d}", model.config.name, record.found.version)
            self._changed.notify_all()


def _thread(target: Callable[..., None], *args: object) -> None:
    # Daemon: a load that hangs in foreign code must not keep the process alive after stop().
    threading.Thread(target=target, args=args, name=f"moxserve{target.__name__}", daemon=True).start()


def _nothing_to_load(models: Sequence[TrackedModel], wait_s: float) -> NotFound:
    reasons = " ".join(model.lacking or f"{model.config.name} was not looked at yet." for model in models)
    names = ", ".join(model.config.name for model in models)
    return NotFound(
        f"{len(models)} model(s) did not become available, the configuration was not changed: {names} had no version "
        f"to load within {wait_s:g} s. {reasons}"
    )
