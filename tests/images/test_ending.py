"""The end of a program waits for calls of other libraries' threads, and until no more are tried."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from moxserve.images import ending


class _Waited:
    """The end of a program by a clock of its own: what happens while it waits.

    Args:
        monkeypatch: of the test.
        happens: called with the time whenever it waits, which takes at most 10 ms each time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happens: Callable[[float], None]) -> None:
        self.now = 0.0
        calls = ending._Calls()
        monkeypatch.setattr(ending, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(ending, "_calls", calls)

        def wait(timeout: float) -> None:
            # As a condition does: others have the lock meanwhile.
            self.now += min(timeout, 0.01)
            calls.changed.release()
            try:
                happens(self.now)
            finally:
                calls.changed.acquire()

        monkeypatch.setattr(calls.changed, "wait", wait)


def _refused() -> None:
    with pytest.raises(ending.ProgramEndsError, match="the program ends"), ending.before_the_end():
        raise AssertionError("a call began")


def test_it_waits_until_no_call_was_tried_for_a_while(monkeypatch: pytest.MonkeyPatch):
    def tried(now: float) -> None:
        if now < 0.2:
            _refused()

    waited = _Waited(monkeypatch, tried)
    with ending.before_the_end():
        pass
    ending._end()
    assert 0.2 <= waited.now < 0.2 + ending._QUIET_S + 0.01


@pytest.mark.parametrize("under_way", [True, False])
def test_its_patience_has_an_end(monkeypatch: pytest.MonkeyPatch, under_way: bool):
    """For a call that does not come back, as for one that is tried for ever."""
    waited = _Waited(monkeypatch, lambda now: None if under_way else _refused())
    call = ending.before_the_end()
    call.__enter__()
    if not under_way:
        call.__exit__(None, None, None)
    ending._end()
    assert waited.now == pytest.approx(3)


def test_it_waits_for_a_call_under_way_and_its_return(monkeypatch: pytest.MonkeyPatch):
    call = ending.before_the_end()

    def returned(now: float) -> None:
        if round(now, 6) == 0.5:
            call.__exit__(None, None, None)

    waited = _Waited(monkeypatch, returned)
    call.__enter__()
    ending._end()
    assert waited.now == pytest.approx(0.5 + ending._QUIET_S)


def test_a_program_without_calls_ends_at_once(monkeypatch: pytest.MonkeyPatch):
    waited = _Waited(monkeypatch, lambda now: None)
    ending._end()
    assert waited.now == 0
