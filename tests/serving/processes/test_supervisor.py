"""The supervisor, with members that are small scripts: life and death, and changes in all of them or none."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moxserve.errors import InvalidArgument, UnknownError
from moxserve.serving.processes.supervisor import Plan, Supervisor

MEMBER = """
import base64, os, signal, socket, sys, threading
from moxserve.errors import InvalidArgument
from moxserve.serving.processes.channel import Channel

fd, folder, special = int(sys.argv[1]), sys.argv[2], sys.argv[3]
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())

def write(name, text):
    with open(f"{folder}/{name}", "a") as f:
        f.write(text + "\\n")

def apply(asked):
    config = base64.b64decode(asked["config"]).decode()
    if config == f"refuse {index}":
        raise InvalidArgument(f"{index} does not like it")
    if config == f"die {index}":
        os._exit(3)
    served.append(config)
    write(f"served{index}", config)

def undo(_):
    if special == "no undo":
        raise InvalidArgument("there is no way back")
    served.pop()
    write(f"served{index}", served[-1])

cells = {"/tensorflow/serving/request_count": [[["m", "OK"], 10]]}
channel = Channel(socket.socket(fileno=fd), {"apply": apply, "undo": undo, "counts": lambda _: cells}, done.set)
channel.start()
hello = channel.call("hello", None, 120)
index = hello["index"]
write(f"pids{index}", str(os.getpid()))
write(f"opened{index}", str(hello["opened"]))
started = len(open(f"{folder}/pids{index}").readlines())
served = [base64.b64decode(hello["config"] or b"").decode()]
write(f"served{index}", served[-1])
if special == "failed":
    channel.call("failed", {"exit_code": 1, "message": "the model is broken", "hint": "mend it"})
    sys.exit(1)
if special == "crash" or (special == "crash later" and started > 1):
    os.kill(os.getpid(), signal.SIGKILL)
told = channel.call("loaded", hello["generation"])
while told["config"] is not None:
    apply(told)
    told = channel.call("loaded", told["generation"])
channel.call("ready")
done.wait()
if special == "stubborn":
    threading.Event().wait()
