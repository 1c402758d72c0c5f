"""Servers that are away, slow, overloaded or changed meanwhile."""

from __future__ import annotations

import asyncio
import threading

import grpc
import numpy as np
import pytest

from moxserve.client import AsyncClient, Client, Retry
from moxserve.errors import ClientError, RequestError, ServerUnreachableError, UsageError

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_listens(free_port, scheme) -> None:
    with Client(f"{scheme}://127.0.0.1:{free_port}") as client:
        for call in (client.metadata, client.status, lambda m: client.predict(m, [1.0])):
            with pytest.raises(ServerUnreachableError, match=r"nobody answers at .*: Connection refused") as caught:
                call("m")
            assert "gRPC on 8500, REST on 8501" in (caught.value.hint or "")
            assert caught.value.exit_code == 4


@pytest.mark.parametrize("target", ["grpc://no-such-host.invalid:8500", "http://no-such-host.invalid:8501"])
def test_unknown_host(target) -> None:
    with Client(target, timeout_s=30, retry=Retry(0)) as client, pytest.raises(ServerUnreachableError, match="no-such"):
        client.status("m")


def test_socket_that_is_not_there(tmp_path) -> None:
    with Client(f"unix:{tmp_path}/none.sock") as client, pytest.raises(ServerUnreachableError, match="No such file"):
        client.status("m")


def test_predict_is_repeated_while_unavailable(faulty, ones) -> None:
    with Client(faulty.target, retry=Retry(attempts=2, pause_s=0.01)) as client:
        faulty.faults = [UNAVAILABLE, UNAVAILABLE]
        assert client.predict("m", ones)["y"].tolist() == [2, 2, 2]
        assert faulty.calls.count("Predict") == 3


def test_repetition_is_bounded(faulty, ones) -> None:
    faulty.faults = [UNAVAILABLE] * 9
    with (
        Client(faulty.target, retry=Retry(attempts=2, pause_s=0.01)) as client,
        pytest.raises(ServerUnreachableError, match="answered UNAVAILABLE: The batch scheduling queue"),
    ):
        client.predict("m", ones)
    assert faulty.calls.count("Predict") == 3


def test_repetition_can_be_turned_off(faulty, ones) -> None:
    faulty.faults = [UNAVAILABLE]
    with Client(faulty.target, retry=Retry(attempts=0)) as client, pytest.raises(ServerUnreachableError):
        client.predict("m", ones)
    assert faulty.calls.count("Predict") == 1


def test_other_errors_are_not_repeated(faulty, ones) -> None:
    faulty.faults = [(grpc.StatusCode.INTERNAL, "boom")]
    with Client(faulty.target) as client, pytest.raises(RequestError, match="answered INTERNAL: boom"):
        client.predict("m", ones)
    assert faulty.calls.count("Predict") == 1


def test_binary_data_in_a_message_does_not_reach_the_terminal(faulty, ones) -> None:
    faulty.faults = [(grpc.StatusCode.INTERNAL, "bad \x1b[31m\x00" + "x" * 5000)]
    with Client(faulty.target) as client, pytest.raises(RequestError) as caught:
        client.predict("m", ones)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 1200


def test_repetitions_stay_within_the_timeout(faulty, ones) -> None:
    faulty.faults = [UNAVAILABLE] * 99
    with (
        Client(faulty.target, timeout_s=0.5, retry=Retry(attempts=50, pause_s=0.1)) as client,
        pytest.raises(ClientError),
    ):
        client.predict("m", ones)
    assert faulty.calls.count("Predict") < 20  # pauses double, from a twentieth of a second on


def test_deadline_over_grpc(faulty, ones) -> None:
    with Client(faulty.target) as client:
        client.metadata("m")
        faulty.faults = [20.0]
        # What is left of the time when it is sent.
        with pytest.raises(RequestError, match=r"no answer from grpc://.* within 0\.(2|[01]\d*) s") as caught:
            client.predict("m", ones, timeout_s=0.2)
    assert caught.value.status == "DEADLINE_EXCEEDED"
    assert "--timeout" in (caught.value.hint or "")


def test_deadline_over_rest(http_answer) -> None:
    url = http_answer(200, b"{}", delay_s=20.0)
    with (
        Client(url, timeout_s=0.2) as client,
        pytest.raises(RequestError, match=r"no answer from http://.* within 0\.(2|[01]\d*) s") as caught,
    ):
        client.status("m")
    assert caught.value.status == "DEADLINE_EXCEEDED"


def test_message_too_large_for_the_server(faulty) -> None:
    with (
        Client(faulty.target) as client,
        pytest.raises(RequestError, match=r"RESOURCE_EXHAUSTED.*larger than max") as caught,
    ):
        client.predict("m", np.ones(1 << 20, np.float32))
    assert "grpc.max_receive_message_length" in (caught.value.hint or "")


def test_metadata_is_fetched_once(faulty, ones) -> None:
    with Client(faulty.target) as client:
        for _ in range(5):
            client.predict("m", ones)
    assert faulty.calls.count("GetModelMetadata") == 1


