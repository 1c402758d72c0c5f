"""What the transports can be told: CORS, channel arguments, TLS, health."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from moxserve.errors import ConfigError, UsageError
from moxserve.protocol import messages
from moxserve.protocol.tensors import to_proto
from moxserve.serving.grpc.options import GrpcOptions, TlsOptions, parse_channel_arguments, read_tls
from moxserve.serving.main import Server
from moxserve.serving.rest.options import RestOptions

PREDICT = "/v1/models/default:predict"
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}


@pytest.fixture
def half(testdata: Path) -> Path:
    return testdata / "saved_model_half_plus_two_cpu"


def ask(channel: grpc.Channel, values: int = 2) -> tuple[str, Any]:
    """Predict over a channel: `OK` and the outputs, or status and text."""
    request = messages.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["x"].CopyFrom(to_proto(np.arange(values, dtype=np.float32)))
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    try:
        response = messages.PredictResponse.FromString(call(request.SerializeToString(), timeout=60))
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", list(response.outputs["y"].float_val)


# CORS


def cors_headers(reply: Any) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control")}


@pytest.mark.parametrize("cors", [True, False])
def test_cors(half, serve, cors) -> None:
    server = serve(half, rest=RestOptions(cors=cors, metrics_path="/metrics"))
    expected = CORS if cors else {}
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}") as http:
        for reply, status in (
            (http.post(PREDICT, content='{"instances": [1.0]}'), 200),
            (http.post(PREDICT, content="{"), 400),
            (http.get("/v1/models/nope"), 404),
            (http.get("/v1/nothing"), 400),
        ):
            assert (reply.status_code, cors_headers(reply)) == (status, expected)
        for path in (PREDICT, "/v1/anything/at:all", "/V1/models"):
            for origin, status in (
                ("http://a.example", 200),
                ("https://b.example:8443", 200),
                ("null", 400),
                ("ftp://c.example", 400),
                (None, 400),
            ):
                reply = http.options(path, headers={"Origin": origin} if origin else {})
                assert (reply.status_code, reply.content, cors_headers(reply)) == (status, b"", expected)
        for path in ("/", "/metrics"):
            assert cors_headers(http.get(path)) == {}
    assert server.metrics.request_count.value(("", "OK")) == 6
    assert server.metrics.request_count.value(("", "FAILED_PRECONDITION")) == 9


# Channel arguments


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", ()),
        ("grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb",
         (("grpc.max_connection_age_ms", 2000), ("grpc.lb_policy_name", "grpclb"))),
        ("a=-1,b=2147483647,c=2147483648,d=1.5,e=", (("a", -1), ("b", 2**31 - 1), ("c", "2147483648"), ("d", "1.5"),
         ("e", ""))),
        ("a=b=c,", (("a", "b=c"),)),
    ],
)  # fmt: skip
def test_channel_arguments_are_read(text, arguments) -> None:
    assert parse_channel_arguments(text) == arguments


@pytest.mark.parametrize("text", ["a", "a=1,b", "=1"])
def test_channel_arguments_that_are_none(text) -> None:
    with pytest.raises(UsageError, match="is no key=value"):
        parse_channel_arguments(text)


def test_channel_arguments_win_over_ours(half, serve) -> None:
    arguments = parse_channel_arguments("grpc.max_receive_message_length=1000,grpc.so_reuseaddr=1,no.such.key=x")
    server = serve(half, grpc=GrpcOptions(channel_arguments=arguments))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert ask(channel, 3) == ("OK", [2.0, 2.5, 3.0])
        status, text = ask(channel, 1000)
        assert status == "RESOURCE_EXHAUSTED"
        assert "larger than max" in text


# TLS


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`pem("server.key")`: an authority (ca), what it signed (server, client), and a stranger."""
    folder = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    try:
        for name in ("ca", "stranger"):
            openssl(
                folder, "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"
            )
    except FileNotFoundError:
        pytest.skip("the openssl program is not installed; it makes the certificates")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(folder, "req", *key[:-2], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "30", "-extfile", "names", "-out", f"{name}.crt")  # fmt: skip
    return lambda name: (folder / name).read_text()


def config(**fields: str | bool) -> str:
    lines = []
    for name, value in fields.items():
        text = str(value).lower() if isinstance(value, bool) else '"' + value.replace("\n", "\\n") + '"'
        lines.append(f"{name}: {text}")
    return "\n".join(lines)


def channel_to(server: Server, roots: str, key: str | None = None, certificate: str | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        roots.encode(), key.encode() if key else None, certificate.encode() if certificate else None
    )
    return grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials)


def test_tls(half, serve, pem, tmp_path) -> None:
    file = tmp_path / "ssl.txt"
    file.write_text(config(server_key=pem("server.key"), server_cert=pem("server.crt")))
    socket = tmp_path / "s"
    server = serve(half, grpc=GrpcOptions(tls=read_tls(str(file))), grpc_socket_path=str(socket))
    with channel_to(server, pem("ca.crt")) as channel:
        assert ask(channel) == ("OK", [2.0, 2.5])
    with channel_to(server, pem("stranger.crt")) as channel:
        assert ask(channel)[0] == "UNAVAILABLE"
    for target in (f"127.0.0.1:{server.grpc_port}", f"unix:{socket}"):
        with grpc.insecure_channel(target) as channel:
            assert ask(channel)[0] == "UNAVAILABLE"
    name = [("grpc.ssl_target_name_override", "localhost")]
    credentials = grpc.ssl_channel_credentials(pem("ca.crt").encode())
    with grpc.secure_channel(f"unix:{socket}", credentials, name) as channel:
        assert ask(channel) == ("OK", [2.0, 2.5])


