"""`moxserve serve --engine tensorflow_model_server`: what the C++ server is started with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format

from moxserve.deploy.engine import config_text, translate
from moxserve.errors import UsageError
from moxserve.protocol import messages

Started = tuple[subprocess.CompletedProcess[str], list[str]]


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Started]:
    """Serve with an engine on PATH that writes down what it was started with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    binary = folder / "tensorflow_model_server"
    binary.write_text(f'#!/bin/sh\nfor a in "$0" "$@"; do echo "$a"; done > {tmp_path}/argv\nexit 7\n')
    binary.chmod(0o755)

    def run(*arguments: str, path: Path = folder) -> Started:
        done = subprocess.run(
            [sys.executable, "-m", "moxserve", "serve", "--engine", "tensorflow_model_server", *arguments],
            env={**os.environ, "PATH": f"{path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        argv = tmp_path / "argv"
        return done, argv.read_text().splitlines() if argv.exists() else []

    return run


def test_the_process_becomes_the_binary(serve, tmp_path) -> None:
    done, argv = serve(
        "--port", "8500", "--rest-api-port=8501", "--model_name=half", "--model_base_path", "models/half",
        "--enable_batching", "--new_in_cpp=3", "--shutdown_grace_seconds=5", "--backend=auto",
        "--backend=half=tensorflow",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert argv == [
        str(tmp_path / "bin" / "tensorflow_model_server"), "--model_name=half",
        f"--model_base_path={tmp_path}/models/half", "--port=8500", "--rest_api_port=8501", "--enable_batching=true",
        "--new_in_cpp=3",
    ]  # fmt: skip
    assert "--shutdown_grace_seconds is left out" in done.stderr


def test_several_models_become_a_configuration_file(serve, tmp_path) -> None:
    done, argv = serve("--model", "a=models/a", "--model=b=gs://bucket/b", "--port=9000")
    assert done.returncode == 7, done.stderr
    (config,) = [a.partition("=")[2] for a in argv if a.startswith("--model_config_file=")]
    assert [a for a in argv[1:] if "model" in a] == [f"--model_config_file={config}"]
    message = text_format.Parse(Path(config).read_text(), messages.ModelServerConfig())
    listed = [(c.name, c.base_path, c.model_platform) for c in message.model_config_list.config]
    assert listed == [("a", f"{tmp_path}/models/a", "tensorflow"), ("b", "gs://bucket/b", "tensorflow")]


def test_a_configuration_file_goes_over_as_it_is(serve, tmp_path) -> None:
    (tmp_path / "models.txt").write_text("model_config_list {}")
    done, argv = serve("--model_config_file=models.txt", "--model_config_file_poll_wait_seconds=3")
    assert done.returncode == 7, done.stderr
    assert argv[1:] == ["--model_config_file=models.txt", "--model_config_file_poll_wait_seconds=3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host=127.0.0.1", "--model_base_path=/m"], "--host=127.0.0.1 has no equivalent in tensorflow_model_server"),
        (["--backend=default=onnx", "--model_base_path=/m"], "--backend=default=onnx has no equivalent"),
        ([], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (["--model_base_path=/m", "--port=0"], "At least one of server_options.grpc_port or"),
        (["--model_base_path=/m", "--engine=tritonserver"], "expected moxserve or tensorflow_model_server"),
    ],
)
def test_what_it_cannot_do_starts_nothing(serve, arguments, message) -> None:
    done, argv = serve(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert argv == []


def test_it_is_not_installed(serve, tmp_path) -> None:
    done, _ = serve("--model_base_path=/m", path=tmp_path / "nothing")
    assert done.returncode == 2
    assert "there is no tensorflow_model_server on PATH" in done.stderr
    assert "moxserve deploy docker-compose --engine tensorflow_model_server" in done.stderr


def test_each_flag_of_ours_is_left_out_or_refused() -> None:
    from moxserve.serving.flags import FLAGS

    original = {flag.name for flag in FLAGS if not flag.ours}
    for flag in FLAGS:
        value = ("a=/a",) if flag.repeats else {"int": 2, "float": 2.0, "bool": True}.get(flag.kind, "other")
        try:
            translation = translate({flag.name: value})
        except UsageError:
            assert flag.ours, f"--{flag.name} is the C++ server's own"
            continue
        names = {a.partition("=")[0].removeprefix("--") for a in translation.arguments}
        assert names <= original
        told = bool(names or translation.models or translation.warnings)
        assert told or flag.name in ("engine", "model_name"), f"--{flag.name} is lost without a word"


def test_names_and_paths_survive_the_text_format() -> None:
    models = {"a": '/odd/"quoted"\\back\nline', "größe": "/models/größe"}
    message = text_format.Parse(config_text(models), messages.ModelServerConfig())
    assert {c.name: c.base_path for c in message.model_config_list.config} == models
