"""Telling somebody what is being done, in one line at a time: to people as text, to programs as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Event", "Talk", "silent"]

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
