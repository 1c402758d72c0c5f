"""Ports for servers: nobody is given one that somebody else was given and has not bound yet."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from moxserve import ports

ASK = """
import random, sys
from moxserve import ports

random.SystemRandom.randrange = lambda self, low, high, drawn=iter(map(int, sys.argv[1:])): next(drawn)
print(ports.free_port())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that the system frees")
def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (ports.free_port() for _ in range(3))
    assert len({first, second, third}) == 3
    drawn = iter([first, second, third, 0])
    monkeypatch.setattr(random.SystemRandom, "randrange", lambda self, low, high: next(drawn))
    assert ports.free_port() not in (first, second, third)
    asked = [sys.executable, "-c", ASK, str(first), str(second), "0"]
    other = subprocess.run(asked, capture_output=True, text=True, timeout=100, check=True)
    assert int(other.stdout) not in (first, second)
