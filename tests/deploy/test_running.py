"""What a manifest starts, started here: the container's command line with its paths and ports put in their place."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from moxserve.cli.deploy import deploy
from moxserve.ports import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started(tmp_path_factory, shared_dir: Path) -> Iterator[tuple[Any, dict[str, Any], int, int]]:
    """The process of the service of a compose file, that service, and its ports."""
    folder, ports = tmp_path_factory.mktemp("container"), (free_port(), free_port())
    testdata = shared_dir / "testdata" / "tfserving"
    models = {"half": "saved_model_half_plus_two_cpu", "three": "saved_model_half_plus_three"}
    arguments = [f"--model={name}={testdata / path}" for name, path in models.items()]
    done = CliRunner().invoke(deploy, ["docker-compose", "--name=both", *arguments], catch_exceptions=False)
    document = yaml.safe_load(done.stdout)
    service = document["services"]["both"]
    for mount in service["volumes"]:
        (folder / mount["target"].lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (folder / mount["target"].lstrip("/")).symlink_to(mount["source"])
    for config in service["configs"]:
        path = folder / config["target"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = document["configs"][config["source"]]["content"].replace("$$", "$")
        path.write_text(content.replace('"/models', f'"{folder}/models'))
    command = [
        argument.replace("=/etc", f"={folder}/etc").replace("=8500", f"={ports[0]}").replace("=8501", f"={ports[1]}")
        for argument in service["command"]
    ]
    assert service["entrypoint"] == ["moxserve", "serve"]
    with subprocess.Popen([sys.executable, "-m", *service["entrypoint"], "--host=127.0.0.1", *command]) as process:
        try:
            yield process, service, *ports
        finally:
            process.terminate()
            assert process.wait(240) == 0


def test_it_becomes_healthy_and_answers(started) -> None:
    process, service, grpc_port, rest_port = started
    check = [part.replace("8501", str(rest_port)) for part in service["healthcheck"]["test"][1:]]
    deadline = time.monotonic() + 240
    while subprocess.run([sys.executable, *check[1:]], capture_output=True).returncode != 0:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the health check of the compose file never passed"
        time.sleep(0.2)
    for model, expected in (("half", b"3.0"), ("three", b"4.0")):
        url = f"http://127.0.0.1:{rest_port}/v1/models/{model}:predict"
        with urllib.request.urlopen(url, data=b'{"instances": [2.0]}', timeout=60) as answer:
            assert expected in answer.read()
    with urllib.request.urlopen(f"http://127.0.0.1:{rest_port}/monitoring/prometheus/metrics", timeout=60) as page:
        assert b"# TYPE :tensorflow:serving:request_count counter" in page.read()
    # The probe of Kubernetes.
    grpc, health = pytest.importorskip("grpc"), pytest.importorskip("grpc_health.v1")
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    assert health
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
