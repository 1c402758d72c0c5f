"""The process that converters work in: reads one `Work` after another, answers each with `Built` or `Failure`.

Started by `workshop`, which speaks to it through its standard input and the pipe that its standard output was; what
TensorFlow and the others print goes to a log file instead, whose end is told when the process dies.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from typing import IO, Any

from moxserve.errors import MoxserveError, first_line
from moxserve.export.children import die_with_parent
from moxserve.export.op_libraries import load_inherited
from moxserve.export.variants.work import Built, Converter, Failure, Work
from moxserve.light import keras_when_used

__all__ = ["main"]


def main() -> None:
    """Answer works until the standard input ends."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the log: nothing else may write between the answers
    requests = sys.stdin.buffer
    with keras_when_used():
        importlib.import_module("tensorflow")
    load_inherited()
    while True:
        try:
            work = pickle.load(requests)
        except EOFError:
            return
        _send(answers, _convert(work))


def _send(answers: IO[bytes], answer: Built | Failure) -> None:
    pickle.dump(answer, answers)
    answers.flush()


def _convert(work: Work) -> Built | Failure:
    try:
        return _converter(work.target.format)(work)
    except MoxserveError as error:
        return Failure(error.message, error.hint or "")
    except Exception as error:  # noqa: BLE001 - a converter's libraries raise anything; told, not lost
        import traceback

        traceback.print_exc()
        return Failure(f"{type(error).__name__}: {first_line(error)}")


def _converter(format_name: str) -> Converter:
    module: Any = importlib.import_module(f"moxserve.export.variants.{format_name}")
    return module.convert


if __name__ == "__main__":
    main()
