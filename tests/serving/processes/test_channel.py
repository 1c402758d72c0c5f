"""Requests and answers between two processes."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from moxserve.errors import DeadlineExceeded, FailedPrecondition, Internal, Unavailable
from moxserve.serving.processes.channel import Channel

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """Two ends: `pair(left handlers, right handlers)`."""
    channels: list[Channel] = []

    def make(left: dict[str, Any], right: dict[str, Any], closed: Callable[[], None] = lambda: None) -> Pair:
        one, other = socket.socketpair()
        channels.extend([Channel(one, left, closed), Channel(other, right, closed)])
        for channel in channels[-2:]:
            channel.start()
        return channels[-2], channels[-1]

    yield make
    for channel in channels:
        channel.close()


def test_both_ends_ask_at_once_and_large_things_pass(pair) -> None:
    left, right = pair({"echo": lambda x: ["left", x]}, {"echo": lambda x: ["right", x]})
    large = "x" * 3_000_000
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(side.call, "echo", large + str(i), 120) for i in range(8) for side in (left, right)]
        answers = [future.result(120) for future in asked]
    assert answers == [[side, large + str(i)] for i in range(8) for side in ("right", "left")]


def test_a_slow_answer_holds_up_no_other(pair) -> None:
    release = threading.Event()
    left, _ = pair({}, {"slow": lambda _: release.wait(60), "quick": lambda _: "here"})
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(left.call, "slow", None, 60)
        assert left.call("quick", timeout_s=10) == "here"
        assert not slow.done()
        release.set()
        assert slow.result(60) is True


def test_errors_keep_their_status_and_text(pair) -> None:
    def refuse(_: Any) -> None:
        raise FailedPrecondition("not now")

    left, _ = pair({}, {"refuse": refuse, "break": lambda _: 1 / 0})
    with pytest.raises(FailedPrecondition, match="not now"):
        left.call("refuse", timeout_s=10)
    with pytest.raises(Internal, match="ZeroDivisionError"):
        left.call("break", timeout_s=10)
    with pytest.raises(Internal, match="unknown"):
        left.call("unknown", timeout_s=10)


def test_no_answer_in_time(pair) -> None:
    release = threading.Event()
    left, _ = pair({}, {"slow": lambda _: release.wait(60)})
    with pytest.raises(DeadlineExceeded, match="did not answer 'slow'"):
        left.call("slow", timeout_s=0.05)
    release.set()


def test_whoever_waits_learns_that_the_other_is_gone(pair) -> None:
    closed = threading.Semaphore(0)
    left, right = pair({}, {"never": lambda _: time.sleep(60)}, closed.release)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(left.call, "never")
        time.sleep(0.1)
        right.close()
        with pytest.raises(Unavailable, match="the other process is gone"):
            waits.result(60)
    assert closed.acquire(timeout=60)
    assert closed.acquire(timeout=60)
    with pytest.raises(Unavailable):
        left.call("never")


@pytest.mark.parametrize("sent", [b"", b"\0", struct.pack(">I", 5) + b"no", struct.pack(">I", 4) + b"nope"])
def test_bytes_that_are_no_frame_end_the_conversation(sent) -> None:
    ours, theirs = socket.socketpair()
    closed = threading.Event()
    channel = Channel(ours, {}, closed.set)
    channel.start()
    with theirs:
        theirs.sendall(sent)
    assert closed.wait(60)
    with pytest.raises(Unavailable):
        channel.call("anything")
