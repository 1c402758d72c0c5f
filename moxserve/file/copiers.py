"""Processes that share the work of a large copy, because one interpreter can only do so many requests a second.

Each is a fresh Python process that runs this module; none is forked, so that a program with threads or a GPU may copy,
and none imports the program's main module. It gets the settings and its share of the names on its standard input, and
writes the name of each file that is there, or the error that ended it, to its standard output. When its input ends
before its work does, its parent is dead, and so is it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from moxserve.cores import available_cores
from moxserve.errors import DataError
from moxserve.file import auth
from moxserve.file.copying import Place
from moxserve.file.quick import is_quick

if TYPE_CHECKING:
    from moxserve.file.trees import Plan

__all__ = ["copied_by_processes", "worth_processes"]

# Starting a process with its client costs as much as some hundred small requests; obstore's cost a third, and most of
# that not in the interpreter.
_WORTH_FILES = 2000
_WORTH_QUICK_FILES = 20_000
_MOST = 8


def worth_processes(made: Plan, files: int) -> bool:
    """Whether processes would be faster than threads: many requests, and cores to make them on."""
    if files < _WORTH_FILES or available_cores() == 1 or not (made.source.remote or made.target.remote):
        return False
    return files >= _WORTH_QUICK_FILES or not is_quick(made.source, made.target, files)


def copied_by_processes(made: Plan, names: Sequence[str], threads: int) -> Iterator[str]:
    """Copy files, and yield their names when they are there.

    Raises:
        OSError: the first that failed, in any process; the others are ended then.
    """
    count = min(available_cores(), threads, _MOST)
    told: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    children: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(count):
            child = _start()
            children.append(child)
            work = {
                "auth": auth._current,
                "source": made.source.path,
                "target": made.target.path,
                "names": list(names[number::count]),
                "threads": -(-threads // count),
            }
            threading.Thread(target=_attend, args=(child, work, told), daemon=True).start()
        running = count
        while running:
            kind, value = told.get()
            if kind == "error":
                raise value
            if kind == "end":
                running -= 1
            else:
                yield value
    finally:
        for child in children:
            child.kill()
            child.wait()


def _start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def _attend(child: subprocess.Popen[bytes], work: dict[str, Any], told: SimpleQueue[tuple[str, Any]]) -> None:
    """Give a process its work, and pass on what it tells."""
    stdin, stdout = child.stdin, child.stdout
    if stdin is None or stdout is None:  # never: both are pipes
        return
    with contextlib.suppress(OSError):  # its end is told below
        pickle.dump(work, stdin)
        stdin.flush()
    try:
        for line in stdout:
            kind, value = json.loads(line)
            told.put((kind, pickle.loads(base64.b64decode(value)) if kind == "error" else value))
    except ValueError:  # it died in the middle of a line; or it is no such line, and the rest is not waited for
        child.kill()
    code = child.wait()
    if code:
        told.put(("error", DataError(f"a process that copied files ended with code {code}", hint="copy again")))
    told.put(("end", None))


def main() -> None:
    """Do the work that stands on the standard input."""
    from moxserve.file.trees import copied_by_threads

    work = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told = work["auth"]
    auth.set_auth(**{name: getattr(told, name) for name in told.__dataclass_fields__})
    try:
        source, target = Place.of(work["source"]), Place.of(work["target"])
        for name in copied_by_threads(source, target, work["names"], work["threads"]):
            _tell("done", name)
    except Exception as error:  # noqa: BLE001 - raised again by the parent
        _tell("error", base64.b64encode(_pickled(error)).decode())


def _tell(kind: str, value: str) -> None:
    sys.stdout.write(json.dumps([kind, value]) + "\n")
    sys.stdout.flush()


def _pickled(error: Exception) -> bytes:
    """Pickle an error; one that cannot be loaded again is told in its own words."""
    with contextlib.suppress(Exception):
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    return pickle.dumps(OSError(f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock a thread that waits in it would take along to the interpreter's end.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
