"""What a server process tells its supervisor before it has made its server."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from moxserve.serving.processes import member
from moxserve.serving.processes.channel import Channel


def test_one_that_has_just_been_started_has_counted_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "_supervisor_gone", lambda: None)
    ours, theirs = socket.socketpair()
    counted = []

    def hello(_: Any) -> dict[str, Any]:
        counted.append(channel.call("counts", timeout_s=60))
        return {"index": 1, "flags": {}, "config": None, "generation": 0, "opened": False}

    channel = Channel(ours, {"hello": hello}, lambda: None)
    channel.start()
    try:
        assert member.Membership(theirs).index == 1
    finally:
        channel.close()
    assert counted == [{}]