"""


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """`supervise(special, count)`: a supervisor of scripts, not started."""
    supervisors: list[Supervisor] = []

    def make(special: str = "", count: int = 2, grace_s: float = 120) -> Supervisor:
        plan = Plan(count, {"a": 1}, b"first", grace_s=grace_s)
        command = [sys.executable, "-c", MEMBER]
        supervisor = Supervisor(plan, lambda fd: [*command, str(fd), str(tmp_path), special])
        supervisors.append(supervisor)
        return supervisor

    yield make
    for supervisor in supervisors:
        supervisor.stop(1)


@pytest.fixture
def served(tmp_path: Path) -> Callable[[int], list[str]]:
    """`served(index)`: what a member has served, in order."""
    return lambda index: (tmp_path / f"served{index}").read_text().split("\n")[:-1]


def replaced(supervisor: Supervisor, old: int, count: int = 2) -> bool:
    """Whether another process answers in the place of one that has ended. One look: each may tell something else."""
    pids = supervisor.pids()
    return len(pids) == count and old not in pids


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_members_start_and_end(supervise, served) -> None:
    supervisor = supervise(count=3)
    supervisor.start()
    pids = supervisor.pids()
    assert len(set(pids)) == 3
    assert [served(i) for i in range(3)] == [["first"]] * 3
    assert supervisor.stop()
    supervisor.wait()
    assert not any(alive(pid) for pid in pids)


def test_one_that_dies_is_started_again_with_what_is_in_effect(supervise, served, wait_for, tmp_path) -> None:
    supervisor = supervise()
    supervisor.start()
    supervisor.reload(b"second")
    first, other = supervisor.pids()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: replaced(supervisor, first), "a new member")
    assert supervisor.pids()[1] == other
    assert served(0) == ["first", "second", "second"]
    assert (tmp_path / "opened0").read_text().split() == ["False", "True"], "it must open no port before it is ready"


@pytest.mark.parametrize(
    ("special", "message", "hint"),
    [
        ("failed", "the model is broken", "mend it"),
        ("crash", r"server process [01] \(pid \d+\) was ended by SIGKILL while it started", None),
    ],
)
def test_what_kills_one_at_the_start_ends_the_start(supervise, special, message, hint) -> None:
    supervisor = supervise(special)
    with pytest.raises(UnknownError, match=message) as caught:
        supervisor.start()
    assert caught.value.hint == hint
    assert supervisor.pids() == []


def test_giving_up_when_none_can_be_kept_alive(supervise, monkeypatch) -> None:
    monkeypatch.setattr("moxserve.serving.processes.supervisor._MAX_PAUSE_S", 0.01)
    supervisor = supervise("crash later", count=1)
    supervisor.start()
    os.kill(supervisor.pids()[0], signal.SIGKILL)
    with pytest.raises(UnknownError, match=r"no server process stays alive; the last one: .* was ended by SIGKILL"):
        supervisor.wait()


def test_the_others_go_on_while_one_cannot_start(supervise, tmp_path, monkeypatch, wait_for) -> None:
    monkeypatch.setattr("moxserve.serving.processes.supervisor._MAX_PAUSE_S", 0.01)
    supervisor = supervise("crash later")
    supervisor.start()
    first, other = supervisor.pids()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len((tmp_path / "pids0").read_text().splitlines()) >= 8, "more attempts than one alone is given")
    assert supervisor.pids() == [other]


def test_a_change_that_one_refuses_is_taken_back_by_all(supervise, served) -> None:
    supervisor = supervise(count=3)
    supervisor.start()
    with pytest.raises(InvalidArgument, match="2 does not like it"):
        supervisor.reload(b"refuse 2")
    assert [served(i)[-1] for i in range(3)] == ["first"] * 3
    with pytest.raises(InvalidArgument, match="0 does not like it"):
        supervisor.reload(b"refuse 0")
    assert served(1) == ["first", "refuse 2", "first"], "the others are not asked for what the first one refuses"
    supervisor.reload(b"second")
    assert [served(i)[-1] for i in range(3)] == ["second"] * 3
    assert supervisor.config == b"second"


def test_one_that_cannot_go_back_is_replaced(supervise, served, wait_for) -> None:
    supervisor = supervise("no undo")
    supervisor.start()
    before = supervisor.pids()
    with pytest.raises(InvalidArgument, match="1 does not like it"):
        supervisor.reload(b"refuse 1")
    wait_for(lambda: replaced(supervisor, before[0]), "a new member")
    assert served(0) == ["first", "refuse 1", "first"]
    assert supervisor.pids()[1] == before[1]


def test_a_configuration_that_kills_costs_one_member_and_is_not_taken(supervise, served, wait_for) -> None:
    supervisor = supervise()
    supervisor.start()
    before = supervisor.pids()
    with pytest.raises(UnknownError, match="died of the new configuration"):
        supervisor.reload(b"die 0")
    wait_for(lambda: replaced(supervisor, before[0]), "a new member")
    assert supervisor.pids()[1] == before[1]
    assert (served(0)[-1], served(1)) == ("first", ["first"])


@pytest.mark.slow
def test_one_that_dies_again_and_again_gets_longer_pauses(supervise, wait_for, caplog) -> None:
    supervisor = supervise()
    supervisor.start()
    for _ in range(3):
        pid = supervisor.pids()[1]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: replaced(supervisor, pid), "a new member")
    pauses = [message.rpartition(" in ")[2] for message in caplog.messages if "started again" in message]
    assert pauses == ["0 s", "1 s", "2 s"], "to answer for a moment is no recovery"


def test_one_that_starts_meanwhile_catches_up(supervise, served, wait_for, monkeypatch) -> None:
    monkeypatch.setattr("moxserve.serving.processes.supervisor._MAX_PAUSE_S", 0.01)
    supervisor = supervise()
    supervisor.start()
    stop = threading.Event()
    sent = []

    def change() -> None:
        while not stop.is_set():
            sent.append(f"change {len(sent)}")
            supervisor.reload(sent[-1].encode())
            time.sleep(0.02)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3):
            pid = supervisor.pids()[1]
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: replaced(supervisor, pid), "a new member")
    finally:
        stop.set()
        thread.join(120)
    assert (served(0)[-1], served(1)[-1]) == (sent[-1], sent[-1])


def test_counts_are_added_up_and_never_fall(supervise, wait_for, monkeypatch) -> None:
    monkeypatch.setattr("moxserve.serving.processes.supervisor._SNAPSHOT_S", 60.0)

    def total() -> int:
        ((_, number),) = supervisor.counts()["/tensorflow/serving/request_count"]
        return int(number)

    supervisor = supervise()
    supervisor.start()
    assert total() == 20
    first = supervisor.pids()[0]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: replaced(supervisor, first), "a new member")
    assert total() == 30


def test_one_that_does_not_end_is_killed(supervise) -> None:
    supervisor = supervise("stubborn")
    supervisor.start()
    pids = supervisor.pids()
    assert not supervisor.stop(0.5)
    assert not any(alive(pid) for pid in pids)


def test_stopping_while_members_start(supervise) -> None:
    supervisor = supervise()
    starting = threading.Thread(target=supervisor.start)
    starting.start()
    assert supervisor.stop(120) or supervisor.pids() == []
    starting.join(120)
    assert not starting.is_alive()


def test_the_flags_reach_the_members_as_they_are(tmp_path) -> None:
    code = (
        "import json, socket, sys, threading\n"
        "from moxserve.serving.processes.channel import Channel\n"
        "channel = Channel(socket.socket(fileno=int(sys.argv[1])), {}, lambda: None)\n"
        "channel.start()\n"
        f"json.dump(channel.call('hello'), open({str(tmp_path / 'hello')!r}, 'w'))\n"
        "import os; open(sys.argv[2], 'w').write(os.environ['MOXSERVE_PROCESSES'])\n"
    )
    flags = {"model": ["a=/a", "b=/b"], "port": 1, "x": 0.5, "flag": True, "empty": ""}
    supervisor = Supervisor(
        Plan(1, flags, b"\xff\0"), lambda fd: [sys.executable, "-c", code, str(fd), str(tmp_path / "processes")]
    )
    with pytest.raises(UnknownError, match="ended with status 0 while it started"):
        supervisor.start()
    import json

    hello = json.loads((tmp_path / "hello").read_text())
    assert (hello["flags"], b64decode(hello["config"])) == (flags, b"\xff\0")
    assert (tmp_path / "processes").read_text() == "1"
