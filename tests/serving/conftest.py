"""Real servers on loopback ports, and small SavedModels made on the spot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx2._config import DEFAULT_TIMEOUT_CONFIG

from moxserve.serving.backends.savedmodel import SavedModelBackend
from moxserve.serving.main import Server
from moxserve.serving.manager import ManagerOptions
from moxserve.serving.options import ServerOptions

MakeModel = Callable[..., Path]

FAST = ManagerOptions(poll_interval_s=0.1, max_load_retries=0)

# Five seconds, the default of a client of HTTP, pass on a busy machine.
for part in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, part, 60.0)


@pytest.fixture(scope="session")
def testdata(shared_dir: Path) -> Path:
    """SavedModels that the TensorFlow Serving project made."""
    return shared_dir / "testdata" / "tfserving"


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """`serve(base_path, **ServerOptions)` starts a server with gRPC and REST, and stops it after the test."""
    servers: list[Server] = []

    def start(base_path: str | Path, **options: Any) -> Server:
        server = Server(make_options(base_path, **options))
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        assert server.stop(120), "the server did not stop in time"


def make_options(base_path: str | Path, **options: Any) -> ServerOptions:
    """Options of a quick server on free ports."""
    settings: dict[str, Any] = {"manager": FAST, "rest_address": "127.0.0.1:0"}
    return ServerOptions(model_base_path=str(base_path), **{**settings, **options})


@pytest.fixture(scope="session")
def options() -> Callable[..., ServerOptions]:
    """`options(base_path, **ServerOptions)`."""
    return make_options


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """`wait_for(condition, what, timeout_s)` polls until the condition holds."""

    def wait(condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
            time.sleep(0.01)

    return wait


def _save(path: Path, build: Callable[[Any], dict[str, tuple[dict[str, Any], dict[str, Any]]]]) -> Path:
    """Save a TF1 graph; `build(tf1)` makes it and returns signature -> (inputs, outputs)."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), tf1.Session() as session:
        signatures = {
            key: tf1.saved_model.predict_signature_def(inputs, outputs) for key, (inputs, outputs) in build(tf1).items()
        }
        session.run(tf1.global_variables_initializer())
        builder = tf1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return path


@pytest.fixture(scope="session")
def save_linear() -> MakeModel:
    """`save_linear(version_dir, slope, offset)`: y = slope * x + offset, slope a variable."""

    def save(path: Path, slope: float = 1.0, offset: float = 0.0) -> Path:
        def build(tf1: Any) -> Any:
            x = tf1.placeholder("float32", [None], "x")
            variable = tf1.get_variable("slope", initializer=float(slope))
            return {"serving_default": ({"x": x}, {"y": variable * x + offset})}

        return _save(path, build)

    return save


@pytest.fixture(scope="session")
def save_slow() -> MakeModel:
    """`save_slow(version_dir)`: counts to `n` one by one, which takes about a second for 100,000."""

    def save(path: Path) -> Path:
        def build(tf1: Any) -> Any:
            import tensorflow as tf

            n = tf1.placeholder("int32", [], "n")
            count = tf.while_loop(lambda i: i < n, lambda i: i + 1, [tf.constant(0)], parallel_iterations=1)[0]
            return {"serving_default": ({"n": n}, {"count": count})}

        return _save(path, build)

    return save


class Gate:
    """Holds up the runs of SavedModels whose input `x` begins with its `value`, until `open`."""

    def __init__(self, value: float) -> None:
        self.value = value
        self._began = threading.Event()
        self._open = threading.Event()

    @property
    def began(self) -> bool:
        """Whether a run has come so far."""
        return self._began.is_set()

    def open(self) -> None:
        """Let all runs go on, also those to come."""
        self._open.set()

    def passed(self) -> None:
        """Wait until it is open."""
        self._began.set()
        self._open.wait()


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Gate]]:
    """`gates()` makes one more. Name it behind `serve`: no server waits for a gate that a failed test left closed."""
    made: dict[float, Gate] = {}
    run = SavedModelBackend.run

    def held(backend: Any, signature: str, inputs: Any, outputs: Any = None) -> Any:
        gate = made.get(float(np.ravel(inputs["x"])[0]))
        if gate is not None:
            gate.passed()
        return run(backend, signature, inputs, outputs)

    monkeypatch.setattr(SavedModelBackend, "run", held)

    def make() -> Gate:
        gate = Gate(1000.0 + len(made))
        made[gate.value] = gate
        return gate

    yield make
    for gate in made.values():
        gate.open()


ECHO_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64",
    "uint64", "bool", "string", "complex64", "complex128",
)  # fmt: skip


@pytest.fixture(scope="session")
def echo_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one signature a dtype, `x` in and `y` out unchanged, and some with several tensors."""
    base = tmp_path_factory.mktemp("echo")

    def build(tf1: Any) -> Any:
        import tensorflow as tf

        signatures: dict[str, Any] = {}
        for name in ECHO_DTYPES:
            x = tf1.placeholder(name, None, f"x_{name}")
            # reshape to itself: an identity would be seen through as input handed to output
            signatures[name] = ({"x": x}, {"y": tf.reshape(x, tf.shape(x))})
        a, b = tf1.placeholder("float32", [None, 2], "a"), tf1.placeholder("int64", [None], "b")
        text = tf1.placeholder("string", [None], "text")
        signatures["serving_default"] = (
            {"a": a, "b": b},
            {"sum": tf.reduce_sum(a, 1) + tf.cast(b, "float32"), "twice": b * 2},
        )
        signatures["text"] = ({"text": text}, {"upper": tf.strings.upper(text), "raw_bytes": tf.identity(text)})
        signatures["handed_through"] = ({"x": a}, {"y": a, "z": a + 1.0})
        signatures["total"] = ({"x": a}, {"total": tf.reduce_sum(a)})
        signatures["uneven"] = ({"x": a}, {"p": a, "q": tf.concat([a, a], 0)})
        signatures["failing"] = ({"x": a}, {"y": tf.debugging.check_numerics(a, "bad number")})
        return signatures

    _save(base / "1", build)
    return base
