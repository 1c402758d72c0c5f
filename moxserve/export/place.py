"""Saying at which step of an export something went wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moxserve.errors import ExportError, MoxserveError, first_line

__all__ = ["place"]

_PLACED = "_moxserve_placed"


@contextlib.contextmanager
def place(what: str) -> Iterator[None]:
    """Add the step to whatever is raised inside, unless an inner step did.

    An error of ours keeps its class and gets the step in front of its message. TensorFlow's and the file system's
    become an ExportError. Anything else comes out of the user's own functions: it stays as it is, with the step as a
    note, so that the traceback leads to their line.

    Args:
        what: the step, such as `building the classify signature`.

    Raises:
        ExportError: TensorFlow or the file system failed.
    """
    try:
        yield
    except MoxserveError as error:
        if getattr(error, _PLACED, False):
            raise
        setattr(error, _PLACED, True)
        error.message = f"{what}: {error.message}"
        error.args = (error.message,)
        raise
    except Exception as error:
        if _is_tensorflow_error(error) or isinstance(error, OSError):
            wrapped = ExportError(f"{what}: {type(error).__name__}: {first_line(error)}")
            setattr(wrapped, _PLACED, True)
            raise wrapped from error
        if getattr(error, _PLACED, False):
            raise
        setattr(error, _PLACED, True)
        # BaseException.add_note came with Python 3.11; a traceback printer of 3.10 ignores the attribute.
        error.__notes__ = [*getattr(error, "__notes__", []), f"raised while {what}"]
        raise


def _is_tensorflow_error(error: BaseException) -> bool:
    import tensorflow as tf

    return isinstance(error, tf.errors.OpError)
