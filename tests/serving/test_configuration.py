"""Real servers with several models, the official stubs, and configurations that change under load."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from moxserve.errors import UsageError
from moxserve.export.publish import open_publication
from moxserve.serving import reload
from moxserve.serving.main import Server
from moxserve.serving.manager import Manager, ManagerOptions
from moxserve.serving.reload import ReloadOptions


def entry(name: str, base_path: str | Path, policy: str = "", **labels: int) -> str:
    """One model of a configuration."""
    marks = " ".join(f'version_labels {{ key: "{label}" value: {version} }}' for label, version in labels.items())
    chosen = f"model_version_policy {{ {policy} }}" if policy else ""
    return f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" {chosen} {marks} }}\n'


def listing(*entries: str) -> str:
    return f"model_config_list {{\n{''.join(entries)}}}\n"


class Stubs:
    """The clients of tensorflow-serving-api."""

    def __init__(self, server: Server) -> None:
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def reload(self, text: str, *, timeout_s: float = 120, metrics: tuple[str, ...] = ()) -> Any:
        from google.protobuf import text_format
        from tensorflow_serving.apis import model_management_pb2

        request = model_management_pb2.ReloadConfigRequest(metric_names=metrics)
        text_format.Parse(text, request.config)
        return self.models.HandleReloadConfigRequest(request, timeout=timeout_s)

    def predict(self, name: str = "m", **which: Any) -> tuple[int, list[float]]:
        """Ask for x = 1, 2; returns version and answer."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        if "version" in which:
            request.model_spec.version.value = which["version"]
        if "label" in which:
            request.model_spec.version_label = which["label"]
        request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
        response = self.predictions.Predict(request, timeout=60)
        (output,) = response.outputs.values()
        return response.model_spec.version.value, list(output.float_val)

    def status(self, name: str = "m") -> dict[int, str]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        rows = self.models.GetModelStatus(request, timeout=60).model_version_status
        return {row.version: get_model_status_pb2.ModelVersionStatus.State.Name(row.state) for row in rows}


@pytest.fixture
def stubs() -> Iterator[Callable[[Server], Stubs]]:
    opened: list[Stubs] = []

    def connect(server: Server) -> Stubs:
        opened.append(Stubs(server))
        return opened[-1]

    yield connect
    for stub in opened:
        stub.channel.close()


@pytest.fixture
def from_file(serve, tmp_path) -> Callable[..., Server]:
    """`from_file(text, **ReloadOptions)` serves what a configuration file tells."""

    def start(text: str, **settings: Any) -> Server:
        path = tmp_path / "models.txt"
        path.write_text(text)
        return serve("", config=ReloadOptions(**{"file": str(path), "wait_s": 60.0, **settings}))

    return start


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory, save_linear) -> Path:
    """Versions 1 to 3 of y = 10 * version * x, and `other/1` with y = 7 * x."""
    base = tmp_path_factory.mktemp("linear")
    for version in (1, 2, 3):
        save_linear(base / "m" / str(version), slope=10 * version)
    save_linear(base / "other" / "1", slope=7)
    return base


def refused(call: Callable[..., Any], *args: Any, **settings: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **settings)
    return caught.value.code(), caught.value.details()


def test_the_sample_of_the_original(testdata, from_file, stubs) -> None:
    text = (testdata / "good_model_config.txt").read_text()
    text = text.replace("${TEST_HALF_PLUS_TWO_DIR}", str(testdata / "saved_model_half_plus_two_cpu"))
    text = text.replace("${TEST_HALF_PLUS_THREE_DIR}", str(testdata / "saved_model_half_plus_three"))
    server = from_file(text)
    client = stubs(server)
    assert client.predict("half_plus_two") == (123, [2.5, 3.0])
    assert client.predict("half_plus_three") == (123, [3.5, 4.0])
    assert client.status("half_plus_three") == {123: "AVAILABLE"}
    assert refused(client.predict, "half_plus_four") == (
        grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(half_plus_four)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (listing(entry("m", "/a"), entry("m", "/b")), "Illegal to list model m multiple times in config list"),
        (listing(entry("m", "a")), "Expected model m to have an absolute path or URI; got base_path()=a"),
        (
            listing(entry("m", "/a", stable=3)),
            "Request to assign label to version 3 of model m, which is not currently",
        ),
        ("custom_model_config {}", "custom_model_config is not supported"),
        ("improperly formatted file.", "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1: "),
    ],
)
def test_files_that_keep_a_server_from_starting(from_file, text, message) -> None:
    with pytest.raises(UsageError) as caught:
        from_file(text)
    assert message in caught.value.message


