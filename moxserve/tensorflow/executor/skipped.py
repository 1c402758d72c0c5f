"""Which rows of a training input were left out since they are bad: a run that goes on must pass by them, too.

A run counts the rows that it was given (see `position`). Where bad rows were left out the input has read further than
that, so their names are kept beside the count, and the row to go on at follows from both. The file
`input-<worker>-skipped.jsonl` in `log_dir` has a name a line, as a JSON string.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from moxserve.dataflow.order import EpochOrder
from moxserve.file import atomic_write
from moxserve.tensorflow.executor.env import tf1

__all__ = ["SkippedRows", "skipped_file"]

_KNOWN: weakref.WeakKeyDictionary[Any, dict[str, SkippedRows]] = weakref.WeakKeyDictionary()


def skipped_file(folder: str, worker: int = 0) -> str:
    """Return where a worker keeps the names of what was left out."""
    return os.path.join(folder, f"input-{worker}-skipped.jsonl")


class SkippedRows:
    """The names of the rows that a data set has left out. Told of from many threads."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._path: str | None = None
        self._lock = threading.Lock()
        self._order: EpochOrder | None = None
        self._names_of_rows: Callable[[], Iterable[str]] = tuple

    def of_rows(self, order: EpochOrder, names: Callable[[], Iterable[str]]) -> None:
        """Say which rows there are.

        Args:
            order: in which they are read.
            names: gives the name of each, by row.
        """
        self._order, self._names_of_rows = order, names

    def attach(self, position: Any) -> None:
        """Let a run find this by the scalar that it feeds with the position."""
        _KNOWN.setdefault(position.graph, {})[position.name] = self

    @staticmethod
    def attached(position: Any) -> SkippedRows | None:
        """Return what was attached to a scalar; None where nothing is ever left out."""
        return _KNOWN.get(position.graph, {}).get(position.name)

    def note(self, name: str) -> None:
        """Note a row that is left out."""
        with self._lock:
            if name in self._names:
                return
            self._names[name] = None
            if self._path is not None:
                self._write([name], self._append)

    def keep(self, path: str) -> None:
        """Take the names that a file has, and add to it what is left out from now on."""
        with self._lock:
            self._names.update(_read(path))
            self._path = path
            self._write(list(self._names), lambda lines: atomic_write(path, lines))

    def row_position(self, given: int) -> int:
        """Return how many rows are passed by when so many were given: those that are left out count, too."""
        order = self._order
        if order is None or not self._names or not order.rows:
            return given
        bad = np.array([row for row, name in enumerate(self._names_of_rows()) if name in self._names], np.int64)
        if order.shard[1] == 1 or not order.shuffle:  # each epoch has as many good rows
            good = int(np.isin(order.epoch(0), bad, invert=True).sum())
            number, left = divmod(given, good) if good else (0, 0)
        else:
            number, left = 0, given
        while len(bad) < order.count:
            places = np.flatnonzero(np.isin(order.epoch(number), bad, invert=True))
            if left < len(places):
                return number * order.rows + int(places[left])
            number, left = number + 1, left - len(places)
            if not len(places) and not order.shuffle:
                break
        return given

    def _append(self, lines: str) -> None:
        with open(str(self._path), "a", encoding="utf-8") as file:
            file.write(lines)

    def _write(self, names: list[str], write: Callable[[str], object]) -> None:
        if not names:
            return
        try:
            write("".join(json.dumps(name) + "\n" for name in names))
        except OSError as error:
            tf1.logging.warning(
                "%s cannot be written (%s): a run that goes on will repeat a row for each that was left out",
                self._path,
                error,
            )
            self._path = None


def _read(path: str) -> dict[str, None]:
    """Read the names; a line that was cut off when its process was killed is no name."""
    names: dict[str, None] = {}
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                name = json.loads(line)
                if isinstance(name, str):
                    names[name] = None
    return names
