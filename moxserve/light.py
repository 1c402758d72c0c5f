"""TensorFlow without Keras, until Keras is used: half of the time that `import tensorflow` takes is Keras'.

TensorFlow imports Keras at its end, and goes on where there is none; Keras imports pandas and scikit-learn where they
are installed. `tf.keras` and `tf.compat.v1.layers` look for Keras again when they are used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import abc, machinery
from typing import Any

_GENERATIONS = ("keras", "tf_keras")


class _NotYet(abc.MetaPathFinder, abc.Loader):
    """Finds Keras where it is, which TensorFlow asks for too, and does not load it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> machinery.ModuleSpec | None:  # noqa: ARG002
        found = machinery.PathFinder.find_spec(fullname) if fullname in _GENERATIONS else None
        return found and machinery.ModuleSpec(fullname, self, origin=found.origin, is_package=True)

    def create_module(self, spec: machinery.ModuleSpec) -> None:  # noqa: ARG002
        return None

    def exec_module(self, module: Any) -> None:
        raise ImportError(f"{module.__name__} is imported when it is used", name=module.__name__)


@contextlib.contextmanager
def keras_when_used() -> Iterator[None]:
    """Let an `import tensorflow` in this block leave out Keras; what uses it afterwards imports it."""
    finder = _NotYet()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
