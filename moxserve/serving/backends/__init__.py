"""What runs a model: one interface for every runtime (`base`), and `load`, which picks one for a version directory.

Importing this package loads no runtime; `load` does. `calls` holds the rules of a request that need none.
"""

from __future__ import annotations

import os

from moxserve.serving.backends.base import Backend, LoadOptions
from moxserve.serving.backends.calls import CallSignature

__all__ = ["Backend", "CallSignature", "LoadOptions", "load"]


def load(version_dir: str | os.PathLike[str], options: LoadOptions | None = None) -> Backend:
    """Load a version directory with the runtime that fits what it holds.

    Args:
        version_dir: `BASE/<version>`, holding `saved_model.pb` and what belongs to it.
        options: how; None takes the defaults.

    Raises:
        MissingExtraError: the runtime is not installed.
        ServingError: the directory holds no model, or one that cannot be loaded; nothing stays in memory.
    """
    from moxserve.serving.backends.savedmodel import SavedModelBackend

    return SavedModelBackend(os.fspath(version_dir), options or LoadOptions())
