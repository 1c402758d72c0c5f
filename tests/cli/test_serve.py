"""`moxserve serve` as a process: flags, messages, exit codes, signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from moxserve.ports import free_port
from moxserve.serving.flags import FLAGS

READY = "Exporting HTTP/REST API at:localhost:"


class Process:
    """A running server and what it has said so far."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "moxserve", "serve", *arguments], stderr=out, stdout=out, env={**os.environ}
            )

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.text}"
            time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    running: list[Process] = []

    def run(*arguments: str | Path) -> Process:
        process = Process([str(a) for a in arguments], tmp_path / f"log{len(running)}.txt")
        running.append(process)
        return process

    yield run
    for process in running:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait(100)


@pytest.fixture
def half(shared_dir: Path) -> Path:
    return shared_dir / "testdata" / "tfserving" / "saved_model_half_plus_two_cpu"


@pytest.mark.slow
def test_serves_until_sigterm(start, half) -> None:
    grpc_port, rest_port = free_port(), free_port()
    server = start(
        f"--port={grpc_port}", "--rest-api-port", str(rest_port), "--host=127.0.0.1", "--model_name=half",
        f"--model_base_path={half}", "--num_unload_threads=2", "--enable_model_warmup=true", "--unknown_flag=3",
        "--model_nam=x", "stray", "--flush_filesystem_caches=false",
    )  # fmt: skip
    server.wait_for(f"{READY}{rest_port} ...")
    assert f"Running gRPC ModelServer at 127.0.0.1:{grpc_port} ..." in server.text
    for warning in (
        "unknown flag --unknown_flag is ignored",
        "unknown flag --model_nam is ignored; did you mean --model_name?",
        "unexpected argument 'stray' is ignored",
        "--num_unload_threads is accepted but means nothing to this server",
        "--flush_filesystem_caches is accepted but means nothing to this server",
    ):
        assert warning in server.text
    assert "--enable_model_warmup" not in server.text
    reply = httpx2.post(f"http://127.0.0.1:{rest_port}/v1/models/half:predict", content='{"instances": [1.0]}')
    assert reply.json() == {"predictions": [2.5]}
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(100) == 0
    assert "SIGTERM: no new requests are taken" in server.text
    assert "all requests finished, all models are unloaded" in server.text
    assert "Traceback" not in server.text


@pytest.mark.slow
def test_flags_of_the_transports_take_effect(start, half, tmp_path) -> None:
    import grpc

    grpc_port, rest_port = free_port(), free_port()
    monitoring = tmp_path / "monitoring.txt"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    server = start(
        f"--port={grpc_port}", f"--rest_api_port={rest_port}", "--host=127.0.0.1", f"--model_base_path={half}",
        "--rest_api_enable_cors_support", f"--monitoring_config_file={monitoring}",
        "--grpc_channel_arguments=grpc.max_receive_message_length=1000", "--enable_signature_method_name_check",
    )  # fmt: skip
    server.wait_for(f"{READY}{rest_port} ...")
    assert "is accepted but" not in server.text
    with httpx2.Client(base_url=f"http://127.0.0.1:{rest_port}") as http:
        reply = http.post("/v1/models/default:classify", json={"examples": [{"x": 1.0}]})
        assert "signature method_name to be tensorflow/serving/classify" in reply.json()["error"]
        assert reply.headers["access-control-allow-origin"] == "*"
        page = http.get("/metrics").text
    assert ':tensorflow:serving:request_count{model_name="default",status="INVALID_ARGUMENT"} 1' in page
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(b"x" * 2000, timeout=100)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.slow
def test_a_page_of_metrics_needs_a_rest_port(start, half, tmp_path) -> None:
    monitoring = tmp_path / "monitoring.txt"
    monitoring.write_text("prometheus_config { enable: true }")
    server = start(f"--port={free_port()}", "--host=127.0.0.1", f"--model_base_path={half}",
                   f"--monitoring_config_file={monitoring}")  # fmt: skip
    server.wait_for(f"--monitoring_config_file={monitoring}: there is no page of metrics without --rest_api_port")
    server.wait_for("Running gRPC ModelServer")


def test_sigint_while_waiting_for_a_model(start, tmp_path) -> None:
    server = start("--port", str(free_port()), "--host=127.0.0.1", f"--model_base_path={tmp_path / 'nothing'}")
    server.wait_for("Could not find base path")
    server.popen.send_signal(signal.SIGINT)
    assert server.popen.wait(100) == 0
    assert "Traceback" not in server.text


