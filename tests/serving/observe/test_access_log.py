"""The access log and the thread that writes it; what requests put into it is in test_requests.py."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from moxserve.errors import UsageError
from moxserve.serving.observe import Recorder, RequestRecord
from moxserve.serving.observe.access_log import AccessLog
from moxserve.serving.observe.record import address


def record(method: str = "GET /v1/models", **more: Any) -> RequestRecord:
    made = RequestRecord("http", method, **more)
    made.end("OK", 200, 10)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def eventually(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_a_line_has_what_is_known(tmp_path) -> None:
    log = AccessLog(str(tmp_path / "log"))
    run = RequestRecord("grpc", "/tensorflow.serving.PredictionService/Predict", peer="127.0.0.1:1", request_id="abc")
    run.time_ns = 1_700_000_000_123_456_789
    run.model, run.request_bytes = "half", 45
    run.ran(run.began + 0.002, 0.25)
    run.answered(123, "serving_default", 0.3)
    run.end("OK", 0, 67)
    run.duration_s = 0.5
    refused = record(model="nope", peer="[::1]:7")
    refused.end("NOT_FOUND", 404, 60)
    log.write([run, refused], dropped=3)
    log.close()
    first, second, third = lines(tmp_path / "log")
    assert first == {
        "time": "2023-11-14T22:13:20.123Z", "protocol": "grpc",
        "method": "/tensorflow.serving.PredictionService/Predict", "model": "half", "version": 123,
        "signature": "serving_default", "status": "OK", "code": 0, "duration_ms": 500.0, "queue_ms": 2.0,
        "run_ms": 250.0, "request_bytes": 45, "response_bytes": 67, "peer": "127.0.0.1:1", "request_id": "abc",
    }  # fmt: skip
    assert (second["status"], second["code"], second["model"]) == ("NOT_FOUND", 404, "nope")
    assert not {"version", "signature", "run_ms", "queue_ms"} & second.keys()
    assert third["dropped"] == 3


@pytest.mark.parametrize(
    ("peer", "written"),
    [
        ("127.0.0.1:4711", "127.0.0.1:4711"),
        ("::ffff:10.0.0.1:4711", "10.0.0.1:4711"),
        ("[::ffff:10.0.0.1]:4711", "10.0.0.1:4711"),
        ("::1:4711", "[::1]:4711"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("", ""),
    ],
)
def test_addresses(peer, written) -> None:
    assert address(peer) == written


def test_any_name_makes_one_line_of_json(tmp_path) -> None:
    log = AccessLog(str(tmp_path / "log"))
    names = ['quote" and \\', "line\nbreak", "\x00\x1b[31m", "half of a pair \ud800", "\u2028", "ä" * 1000]
    log.write([record(model=name) for name in names], 0)
    log.close()
    assert [line["model"] for line in lines(tmp_path / "log")] == names


def test_threads_and_processes_share_a_file_line_by_line(tmp_path) -> None:
    path = tmp_path / "log"
    recorders = [Recorder([AccessLog(str(path))]) for _ in range(2)]
    for recorder in recorders:
        recorder.start()

    def fill(recorder: Recorder, name: str) -> None:
        for _ in range(500):
            recorder.take(record(model=name * 50))

    threads = [threading.Thread(target=fill, args=(r, n)) for r, n in zip(recorders * 2, "abcd", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(recorder.close(60) for recorder in recorders)
    names = [line["model"] for line in lines(path)]
    assert {name: names.count(name * 50) for name in "abcd"} == dict.fromkeys("abcd", 500)


@pytest.mark.slow
def test_a_file_that_was_moved_is_opened_anew(tmp_path) -> None:
    path = tmp_path / "log"
    recorder = Recorder([AccessLog(str(path))])
    recorder.start()
    recorder.take(record(model="first"))
    eventually(lambda: path.stat().st_size > 0)
    path.rename(tmp_path / "log.1")
    recorder.reopen()
    recorder.take(record(model="second"))
    eventually(lambda: path.exists() and path.stat().st_size > 0)
    path.rename(tmp_path / "log.2")
    time.sleep(1.1)  # nobody tells it this time: it looks once a second
    recorder.take(record(model="third"))
    assert recorder.close(60)
    assert [[line["model"] for line in lines(tmp_path / name)] for name in ("log.1", "log.2", "log")] == [
        ["first"], ["second"], ["third"],
    ]  # fmt: skip


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path, caplog) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full, a disk without space, is not there")
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    recorder = Recorder([AccessLog(str(path))])
    recorder.start()
    with caplog.at_level(logging.WARNING):
        recorder.take(record(model="lost"))
        eventually(lambda: "No space left" in caplog.text)
    path.unlink()
    recorder.reopen()
    recorder.take(record(model="kept"))
    assert recorder.close(60)
    assert [line["model"] for line in lines(path)] == ["kept"]
    assert caplog.text.count("the access log cannot be written") == 1


class Slow:
    """A sink that takes its time."""

    name = "slow"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()
        self.seen: list[str] = []
        self.dropped = 0

    def write(self, records: Sequence[RequestRecord], dropped: int) -> None:
        if records:
            self.entered.set()
        self.go.wait(60)
        self.seen += [one.model for one in records]
        self.dropped += dropped

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def test_what_does_not_fit_is_dropped_and_counted(caplog) -> None:
    sink, counted = Slow(), []
    recorder = Recorder([sink], counted.append, capacity=10)
    recorder.start()
    recorder.take(record(model="first"))
    assert sink.entered.wait(60)  # the thread has it, and waits for the sink
    for number in range(1000):
        recorder.take(record(model=str(number)))  # would wait for ever, if it waited for the sink
    sink.go.set()
    assert recorder.close(60)
    assert sink.seen == ["first", *map(str, range(10))]
    assert sink.dropped == sum(counted) == 990
    assert "990 records of requests were dropped" in caplog.text


def test_a_sink_that_is_broken_does_not_end_the_others(tmp_path, caplog) -> None:
    class Broken(Slow):
        def write(self, records: Sequence[RequestRecord], dropped: int) -> None:
            raise RuntimeError("a bug")

    path = tmp_path / "log"
    recorder = Recorder([Broken(), AccessLog(str(path))])
    recorder.start()
    recorder.take(record(model="x"))
    assert recorder.close(60)
    assert [line["model"] for line in lines(path)] == ["x"]
    assert "slow failed" in caplog.text


def test_without_sinks_nothing_runs() -> None:
    before = threading.enumerate()
    recorder = Recorder()
    recorder.start()
    assert not recorder.active
    assert recorder.close(0)
    assert not [t for t in threading.enumerate() if t.name == "moxserve-recorder" and t not in before]


@pytest.mark.parametrize("started", [True, False])
def test_the_file_is_closed_once_whatever_happened(tmp_path, started, caplog) -> None:
    path = str(tmp_path / "log")

    def open_files() -> list[str]:
        # Other threads of this process open and close files, too.
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == path]

    recorder = Recorder([AccessLog(path)])
    assert len(open_files()) == 1
    if started:
        recorder.start()
    assert recorder.close(60)
    assert recorder.close(60)
    assert open_files() == []
    assert "the access log cannot be written" not in caplog.text, "it was closed twice"


def test_a_path_that_cannot_be_opened(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--access_log=.*: Is a directory"):
        AccessLog(str(tmp_path))
    with pytest.raises(UsageError, match="No such file or directory"):
        AccessLog(str(tmp_path / "nowhere" / "log"))


def test_stdout(tmp_path) -> None:
    code = (
        "from moxserve.serving.observe import Recorder, RequestRecord\n"
        "from moxserve.serving.observe.access_log import AccessLog\n"
        "recorder = Recorder([AccessLog('-')]); recorder.start()\n"
        "recorder.take(RequestRecord('http', 'GET /')); recorder.close(60); print('still open')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    first, second = done.stdout.splitlines()
    assert json.loads(first)["method"] == "GET /"
    assert second == "still open"