def test_unchecked_grpc_needs_no_metadata(faulty, ones) -> None:
    with Client(faulty.target, check=False) as client:
        client.predict("m", {"x": ones})
    assert faulty.calls == ["Predict"]


def test_reload_with_another_shape_is_noticed_before_refusing(faulty) -> None:
    with Client(faulty.target) as client:
        client.predict("m", np.ones(3, np.float32))
        faulty.version, faulty.dims = 2, [-1, 2]
        assert client.predict("m", np.ones((1, 2), np.float32))["y"].shape == (1, 2)
        with pytest.raises(UsageError, match=r"expected x: float32\[\?, 2\]"):
            client.predict("m", np.ones(3, np.float32))


def test_reload_with_another_dtype_is_noticed_after_the_refusal(faulty) -> None:
    with Client(faulty.target) as client:
        client.predict("m", [1.0])
        faulty.version, faulty.dtype = 2, 2
        assert client.predict("m", [1.0])["y"].dtype == np.float64
        assert faulty.calls == ["GetModelMetadata", "Predict", "Predict", "GetModelMetadata", "Predict"]


def test_answer_from_another_version_drops_the_kept_signature(faulty) -> None:
    with Client(faulty.target) as client:
        client.predict("m", [1.0])
        faulty.version = 2
        client.predict("m", [1.0])
        client.predict("m", [1.0])
    assert faulty.calls.count("GetModelMetadata") == 2


def test_wait_ready_tells_what_it_saw_last(faulty) -> None:
    with Client(faulty.target) as client, pytest.raises(ServerUnreachableError) as caught:
        client.wait_ready("m", timeout_s=0.5)
    assert caught.value.message == (
        "model 'm' was not ready within 0.5 s: version 1 LOADING (INTERNAL: still reading the weights)"
    )


def test_wait_ready_tells_what_it_saw_before_its_time_was_up(faulty) -> None:
    faulty.status_pauses = [0.0, 20.0]
    with Client(faulty.target) as client, pytest.raises(ServerUnreachableError, match="within 1 s: version 1 LOADING"):
        client.wait_ready("m", timeout_s=1)
    assert faulty.calls == ["GetModelStatus"] * 2


def test_wait_ready_outlives_a_server_that_is_not_up_yet(free_port) -> None:
    with (
        Client(f"127.0.0.1:{free_port}") as client,
        pytest.raises(ServerUnreachableError, match=r"0\.5 s: nobody answers"),
    ):
        client.wait_ready("m", timeout_s=0.5)


def test_grpc_to_a_rest_port_and_the_other_way_round(toy_server) -> None:
    rest_port = toy_server.rest.rpartition(":")[2]
    with Client(f"127.0.0.1:{rest_port}", timeout_s=30, retry=Retry(0)) as client, pytest.raises(ClientError) as caught:
        client.status("toy")
    assert "8501" in (caught.value.hint or "")
    with (
        Client(f"http://{toy_server.grpc}", timeout_s=30, retry=Retry(0)) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.status("toy")
    assert "gRPC" in (caught.value.hint or "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b'{"error": "Servable not found for request: Latest(m)"}', "NOT_FOUND: Servable not found"),
        (400, b'{"error": "bad", "code": "FAILED_PRECONDITION"}', "FAILED_PRECONDITION: bad"),
        (500, b"<html>oops</html>", "without the error body of a model server: '<html>oops</html>'"),
        (200, b"<html>hello</html>", "expected a JSON answer"),
        (200, b'{"hello": 1}', "unknown form"),
    ],
)
def test_http_answers_that_are_no_model_server(http_answer, status, body, expected) -> None:
    with Client(http_answer(status, body)) as client, pytest.raises(ClientError) as caught:
        client.status("m")
    assert expected in caught.value.message


def test_http_503_counts_as_unreachable(http_answer) -> None:
    with Client(http_answer(503, b'{"error": "full"}')) as client, pytest.raises(ServerUnreachableError, match="full"):
        client.status("m")


def test_proxy_of_the_environment_is_not_asked_for_loopback(faulty, ones, monkeypatch, http_answer) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Client(faulty.target) as client:
        assert client.predict("m", ones)["y"].tolist() == [2, 2, 2]
    with Client(http_answer(200, b'{"model_version_status": []}')) as client:
        assert client.status("m") == []


def test_closed_client(faulty) -> None:
    client = Client(faulty.target)
    client.close()
    client.close()
    assert repr(client) == f"Client('grpc://{faulty.target}', closed)"
    with pytest.raises(ClientError, match="is closed"):
        client.status("m")


def test_async_client_overlaps_requests(faulty, ones) -> None:
    async def run() -> None:
        async with AsyncClient(faulty.target) as client:
            await client.metadata("m")
            faulty.faults = [threading.Barrier(3, timeout=60)] * 3
            answers = await asyncio.gather(*(client.predict("m", ones) for _ in range(3)))
            assert [a["y"].tolist() for a in answers] == [[2, 2, 2]] * 3

    asyncio.run(run())
