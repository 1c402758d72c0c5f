"""How many CPUs a server process may count on, for all that sizes itself by them."""

from __future__ import annotations

import os

from moxserve.cores import available_cores

__all__ = ["SHARED_BY", "cpus", "shared"]

# Set by the supervisor of several server processes: how many of them share the machine.
SHARED_BY = "MOXSERVE_PROCESSES"


def shared() -> bool:
    """Return whether other server processes share the machine with this one."""
    return os.environ.get(SHARED_BY, "1") != "1"


def cpus() -> int:
    """Return this process's part of the CPUs that it may run on; at least 1."""
    sharers = os.environ.get(SHARED_BY, "")
    return max(1, available_cores() // max(1, int(sharers) if sharers.isdecimal() else 1))