def test_the_list_of_models(linear, from_file) -> None:
    text = listing(entry("m", linear / "m", "latest { num_versions: 2 }", stable=2), entry("a", linear / "other"))
    server = from_file(text, allow_unavailable=True)
    fine = {"error_code": "OK", "error_message": ""}
    reply = httpx2.get(f"http://127.0.0.1:{server.rest_port}/v1/models")
    assert reply.status_code == 200
    assert reply.json() == {
        "models": [
            {
                "name": "m",
                "labels": {"stable": "2"},
                "versions": [
                    {"version": "3", "state": "AVAILABLE", "status": fine},
                    {"version": "2", "state": "AVAILABLE", "status": fine},
                ],
            },
            {"name": "a", "labels": {}, "versions": [{"version": "1", "state": "AVAILABLE", "status": fine}]},
        ]
    }


def test_several_models_without_a_file(linear, serve, stubs) -> None:
    server = serve(linear / "m", more_models={"other": str(linear / "other")})
    client = stubs(server)
    assert client.predict("default") == (3, [30, 60])
    assert client.predict("other") == (1, [7, 14])


def test_policies_and_labels(linear, from_file, stubs) -> None:
    text = listing(
        entry("all", linear / "m", "all {}"),
        entry("two", linear / "m", "latest { num_versions: 2 }"),
        entry("one", linear / "m", "specific { versions: 1 }"),
        entry("named", linear / "m", "specific { versions: 1 versions: 2 }", stable=1, canary=2, gone=3),
    )
    server = from_file(text, allow_unavailable=True)
    client = stubs(server)
    assert client.status("all") == dict.fromkeys((3, 2, 1), "AVAILABLE")
    assert client.status("two") == dict.fromkeys((3, 2), "AVAILABLE")
    assert client.predict("one") == (1, [10, 20])
    assert client.predict("all", version=2) == (2, [20, 40])
    assert refused(client.predict, "two", version=1) == (
        grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(two, 1)",
    )  # fmt: skip
    assert client.predict("named", label="stable") == (1, [10, 20])
    assert client.predict("named", label="canary") == (2, [20, 40])
    assert refused(client.predict, "named", label="gone") == (
        grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(named, 3)",
    )  # fmt: skip
    assert refused(client.predict, "named", label="new") == (
        grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: new",
    )  # fmt: skip
    rest = f"http://127.0.0.1:{server.rest_port}/v1/models/named"
    reply = httpx2.post(f"{rest}/labels/stable:predict", content='{"instances": [1, 2]}')
    assert reply.json() == {"predictions": [10.0, 20.0]}
    reply = httpx2.post(f"{rest}/labels/new:predict", content='{"instances": [1, 2]}')
    assert (reply.status_code, reply.json()) == (400, {"error": "Unrecognized servable version label: new"})
    assert httpx2.get(f"{rest}/labels/canary/metadata").json()["model_spec"]["version"] == "2"


def test_a_canary_is_released_by_reloads(linear, from_file, stubs, wait_for) -> None:
    def models(policy: str, **labels: int) -> str:
        return listing(entry("m", linear / "m", policy, **labels))

    client = stubs(from_file(models("specific { versions: 1 }")))
    response = client.reload(models("specific { versions: 1 }", stable=1), metrics=("/no/such/metric",))
    assert response.status.error_code == 0
    assert [(metric.name, metric.int64_value_increase) for metric in response.metric] == [("/no/such/metric", 0)]
    assert refused(client.reload, models("specific { versions: 1 versions: 2 }", stable=1, canary=2)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "Request to assign label to version 2 of model m, which is not currently available for inference",
    )
    client.reload(models("specific { versions: 1 versions: 2 }", stable=1))
    wait_for(lambda: client.status().get(2) == "AVAILABLE", "version 2")
    client.reload(models("specific { versions: 1 versions: 2 }", stable=1, canary=2))
    assert (client.predict(label="stable")[0], client.predict(label="canary")[0]) == (1, 2)
    client.reload(models("specific { versions: 1 versions: 2 }", stable=2))
    assert client.predict(label="stable") == (2, [20, 40])
    assert refused(client.predict, label="canary")[1] == "Unrecognized servable version label: canary"
    client.reload(models("specific { versions: 2 }", stable=2))
    wait_for(lambda: client.status() == {2: "AVAILABLE", 1: "END"}, "version 1 to go")


