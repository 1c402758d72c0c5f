"""Hide what native libraries write to stderr while they are loaded.

TensorFlow tells of CPU features and missing GPUs from C++ before any logging can be set up, whatever its own variables
say. Only the file descriptor can keep that off the terminal.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator

import click

__all__ = ["import_tensorflow", "native_stderr_hidden", "verbose"]


@contextlib.contextmanager
def native_stderr_hidden(*, hidden: bool = True) -> Iterator[None]:
    """Keep everything off stderr within a block; if the block fails, what was written is shown after all.

    Args:
        hidden: False leaves stderr alone, for a user who wants to see it.
    """
    if not hidden:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def verbose() -> bool:
    """Whether the user asked for details with `moxserve -v`."""
    context = click.get_current_context(silent=True)
    return bool(context and (context.find_root().obj or {}).get("verbose", False))


def import_tensorflow() -> None:
    """Import TensorFlow ahead of the code that needs it, its start-up lines off the terminal unless `-v` was given.

    Does nothing where it is loaded already, or not installed: who needs it says so better.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose() else "2")
    with native_stderr_hidden(hidden=not verbose()), contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(
            "tensorflow"
        ).config.list_physical_devices()  # it has more to say when it looks for GPUs
