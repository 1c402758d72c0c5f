"""What the client costs: modules and CPU time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = [
    "tensorflow", "pandas", "locust", "rich", "gevent", "PIL", "click", "pydantic", "yaml", "uvicorn",
    "onnxruntime", "sklearn", "keras",
]  # fmt: skip


def modules_after(code: str) -> list[str]:
    probe = f"{code}\nimport json, sys; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=240, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_needs_no_transport_library() -> None:
    loaded = modules_after("import moxserve.client; moxserve.client.Client, moxserve.client.MockTransport")
    assert not set(loaded) & {*HEAVY, "grpc", "httpx2", "orjson", "asyncio"}


def test_import_of_the_predict_package() -> None:
    assert not set(modules_after("import moxserve.predict")) & {*HEAVY, "grpc", "httpx2"}


def test_import_time_lists_no_tensorflow() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import moxserve.client"],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert "moxserve.client" in done.stderr
    assert "tensorflow" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "needed", "other"), [("", "grpc", "httpx2"), ("http://", "httpx2", "grpc")])
def test_a_call_loads_its_own_transport_only(free_port, scheme, needed, other) -> None:
    code = f"""
from moxserve.client import Client
from moxserve.errors import ServerUnreachableError
try:
    Client("{scheme}127.0.0.1:{free_port}").predict("m", [1.0])
except ServerUnreachableError:
    pass
"""
    loaded = modules_after(code)
    assert needed in loaded
    assert other not in loaded
    assert not set(loaded) & set(HEAVY)


def test_predict_over_the_network_loads_no_tensorflow(toy_server) -> None:
    code = f"""
from moxserve.client import Client
for target in ("{toy_server.grpc}", "{toy_server.rest}"):
    assert Client(target).predict("toy", [4.0], signature="positive")["root"].tolist() == [2.0]
"""
    assert not set(modules_after(code)) & set(HEAVY)
