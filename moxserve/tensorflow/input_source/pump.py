"""The thread that moves elements ahead of the steps that take them, and how a step waits for one.

Steps never wait inside of the runtime: a step begins when an element is there. So the end of the data, an error of the
thread and a signal are seen at once, and whoever waits too long is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from moxserve.errors import DataError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import NEVER, Clock, InputEnded, Participant, RunStopped, is_end_of_input

__all__ = ["Pump", "PumpParticipant"]

_POLL_S = 0.05
_TELL_AFTER_S = 10.0
_JOIN_S = 5.0


class Pump:
    """Calls `move` in a thread, at most `ahead` times more often than elements were taken.

    Args:
        name: of the thread.
        move: moves one element; False when there is none any more.
        ahead: how many elements may wait.
        starved: says in a message what has come so far.
        at_end: called in the thread when no element will follow, also after an error.

    Attributes:
        per_step: how many elements a step takes; fewer where there are no more.
    """

    def __init__(
        self,
        name: str,
        move: Callable[[], bool],
        ahead: int,
        starved: Callable[[], str],
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._move = move
        self._ahead = ahead
        self._starved = starved
        self._at_end = at_end
        self.per_step = 1
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._moved = self._taken = 0
        self._ended = self._stopping = False
        self.error: BaseException | None = None

    def start(self) -> None:
        """Start the thread; a pump that was stopped starts anew.

        Raises:
            DataError: the thread did not end, because it still waits for a datapoint.
        """
        if self.alive:
            raise DataError(f"{self._name} cannot start again: its thread still waits for data. {self._starved()}")
        self._moved = self._taken = 0
        self._ended = self._stopping = False
        self.error = None
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self, release: Callable[[], None] = lambda: None) -> None:
        """End the thread. It stays `alive` while it waits for a datapoint that never comes.

        Args:
            release: called when the thread knows that it is to end, to bring it back from what it waits for.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        release()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    @property
    def moved(self) -> int:
        """How many elements were moved since it was started."""
        return self._moved

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stopping(self) -> bool:
        """Whether the thread is asked to end."""
        return self._stopping

    def take(self, stopped: Callable[[], bool], *, tell: bool = True) -> float:
        """Wait until the elements of a step are there, and count them as taken.

        Args:
            stopped: asked while waiting; True gives up.
            tell: warn when it takes long.

        Returns:
            Seconds that it had to wait.

        Raises:
            InputEnded: there is none any more.
            RunStopped: `stopped` said so.
            BaseException: what the thread failed with.
        """
        waited_s = 0.0
        with self._changed:
            if not self._is_enough() and not self._ended:
                waited_s = self._wait(stopped, tell)
            if self.error is not None:
                raise self.error
            if self._moved <= self._taken:
                raise InputEnded
            self._taken = min(self._taken + self.per_step, self._moved)
            self._changed.notify_all()
        return waited_s

    def _is_enough(self) -> bool:
        return self._moved >= self._taken + self.per_step

    def _wait(self, stopped: Callable[[], bool], tell: bool) -> float:
        began = time.monotonic()
        patience = _TELL_AFTER_S
        while not self._is_enough() and not self._ended:
            if stopped():
                raise RunStopped
            self._changed.wait(_POLL_S)
            waited = time.monotonic() - began
            if tell and waited > patience:
                tf1.logging.warning("a step has waited %.0f s for input: %s", waited, self._starved())
                patience *= 3
        return time.monotonic() - began

    def _run(self) -> None:
        try:
            while self._has_room() and self._move():
                with self._changed:
                    self._moved += 1
                    self._changed.notify_all()
        except (InputEnded, RunStopped):
            pass
        except BaseException as error:  # noqa: BLE001 - it belongs to the step that waits for the element
            ended = self._stopping or (isinstance(error, tf.errors.OutOfRangeError) and is_end_of_input(error))
            self.error = None if ended else error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            if not self._stopping:
                self._at_end()

    def _has_room(self) -> bool:
        with self._changed:
            while self._moved - self._taken >= max(self._ahead, self.per_step) and not self._stopping:
                self._changed.wait()
            return not self._stopping


class PumpParticipant(Participant):
    """Lets a step begin when the pump has what it takes."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def next_step(self, clock: Clock) -> int:
        """Never: only `ready` matters, which is called before quiet steps as well."""
        return NEVER

    def ready(self, clock: Clock) -> None:
        """Wait for the element of the next step."""
        waited_s = self._pump.take(clock.stopped)
        if waited_s and clock.run_step:
            clock.waited_s += waited_s

    def cause(self, error: Exception) -> BaseException | None:
        """What the thread failed with."""
        return self._pump.error