def test_sigterm_while_a_model_loads(start, half) -> None:
    server = start("--port", str(free_port()), "--host=127.0.0.1", f"--model_base_path={half}")
    server.wait_for("Loading servable: {name: default version: 123}")
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(100) == 0
    assert "Traceback" not in server.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "another"),
    [(signal.SIGHUP, signal.SIGINT), (signal.SIGINT, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)],
)
def test_signals_that_come_at_once_drain_too(start, half, signum, another) -> None:
    server = start("--port", str(free_port()), "--host=127.0.0.1", f"--model_base_path={half}", "--engine=moxserve")
    server.wait_for("Running gRPC ModelServer")
    for sent in (signal.SIGSTOP, another, signum, signal.SIGCONT):  # it gets both when it goes on, the lower one first
        server.popen.send_signal(sent)
    assert server.popen.wait(100) == 0
    assert f"{signum.name}: no new requests are taken" in server.text
    assert "all requests finished, all models are unloaded" in server.text


@pytest.mark.slow
def test_what_a_signal_before_the_first_request_waits_for(start, tmp_path) -> None:
    server = start("--port", str(free_port()), "--host=127.0.0.1", f"--model_base_path={tmp_path / 'nothing'}")
    server.wait_for("Could not find base path")
    server.wait_for("waiting for a version of default to load: looking every 1 s; until then no port is open")
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(100) == 0
    assert "SIGTERM: the start is broken off; no port was open yet" in server.text
    assert "requests" not in server.text.partition("SIGTERM")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (["--port=0", "--model_base_path=/m"], 2, "At least one of server_options.grpc_port or"),
        (["--port=8500", "--rest_api_port=8500", "--model_base_path=/m"], 2, "gRPC and HTTP need a port each"),
        (["--port=abc"], 2, "'abc' is not a valid integer"),
        (["--enable_batching=1"], 2, "'1' is neither true nor false"),
        (["--model_config_file=/c"], 2, "cannot read the model configuration /c"),
        (["--model_config_file=/c", "--model=a=/a"], 2, "--model_config_file and --model: expected one of them"),
        (["--model", "half"], 2, "--model=half: expected NAME=PATH"),
        (["--model=a=/a", "--model=a=/b"], 2, "Illegal to list model a multiple times in config list"),
        (["--model_name=a", "--model_base_path=/a", "--model=a=/b"], 2, "Illegal to list model a multiple times"),
        (["--model_base_path=/m", "--ssl_config_file=/c"], 2, "cannot read the TLS configuration /c"),
        (["--model_base_path=/m", "--use_alts_credentials"], 2, "--use_alts_credentials: moxserve does not have it"),
        (
            ["--model_base_path=/m", "--use_alts_credentials", "--ssl_config_file=/c"],
            2,
            "Either use_alts_credentials must be false or ssl_config_file must be empty.",
        ),
        (["--model_base_path=/m", "--grpc_channel_arguments=a=1,b"], 2, "'b' is no key=value"),
        (["--model_base_path=/m", "--monitoring_config_file=/c"], 2, "cannot read the monitoring configuration /c"),
    ],
)
def test_wrong_flags(run_moxserve, arguments, status, message) -> None:
    done = run_moxserve("serve", *arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_file_that_is_none(run_moxserve, shared_dir) -> None:
    sample = shared_dir / "testdata" / "tfserving" / "bad_model_config.txt"
    done = run_moxserve("serve", "--port=0", "--grpc_socket_path=s", f"--model_config_file={sample}")
    assert done.returncode == 2
    assert f"Invalid protobuf file: '{sample}'" in done.stderr
    assert (
        "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1: "
        'Message type "tensorflow.serving.ModelServerConfig" has no field named "improperly".' in done.stderr
    )
    assert "    improperly formatted file\n    ^\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_labels_in_a_configuration_file(run_moxserve, tmp_path, half) -> None:
    path = tmp_path / "models.txt"
    path.write_text(
        f'model_config_list {{ config {{ name: "m" base_path: "{half}" model_platform: "tensorflow" '
        'version_labels { key: "stable" value: 123 } } }'
    )
    done = run_moxserve("serve", f"--model_config_file={path}")
    assert done.returncode == 2
    assert "Request to assign label to version 123 of model m, which is not currently available" in done.stderr
    assert "hint: start with --allow_version_labels_for_unavailable_models" in done.stderr


@pytest.mark.slow
def test_several_models_on_the_command_line_and_from_a_file(start, half, tmp_path) -> None:
    path = tmp_path / "models.txt"
    config = 'config {{ name: "{}" base_path: "{}" model_platform: "tensorflow" {} }}'
    label = 'version_labels { key: "stable" value: 123 }'
    path.write_text(f"model_config_list {{ {config.format('c', half, label)} }}")
    ports = [free_port() for _ in range(4)]
    servers = [
        start(f"--port={ports[0]}", f"--rest_api_port={ports[1]}", "--host=127.0.0.1",
              f"--model=a={half}", "--model", f"b={half}"),
        start(f"--port={ports[2]}", f"--rest_api_port={ports[3]}", "--host=127.0.0.1", f"--model_config_file={path}",
              "--allow_version_labels_for_unavailable_models", "--model_config_file_poll_wait_seconds=1"),
    ]  # fmt: skip
    for server, names, port in zip(servers, (("a", "b"), ("c", "c/labels/stable")), (ports[1], ports[3]), strict=True):
        server.wait_for(f"{READY}{port} ...")
        for name in names:
            reply = httpx2.post(f"http://127.0.0.1:{port}/v1/models/{name}:predict", content='{"instances": [1.0]}')
            assert reply.json() == {"predictions": [2.5]}
    assert "is accepted but" not in servers[0].text + servers[1].text
    (tmp_path / "next.txt").write_text(f"model_config_list {{ {config.format('d', half, '')} }}")
    os.replace(tmp_path / "next.txt", path)  # it never reads half of it
    servers[1].wait_for("The configuration was changed. new: d; gone: c")
    for server in servers:
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(100) == 0
        assert "Traceback" not in server.text


def test_a_port_that_is_taken(run_moxserve, half) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_moxserve("serve", f"--port={port}", "--host=127.0.0.1", f"--model_base_path={half}")
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "choose another --port" in done.stderr


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded(run_moxserve, shared_dir) -> None:
    done = run_moxserve(
        "serve", f"--port={free_port()}", "--host=127.0.0.1", "--max_num_load_retries=1",
        "--load_retry_interval_micros=1000", "--model_base_path",
        shared_dir / "testdata" / "tfserving" / "bad_half_plus_two",
    )  # fmt: skip
    assert done.returncode == 1
    assert "attempt 1 of 2" in done.stderr
    assert re.search(
        r"1 servable\(s\) did not become available: \{\{\{name: default version: 123\} due to error: "
        r"UNIMPLEMENTED: Session Bundle is deprecated and removed\.\}, \}",
        done.stderr,
    )
    assert "Traceback" not in done.stderr


def test_help_lists_every_flag_under_its_heading(run_moxserve) -> None:
    done = run_moxserve("serve", "--help")
    assert done.returncode == 0
    for flag in FLAGS:
        assert f"--{flag.name}" in done.stdout
        assert f"\n{flag.group}:\n" in done.stdout


def test_version(run_moxserve) -> None:
    from moxserve import __version__

    lines = run_moxserve("serve", "--version").stdout.splitlines()
    assert lines[0] == f"TensorFlow ModelServer: moxserve {__version__}"
    assert re.fullmatch(r"TensorFlow Library: \d+\.\d+\.\d+.*", lines[1])


def test_flags_have_the_names_of_the_original() -> None:
    names = [flag.name for flag in FLAGS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)
    ours: Any = {flag.name for flag in FLAGS if flag.ours}
    assert ours >= {"host", "shutdown_grace_seconds", "model", "model_config_reload_wait_seconds", "engine"}


def test_help_and_serving_without_a_request_need_no_training_code() -> None:
    code = (
        "import sys, moxserve.serving.main, moxserve.serving.rest.server, moxserve.cli.serve; "
        "bad = [m for m in sys.modules if m.split('.')[0] == 'tensorflow' or m.startswith('moxserve.tensorflow')]; "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_docs_tell_every_flag_with_its_default(repo_root) -> None:
    text = (repo_root / "docs" / "serving.md").read_text()
    for flag in FLAGS:
        default = str(flag.default).lower() if flag.kind == "bool" else flag.default
        ours = " (ours)" if flag.ours else ""
        assert f"| `{flag.name}`{ours} | {flag.kind} | {default} | {flag.help} |" in text