@pytest.mark.slow
def test_reloads_that_are_refused_change_nothing(linear, from_file, stubs, testdata) -> None:
    client = stubs(from_file(listing(entry("m", linear / "m", stable=3)), allow_unavailable=True, wait_s=2.0))
    other = entry("other", linear / "other")
    kept = entry("m", linear / "m", stable=3)
    bad = testdata / "bad_half_plus_two"
    for text, code, message in (
        (listing(other, other), "INVALID_ARGUMENT", "Illegal to list model other multiple times in config list"),
        (listing(kept, entry("x", "rel/x")), "INVALID_ARGUMENT",
         "Expected model x to have an absolute path or URI; got base_path()=rel/x"),
        (listing(other.replace('"tensorflow"', '"caffe"')), "INVALID_ARGUMENT",
         "Model other requests unsupported platform caffe"),
        (listing(kept.replace('"tensorflow"', '"onnx"')), "INVALID_ARGUMENT",
         "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is "
         "onnx"),
        (listing(other, entry("m", linear / "m", stable=1)), "FAILED_PRECONDITION",
         "Request to assign label to version 1 of model m, which is not currently available for inference"),
        ("custom_model_config {}", "INVALID_ARGUMENT",
         "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
         "supported"),
        ("", "INVALID_ARGUMENT", "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
         "ModelConfigList is currently supported"),
        (listing(other, entry("bad", bad)), "UNKNOWN",
         "1 model(s) did not become available: {{{name: bad version: 123} due to error: UNIMPLEMENTED: Session Bundle "
         "is deprecated and removed.}, }"),
    ):  # fmt: skip
        assert refused(client.reload, text) == (grpc.StatusCode[code], message)
        assert client.predict(label="stable") == (3, [30, 60])
        assert refused(client.predict, "other")[0] is grpc.StatusCode.NOT_FOUND
    began = time.monotonic()
    code, message = refused(client.reload, listing(other, entry("x", "/nothing/there")))
    assert time.monotonic() - began >= 2.0
    assert code is grpc.StatusCode.NOT_FOUND
    assert "x had no version to load within 2 s. Could not find base path /nothing/there for servable x: " in message
    assert client.status("bad") == {123: "END"}
    client.reload(listing(kept, other))
    assert client.predict("other") == (1, [7, 14])


@pytest.mark.slow
def test_a_reload_ends_in_time_for_its_caller_to_hear_why(linear, from_file, stubs, monkeypatch) -> None:
    monkeypatch.setattr(reload, "_ANSWER_S", 30.0)
    client = stubs(from_file(listing(entry("m", linear / "m")), wait_s=60))
    code, message = refused(client.reload, listing(entry("x", "/nothing/there")), timeout_s=32)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "Could not find base path /nothing/there" in message


