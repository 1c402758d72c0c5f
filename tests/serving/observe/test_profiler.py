"""TensorFlow's own profiler client against the server."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from moxserve.client import Client
from moxserve.protocol import profiler
from moxserve.serving.main import Server, ServerOptions

PROFILE = "/tensorflow.ProfilerService/Profile"


@pytest.fixture(scope="module")
def half(shared_dir: Path) -> str:
    return str(shared_dir / "testdata" / "tfserving" / "saved_model_half_plus_two_cpu")


@pytest.fixture(scope="module")
def server(half):
    with Server(ServerOptions("half", half)) as running:
        yield running


def ask(server: Server, method: str, data: bytes) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        answer: bytes = channel.unary_unary(f"/tensorflow.ProfilerService/{method}")(data, timeout=120)
        return answer


def refused(server: Server, method: str, data: bytes) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, method, data)
    return caught.value.code().name, caught.value.details()


def request(folder: Path, **more: object) -> bytes:
    fields = {"duration_ms": 300, "repository_root": str(folder), "session_id": "one", "host_name": "host:1", **more}
    data: bytes = profiler.profile_request()(**fields).SerializeToString()
    return data


@contextlib.contextmanager
def busy(server: Server) -> Iterator[None]:
    began, done = threading.Event(), threading.Event()

    def load() -> None:
        with Client(f"127.0.0.1:{server.grpc_port}") as client:
            while not done.is_set():
                client.predict("half", {"x": np.ones((1, 1), np.float32)})
                began.set()
                done.wait(0.005)  # leaves the server and its profile the CPU

    thread = threading.Thread(target=load)
    thread.start()
    try:
        assert began.wait(60)
        yield
    finally:
        done.set()
        thread.join()


def recorded(server: Server, data: bytes) -> Any:
    """Ask for a profile until something happened while it was taken, as the client of TensorFlow does."""
    while True:
        answer = profiler.profile_response().FromString(ask(server, "Profile", data))
        if not answer.empty_trace:
            return answer


def test_a_profile_of_what_is_served(server, tmp_path) -> None:
    pytest.importorskip("tensorflow")
    from tensorflow.tsl.profiler.protobuf.profiler_options_pb2 import ProfileOptions

    options = ProfileOptions(host_tracer_level=2).SerializeToString()
    profile = b""
    with busy(server):
        while b"SessionRun" not in profile:  # it may be that no run fell into a short one
            recorded(server, request(tmp_path, opts=options))
            profile = (tmp_path / "one" / "host_1.xplane.pb").read_bytes()


def test_one_at_a_time_and_it_can_be_ended(server, tmp_path) -> None:
    results: list[bytes] = []

    def long() -> None:
        while not results:
            # The short one below may have come first.
            with contextlib.suppress(grpc.RpcError):
                results.append(ask(server, "Profile", request(tmp_path, duration_ms=3_000_000)))

    thread = threading.Thread(target=long)
    thread.start()
    # The second is refused as soon as the first has begun.
    status, text = "", ""
    while not status:
        time.sleep(0.05)
        try:
            ask(server, "Profile", request(tmp_path, duration_ms=1, session_id="two"))
        except grpc.RpcError as error:
            status, text = error.code().name, error.details()
    assert (status, text.startswith("another profile is being taken")) == ("UNAVAILABLE", True)
    ask(server, "Terminate", profiler.terminate_request()(session_id="one").SerializeToString())
    thread.join(60)
    assert len(results) == 1


def test_what_is_refused(server, tmp_path) -> None:
    assert refused(server, "Monitor", b"") == ("UNIMPLEMENTED", "unimplemented.")
    assert refused(server, "Profile", b"\xff")[0] == "INVALID_ARGUMENT"
    assert refused(server, "Profile", request(tmp_path, duration_ms=0))[0] == "INVALID_ARGUMENT"
    assert refused(server, "Profile", request(tmp_path, repository_root=""))[0] == "INVALID_ARGUMENT"
    (tmp_path / "file").write_text("in the way")
    with busy(server), pytest.raises(grpc.RpcError) as caught:
        recorded(server, request(tmp_path, repository_root=str(tmp_path / "file")))
    status, text = caught.value.code().name, caught.value.details()
    assert (status, "cannot be written" in text) == ("FAILED_PRECONDITION", True)


def test_a_server_without_the_service(half) -> None:
    with Server(ServerOptions("half", half, profiler=False)) as running:
        assert refused(running, "Monitor", b"")[0] == "UNIMPLEMENTED"
        assert "unimplemented." not in refused(running, "Monitor", b"")[1]


def test_without_tensorflow_it_says_why() -> None:
    code = (
        "import asyncio, sys\n"
        "from moxserve.errors import Unavailable\n"
        "from moxserve.protocol import profiler\n"
        "from moxserve.serving.grpc.profiler import ProfilerService\n"
        "data = profiler.profile_request()(duration_ms=5, repository_root='/tmp').SerializeToString()\n"
        "try:\n    asyncio.run(ProfilerService().methods()['Profile'](data, None))\n"
        "except Unavailable as error:\n    print(error)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert "none of the models that this server has loaded so far needed TensorFlow" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tensorflows_own_client(server, tmp_path) -> None:
    """As TensorBoard does it; in a process of its own, with its own descriptors."""
    code = (
        "import sys\nfrom tensorflow.python.profiler import profiler_client\n"
        f"profiler_client.trace('grpc://127.0.0.1:{server.grpc_port}', {str(tmp_path)!r}, 500)\n"
    )
    with busy(server):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert found.stat().st_size > 0
