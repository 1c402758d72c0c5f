"""Changes what the server serves while it runs: by HandleReloadConfigRequest, and by reading the file again.

Whoever asks, one change is made at a time, and in this order: check the list of models, check the labels, load what is
new, then put all of it in effect in one step. A change that is refused at any point changes nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.errors import DeadlineExceeded, FailedPrecondition, MoxserveError, UnknownError
from moxserve.serving.manager import Manager
from moxserve.serving.model_config import ModelConfig, check_labels, model_configs, read_config_file

__all__ = ["ConfigFile", "ReloadOptions", "Reloader"]

logger = logging.getLogger(__name__)

_REMIND_S = 60.0
_LIST = "model_config_list"
_ANSWER_S = 0.5


@dataclass(frozen=True)
class ReloadOptions:
    """How the configuration changes.

    Attributes:
        file: ModelServerConfig in text format to read again; empty for none.
        poll_interval_s: how often; 0 or less for never.
        wait_s: how long a new model may have no version to load before the change is refused.
        allow_unavailable: let new labels lead to versions that are not there yet.
        start: ModelServerConfig message to start with, whatever the file says by now; None takes the file.
    """

    file: str = ""
    poll_interval_s: float = 0.0
    wait_s: float = 10.0
    allow_unavailable: bool = False
    start: bytes | None = None


class ConfigFile:
    """Reads the file again and again, and passes it on.

    Args:
        options: the file, and how often it is read.
        reload: puts a ModelServerConfig message in effect; raises to refuse.
    """

    def __init__(self, options: ReloadOptions, reload: Callable[[Any], None]) -> None:
        self._options = options
        self._reload = reload
        self._stopping = threading.Event()
        self._told = ("", -math.inf)
        self._failed: tuple[bytes, float] = (b"", -math.inf)

    def start(self) -> None:
        """Begin, if that is asked for."""
        if self._options.file and self._options.poll_interval_s > 0:
            threading.Thread(target=self._run, name="moxserve-config", daemon=True).start()

    def stop(self) -> None:
        """Read it no more."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._poll()
            except Exception:
                # Without this thread the file would never be read again.
                logger.exception("reading %s again failed", self._options.file)
            self._stopping.wait(self._options.poll_interval_s)

    def _poll(self) -> None:
        try:
            message = read_config_file(self._options.file)
        except MoxserveError as error:
            self._tell(f"Failed to read ModelServerConfig file: {error.message}")
            return
        content = message.SerializeToString(deterministic=True)
        before, at = self._failed
        if content == before and time.monotonic() < at + _REMIND_S:
            return  # it would only load the same broken model again
        try:
            self._reload(message)
        except MoxserveError as error:
            if isinstance(error, UnknownError):
                self._failed = content, time.monotonic()
            if not self._stopping.is_set():
                self._tell(f"PollFilesystemAndReloadConfig failed to ReloadConfig: {error.message}")
            return
        self._told = ("", -math.inf)

    def _tell(self, text: str) -> None:
        """Log a lasting condition: when it changes, and again from time to time."""
        before, at = self._told
        if text != before or time.monotonic() >= at + _REMIND_S:
            logger.error("%s", text)
            self._told = (text, time.monotonic())


class Reloader:
    """Makes the changes.

    Args:
        manager: that serves the models.
        options: file and limits.
        changed: told the models of each change that takes effect.
        listed: whether a list of models is in effect already.
    """

    def __init__(
        self, manager: Manager, options: ReloadOptions, changed: Callable[[list[ModelConfig]], None], *, listed: bool
    ) -> None:
        self._manager = manager
        self._options = options
        self._changed = changed
        self._listed = listed
        self._lock = threading.Lock()
        self._before: list[ModelConfig] | None = None
        self._file = ConfigFile(options, self.reload)

    def reload(self, message: Any, timeout_s: float | None = None) -> None:
        """Serve what a ModelServerConfig message tells from now on. Returns when its new models answer.

        Args:
            message: the whole truth: a model that it leaves out is unloaded.
            timeout_s: how long the caller is going to wait; None for as long as it takes. The wait for a version to
                load ends early enough for the caller to hear why; a load that is under way is not cut off.

        Raises:
            FailedPrecondition: it holds no list of models while one is in effect, or a label may not lead where it is
                to lead.
            InvalidArgument: a name, path or platform is wrong.
            NotFound: a new model has no version to load.
            UnknownError: a new model failed to load.
            DeadlineExceeded: another change took all the caller's time.
            Unavailable: the server is being stopped.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        patience_s = -1 if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=patience_s):
            raise DeadlineExceeded("another change of the configuration is under way; nothing was changed")
        try:
            self._apply(message, min(self._options.wait_s, max(0.0, deadline - time.monotonic() - _ANSWER_S)))
        finally:
            self._lock.release()

    def _apply(self, message: Any, wait_s: float) -> None:
        kind = message.WhichOneof("config")
        if self._listed and kind != _LIST:
            raise FailedPrecondition(
                "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to "
                "another."
            )
        if kind is None:
            return
        served = self._manager.configs()
        wanted = model_configs(message, served)
        stays = {config.name: config.base_path for config in served}
        elsewhere = {c.name for c in wanted if stays.get(c.name, c.base_path) != c.base_path}

        def accept(available: Any) -> None:
            check_labels(wanted, served, available, allow_unavailable=self._options.allow_unavailable)

        # A model that moves to another base path is asked again when its versions from there are loaded.
        check_labels(
            [config for config in wanted if config.name not in elsewhere], served, self._manager.available,
            allow_unavailable=self._options.allow_unavailable,
        )  # fmt: skip
        self._manager.reconfigure(wanted, wait_s, accept)
        self._listed, self._before = True, served
        if wanted != served:
            self._changed(wanted)
        _log_change(served, wanted)

    def undo(self) -> None:
        """Serve again what was served before the last change; nothing when there was none.

        Raises:
            NotFound: a model of then has no version to load any more.
            UnknownError: a model of then failed to load.
            Unavailable: the server is being stopped.
        """
        with self._lock:
            before, self._before = self._before, None
            if before is None:
                return
            now = self._manager.configs()
            self._manager.reconfigure(before, self._options.wait_s)
            if before != now:
                self._changed(before)
            _log_change(now, before)

    def start(self) -> None:
        """Begin to read the file again and again, if that is asked for."""
        self._file.start()

    def stop(self) -> None:
        """Refuse changes from now on, and end one that is waiting."""
        self._file.stop()
        self._manager.freeze()


def _log_change(served: Sequence[ModelConfig], wanted: Sequence[ModelConfig]) -> None:
    before, after = ({config.name: config for config in configs} for configs in (served, wanted))
    parts = (
        ("new", [name for name in after if name not in before]),
        ("changed", [name for name in after if name in before and after[name] != before[name]]),
        ("gone", [name for name in before if name not in after]),
    )
    told = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
    if told:
        logger.info("The configuration was changed. %s", told)