def test_tls_with_certificates_of_clients(half, serve, pem, tmp_path) -> None:
    file = tmp_path / "ssl.txt"
    texts = {"server_key": pem("server.key"), "server_cert": pem("server.crt"), "custom_ca": pem("ca.crt")}
    file.write_text(config(**texts, client_verify=True))
    server = serve(half, grpc=GrpcOptions(tls=read_tls(str(file))))
    with channel_to(server, pem("ca.crt"), pem("client.key"), pem("client.crt")) as channel:
        assert ask(channel) == ("OK", [2.0, 2.5])
    for key, certificate in ((None, None), (pem("stranger.key"), pem("stranger.crt"))):
        with channel_to(server, pem("ca.crt"), key, certificate) as channel:
            assert ask(channel)[0] == "UNAVAILABLE"


def test_tls_files_that_do_not_work(pem, tmp_path) -> None:
    key, certificate = pem("server.key"), pem("server.crt")
    file = tmp_path / "ssl.txt"
    for text, error, message in (
        ("", ConfigError, "it is empty; expected a tensorflow.serving.SSLConfig"),
        ("server_kee: 'x'", ConfigError, "Error parsing text-format tensorflow.serving.SSLConfig: 1:1: "),
        (config(server_cert=certificate), UsageError, "server_key is missing"),
        (config(server_key=key), UsageError, "server_cert is missing"),
        (config(server_key=key, server_cert=certificate, client_verify=True), UsageError, "needs custom_ca"),
        (config(server_key=pem("stranger.key"), server_cert=certificate), UsageError, "does not take the key"),
        (config(server_key="/etc/key.pem", server_cert=certificate), UsageError, "does not take the key"),
        (config(server_key=key, server_cert="x"), UsageError, "does not take the key"),
        (config(server_key=key, server_cert=certificate, custom_ca="x", client_verify=True), UsageError,
         "does not take the key"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(error, match=message):
            read_tls(str(file))
    with pytest.raises(UsageError, match="cannot read the TLS configuration"):
        read_tls(str(tmp_path / "none"))


def test_keys_are_not_printed(pem) -> None:
    options = GrpcOptions(tls=TlsOptions(pem("server.key"), pem("server.crt")))
    assert "PRIVATE KEY" not in repr(options)


# Health


def health_of(server: Server, service: str = "") -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)
        except grpc.RpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def test_health_follows_the_models(serve, save_linear, tmp_path, wait_for) -> None:
    kept, gone = save_linear(tmp_path / "a" / "1").parent, save_linear(tmp_path / "b" / "1").parent
    server = serve(kept, more_models={"other": str(gone)}, grpc=GrpcOptions(health=True))
    assert [health_of(server, s) for s in ("", "PredictionService", "default", "other", "zz")] == [
        "SERVING", "SERVING", "SERVING", "SERVING", "NOT_FOUND",
    ]  # fmt: skip
    shutil.move(gone / "1", tmp_path / "away")
    wait_for(lambda: health_of(server, "other") == "NOT_SERVING", "a model without versions is not serving")
    assert health_of(server) == health_of(server, "default") == "SERVING"
    shutil.rmtree(kept / "1")
    wait_for(lambda: health_of(server) == "NOT_SERVING", "nothing can be asked for")
    assert health_of(server, "PredictionService") == "NOT_SERVING"
    shutil.move(tmp_path / "away", gone / "1")
    wait_for(lambda: health_of(server) == "SERVING", "a model is back")
    assert (health_of(server, "other"), health_of(server, "default")) == ("SERVING", "NOT_SERVING")


def test_health_of_a_model_that_leaves_the_configuration(half, serve, tmp_path, wait_for) -> None:
    server = serve(half, grpc=GrpcOptions(health=True))
    request = messages.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="new", base_path=str(half), model_platform="tensorflow")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")(request.SerializeToString())
    wait_for(lambda: health_of(server, "default") == "SERVICE_UNKNOWN", "the old name is no service")
    assert (health_of(server, "new"), health_of(server)) == ("SERVING", "SERVING")


def test_watchers_are_told_and_do_not_hold_up_a_stop(half, serve) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    server = serve(half, grpc=GrpcOptions(health=True, max_threads=2))
    names = health_pb2.HealthCheckResponse.ServingStatus.Name
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service="default"), timeout=60) for _ in range(5)]
        assert [names(next(watch).status) for watch in watches] == ["SERVING"] * 5
        assert ask(channel) == ("OK", [2.0, 2.5])
        assert server.stop(60)
        assert [[names(reply.status) for reply in watch] for watch in watches] == [["NOT_SERVING"]] * 5
