"""Telling somebody what is being done: to people in lines of text, to programs as one JSON object a line.

An `Event` is both. Which of the two is wanted is chosen once for a process (`talking`), by who started it; those who
have something to tell ask `form` and write with `tell`. A JSON line is

    {"event": "step", "time": "2026-01-31T12:00:00.123Z", ...}

where `event` says what the other keys are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from moxserve.errors import MoxserveError

__all__ = ["FORMS", "Event", "Talk", "error_facts", "form", "silent", "talking", "tell"]

FORMS = ("text", "json", "quiet")

Talk = Callable[[str], None]


def silent(message: str) -> None:
    """Tell nobody."""


class Event(str):
    """What happened: text for people, which the string is, and facts for programs.

    Args:
        text: one or several lines.
        facts: JSON values; `event` says what it is.

    Attributes:
        facts: as given.
    """

    facts: Mapping[str, Any]

    def __new__(cls, text: str, facts: Mapping[str, Any]) -> Event:
        """Make the string."""
        made = super().__new__(cls, text)
        made.facts = facts
        return made


@dataclass
class _Output:
    """How this process talks.

    Attributes:
        form: `text`, `json` or `quiet`.
        stream: of JSON lines; None for standard output.
        common: facts of every event.
    """

    form: str = "text"
    stream: Any = None
    common: dict[str, Any] = field(default_factory=dict)


_output = _Output()


def form() -> str:
    """How this process talks: `text`, `json` (one object a line) or `quiet` (only warnings and errors)."""
    return _output.form


@contextmanager
def talking(form: str, stream: Any = None, **common: Any) -> Iterator[None]:
    """Talk in another form within a block.

    Args:
        form: one of `FORMS`.
        stream: text stream of JSON lines; None for the one that is in use: at first, standard output.
        common: facts to be part of every event.
    """
    global _output
    before = _output
    _output = _Output(form, stream or before.stream, {**before.common, **common})
    try:
        yield
    finally:
        _output = before


def tell(facts: Mapping[str, Any]) -> None:
    """Write an event as a line, where JSON is wanted.

    Args:
        facts: JSON values, NumPy's included; what is none is written as text, a number that is not finite as null.
    """
    if _output.form != "json":
        return
    import orjson

    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event = {"event": facts.get("event", "log"), "time": now, **_output.common, **facts}
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    stream = _output.stream or sys.stdout
    stream.write(orjson.dumps(event, option=options, default=str).decode() + "\n")
    stream.flush()


def error_facts(error: BaseException) -> dict[str, Any]:
    """Describe an error as an event: what `moxserve` says of it, and the exit status that it leads to."""
    facts: dict[str, Any] = {"event": "error", "type": type(error).__name__, "message": str(error), "hint": None}
    if isinstance(error, MoxserveError):
        code = getattr(error, "code", None) or error.exit_code
        return {**facts, "message": error.message, "hint": error.hint, "exit_code": code}
    if isinstance(error, SystemExit):
        return {**facts, "exit_code": error.code if isinstance(error.code, int) else 1}
    return {**facts, "exit_code": 130 if isinstance(error, KeyboardInterrupt) else 1}
