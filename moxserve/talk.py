"""Telling somebody what is being done, in one line at a time."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Talk", "silent"]

Talk = Callable[[str], None]


def silent(message: str) -> None:
    """Tell nobody."""
