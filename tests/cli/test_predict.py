"""`moxserve predict` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moxserve.client import Client


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    base = tmp_path / "shades"
    for name, value in {"dark": 5, "mid": 127, "bright": 250}.items():
        (base / name).mkdir(parents=True)
        for number in range(4):
            image.fromarray(np.full((8, 8), value, np.uint8)).save(base / name / f"{number}.png")
    (base / "labels.txt").write_text("0: dark\n1: mid\n2: bright\n")
    return base


def test_summary_for_people(run_moxserve, toy_server, shades, tmp_path) -> None:
    out = tmp_path / "preds.jsonl"
    done = run_moxserve("predict", "--grpc", toy_server.grpc, "--model", "toy", "--input", shades, "--output", out)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"predicted 12 rows with toy version 1 (serving_default) at grpc://{toy_server.grpc}"
    assert lines[1] == "  accuracy  1.0000  (12 of 12; output 'classes' against the labels)"
    assert [line.split()[0] for line in lines[2:]] == ["speed", "latency", "output"]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["input"] for r in records][::4] == ["bright/0.png", "dark/0.png", "mid/0.png"]
    assert [r["predictions"]["classes"] for r in records] == [2] * 4 + [0] * 4 + [1] * 4


def test_json_summary_over_rest(run_moxserve, toy_server, shades, tmp_path) -> None:
    done = run_moxserve(
        "predict", "--rest", toy_server.rest, "--model", "toy:1", "--input", shades, "--output", tmp_path / "o.jsonl",
        "--outputs", "classes", "--limit", "5", "--batch-size", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["requests"], summary["errors"]) == (5, 3, 0)
    assert summary["accuracy"] == 1.0
    assert list(json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["predictions"]) == ["classes"]


@pytest.mark.slow
def test_local_model_is_quiet(run_moxserve, toy_base, shades, tmp_path) -> None:
    done = run_moxserve("predict", "--local", toy_base, "--input", shades, "--output", tmp_path / "o.jsonl", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert (summary["model"], summary["accuracy"]) == (toy_base.name, 1.0)


@pytest.mark.slow
def test_nobody_listens(run_moxserve, free_port, shades, tmp_path) -> None:
    for flag, address in (("--grpc", f"localhost:{free_port}"), ("--rest", f"http://localhost:{free_port}")):
        done = run_moxserve("predict", flag, address, "--model", "m", "--input", shades, "--output", tmp_path / "o")
        assert done.returncode == 4
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: nobody answers at ")
        assert error.endswith("Connection refused")
        assert hint.startswith("hint: is the server running")
        assert not (tmp_path / "o").exists()


def test_unknown_model(run_moxserve, toy_server, shades, tmp_path) -> None:
    done = run_moxserve(
        "predict", "--grpc", toy_server.grpc, "--model", "tyo", "--input", shades, "--output", tmp_path / "o"
    )
    assert done.returncode == 1
    assert "answered NOT_FOUND: Servable not found for request: Latest(tyo)" in done.stderr


def test_wrong_input_shows_what_was_expected(run_moxserve, toy_server, tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 28, 28, 1), np.uint8))
    done = run_moxserve(
        "predict",
        "--grpc",
        toy_server.grpc,
        "--model",
        "toy",
        "--input",
        tmp_path / "x.npy",
        "--output",
        tmp_path / "o",
    )
    assert done.returncode == 1
    assert done.stderr == "error: x.npy[0]: input 'images' has shape [28, 28, 1]; expected images: uint8[8, 8, 1]\n"


def test_rows_that_fail_are_skipped_and_told(run_moxserve, toy_server, tmp_path) -> None:
    (tmp_path / "r.jsonl").write_text("4\n-1\n9\nnull\n{\n")
    done = run_moxserve(
        "predict", "--grpc", toy_server.grpc, "--model", "toy", "--signature", "positive",
        "--input", tmp_path / "r.jsonl", "--output", tmp_path / "o.jsonl", "--on-error", "skip",
    )  # fmt: skip
    assert done.returncode == 3
    assert "error: 3 of 5 rows failed; the first: " in done.stderr
    assert f"hint: each has an error record in {tmp_path / 'o.jsonl'}" in done.stderr
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [r.get("predictions", {}).get("root") for r in records] == [2.0, None, 3.0, None, None]
    assert [r.get("error", {}).get("status") for r in records] == [
        None, "INVALID_ARGUMENT", None, "UNREADABLE_INPUT", "UNREADABLE_INPUT",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Give one of --grpc HOST:PORT, --rest URL, --local DIR; got none."),
        (["--grpc", "h:1", "--rest", "http://h:2"], "got --grpc and --rest."),
        (["--grpc", "h:1"], "Missing option '--model'"),
        (["--grpc", "h", "--model", "m"], "expected grpc://HOST:PORT"),
        (["--local", "/no/such/dir", "--model", "m"], "no such directory: '/no/such/dir'"),
        (["--grpc", "h:1", "--model", "m", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    ],
)
def test_wrong_usage(run_moxserve, args, message, tmp_path) -> None:
    done = run_moxserve("predict", *args, "--input", tmp_path, "--output", tmp_path / "o")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(toy_server, tmp_path, signum, code) -> None:
    """The server is stopped in its tracks, so that the run is still going when the signal comes."""
    (tmp_path / "r.jsonl").write_text("4\n" * 200_000)
    command = [
        sys.executable, "-m", "moxserve", "predict", "--grpc", toy_server.grpc, "--model", "toy",
        "--signature", "positive", "--input", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "o.jsonl"),
        "--batch-size", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not any(p.name.startswith(".moxserve-tmp-") for p in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signum)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (code, "")
    assert err.startswith("error: interrupted after ")
    assert f"'{tmp_path / 'o.jsonl'}' was not written" in err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl"]


@pytest.mark.slow
def test_server_that_goes_away(toy_base, tmp_path, free_port) -> None:
    (tmp_path / "r.jsonl").write_text("4\n" * 300_000)
    served = [
        sys.executable, "-m", "moxserve", "serve", f"--port={free_port}", "--model_name=toy",
        f"--model_base_path={toy_base}",
    ]  # fmt: skip
    server = subprocess.Popen(served, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Client(f"127.0.0.1:{free_port}") as client:
            client.wait_ready("toy", timeout_s=200)
        command = [
            sys.executable, "-m", "moxserve", "predict", "--grpc", f"127.0.0.1:{free_port}", "--model", "toy",
            "--signature", "positive", "--input", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "o.jsonl"),
            "--batch-size", "1", "--on-error", "skip",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not any(p.stat().st_size for p in tmp_path.glob(".moxserve-tmp-*/*")):
            time.sleep(0.02)  # until it has answers
    finally:
        server.kill()
        server.wait()
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (4, "")
    assert err.startswith("error: nobody answers at ")
    assert f"rows; '{tmp_path / 'o.jsonl'}' was not written)" in err
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_data_set_that_is_not_there_is_told_before_anybody_is_asked(run_moxserve, tmp_path) -> None:
    done = run_moxserve(
        "predict",
        "--grpc",
        "127.0.0.1:1",
        "--model",
        "m",
        "--input",
        tmp_path / "nope",
        "--output",
        tmp_path / "o.jsonl",
    )
    assert done.returncode == 2
    assert f"Path '{tmp_path / 'nope'}' does not exist" in done.stderr
