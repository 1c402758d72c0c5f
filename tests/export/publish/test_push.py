"""`--push`: the command ends when the server serves the version, or says why it does not."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moxserve.client import Client, ListCall, ListedModel, ListReply, StatusCall, StatusReply, VersionStatus
from moxserve.errors import ClientError, RequestError, ServerUnreachableError, UsageError
from moxserve.export.publish import open_publication, push
from moxserve.export.publish.push import push_target, push_version


@pytest.fixture
def server(tmp_path: Path, toy_base: Path) -> Iterator[Any]:
    """A real server of version 1 of `toy`, which looks for more five times a second."""
    from moxserve.serving.main import Server, ServerOptions
    from moxserve.serving.manager import ManagerOptions

    shutil.copytree(toy_base / "1", tmp_path / "toy" / "1")
    options = ServerOptions(
        model_name="toy",
        model_base_path=str(tmp_path / "toy"),
        grpc_address="127.0.0.1:0",
        rest_address="127.0.0.1:0",
        manager=ManagerOptions(poll_interval_s=0.2),
    )
    with Server(options) as running:
        yield running


def publish_copy(base: Path, source: Path) -> int | str:
    with open_publication(str(base)) as staged:
        shutil.copytree(source, staged.staging, dirs_exist_ok=True)
    return staged.version


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_published_version_is_waited_for(transport: str, server: Any, tmp_path: Path, toy_base: Path) -> None:
    version = publish_copy(tmp_path / "toy", toy_base / "1")
    address = f"127.0.0.1:{server.grpc_port}" if transport == "grpc" else f"http://127.0.0.1:{server.rest_port}"
    took_s = push_version(address, "toy", version)
    assert 0 <= took_s < 60
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.status("toy")[0] == VersionStatus(2, "AVAILABLE")


@pytest.mark.slow
def test_a_version_that_cannot_be_loaded_is_told_with_the_servers_reason(server: Any, tmp_path: Path) -> None:
    with open_publication(str(tmp_path / "toy")) as staged:
        Path(staged.staging, "saved_model.pb").write_bytes(b"\x0f no graph")
    with pytest.raises(ClientError, match=r"version 2 of 'toy' is published, but .* could not load it: .+: .+"):
        push_version(f"127.0.0.1:{server.grpc_port}", "toy", staged.version)


@pytest.mark.slow
def test_a_version_that_is_not_the_newest_is_not_served(server: Any, tmp_path: Path, toy_base: Path) -> None:
    os.rename(tmp_path / "toy" / "1", tmp_path / "toy" / "7")
    push_version(f"127.0.0.1:{server.grpc_port}", "toy", 7)
    publish_copy(tmp_path / "elsewhere", toy_base / "1")
    shutil.copytree(tmp_path / "elsewhere" / "1", tmp_path / "toy" / "3")
    with pytest.raises(ClientError, match=r"does not serve it after 1 s: version 7 AVAILABLE"):
        push_version(f"127.0.0.1:{server.grpc_port}", "toy", 3, timeout_s=1)


def test_a_model_that_the_server_does_not_have_is_told_at_once(server: Any) -> None:
    with pytest.raises(ClientError, match=r"has no model 'toi'; did you mean 'toy'\?"):
        push_version(f"127.0.0.1:{server.grpc_port}", "toi", 2)


def test_nobody_at_the_address_is_told(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_CALL_S", 1.0)
    with pytest.raises(ServerUnreachableError, match=r"version 2 of 'toy' is published, but the server cannot"):
        push_version(f"127.0.0.1:{free_port}", "toy", 2)


def test_a_named_version_cannot_be_pushed() -> None:
    with pytest.raises(UsageError, match="version 'best' is published, but servers look for numbers only"):
        push_version("localhost", "toy", "best")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("localhost", "grpc://localhost:8500"),
        ("localhost:9000", "grpc://localhost:9000"),
        (" models.example ", "grpc://models.example:8500"),
        ("[::1]", "grpc://[::1]:8500"),
        ("[::1]:9000", "grpc://[::1]:9000"),
        ("grpc://a:1", "grpc://a:1"),
        ("http://a:8501/tf", "http://a:8501/tf"),
        ("unix:/run/mox.sock", "unix:/run/mox.sock"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    assert push_target(given) == expected


@pytest.mark.parametrize("given", ["", " ", "a/b", "local:models", "ftp://x", "host:port", "host:0", "http://"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"expected|schemes known"):
        push_target(given)


class Scripted:
    """A server that answers each question with the next of some states, the last one again and again."""

    target = "scripted"

    def __init__(self, *answers: Any, names: tuple[str, ...] | None = ("m",)) -> None:
        self.answers, self.names, self.asked = list(answers), names, 0

    def handle(self, call: Any) -> Any:
        if isinstance(call, ListCall):
            if self.names is None:
                raise RequestError("no such method", status="UNIMPLEMENTED", target=self.target)
            return ListReply([ListedModel(name) for name in self.names])
        assert isinstance(call, StatusCall)
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return StatusReply(answer)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Push version 2 of `m` to a scripted server, in a hurry."""

    def run(transport: Scripted, timeout_s: float = 200.0, settle_s: float = 0.02) -> float:
        monkeypatch.setattr("moxserve.client.Client", lambda *args, **kwargs: Client(transport))
        monkeypatch.setattr(push, "_LOOK_S", 0.001)
        monkeypatch.setattr(push, "_LOOK_MAX_S", 0.002)
        monkeypatch.setattr(push, "_SETTLE_S", settle_s)
        return push_version("m:1", "m", 2, timeout_s=timeout_s)

    return run