def test_an_empty_list_and_none_at_all(linear, from_file, stubs, wait_for) -> None:
    client = stubs(from_file("# models come later\n"))
    assert refused(client.predict, label="stable") == (
        grpc.StatusCode.UNAVAILABLE, "Model labels does not init yet.stable",
    )  # fmt: skip
    client.reload(listing(entry("m", linear / "m")))
    assert client.predict() == (3, [30, 60])
    client.reload("model_config_list {}")
    wait_for(lambda: client.status() == {3: "END"}, "m to go")
    assert refused(client.predict, label="stable")[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_wrong_base_path_does_not_stop_the_discovery_of_others(linear, from_file, stubs, tmp_path, wait_for) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(linear / "m" / "1", first / "1")
    shutil.copytree(linear / "m" / "1", second / "1")
    client = stubs(from_file(listing(entry("first", first), entry("m", second))))
    shutil.rmtree(first)
    shutil.copytree(linear / "m" / "2", second / "2")
    wait_for(lambda: client.predict() == (2, [20, 40]), "version 2 of the other model")
    assert client.predict("first") == (1, [10, 20])


def test_the_file_is_read_again(linear, from_file, stubs, tmp_path, wait_for, caplog) -> None:
    path = tmp_path / "models.txt"
    server = from_file(listing(entry("m", linear / "m")), poll_interval_s=0.05, wait_s=2.0)
    client = stubs(server)

    def rewrite(text: str) -> None:
        (tmp_path / "models.new").write_text(text)
        (tmp_path / "models.new").rename(path)

    def said(text: str) -> Callable[[], bool]:
        return lambda: any(text in record.getMessage() for record in caplog.records)

    rewrite(listing(entry("m", linear / "m", stable=3), entry("other", linear / "other")))
    wait_for(lambda: "AVAILABLE" in _status(client, "other").values(), "the other model")
    assert client.predict(label="stable") == (3, [30, 60])
    rewrite("improperly formatted file.")
    wait_for(said("Failed to read ModelServerConfig file: "), "the parse error")
    rewrite(listing(entry("m", linear / "m"), entry("x", "/nothing/there")))
    wait_for(said("PollFilesystemAndReloadConfig failed to ReloadConfig: 1 model(s) did not become available"), "x")
    path.unlink()
    wait_for(said(f"Failed to read ModelServerConfig file: cannot read the model configuration {path}"), "no file")
    time.sleep(0.3)
    assert client.predict("other") == (1, [7, 14])
    assert client.predict(label="stable") == (3, [30, 60])
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR" and r.name == reload.__name__]
    assert len(errors) == len(set(errors)) <= 4, errors
    client.reload(listing(entry("other", linear / "other")))
    assert refused(client.predict)[0] is grpc.StatusCode.NOT_FOUND
    rewrite(listing(entry("m", linear / "m")))
    wait_for(lambda: _status(client, "m").get(3) == "AVAILABLE", "the file to win over the request")
    wait_for(lambda: _status(client, "other") == {1: "END"}, "the other model to go")


def _status(client: Stubs, name: str) -> dict[int, str]:
    try:
        return client.status(name)
    except grpc.RpcError:
        return {}


def test_stopping_during_a_reload(linear, options, stubs, tmp_path, monkeypatch) -> None:
    begun, reconfigure = threading.Event(), Manager.reconfigure

    def noted(*arguments: Any) -> None:
        begun.set()
        reconfigure(*arguments)

    monkeypatch.setattr(Manager, "reconfigure", noted)
    server = Server(options(linear / "m", config=ReloadOptions(wait_s=120)))
    server.start()
    client = stubs(server)
    answer: list[Any] = []
    text = listing(entry("x", "/nothing/there"))
    thread = threading.Thread(target=lambda: answer.append(refused(client.reload, text, timeout_s=120)))
    thread.start()
    assert begun.wait(60)
    time.sleep(0.1)
    assert server.stop(60)
    thread.join(60)
    assert answer == [
        (grpc.StatusCode.UNAVAILABLE, "the server is being stopped; the configuration was not changed")
    ]  # fmt: skip


# Under load


class Traffic:
    """Clients that ask all the time, by label, by version and by name; everything odd is kept."""

    def __init__(self, server: Server, threads: int) -> None:
        self.allowed: dict[str, frozenset[int]] = {}
        self.odd: list[str] = []
        self.asked = 0
        self._server = server
        self._done = threading.Event()
        self._told = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(120)

    def allow(self, **versions: set[int]) -> None:
        """Tell which versions may answer for a label, or for `latest`."""
        self.allowed = {**self.allowed, **{key: frozenset(value) for key, value in versions.items()}}
        self._told.set()

    def _run(self, number: int) -> None:
        self._told.wait(60)
        ask = self._over_grpc if number % 2 else self._over_rest
        with httpx2.Client(base_url=f"http://127.0.0.1:{self._server.rest_port}", timeout=60) as http:
            client = Stubs(self._server)
            for key in itertools.cycle(("stable", "canary", "latest")):
                if self._done.is_set():
                    break
                self._check(key, ask, client if number % 2 else http)
            client.channel.close()

    def _check(self, key: str, ask: Callable[..., float], client: Any) -> None:
        before = self.allowed[key]
        try:
            slope = ask(client, None if key == "latest" else key)
        except (grpc.RpcError, httpx2.HTTPError, ValueError) as error:
            self.odd.append(f"{key}: {type(error).__name__}: {error}")
            return
        finally:
            self.asked += 1
        if slope / 10 not in before | self.allowed[key]:
            self.odd.append(f"{key}: answered by {slope / 10}, allowed {before} and {self.allowed[key]}")

    @staticmethod
    def _over_grpc(client: Stubs, label: str | None) -> float:
        version, answer = client.predict("m", **({"label": label} if label else {}))
        if answer != [10 * version, 20 * version]:
            raise ValueError(f"version {version} answered {answer}")
        return answer[0]

    @staticmethod
    def _over_rest(http: Any, label: str | None) -> float:
        path = f"m/labels/{label}:predict" if label else "m:predict"
        reply = http.post(f"/v1/models/{path}", content=json.dumps({"instances": [1, 2]}))
        if reply.status_code != 200:
            raise ValueError(reply.text)
        return float(reply.json()["predictions"][0])


@pytest.mark.slow
def test_twenty_changes_under_sixteen_clients(linear, serve, stubs, tmp_path, wait_for) -> None:
    """New versions, rollbacks, label moves and changes of the configuration; no request fails or goes astray."""
    base = tmp_path / "m"
    moved = tmp_path / "moved"
    for version in (1, 2):
        shutil.copytree(linear / "m" / str(version), base / str(version))
    manager = ManagerOptions(poll_interval_s=0.1, max_load_retries=0)
    server = serve("", config=ReloadOptions(wait_s=60), more_models={"m": str(base)}, manager=manager)
    client = stubs(server)

    def models(path: Path, stable: int, canary: int, *more: str) -> str:
        return listing(entry("m", path, "all {}", stable=stable, canary=canary), *more)

    client.reload(listing(entry("m", base, "all {}")))
    wait_for(lambda: client.status() == {2: "AVAILABLE", 1: "AVAILABLE"}, "both versions")
    client.reload(models(base, 1, 2))
    changes = 0

    def change(text: str, **allowed: set[int]) -> None:
        """From the moment that the reload is answered on, only these may answer."""
        nonlocal changes
        client.reload(text)
        traffic.allow(**allowed)
        changes += 1
        time.sleep(0.1)

    with Traffic(server, 16) as traffic:
        traffic.allow(stable={1}, canary={2}, latest={2})
        time.sleep(0.2)
        for _ in range(2):
            # A new version turns up.
            traffic.allow(latest={2, 3})
            with open_publication(str(base), 3) as staged:
                shutil.copytree(linear / "m" / "3", staged.staging, dirs_exist_ok=True)
            wait_for(lambda: client.status().get(3) == "AVAILABLE", "version 3")
            traffic.allow(latest={3})
            # The labels move, and another model comes.
            for stable, canary in ((1, 3), (2, 3), (3, 2)):
                traffic.allow(stable={1, 2, 3}, canary={1, 2, 3})
                text = models(base, stable, canary, entry("other", linear / "other"))
                change(text, stable={stable}, canary={canary})
            assert client.predict("other") == (1, [7, 14])
            # The model moves to another directory with the same versions, and back; the other one goes and comes.
            shutil.copytree(base, moved, dirs_exist_ok=True)
            change(models(moved, 3, 2))
            change(models(base, 3, 2, entry("other", linear / "other")))
            # Changes that are refused.
            refused(client.reload, models(base, 1, 9))
            refused(client.reload, listing(entry("m", base, "all {}"), entry("other", "relative")))
            # The policy changes; the labels go back; version 3 is withdrawn.
            change(listing(entry("m", base, "latest { num_versions: 3 }", stable=3, canary=2)))
            change(models(base, 3, 2))
            traffic.allow(stable={1, 3})
            change(models(base, 1, 2), stable={1})
            traffic.allow(latest={2, 3})
            shutil.rmtree(base / "3")
            wait_for(lambda: client.status().get(3) == "END", "the rollback")
            traffic.allow(latest={2})
            changes += 2
            time.sleep(0.1)
        wait_for(lambda: traffic.asked > 500, "some traffic")
    assert changes == 20
    assert traffic.odd == []
