"""What `serving.py` can measure: our server with each variant of a model, and its peers with the same ONNX model.

A `Target` is a server that can be started; a `Wire` is one way to ask it. The peers live in environments of their own
(`build/peers/NAME`), which `setup` makes.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serving_models import Store
from serving_processes import ServerProcess

from moxserve.ports import free_port

PEERS_FOLDER = Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True)
class Case:
    """One model as requests see it.

    Attributes:
        family: of `serving_models`.
        given: alias of its input.
        shape: of one item.
        variants: which of ours are measured, in order of the table.
        workers: processes or threads that peers run the model in.
        min_requests: of one measurement, for each request in flight.
    """

    family: str
    given: str
    shape: tuple[int, ...]
    variants: tuple[str, ...]
    workers: int = 1
    min_requests: int = 1

    @property
    def image(self) -> bool:
        """Whether requests are large."""
        return len(self.shape) == 3


_IMAGE_VARIANTS = ("tf", "frozen", "frozen_bf16", "onnx", "onnx_int8", "openvino", "openvino_int8")
CASES = {
    "half_plus_two": Case("half_plus_two", "x", (1,), ("tf", "onnx")),
    "resnet50": Case("resnet50", "images", (224, 224, 3), _IMAGE_VARIANTS, workers=2),
    "mobilenetv2": Case("mobilenetv2", "images", (224, 224, 3), _IMAGE_VARIANTS, workers=2),
}
# Largest difference of an answer from the float32 one, relative to its largest value.
TOLERANCES = {"frozen_bf16": 0.1, "onnx_int8": 0.3, "openvino": 0.1, "openvino_int8": 0.3}
# How our server is told about a variant, and the runtime that is its limit in process.
FLAGS: dict[str, tuple[str, ...]] = {"frozen_bf16": ("--mixed_precision=bfloat16",)}
RUNTIMES = {
    "tf": "tensorflow", "frozen": "tensorflow", "frozen_bf16": "tensorflow_bf16", "onnx": "onnx", "onnx_int8": "onnx",
    "openvino": "openvino_bf16", "openvino_int8": "openvino",
}  # fmt: skip


def stored_variant(variant: str) -> str:
    """Return the variant whose files a variant uses: bfloat16 is a way to run the frozen graph."""
    return variant.removesuffix("_bf16")


@dataclass(frozen=True)
class Wire:
    """One way to ask.

    Attributes:
        name: in the tables.
        transport: `grpc` or `http`.
        method: full gRPC method or path.
        body: turns `[1, ...] float32` into a request's bytes.
        answer: how `serving_load` reads the answer.
        headers: HTTP headers.
    """

    name: str
    transport: str
    method: str
    body: Callable[[np.ndarray], bytes]
    answer: str
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


@dataclass
class Target:
    """A server that can be measured.

    Attributes:
        name: `moxserve` or a peer's name.
        variant: of the model.
        wires: how it is asked.
        process: the server, not started yet.
        ports: of HTTP and gRPC.
    """

    name: str
    variant: str
    wires: Sequence[Wire]
    process: ServerProcess
    ports: Mapping[str, int]
    figures: dict[str, Any] = field(default_factory=dict)

    def address(self, wire: Wire) -> str:
        """Return `host:port` for a wire."""
        return f"127.0.0.1:{self.ports[wire.transport]}"


def answers(port: int, path: str, grpc_port: int | None = None) -> bool:
    """Return whether `GET path` is answered with 200 on a loopback port, and the gRPC port, if any, is open."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        if connection.getresponse().status != 200:
            return False
        if grpc_port is not None:
            socket.create_connection(("127.0.0.1", grpc_port), timeout=2).close()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


# Requests


def tfs_grpc_body(case: Case) -> Callable[[np.ndarray], bytes]:
    """Return what makes a PredictRequest with tensor_content."""
    from moxserve.client.calls import PredictCall
    from moxserve.client.wire import encode
    from moxserve.types import ModelRef

    return lambda array: encode(PredictCall(ModelRef(case.family), {case.given: array})).payload


def tfs_rest_body(array: np.ndarray) -> bytes:
    """Return a body in row format."""
    return json.dumps({"instances": array.tolist()}).encode()