def _gone() -> RequestError:
    return RequestError("Could not find any versions of model m", status="NOT_FOUND")


def test_tensorflow_serving_is_waited_for_while_it_knows_no_version(pushed: Any) -> None:
    """It answers NOT_FOUND until it has seen a version, and does not list its models."""
    loading = [VersionStatus(2, "LOADING"), VersionStatus(1, "AVAILABLE")]
    server = Scripted(_gone(), _gone(), loading, [VersionStatus(2, "AVAILABLE")], names=None)
    pushed(server)
    assert server.asked == 4


def test_an_old_failure_of_the_number_does_not_count_at_once(pushed: Any) -> None:
    failed = [VersionStatus(2, "END", "UNKNOWN", "an older try")]
    pushed(Scripted(failed, failed, [VersionStatus(2, "LOADING")], [VersionStatus(2, "AVAILABLE")]), settle_s=1000)


def test_a_version_that_was_unloaded_is_told(pushed: Any) -> None:
    states = [VersionStatus(3, "AVAILABLE"), VersionStatus(2, "END")]
    with pytest.raises(ClientError, match="scripted has unloaded it: version 3 AVAILABLE; version 2 END"):
        pushed(Scripted(states))


def test_a_server_that_starts_again_meanwhile_is_waited_for(pushed: Any) -> None:
    away = ServerUnreachableError("connection refused")
    pushed(Scripted([VersionStatus(2, "LOADING")], away, away, [VersionStatus(2, "AVAILABLE")]))


def test_a_server_that_has_no_time_to_answer_while_it_loads_is_waited_for(pushed: Any) -> None:
    late = RequestError("no answer within 5 s", status="DEADLINE_EXCEEDED")
    pushed(Scripted([VersionStatus(2, "LOADING")], late, late, [VersionStatus(2, "AVAILABLE")]))
    with pytest.raises(ClientError, match="refuses to tell: no answer within 5 s"):
        pushed(Scripted(late))  # who never answered may be no such server


def test_the_time_ends_with_what_was_seen_last(pushed: Any) -> None:
    with pytest.raises(ClientError, match=r"does not serve it after 0.05 s: version 2 LOADING") as raised:
        pushed(Scripted([VersionStatus(2, "LOADING")]), timeout_s=0.05)
    assert "base path" in str(raised.value.hint)


def test_a_server_that_refuses_to_tell_is_told(pushed: Any) -> None:
    refusal = RequestError("not for you", status="PERMISSION_DENIED", hint="ask the admin")
    with pytest.raises(ClientError, match="scripted refuses to tell: not for you"):
        pushed(Scripted(refusal))


@pytest.mark.slow
def test_pushes_of_two_exporters_do_not_disturb_each_other(server: Any, tmp_path: Path, toy_base: Path) -> None:
    """The older of two versions may be served for a moment only, or never."""
    outcomes: list[Any] = []

    def work() -> None:
        version = publish_copy(tmp_path / "toy", toy_base / "1")
        try:
            push_version(f"127.0.0.1:{server.grpc_port}", "toy", version, timeout_s=6 if version == 2 else 200)
            outcomes.append((version, "served"))
        except ClientError as error:
            outcomes.append((version, error.message))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = dict(outcomes)
    assert told[3] == "served"
    assert told[2] == "served" or "has unloaded it" in told[2] or "does not serve it" in told[2]
