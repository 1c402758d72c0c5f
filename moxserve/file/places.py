"""Where moxserve keeps, for this user, what it can make again."""

from __future__ import annotations

import os

__all__ = ["cache_directory"]


def cache_directory() -> str:
    """Return MOXSERVE_CACHE, else moxserve in the user's cache directory; it need not exist."""
    own = os.environ.get("MOXSERVE_CACHE")
    return own or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "moxserve")
