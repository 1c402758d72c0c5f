"""`moxserve serve --num_processes=2`, from outside: real processes, models and clients."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf import text_format

from moxserve.ports import free_port
from moxserve.protocol import messages

grpc = pytest.importorskip("grpc")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENTRY = 'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}'


SLOW = """
import sys
import tensorflow.compat.v1 as tf

with tf.Graph().as_default(), tf.Session() as session:
    n, started = tf.placeholder("int32", [], "n"), tf.placeholder("string", [], "started")
    with tf.control_dependencies([tf.io.write_file(started, "")]):
        count = tf.while_loop(lambda i: i < n, lambda i: i + 1, [tf.constant(0)], parallel_iterations=1)
    tf.saved_model.simple_save(session, sys.argv[1], {"n": n, "started": started}, {"count": count})
"""


def models_of(testdata: Path) -> dict[str, Path]:
    return {"counter": testdata / "saved_model_counter", "half": testdata / "saved_model_half_plus_two_cpu"}


def config_text(**models: Any) -> str:
    entries = "\n".join(ENTRY.format(name=name, path=path, more="") for name, path in models.items())
    return f"model_config_list {{ {entries} }}\n"


class Cluster:
    """Server processes behind one address."""

    def __init__(self, log: Path, grpc_port: int, rest_port: int, *flags: str) -> None:
        self._log, self.folder = log, log.parent
        self.grpc, self.rest = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{rest_port}"
        ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", "--host=127.0.0.1"]
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "moxserve", "serve", "--num_processes=2", *ports, *flags], stdout=out, stderr=out
            )

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = 240) -> re.Match[str]:
        deadline = time.monotonic() + timeout_s
        while (match := re.search(pattern, self.text)) is None:
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < deadline, f"never said {pattern!r}:\n{self.text}"
            time.sleep(0.05)
        return match

    def members(self) -> list[int]:
        """Return the pids of the server processes."""
        return sorted(child.pid for child in psutil.Process(self.popen.pid).children())

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(240)


def post(url: str, body: Any, timeout_s: float = 60) -> Any:
    """Ask over a connection of its own, which the system gives to any of the processes."""
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers={"Connection": "close"})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.loads(answer.read())


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def reload(cluster: Cluster, text: str, timeout_s: float = 60) -> None:
    request = messages.ReloadConfigRequest()
    text_format.Parse(text, request.config)
    with grpc.insecure_channel(cluster.grpc) as channel:
        method = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
        answer = messages.ReloadConfigResponse.FromString(method(request.SerializeToString(), timeout=timeout_s))
    assert answer.status.error_code == 0


@pytest.fixture(scope="module")
def free_ports() -> Callable[[], tuple[int, int]]:
    return lambda: (free_port(), free_port())


def save_slow(base_path: Path) -> Path:
    """Save a model that writes a file when it begins and then counts to `n` one by one, 100,000 in about a second."""
    subprocess.run([sys.executable, "-c", SLOW, str(base_path / "1")], check=True, timeout=300)
    return base_path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, testdata, free_ports) -> Iterator[Cluster]:
    """Two processes with a model that counts, one that computes and one that takes its time."""
    folder = tmp_path_factory.mktemp("cluster")
    models = {**models_of(testdata), "slow": save_slow(folder / "slow")}
    (folder / "models.txt").write_text(config_text(**models))
    (folder / "monitoring.txt").write_text("prometheus_config { enable: true }")
    flags = (
        f"--model_config_file={folder / 'models.txt'}", f"--monitoring_config_file={folder / 'monitoring.txt'}",
        "--shutdown_grace_seconds=200",
    )  # fmt: skip
    cluster = Cluster(folder / "log", *free_ports(), *flags)
    cluster.wait_for("2 server processes answer: pids")
    yield cluster
    if cluster.popen.poll() is None:
        cluster.popen.kill()
        cluster.popen.wait(60)


def ask_all(cluster: Cluster, model: str, expected: dict[str, Any], times: int = 24) -> None:
    """Ask over many connections, so that every process is asked."""
    for _ in range(times):
        assert post(f"{cluster.rest}/v1/models/{model}:predict", {"instances": [2.0]}) == expected


def requests_counted(cluster: Cluster, model: str) -> int:
    page = get(f"{cluster.rest}/monitoring/prometheus/metrics")
    match = re.search(rf':tensorflow:serving:request_count{{model_name="{model}",status="OK"}} (\d+)', page)
    return int(match[1]) if match else 0


def test_both_processes_answer(cluster) -> None:
    """Each counts for itself, from 1: so the counts of both, put together, tell how many asked each of them."""
    body = {"signature_name": "incr_counter_by", "inputs": {"delta": 1.0}}
    seen = Counter(int(post(f"{cluster.rest}/v1/models/counter:predict", body)["outputs"]) for _ in range(40))
    assert sum(seen.values()) == 40
    fewer, more = sum(n == 2 for n in seen.values()), len(seen)
    assert 0 < fewer < 40
    assert fewer + more == 40
    assert sorted(seen) == list(range(1, more + 1))


def test_the_page_of_metrics_shows_both(cluster, wait_for) -> None:
    before = requests_counted(cluster, "half")
    ask_all(cluster, "half", {"predictions": [3.0]}, 30)
    for _ in range(10):
        # Whichever is asked; one that is too busy to answer the other at once is told as it was last.
        wait_for(lambda: requests_counted(cluster, "half") == before + 30, "the requests of both")
    page = get(f"{cluster.rest}/monitoring/prometheus/metrics")
    labels = 'model_name="half",API="predict",entrypoint="REST"'
    total = int(re.search(rf":tensorflow:serving:request_latency_count{{{labels}}} (\d+)", page)[1])
    assert total == before + 30
    assert f':tensorflow:serving:request_latency_bucket{{{labels},le="+Inf"}} {total}' in page


def test_a_change_of_the_configuration_reaches_both_or_none(cluster, testdata, tmp_path) -> None:
    before = {**models_of(testdata), "slow": cluster.folder / "slow"}
    three = testdata / "saved_model_half_plus_three"
    reload(cluster, config_text(**before, three=three))
    ask_all(cluster, "three", {"predictions": [4.0]})
    with pytest.raises(grpc.RpcError) as caught:
        reload(cluster, config_text(half=three, nothing=tmp_path))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "the configuration was not changed: nothing had no version to load" in caught.value.details()
    ask_all(cluster, "half", {"predictions": [3.0]})
    reload(cluster, config_text(**before))
    for _ in range(12):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            post(f"{cluster.rest}/v1/models/three:predict", {"instances": [2.0]})


@pytest.mark.parametrize("flags", [(), ("--num_processes=2",)])
def test_another_server_on_the_same_ports_is_refused(cluster, run_moxserve, testdata, flags) -> None:
    port = cluster.grpc.rpartition(":")[2]
    model = f"--model_base_path={testdata / 'saved_model_half_plus_two_cpu'}"
    done = run_moxserve("serve", f"--port={port}", "--host=127.0.0.1", model, *flags)
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in done.stderr


def test_the_supervisor_loads_no_tensorflow(cluster) -> None:
    def loads_tensorflow(pid: int) -> bool:
        return "tensorflow" in Path(f"/proc/{pid}/maps").read_text()

    assert not loads_tensorflow(cluster.popen.pid)
    assert all(loads_tensorflow(pid) for pid in cluster.members())


def test_a_process_that_is_killed_costs_its_own_requests_only(cluster) -> None:
    """Under load: what fails was on the process that was killed, at that moment; afterwards both answer again."""
    before, counted = cluster.members(), requests_counted(cluster, "half")
    stop, failures, done = threading.Event(), [], Counter()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = post(f"{cluster.rest}/v1/models/half:predict", {"instances": [2.0]})
                done[answer == {"predictions": [3.0]}] += 1
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                failures.append(error)

    askers = [threading.Thread(target=ask) for _ in range(6)]
    for asker in askers:
        asker.start()
    try:
        time.sleep(1)
        os.kill(before[0], signal.SIGKILL)
        cluster.wait_for(r"server process \d \(pid " + str(before[0]) + r"\) was ended by SIGKILL; it is started again")
        cluster.wait_for(r"(?s)(Exporting HTTP/REST API.*){3}")
        time.sleep(1)
    finally:
        stop.set()
        for asker in askers:
            asker.join(120)
    after = cluster.members()
    assert len(after) == 2
    assert before[1] in after
    assert before[0] not in after
    assert set(done) == {True}
    # At most what was in flight or in the queue of the one that was killed; who asks again at once may meet its socket
    # once more, which the system closes last.
    assert len(failures) <= 2 * len(askers)
    ask_all(cluster, "half", {"predictions": [3.0]}, 8)
    assert requests_counted(cluster, "half") >= counted


def test_sigterm_drains_all(cluster, tmp_path, wait_for) -> None:
    """The last one of this server: it ends here."""
    members, answers = cluster.members(), []

    def ask(started: Path) -> None:
        body = {"inputs": {"n": 100_000, "started": str(started)}}
        answers.append(post(f"{cluster.rest}/v1/models/slow:predict", body, 240))

    begun = [tmp_path / str(i) for i in range(4)]
    askers = [threading.Thread(target=ask, args=(path,)) for path in begun]
    for asker in askers:
        asker.start()
    wait_for(lambda: all(path.exists() for path in begun), "every request runs")
    status = cluster.stop()
    for asker in askers:
        asker.join(120)
    assert status == 0, cluster.text
    assert "all server processes have ended" in cluster.text
    assert "Traceback" not in cluster.text
    assert answers == [{"outputs": 100_000}] * 4
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)


def test_a_model_that_cannot_be_loaded_ends_the_start(run_moxserve, testdata, free_ports) -> None:
    port, _ = free_ports()
    done = run_moxserve(
        "serve", "--num_processes=2", f"--port={port}", "--host=127.0.0.1", "--max_num_load_retries=0",
        f"--model_base_path={testdata / 'bad_half_plus_two'}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: 1 servable(s) did not become available" in done.stderr
    assert "Session Bundle is deprecated and removed." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=0"], "--num_processes=0: expected 1 or more"),
        (["--num_processes=2", "--port=0", "--grpc_socket_path=s"], "processes can share a port, but no UNIX socket"),
        (["--num_processes=2", "--port=1", "--rest_api_port=1"], "gRPC and HTTP need a port each"),
    ],
)
def test_what_makes_no_sense_for_several_processes(run_moxserve, testdata, tmp_path, flags, message) -> None:
    done = run_moxserve("serve", *flags, f"--model_base_path={testdata}", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_file_is_read_for_all_and_they_end_with_the_supervisor(tmp_path, testdata, free_ports) -> None:
    half, three = testdata / "saved_model_half_plus_two_cpu", testdata / "saved_model_half_plus_three"
    config, unix = tmp_path / "models.txt", tmp_path / "grpc.sock"
    config.write_text(config_text(half=half))
    flags = (f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1", f"--grpc_socket_path={unix}")
    cluster = Cluster(tmp_path / "log", *free_ports(), *flags)
    try:
        cluster.wait_for("2 server processes answer: pids")
        with grpc.insecure_channel(f"unix:{unix}") as channel:
            request = messages.GetModelStatusRequest()
            request.model_spec.name = "half"
            method = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
            answer = messages.GetModelStatusResponse.FromString(method(request.SerializeToString(), timeout=60))
        assert [status.version for status in answer.model_version_status] == [123]

        (tmp_path / "new").write_text(config_text(half=half, three=three))
        os.replace(tmp_path / "new", config)
        cluster.wait_for(r"(?s)The configuration was changed\. new: three.*The configuration was changed\. new: three")
        ask_all(cluster, "three", {"predictions": [4.0]})

        members = cluster.members()
        cluster.popen.kill()
        deadline = time.monotonic() + 120
        while any(Path(f"/proc/{pid}").exists() for pid in members):
            assert time.monotonic() < deadline, cluster.text
            time.sleep(0.1)
        assert "the process that started this one is gone; finishing the requests" in cluster.text
    finally:
        cluster.popen.kill()
        cluster.popen.wait(60)
