"""Datapoints between processes over ZeroMQ, on loopback."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.dataflow import DataFlow, DataFlowTerminated, DataFromList, RemoteDataZMQ, send_dataflow_zmq, values
from moxserve.dataflow import remote as wire
from moxserve.errors import DataError, UsageError

zmq = pytest.importorskip("zmq")


@pytest.fixture
def ipc(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/flow"


@pytest.fixture
def send() -> Iterator[Callable[..., threading.Thread]]:
    """Send in a thread; its error, if any, is raised at the end of the test."""
    started: list[tuple[threading.Thread, list[BaseException]]] = []

    def start(*args: Any, **kwargs: Any) -> threading.Thread:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                send_dataflow_zmq(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        started.append((thread, errors))
        return thread

    yield start
    for thread, errors in started:
        thread.join(60)
        assert not thread.is_alive()
        if errors:
            raise errors[0]


def numbers(first: int, count: int) -> DataFlow:
    return DataFromList([[i, np.full((3, 2), i, np.float32)] for i in range(first, first + count)], shuffle=False)


@pytest.mark.parametrize("protocol", ["ipc", "tcp"])
def test_everything_arrives_in_order_and_the_end_is_told(
    protocol: str, ipc: str, free_port: int, send: Callable[..., Any]
) -> None:
    address = ipc if protocol == "ipc" else f"tcp://127.0.0.1:{free_port}"
    remote = RemoteDataZMQ(address, hwm=2, timeout_s=60)
    send(numbers(0, 100), address, hwm=2, passes=2, timeout_s=60)
    got = list(remote)
    assert [number for number, _ in got] == [*range(100), *range(100)]
    assert got[7][1].tolist() == np.full((3, 2), 7.0).tolist()
    assert got[7][1].dtype == np.float32
    assert (remote.cnt1, remote.cnt2) == (200, 0)
    remote.close()


def test_the_next_iteration_goes_on_where_one_was_left(ipc: str, send: Callable[..., Any]) -> None:
    remote = RemoteDataZMQ(ipc, timeout_s=60)
    send(numbers(0, 50), ipc, passes=1, timeout_s=60)
    first = iter(remote)
    begun = [next(first)[0] for _ in range(20)]
    first.close()
    assert begun + [dp[0] for dp in remote] == list(range(50))
    remote.close()


def test_two_addresses_are_counted_apart(ipc: str, free_port: int, send: Callable[..., Any]) -> None:
    tcp = f"tcp://127.0.0.1:{free_port}"
    remote = RemoteDataZMQ(tcp, ipc, hwm=1, senders=2, timeout_s=60)
    send(numbers(0, 30), tcp, passes=1, timeout_s=60)
    send(numbers(100, 20), ipc, passes=1, timeout_s=60)
    assert sorted(dp[0] for dp in remote) == [*range(30), *range(100, 120)]
    assert (remote.cnt1, remote.cnt2) == (30, 20)
    remote.close()


def test_the_sender_may_be_the_one_that_waits_at_the_address(ipc: str, send: Callable[..., Any]) -> None:
    send(numbers(0, 10), ipc, bind=True, passes=1, timeout_s=60)
    remote = RemoteDataZMQ(ipc, bind=False, timeout_s=60)
    assert [dp[0] for dp in remote] == list(range(10))
    remote.close()


@pytest.mark.slow
def test_back_pressure_holds_the_flow(ipc: str) -> None:
    made: list[int] = []

    class Counted(DataFlow):
        def __iter__(self) -> Iterator[Any]:
            for i in range(500):
                made.append(i)
                yield [i, b"x" * 200_000]

    thread = threading.Thread(target=send_dataflow_zmq, args=(Counted(), ipc, 2), kwargs={"passes": 1}, daemon=True)
    remote = RemoteDataZMQ(ipc, hwm=2, timeout_s=60)
    iterator = iter(remote)
    thread.start()
    assert next(iterator)[0] == 0
    time.sleep(0.5)
    assert len(made) < 100
    assert [dp[0] for dp in iterator] == list(range(1, 500))
    thread.join(60)
    assert not thread.is_alive()
    remote.close()


def test_dicts_texts_and_nested_lists_travel_without_pickle(ipc: str, send: Callable[..., Any]) -> None:
    dp = {
        "image": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "boxes": [[1.5, 2], (None, True)],
        "name": "Zoë",
        "raw": b"\0",
    }
    send(DataFromList([dp], shuffle=False), ipc, passes=1, timeout_s=60)
    remote = RemoteDataZMQ(ipc, timeout_s=60)
    (got,) = list(remote)
    assert np.array_equal(got.pop("image"), dp["image"])
    assert got == {k: v for k, v in dp.items() if k != "image"}
    remote.close()


class Runs:
    """What a hostile sender would send."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run_unless_it_is_allowed(tmp_path: Path, ipc: str) -> None:
    remote = RemoteDataZMQ(ipc, timeout_s=60)
    iterator = iter(remote)
    threading.Thread(target=_raw, args=(ipc, pickle.dumps([Runs(tmp_path / "ran")])), daemon=True).start()
    with pytest.raises(DataError, match="allow_pickle=True"):
        next(iterator)
    assert not (tmp_path / "ran").exists()
    remote.close()