def _v2_grpc_body(case: Case) -> Callable[[np.ndarray], bytes]:
    from tritonclient.grpc import service_pb2

    def body(array: np.ndarray) -> bytes:
        request = service_pb2.ModelInferRequest(model_name=case.family)
        request.inputs.add(name=case.given, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
        return bytes(request.SerializeToString())

    return body


def _v2_rest_body(case: Case) -> Callable[[np.ndarray], bytes]:
    def body(array: np.ndarray) -> bytes:
        tensor = {"name": case.given, "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()}
        return json.dumps({"inputs": [tensor]}).encode()

    return body


def _v2_binary(case: Case, method: str) -> Wire:
    tensor = {"name": case.given, "shape": (1, *case.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": 4 * int(np.prod(case.shape))}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Wire("REST v2 binary", "http", method, lambda array: head + array.tobytes(), "v2_binary", headers)


def _list_or_b64(array: np.ndarray) -> bytes:
    if array.size > 100:
        return json.dumps({"b64": base64.b64encode(array.tobytes()).decode()}).encode()
    return json.dumps({"x": array.tolist()}).encode()


_PREDICT = "/tensorflow.serving.PredictionService/Predict"
BARE = "transport alone"
_V2_METHOD = "/inference.GRPCInferenceService/ModelInfer"


# Ours


def ours(case: Case, variant: str, store: Store, logs: Path, flags: Sequence[str] = ()) -> Target:
    """Return our server with one variant of a model.

    Args:
        case: the model.
        variant: of `Case.variants`.
        store: where it lies.
        logs: folder for the server's output.
        flags: further flags.
    """
    grpc_port, rest_port = free_port(), free_port()
    base = store.base(case.family, stored_variant(variant)).resolve()
    command = [
        sys.executable, "-m", "moxserve", "serve", "--host=127.0.0.1", f"--port={grpc_port}",
        f"--rest_api_port={rest_port}", f"--model_name={case.family}", f"--model_base_path={base}",
        *FLAGS.get(variant, ()), *flags,
    ]  # fmt: skip
    path = f"/v1/models/{case.family}"
    process = ServerProcess(command, lambda: answers(rest_port, path, grpc_port), logs / f"{case.family}_{variant}.log")
    wires = [
        Wire("gRPC", "grpc", _PREDICT, tfs_grpc_body(case), "tfs_grpc"),
        Wire("REST", "http", f"{path}:predict", tfs_rest_body, "tfs_rest"),
    ]
    if case.image:
        wires.append(_v2_binary(case, f"/v2/models/{case.family}/infer"))
    return Target("moxserve", variant, wires, process, {"grpc": grpc_port, "http": rest_port})


def bare(case: Case, store: Store, logs: Path) -> Target:
    """Return the transports of our server without a server behind them (`peers/bare_server.py`)."""
    grpc_port, rest_port = free_port(), free_port()
    scratch = tempfile.TemporaryDirectory(prefix="bench-")
    file = Path(scratch.name) / "answers.json"
    pairs = []
    for given, answer in zip(store.inputs(case.family), store.expected(case.family), strict=True):
        pairs.append((tfs_grpc_body(case)(given), _tfs_grpc_answer(case, answer)))
        pairs.append((tfs_rest_body(given), json.dumps({"predictions": answer.tolist()}).encode()))
    file.write_text(json.dumps([[base64.b64encode(each).decode() for each in pair] for pair in pairs]))
    command = [sys.executable, str(PEERS_FOLDER / "bare_server.py"), str(grpc_port), str(rest_port), str(file)]
    process = ServerProcess(
        command, lambda: answers(rest_port, "/", grpc_port), logs / f"{case.family}_bare.log", scratch=scratch
    )
    wires = [
        Wire("gRPC", "grpc", _PREDICT, tfs_grpc_body(case), "tfs_grpc"),
        Wire("REST", "http", f"/v1/models/{case.family}:predict", tfs_rest_body, "tfs_rest"),
    ]
    return Target(BARE, "none", wires, process, {"grpc": grpc_port, "http": rest_port})


def _tfs_grpc_answer(case: Case, array: np.ndarray) -> bytes:
    from moxserve.protocol.predict_wire import write_predict_response

    return write_predict_response(case.family, 1, "serving_default", {"y": array})


# Peers


@dataclass(frozen=True)
class Peer:
    """A server that others would pick.

    Attributes:
        name: of its environment's folder.
        title: in the tables.
        requirements: what is installed into its environment.
        command: made from (the environment's bin folder, a folder to write in).
        ready: path that answers 200 when it is.
        wires: made from a case.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    command: Callable[[Path, str], list[str]]
    ready: Callable[[Case], str]
    wires: Callable[[Case], list[Wire]]

    def python(self, folder: Path) -> Path:
        """Return its environment's interpreter."""
        return folder / self.name / "bin" / "python"

    def target(self, case: Case, store: Store, folder: Path, logs: Path) -> Target:
        """Return it serving the ONNX float32 model."""
        ports = {"http": free_port(), "grpc": free_port()}
        # In the system's folder for these: PyTriton makes sockets in it, whose paths must be short.
        scratch = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        work = scratch.name
        environment = {
            "BENCH_MODEL": str(store.model_file(case.family, "onnx").resolve()),
            "BENCH_NAME": case.family,
            "BENCH_SHAPE": ",".join(map(str, case.shape)),
            "BENCH_WORKERS": str(case.workers),
            "BENCH_PORT": str(ports["http"]),
            "BENCH_GRPC_PORT": str(ports["grpc"]),
            "BENCH_THIRD_PORT": str(free_port()),
            "PYTHONPATH": str(PEERS_FOLDER),
            "OMP_NUM_THREADS": "1",
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": work,
            "HOME": work,
        }
        path = self.ready(case)
        process = ServerProcess(
            self.command(folder.resolve() / self.name / "bin", work),
            lambda: answers(ports["http"], path),
            logs / f"{self.name}_{case.family}.log",
            environment,
            scratch=scratch,
        )
        return Target(self.title, "onnx", self.wires(case), process, ports)


def _script(name: str) -> Callable[[Path, str], list[str]]:
    return lambda bin, work: [str(bin / "python"), str(PEERS_FOLDER / name), work]


def _bento_command(bin: Path, _work: str) -> list[str]:
    # Through the shell: the port is known from the environment only when it starts.
    start = f'exec "{bin}/python" -m bentoml serve bento_service:Service --host 127.0.0.1 --port "$BENCH_PORT"'
    return ["/bin/sh", "-c", f'cd "{PEERS_FOLDER}" && {start}']


def _json_wires(paths: tuple[str, str]) -> Callable[[Case], list[Wire]]:
    def wires(case: Case) -> list[Wire]:
        name = "REST base64" if case.image else "REST"
        return [Wire(name, "http", paths[case.image], _list_or_b64, "json_list")]

    return wires


def _mlserver_wires(case: Case) -> list[Wire]:
    rest = Wire("REST v2", "http", f"/v2/models/{case.family}/infer", _v2_rest_body(case), "v2_rest")
    return [rest, Wire("gRPC v2", "grpc", _V2_METHOD, _v2_grpc_body(case), "v2_grpc")]


def _triton_wires(case: Case) -> list[Wire]:
    return [
        _v2_binary(case, f"/v2/models/{case.family}/infer"),
        Wire("gRPC v2", "grpc", _V2_METHOD, _v2_grpc_body(case), "v2_grpc"),
    ]


def _fixed(path: str) -> Callable[[Case], str]:
    return lambda _case: path


def _v2_ready(case: Case) -> str:
    return f"/v2/models/{case.family}/ready"


_ONNX = "onnxruntime==1.31.1"
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="litserve",
            title="LitServe",
            requirements=("litserve==0.2.19", "uvloop==0.23.0", _ONNX),
            command=_script("litserve_server.py"),
            ready=_fixed("/health"),
            wires=_json_wires(("/predict", "/predict")),
        ),
        Peer(
            name="mlserver",
            title="MLServer",
            # With uvloop 0.22 and newer its workers die.
            requirements=("mlserver==1.7.1", "uvloop==0.21.*", _ONNX),
            command=_script("mlserver_runtime.py"),
            ready=_v2_ready,
            wires=_mlserver_wires,
        ),
        Peer(
            name="bentoml",
            title="BentoML",
            requirements=("bentoml==1.4.39", _ONNX),
            command=_bento_command,
            ready=_fixed("/readyz"),
            wires=_json_wires(("/predict", "/predict_b64")),
        ),
        Peer(
            name="pytriton",
            title="PyTriton",
            requirements=("nvidia-pytriton==0.7.0", _ONNX),
            command=_script("pytriton_server.py"),
            ready=_v2_ready,
            wires=_triton_wires,
        ),
    )
}
# Not a server: what makes the OpenVINO int8 variants.
QUANTIZER = ("nncf", ("nncf==3.4.0", "openvino==2026.4.1"))


def setup(folder: Path, names: Sequence[str], python: str) -> list[str]:
    """Make environments; each is left alone when it is there.

    Args:
        folder: of the environments.
        names: peers, or `nncf`.
        python: interpreter to make them with. PyTriton's stub does not run with every 3.11: the system's own is best.

    Returns:
        Those that could not be made, with the reason.
    """
    failed = []
    wanted = {peer.name: peer.requirements for peer in PEERS.values()} | dict([QUANTIZER])
    for name in names:
        environment = folder / name
        if (environment / ".complete").exists():
            continue
        print(f"installing {' '.join(wanted[name])} into {environment} ...", file=sys.stderr, flush=True)
        try:
            install(environment, wanted[name], python)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name}: {error.stderr.strip().splitlines()[-1] if error.stderr else error}")
            continue
        (environment / ".complete").touch()
    return failed


def install(environment: Path, requirements: Sequence[str], python: str) -> None:
    """Make a virtual environment with packages in it.

    Raises:
        subprocess.CalledProcessError: that failed; its `stderr` says why.
    """
    interpreter = environment / "bin" / "python"
    if shutil.which("uv"):
        commands = [
            ["uv", "venv", "--quiet", "--allow-existing", "--python", python, str(environment)],
            ["uv", "pip", "install", "--quiet", "--python", str(interpreter), *requirements],
        ]
    else:
        commands = [
            [python, "-m", "venv", str(environment)],
            [str(interpreter), "-m", "pip", "install", "--quiet", *requirements],
        ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True)


def available(folder: Path) -> dict[str, Peer]:
    """Return the peers whose environments are there."""
    with contextlib.suppress(FileNotFoundError):
        return {name: peer for name, peer in PEERS.items() if (folder / name / ".complete").exists()}
    return {}
