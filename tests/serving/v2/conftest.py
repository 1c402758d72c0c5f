"""A server with several models and versions, and tritonclient as the client of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from moxserve.serving.grpc.options import GrpcOptions
from moxserve.serving.main import Server
from moxserve.serving.reload import ReloadOptions
from moxserve.serving.rest.options import RestOptions

CONFIG = """
model_config_list {
  config {
    name: "half" base_path: "%s" model_platform: "tensorflow"
    model_version_policy { specific { versions: 123 versions: 124 } }
    version_labels { key: "stable" value: 123 } version_labels { key: "canary" value: 124 }
  }
  config { name: "three" base_path: "%s" model_platform: "tensorflow" }
  config { name: "echo" base_path: "%s" model_platform: "tensorflow" }
}
"""


@pytest.fixture(scope="module")
def server(
    options: Callable[..., Any], testdata: Path, echo_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """`half` with two versions and labels, `three`, and `echo`, which has a signature for each datatype."""
    file = tmp_path_factory.mktemp("config") / "models.txt"
    bases = testdata / "saved_model_half_plus_two_2_versions", testdata / "saved_model_half_plus_three", echo_base
    file.write_text(CONFIG % bases)
    with Server(
        options(
            "",
            config=ReloadOptions(file=str(file), allow_unavailable=True),
            grpc=GrpcOptions(health=True),
            rest=RestOptions(metrics_path="/metrics"),
        )
    ) as running:
        yield running


@pytest.fixture
def triton_grpc(server: Server) -> Iterator[Any]:
    """tritonclient over gRPC."""
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        yield client


@pytest.fixture
def triton_http(server: Server) -> Iterator[Any]:
    """tritonclient over HTTP."""
    import tritonclient.http as triton

    with triton.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        yield client


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    """Plain HTTP."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60) as client:
        yield client
