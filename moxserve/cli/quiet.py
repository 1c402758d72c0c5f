"""Hide what native libraries write to stderr while they are loaded.

TensorFlow tells of CPU features and missing GPUs from C++ before any logging can be set up, whatever its own variables
say. Only the file descriptor can keep that off the terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["native_stderr_hidden"]


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
