"""`moxserve loadtest` as a person runs it: real locust, real server."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest


@pytest.mark.slow
def test_grpc_with_report(run_moxserve, toy_server, tmp_path) -> None:
    report = tmp_path / "report.html"
    done = run_moxserve(
        "loadtest", "--grpc", toy_server.grpc, "--model", "toy", "--users", "3", "--duration", "1s",
        "--batch-size", "2", "--report", report, "--fail-if", "p95>100s", "--fail-if", "rps<0.001",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"loaded toy at grpc://{toy_server.grpc} with 3 users, 2 rows a request"
    assert lines[1] == "  payload   random data (images: uint8[2, 8, 8, 1])"
    assert [line.split()[0] for line in lines[2:]] == [
        "requests", "rate", "latency", "generator", "limit", "limit", "report",
    ]  # fmt: skip
    page = report.read_text()
    assert f"moxserve load test: toy at grpc://{toy_server.grpc}, 3 users" in page
    assert "predict toy" in page  # locust's own table
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.slow
def test_rest_as_json(run_moxserve, toy_server) -> None:
    done = run_moxserve(
        "loadtest", "--rest", toy_server.rest, "--model", "toy", "--users", "2", "--duration", "700ms", "--json"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["failures"] == 0
    assert figures["requests"] > 0
    assert figures["rps"] == pytest.approx(figures["requests"] / figures["duration_s"])
    assert figures["min_ms"] <= figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert figures["generator_cpu"] > 0
    assert figures["duration_s"] >= 0.7


@pytest.mark.slow
def test_broken_limit(run_moxserve, toy_server, tmp_path) -> None:
    done = run_moxserve(
        "loadtest", "--grpc", toy_server.grpc, "--model", "toy", "--users", "1", "--duration", "500ms",
        "--fail-if", "p50>1us", "--fail-if", "fail_ratio>50%", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: limit broken: p50>1us: measured " in done.stderr
    assert "fail_ratio" not in done.stderr
    assert "(broken)" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_failing_requests_fail_the_test(run_moxserve, toy_server, tmp_path) -> None:
    """The first row is fine, so the test begins; the second is refused by the model each time."""
    (tmp_path / "rows.jsonl").write_text("4\n-1\n")
    args = [
        "loadtest", "--grpc", toy_server.grpc, "--model", "toy", "--signature", "positive", "--users", "1",
        "--duration", "1s", "--input", tmp_path / "rows.jsonl",
    ]  # fmt: skip
    done = run_moxserve(*args)
    assert done.returncode == 1
    assert "requests failed; the most frequent: INVALID_ARGUMENT: " in done.stderr
    assert "negative numbers are refused" in done.stderr
    assert run_moxserve(*args, "--fail-if", "fail_ratio>99%").returncode == 0


def test_nobody_listens(run_moxserve, free_port) -> None:
    done = run_moxserve("loadtest", "--grpc", f"localhost:{free_port}", "--model", "m")
    assert done.returncode == 4
    assert done.stderr.splitlines()[0] == f"error: nobody answers at grpc://localhost:{free_port}: Connection refused"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "m"], "Give one of --grpc HOST:PORT, --rest URL; got none."),
        (["--grpc", "h:1"], "Missing option '--model'"),
        (
            ["--grpc", "h:1", "--model", "m", "--fail-if", "p95>slow"],
            "error: --fail-if 'p95>slow': expected METRIC OP NUMBER",
        ),
        (
            ["--grpc", "h:1", "--model", "m", "--duration", "soon"],
            "error: duration 'soon': expected something like 10s",
        ),
        (["--grpc", "h:1", "--model", "m", "--report", "/no/such/dir/r.html"], "expected a file name in a folder"),
        (["--grpc", "h:1", "--model", "m", "--users", "0"], "Invalid value for '--users'"),
    ],
)
def test_wrong_usage(run_moxserve, args, message) -> None:
    done = run_moxserve("loadtest", *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_interrupted(toy_server, tmp_path) -> None:
    command = [
        sys.executable, "-m", "moxserve", "loadtest", "--grpc", toy_server.grpc, "--model", "toy", "--users", "1",
        "--duration", "60s", "--report", str(tmp_path / "r.html"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not psutil.Process(process.pid).children():
        time.sleep(0.02)  # until the load is made
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert err == f"error: interrupted; '{tmp_path / 'r.html'}' was not written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--processes", "2"]])
def test_locust_itself(repo_root, toy_server, more) -> None:
    command = [
        sys.executable, "-m", "locust", "-f", str(repo_root / "loadtests" / "moxserve_loadtests" / "locustfile.py"),
        "--host", f"grpc://{toy_server.grpc}", "--model", "toy", "-u", "2", "-r", "2", "--headless",
        "--exit-code-on-error", "1", *more,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out = process.stdout
    assert out is not None
    try:
        begun = list(itertools.takewhile(lambda line: not re.search(r"predict toy +[1-9]", line), out))
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, [*begun, told]
    assert re.search(r"predict toy +[1-9][0-9]* +0\(0\.00%\)", told)


CLOCK = """
import time
import gevent

loop, sleep = gevent.get_hub().loop, time.sleep
before = loop.now()
import locust.env
from moxserve_loadtests import locustfile

sleep(0.2)
assert loop.now() == before
locust.events.init.fire(environment=None, runner=None, web_ui=None)
assert loop.now() - before >= 0.2
"""


@pytest.mark.slow
def test_the_time_of_a_test_counts_from_its_beginning() -> None:
    """gevent looks at the clock when it runs; a timer that is set before would be over when the imports took long."""
    done = subprocess.run([sys.executable, "-c", CLOCK], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
