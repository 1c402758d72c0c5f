"""The output of several processes on one terminal: whole lines, each with the name of its process; and files of it."""

from __future__ import annotations

import io
import os
import re
import time

import click

__all__ = ["Console", "Stream"]

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow")
# A progress bar goes back to the start of its line: each of its states is a line here. What follows a `\r` says which
# it is, so the last one waits.
_LINE_END = re.compile(rb"\r?\n|\r(?=[^\n])")
_LONGEST_BYTES = 1 << 16


class Console:
    """Where the lines go.

    Args:
        names: of all processes, for the width and the colours.
        log_dir: folder of one file a process, `worker-0.log`, which what they say is added to; None writes none.
    """

    def __init__(self, names: list[str], log_dir: str | None = None) -> None:
        self._width = max(map(len, names), default=0)
        self._colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
        # None lets click decide: colours for a terminal, none into a pipe.
        self._colour = False if os.environ.get("NO_COLOR") else None
        self._files: dict[str, io.FileIO] = {}
        if log_dir is not None:
            os.makedirs(log_dir, exist_ok=True)
            for name in names:
                # Written line by line, also when this process is killed.
                path = os.path.join(log_dir, name.replace(" ", "-") + ".log")
                self._files[name] = io.FileIO(path, "ab")

    def say(self, text: str) -> None:
        """Say a line of the launcher's own."""
        click.echo(f"{click.style('[launch]', bold=True)} {text}", err=True, color=self._colour)

    def line(self, name: str, line: bytes, err: bool) -> None:
        """Write a line of a process, without its end."""
        prefix = click.style(f"[{name}]".ljust(self._width + 2), fg=self._colours[name])
        click.echo(f"{prefix} {line.decode('utf-8', 'replace')}", err=err, color=self._colour)
        self.note(name, line)

    def note(self, name: str, line: bytes) -> None:
        """Write a line to the file of a process alone."""
        if name in self._files:
            self._files[name].write(line + b"\n")

    def started(self, name: str) -> None:
        """Note in the file of a process that what follows is of another start of it."""
        self.note(name, f"=== {name} started at {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class Stream:
    """One output of one process, cut into lines.

    Args:
        console: where they go.
        name: of the process.
        err: whether it is its standard error.
    """

    def __init__(self, console: Console, name: str, err: bool) -> None:
        self._console, self._name, self._err = console, name, err
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        text, start = self._rest + data, 0
        for end in _LINE_END.finditer(text):
            if end.start() > start or end.group() != b"\r":  # a bar begins by going back
                self._console.line(self._name, text[start : end.start()], self._err)
            start = end.end()
        self._rest = text[start:]
        if len(self._rest) > _LONGEST_BYTES:
            self.end()

    def end(self) -> None:
        """There is no more: the last line may have no end."""
        if self._rest:
            self._console.line(self._name, self._rest, self._err)
        self._rest = b""
