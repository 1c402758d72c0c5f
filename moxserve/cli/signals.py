"""Ctrl-C and SIGTERM: the work is undone by the same clean-up, and the person is told what became of it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from moxserve.errors import InterruptedRunError

__all__ = ["told_when_interrupted"]


@contextlib.contextmanager
def told_when_interrupted(message: Callable[[], str]) -> Iterator[None]:
    """Turn SIGINT and SIGTERM within a block into an error with a message of the command.

    Args:
        message: says what was done and what was left, when it happens.

    Raises:
        InterruptedRunError: a signal came; exit status 130 for SIGINT, 143 for SIGTERM.
    """
    seen: list[int] = []

    def interrupt(signum: int, _frame: object) -> None:
        seen.append(signum)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(message(), seen[0] if seen else signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
