"""A loaded version that requests can hold on to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from moxserve.errors import FailedPrecondition
from moxserve.serving.backends.base import Backend
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.execution.base import Runner
from moxserve.types import DEFAULT_SIGNATURE

__all__ = ["LocalCopy", "Servable", "SignatureNotFound"]


class SignatureNotFound(FailedPrecondition):
    """The model has no signature of that name. REST has another status and text for it than gRPC.

    Attributes:
        signature: the name.
    """

    def __init__(self, signature: str) -> None:
        super().__init__(f'Serving signature key "{signature}" not found.')
        self.signature = signature


@dataclass(frozen=True)
class LocalCopy:
    """What is in a store, on this machine.

    Attributes:
        path: where.
        close: removes it.
    """

    path: str
    close: Callable[[], None]


class Servable:
    """A backend with its name and version, and a count of the requests that use it.

    `Manager.borrow` holds it for a request, which uses it in a `with` block: the end of the block lets go. `retire`
    waits until the last of them has.

    Args:
        name: of the model.
        version: number.
        path: the version directory; a URL where it is in a store.
        backend: the loaded model.
        runner: that decides when it runs.
        copy: of the version directory, where that is in a store; it is closed when the version is freed.

    Attributes:
        directory: the version directory, or its copy, on this machine.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        backend: Backend,
        runner: Runner,
        copy: LocalCopy | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.backend = backend
        self.runner = runner
        self.directory = path if copy is None else copy.path
        self._release = None if copy is None else copy.close
        self._users = 0
        self._idle = threading.Condition(threading.Lock())

    def call(self, signature_name: str) -> CallSignature:
        """Find a signature; an empty name means `serving_default`.

        Raises:
            SignatureNotFound: the model has none of that name.
        """
        key = signature_name or DEFAULT_SIGNATURE
        call = self.backend.calls.get(key)
        if call is None:
            raise SignatureNotFound(key)
        return call

    def hold(self) -> Servable:
        """Count one more user, who must let go by leaving a `with` block of it."""
        with self._idle:
            self._users += 1
        return self

    def __enter__(self) -> Servable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._idle:
            self._users -= 1
            if self._users == 0:
                self._idle.notify_all()

    def retire(self, timeout_s: float | None = None) -> bool:
        """Wait until no request uses it, then free it. No new request may start meanwhile.

        Args:
            timeout_s: how long to wait; None for as long as it takes.

        Returns:
            False when requests were still there at the end of the wait; then nothing was freed.
        """
        with self._idle:
            if not self._idle.wait_for(lambda: self._users == 0, timeout_s):
                return False
        try:
            self.runner.close()
            self.backend.close()
        finally:
            if self._release is not None:
                self._release()
        return True
