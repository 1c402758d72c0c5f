"""A TCP port for a server of our own on this machine."""

from __future__ import annotations

import random
import socket
import sys
from pathlib import Path

__all__ = ["free_port"]

_ATTEMPTS = 200
_MOST_CLAIMS = 500
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 15_000
_claims: list[socket.socket] = []


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens, and which stays free until a server has started.

    A port that the system picks itself (`bind` to 0) comes from the range of outgoing connections: any client on the
    machine may be given it in the seconds until the server binds. This one lies below that range, and nobody else who
    asks here is given it while this process lives.

    Raises:
        OSError: no port could be bound.
    """
    below = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    draw = random.SystemRandom()  # a seeded generator would give parallel runs the same ports
    for _ in range(_ATTEMPTS):
        port = draw.randrange(_LOWEST, below) if below > _LOWEST + 1000 else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if _claim(found):
            return found
    raise OSError(f"none of {_ATTEMPTS} ports below {below} could be bound")


def _claim(port: int) -> bool:
    """Take a port for this process, among those who ask here: by a name that the system frees when the process ends.

    Returns:
        False where it is taken, by this or another process; always true on systems without such names.
    """
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0moxserve-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    if len(_claims) > _MOST_CLAIMS:
        _claims.pop(0).close()
    return True
