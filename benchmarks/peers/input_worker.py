"""The other side of `benchmarks/input.py`: a process that gives images when it is asked. Standard library only.

Commands come on standard input, one line each, `<pipeline> <images>`; the answer is `done <images>`, once that many
were consumed. Pipelines go on reading ahead in between, until their buffers are full.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["serve"]


def serve(pipelines: Mapping[str, Callable[[], Iterator[Any]]]) -> None:
    """Answer until standard input ends.

    Args:
        pipelines: by name, what makes an endless iterator of batches; made when first asked for. A batch has a length.
    """
    # What libraries print must not come between answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    running: dict[str, Iterator[Any]] = {}
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        name, wanted = line.split()
        if name not in running:
            running[name] = pipelines[name]()
        given = 0
        while given < int(wanted):
            given += len(next(running[name]))
        answers.write(f"done {given}\n")
        answers.flush()
    os._exit(0)  # workers of peers need no goodbye
