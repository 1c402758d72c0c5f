"""Hide what native libraries write to stderr while they are loaded.

TensorFlow tells of CPU features and missing GPUs from C++ before any logging can be set up, whatever its own variables
say. Only the file descriptor can keep that off the terminal.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import abc
from importlib.machinery import ModuleSpec
from typing import Any

import click

from moxserve.light import keras_when_used

__all__ = ["hush_tensorflow", "import_tensorflow", "native_stderr_hidden", "verbose"]


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
    with native_stderr_hidden(hidden=not verbose()), contextlib.suppress(ModuleNotFoundError), keras_when_used():
        importlib.import_module(
            "tensorflow"
        ).config.list_physical_devices()  # it has more to say when it looks for GPUs


def hush_tensorflow() -> None:
    """Keep TensorFlow's start-up lines off the terminal, too, where somebody else is to import it; not with `-v`."""
    if verbose() or "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.meta_path.insert(0, _HushedFinder())


class _HushedFinder(abc.MetaPathFinder):
    """Finds TensorFlow once, and leaves the rest to the others."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        """Give TensorFlow's spec a loader that hides stderr."""
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _HushedLoader(spec.loader)
        return spec


class _HushedLoader(abc.Loader):
    """Loads a module with stderr hidden."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> Any:
        """As the loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """As the loader does, unseen."""
        module.__spec__.loader = module.__loader__ = self._loader  # nobody else is to meet this one
        with native_stderr_hidden():
            self._loader.exec_module(module)
