"""moxserve: a TensorFlow model from data to a measured, verified, served artifact.

Public names resolve on first use (PEP 562), so `import moxserve` costs nothing and never imports TensorFlow.
Look in `moxserve.tensorflow` for training, `moxserve.client` for talking to a server, `moxserve.file` for paths.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Client": "moxserve.client:Client",
    "MoxserveError": "moxserve.errors:MoxserveError",
    "file": "moxserve.file",
}

__all__ = ["Client", "MoxserveError", "__version__", "file"]

if TYPE_CHECKING:
    from moxserve import file
    from moxserve.client import Client
    from moxserve.errors import MoxserveError


def __getattr__(name: str) -> Any:
    target = _LAZY.get(name)
    if target is None:
        raise AttributeError(f"module 'moxserve' has no attribute {name!r}; it has {', '.join(__all__)}")
    module_name, _, attribute = target.partition(":")
    module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