def test_any_object_travels_as_a_pickle_that_is_allowed(ipc: str, send: Callable[..., Any]) -> None:
    send(DataFromList([[{1, 2}, 3 + 4j]], shuffle=False), ipc, format="pickle", passes=1, timeout_s=60)
    remote = RemoteDataZMQ(ipc, allow_pickle=True, timeout_s=60)
    assert list(remote) == [[{1, 2}, 3 + 4j]]
    remote.close()


def _raw(address: str, *messages: bytes) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RECONNECT_IVL, 1)
    socket.connect(address)
    for message in messages:
        socket.send(message)
    context.destroy(linger=5000)


@pytest.mark.parametrize("message", [b"", b"hello", b"\xc1MX1", b"\xc1MX1\x08" + b"\xff" * 8])
def test_what_is_no_datapoint_is_an_error_that_names_the_address(ipc: str, message: bytes) -> None:
    remote = RemoteDataZMQ(ipc, timeout_s=60)
    iterator = iter(remote)
    threading.Thread(target=_raw, args=(ipc, message), daemon=True).start()
    with pytest.raises(DataError, match="what came to ipc://"):
        next(iterator)
    remote.close()


def test_closing_does_not_wait_for_a_sender_that_leaves_in_that_moment(ipc: str) -> None:
    # Without a linger time of 0 from the beginning, one in about 100 of these never ended.
    for number in range(300):
        remote = RemoteDataZMQ(f"{ipc}{number}", timeout_s=60)
        sender = threading.Thread(target=_raw, args=(f"{ipc}{number}", b"hello"), daemon=True)
        sender.start()
        with pytest.raises(DataError):
            next(iter(remote))
        remote.close()
        sender.join(60)
        assert not sender.is_alive()


