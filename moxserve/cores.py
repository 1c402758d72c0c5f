"""How many processor cores this process may use, for all that makes threads or processes by their number.

Not a part of them: server processes that share a machine divide it in `moxserve.serving.cpus`.
"""

from __future__ import annotations

import os

__all__ = ["available_cores"]


def available_cores() -> int:
    """Return how many cores this process may run on; at least 1.

    A process that is bound to some of the machine's cores (`taskset`, a container's cpuset) has those only.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
