"""How commands that train talk: lines for people, JSON lines for programs (`--json`), or nothing but warnings
(`--quiet`). What is meant by these is in `moxserve.talk`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from moxserve import talk
from moxserve.errors import MoxserveError, UsageError

__all__ = ["JSON_LINES", "QUIET", "told_as"]

QUIET = click.option("--quiet", is_flag=True, help="Print only warnings and errors.")
JSON_LINES = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object a line on stdout, as it happens; whatever else is printed goes to stderr.",
)


@contextmanager
def told_as(*, as_json: bool, quiet: bool) -> Iterator[None]:
    """Talk in the form that was asked for within a block; in JSON an error that ends the block is an event, too.

    Raises:
        UsageError: both forms were asked for.
    """
    if as_json and quiet:
        raise UsageError("--json and --quiet exclude each other", hint="--json 2>/dev/null prints nothing but JSON")
    if not as_json:
        with talk.talking("quiet" if quiet else talk.form()):
            yield
        return
    with _stdout_apart() as stream, talk.talking("json", stream):
        try:
            yield
        except (MoxserveError, OSError, KeyboardInterrupt) as error:
            talk.tell(talk.error_facts(error))
            raise


@contextmanager
def _stdout_apart() -> Iterator[TextIO]:
    """Give standard output to the events alone: what scripts, libraries and child processes print goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        try:
            yield stream
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