def test_a_sender_ends_when_its_receiver_left_after_the_last_answer(ipc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def receive() -> None:
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        socket.bind(ipc)
        message = b""
        while message != wire._END:
            sender, message = socket.recv_multipart()
            socket.send_multipart([sender, wire._END if message == wire._END else wire._TAKEN])
        settled.wait(60)
        context.destroy(linger=0)

    settle, settled = wire._Sender.settle, threading.Event()

    def settle_and_be_slow(sender: wire._Sender, ended: bool) -> None:
        settle(sender, ended)
        settled.set()
        while sender.socket.poll(0, zmq.POLLOUT):
            time.sleep(0.01)

    monkeypatch.setattr(wire._Sender, "settle", settle_and_be_slow)
    monkeypatch.setattr(wire, "_LINGER_MS", 50)
    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    assert send_dataflow_zmq(numbers(0, 5), ipc, passes=1, timeout_s=2) == 5
    receiver.join(60)
    assert not receiver.is_alive()


@pytest.mark.slow
def test_closing_waits_for_a_sender_that_is_slow_to_hear_that_its_end_was_taken(
    ipc: str, send: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = wire._Sender.settle

    def settle_late(sender: wire._Sender, ended: bool) -> None:
        time.sleep(1.5)
        settle(sender, ended)

    monkeypatch.setattr(wire._Sender, "settle", settle_late)
    remote = RemoteDataZMQ(ipc, timeout_s=60)
    send(numbers(0, 20), ipc, passes=1, timeout_s=2)
    assert [dp[0] for dp in remote] == list(range(20))
    remote.close()


def test_close_ends_an_iteration_that_stands_between_two_datapoints(ipc: str) -> None:
    threading.Thread(target=_raw, args=(ipc, values.dumps([0]), values.dumps([1])), daemon=True).start()
    flow = RemoteDataZMQ(ipc, timeout_s=60)
    iterator = iter(flow)
    assert next(iterator) == [0]
    flow.close()
    _is_free(ipc)
    with pytest.raises(DataFlowTerminated):
        list(iterator)


def test_close_ends_an_iteration_that_waits_in_another_thread(free_port: int) -> None:
    address = f"tcp://127.0.0.1:{free_port}"
    flow = RemoteDataZMQ(address)
    flow.reset_state()
    told: list[BaseException] = []

    def wait() -> None:
        try:
            next(iter(flow))
        except DataFlowTerminated as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while flow._line is None:
        time.sleep(0.01)
    flow.close()
    _is_free(address)
    thread.join(60)
    assert len(told) == 1


def _is_free(address: str) -> None:
    other = RemoteDataZMQ(address, timeout_s=0.05)
    with pytest.raises(DataError, match="no datapoint came"):
        next(iter(other))
    other.close()


@pytest.mark.parametrize("protocol", ["tcp", "ipc"])
def test_an_address_in_use_is_told(free_port: int, ipc: str, protocol: str) -> None:
    address = f"tcp://127.0.0.1:{free_port}" if protocol == "tcp" else ipc
    first = RemoteDataZMQ(address, timeout_s=0.1)
    with pytest.raises(DataError, match="no datapoint came"):
        next(iter(first))
    with pytest.raises(UsageError, match=f"{address}: another process listens there"):
        next(iter(RemoteDataZMQ(address)))
    with pytest.raises(UsageError, match="another process listens"):
        send_dataflow_zmq(numbers(0, 1), address, bind=True, passes=1)
    first.close()
    with pytest.raises(DataFlowTerminated):
        next(iter(first))


def test_nobody_there_is_told_after_the_timeout(ipc: str) -> None:
    with pytest.raises(
        DataError, match=r"nobody takes a datapoint at ipc://.* for 0\.2 s\n.*is the other side running"
    ):
        send_dataflow_zmq(numbers(0, 5), ipc, timeout_s=0.2)
    with pytest.raises(DataError, match=r"no datapoint came to ipc://.* for 0\.2 s"):
        next(iter(RemoteDataZMQ(ipc, timeout_s=0.2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RemoteDataZMQ(""), "needs an address"),
        (lambda: RemoteDataZMQ("tcp://*:1", hwm=0), "hwm must be at least 1"),
        (lambda: RemoteDataZMQ("tcp://*:1", senders=0), "senders must be at least 1"),
        (lambda: next(iter(RemoteDataZMQ("nonsense"))), "expected an address such as"),
        (lambda: next(iter(RemoteDataZMQ("tcp://192.0.2.1:5555"))), "no address of this machine"),
        (lambda: send_dataflow_zmq(numbers(0, 1), "tcp://127.0.0.1:1", format="zmq_ops"), "expected None or 'pickle'"),
        (lambda: send_dataflow_zmq(numbers(0, 1), "tcp://127.0.0.1:1", hwm=0), "hwm must be at least 1"),
    ],
)
def test_wrong_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_an_iteration_that_waits_is_ended_by_close(ipc: str) -> None:
    remote = RemoteDataZMQ(ipc)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            next(iter(remote))
        except BaseException as error:  # noqa: BLE001 - looked at below
            ended.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    time.sleep(0.3)
    remote.close()
    thread.join(60)
    assert [type(error) for error in ended] == [DataFlowTerminated]


def test_an_error_of_the_flow_ends_the_sender(ipc: str) -> None:
    class Broken(DataFlow):
        def __iter__(self) -> Iterator[Any]:
            yield [1]
            raise ValueError("broken at 1")

    remote = RemoteDataZMQ(ipc, timeout_s=60)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(next(iter(remote))), daemon=True)
    thread.start()
    with pytest.raises(ValueError, match="broken at 1"):
        send_dataflow_zmq(Broken(), ipc, timeout_s=60)
    thread.join(60)
    assert got == [[1]]
    remote.close()
