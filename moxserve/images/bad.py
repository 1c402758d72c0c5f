"""Bad images are told of and counted, without flooding the log: the first ten, then every hundredth, and the sum."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable

from moxserve.images.header import BadImageError

__all__ = ["BadImageLog"]

log = logging.getLogger("moxserve.images")

_FIRST = 10
_EVERY = 100


class BadImageLog:
    """Counts and warns of images that were skipped; says the sum when the program ends, or the log is given up.

    Args:
        what: where the images come from, for messages.
        warn: takes a line; a warning of the logger `moxserve.images` by default.
        told: gets the name of each image that is skipped, whenever it is.
    """

    def __init__(
        self,
        what: str = "images",
        warn: Callable[[str], None] = log.warning,
        told: Callable[[str], None] | None = None,
    ) -> None:
        self._told = told
        self._counts = _Counts(what, warn)
        self._finish = weakref.finalize(self, self._counts.summarize)

    @property
    def count(self) -> int:
        """How many were skipped; an image that is read again in each epoch counts each time."""
        return self._counts.skipped

    @property
    def names(self) -> tuple[str, ...]:
        """Names of those that were skipped, each once, in the order of their first time."""
        with self._counts.lock:
            return tuple(self._counts.names)

    def skip(self, error: BadImageError) -> None:
        """Note an image that is skipped."""
        if self._told is not None:
            self._told(error.name)
        self._counts.add(error)

    def close(self) -> None:
        """Say the sum, if there was any; once."""
        self._finish()


class _Counts:
    def __init__(self, what: str, warn: Callable[[str], None]) -> None:
        self.what, self.warn = what, warn
        self.lock = threading.Lock()
        self.skipped = 0
        self.names: dict[str, None] = {}

    def add(self, error: BadImageError) -> None:
        with self.lock:
            self.skipped += 1
            number = self.skipped
            self.names[error.name] = None
        if number <= _FIRST or number % _EVERY == 0:
            more = "; further ones are told of by the hundred" if number == _FIRST else ""
            self.warn(f"bad image {number} skipped: {error.message}{more}")

    def summarize(self) -> None:
        if self.skipped:
            files = len(self.names)
            self.warn(f"{self.what}: {self.skipped} bad images were skipped ({files} different ones)")
