"""What runs a model: one interface for every runtime (`base`), and `load`, which picks one for a version directory.

Importing this package loads no runtime; `load` does. `calls` holds the rules of a request that need none; `contents`
looks into a directory, `savedmodel`, `onnx`, `openvino` and `tflite` run what is there, `choose` takes the best of
several. docs/backends.md tells of the layouts.
"""

from __future__ import annotations

import os

from moxserve.serving.backends.base import Backend, LoadOptions, TfliteOptions
from moxserve.serving.backends.calls import CallSignature

__all__ = ["Backend", "CallSignature", "LoadOptions", "TfliteOptions", "load"]


def load(version_dir: str | os.PathLike[str], options: LoadOptions | None = None) -> Backend:
    """Load a version directory with the runtime that fits what it holds, or that the options ask for.

    Args:
        version_dir: `BASE/<version>`, with a SavedModel or another form of a model; see `contents`.
        options: how; None takes the defaults.

    Raises:
        MissingExtraError: the runtime is not installed.
        ServingError: the directory holds no model, or one that cannot be loaded; nothing stays in memory.
    """
    from moxserve.serving.backends.loading import load_version

    return load_version(os.fspath(version_dir), options or LoadOptions())
