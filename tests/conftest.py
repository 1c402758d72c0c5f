"""Fixtures that every part of the suite uses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# One quiet, cached TensorFlow import a process: also for subprocesses, which inherit this.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if not os.environ.get("PYTHONPYCACHEPREFIX"):
    os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / ".cache" / "pycache")
os.environ["PYTHONDONTWRITEBYTECODE"] = ""
# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference material; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("MOXSERVE_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"reference material not found at {path} (set MOXSERVE_SHARED)")
    return path


Runner = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_moxserve() -> Runner:
    """Run the real command line in a subprocess: `run_moxserve("data", "digits", …, cwd=…, env={…}, timeout=…)`."""

    def run(
        *args: str | os.PathLike[str],
        cwd: str | os.PathLike[str] | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "moxserve", *map(os.fspath, args)],
            cwd=cwd,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@dataclass(frozen=True)
class ToyServer:
    """A real server with one small model named `toy`, for tests of whatever talks to a server."""

    base: Path
    grpc: str
    rest: str
    server: Any


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base directory of a model with one version and a signature for each thing that clients trip over."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    spec = tf.TensorSpec

    class Toy(tf.Module):
        @tf.function(input_signature=[spec([None, 8, 8, 1], tf.uint8, name="images")])
        def shade(self, images: Any) -> Any:
            brightness = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2, 3]) / 255.0
            nearness = -50.0 * tf.abs(brightness[:, None] - tf.constant([[0.0, 0.5, 1.0]]))
            return {"probabilities": tf.nn.softmax(nearness), "classes": tf.argmax(nearness, 1)}

        @tf.function(
            input_signature=[
                spec([None, 3], tf.float32, name="x"),
                spec([None], tf.int64, name="n"),
                spec([None], tf.string, name="s"),
                spec([None], tf.bool, name="b"),
            ]
        )
        def echo(self, x: Any, n: Any, s: Any, b: Any) -> Any:
            return {name: tf.identity(value) for name, value in {"x": x, "n": n, "s_bytes": s, "b": b}.items()}

        @tf.function(input_signature=[spec([None], tf.float32, name="x")])
        def positive(self, x: Any) -> Any:
            with tf.control_dependencies([tf.debugging.assert_non_negative(x, "negative numbers are refused")]):
                return {"root": tf.sqrt(x)}

        @tf.function(input_signature=[spec([None], tf.float32, name="x")])
        def total(self, x: Any) -> Any:
            return {"total": tf.reduce_sum(x)}

        @tf.function(input_signature=[spec([None, 2], tf.float16, name="x")])
        def half(self, x: Any) -> Any:
            return {"y": x / tf.constant(2.0, tf.float16)}

        @tf.function(input_signature=[spec([4, 2], tf.float32, name="x")])
        def fixed(self, x: Any) -> Any:
            return {"sum": tf.reduce_sum(x, 1)}

        @tf.function(input_signature=[spec([None], tf.float32, name="x")])
        def inverse(self, x: Any) -> Any:
            return {"inverse": 1.0 / x}

        @tf.function(input_signature=[spec([None], tf.string, name="files")])
        def sizes(self, files: Any) -> Any:
            return {"size": tf.strings.length(files), "names": tf.strings.substr(files, 1, 3)}

        @tf.function(input_signature=[spec([None, 8, 8, 3], tf.float32, name="images")])
        def mean(self, images: Any) -> Any:
            return {"mean": tf.reduce_mean(images, [1, 2])}

    toy = Toy()
    base = tmp_path_factory.mktemp("toy")
    names = ("echo", "positive", "total", "half", "fixed", "inverse", "sizes", "mean")
    signatures = {"serving_default": toy.shade, **{name: getattr(toy, name) for name in names}}
    # Another test of this process may have turned eager execution off.
    with context.eager_mode():
        tf.saved_model.save(toy, str(base / "1"), signatures=signatures)
    return base


@pytest.fixture(scope="session")
def toy_server(toy_base: Path) -> Iterator[ToyServer]:
    """The toy model behind real gRPC and REST ports."""
    from moxserve.serving.main import Server, ServerOptions

    options = ServerOptions(
        model_name="toy", model_base_path=str(toy_base), grpc_address="127.0.0.1:0", rest_address="127.0.0.1:0"
    )
    with Server(options) as server:
        yield ToyServer(toy_base, f"127.0.0.1:{server.grpc_port}", f"http://127.0.0.1:{server.rest_port}", server)


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits data set in all formats, as `moxserve data digits` writes it. Read only."""
    from moxserve.data.digits import write_digits

    out = tmp_path_factory.mktemp("data") / "digits"
    write_digits(out)
    return out


@pytest.fixture
def eager() -> Iterator[None]:
    """TensorFlow runs eagerly, whatever ran in this process before: the executor turns graph mode on for good."""
    from tensorflow.python.eager import context

    with context.eager_mode():
        yield
