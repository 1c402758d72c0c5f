"""Three times as many requests as a model can answer, for half a minute, over real gRPC.

What is let in must not wait much longer than without load, what is not must be told at once, and a second after the
storm nothing must be left of it. Figures are printed; what is asserted leaves room for a busy machine.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from moxserve.protocol import messages
from moxserve.protocol.tensors import to_proto
from moxserve.serving import backends
from moxserve.serving.batching import BatchingOptions, BatchingParameters
from moxserve.serving.grpc.options import GrpcOptions
from moxserve.serving.main import Server

RUN_S = 0.010
MAX_DELAY_S = 0.015
STORM_S = 30.0


def sleepy(at_once: int) -> Callable[[Any], dict[str, np.ndarray]]:
    """A model that takes 10 ms for up to so many rows, and no CPU: the machine's load is not what is measured."""

    def run(inputs: Any) -> dict[str, np.ndarray]:
        time.sleep(RUN_S * -(-len(inputs["x"]) // at_once))
        return {"y": inputs["x"] * 2}

    return run


class Clients:
    """Requests in the open: sent by the clock, whatever became of those before."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._call = self._channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        request = messages.PredictRequest()
        request.model_spec.name = "default"
        request.inputs["x"].CopyFrom(to_proto(np.float32([1])))
        self._request = request.SerializeToString()
        self.ended: list[tuple[str, float]] = []
        self.odd: set[str] = set()
        self._lock = threading.Lock()

    def send(self) -> Any:
        began = time.monotonic()
        future = self._call.future(self._request, timeout=20)
        future.add_done_callback(lambda f: self._note(f, time.monotonic() - began))
        return future

    def _note(self, future: Any, seconds: float) -> None:
        name = future.code().name
        with self._lock:
            self.ended.append((name, seconds))
            if name not in ("OK", "UNAVAILABLE"):
                self.odd.add(f"{name}: {future.details()}")

    def one_by_one(self, seconds: float) -> list[tuple[str, float]]:
        self.ended = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.send().exception()
            time.sleep(0.002)
        return self._all()

    def storm(self, per_second: float, seconds: float) -> list[tuple[str, float]]:
        self.ended = []
        futures, began = [], time.monotonic()
        for i in range(int(per_second * seconds)):
            time.sleep(max(0.0, began + i / per_second - time.monotonic()))
            futures.append(self.send())
        for future in futures:
            future.exception()
        return self._all()

    def _all(self) -> list[tuple[str, float]]:
        time.sleep(0.05)  # callbacks run on another thread than the one that waits
        with self._lock:
            return list(self.ended)

    def close(self) -> None:
        self._channel.close()


def p99(seconds: Sequence[float]) -> float:
    return float(np.quantile(seconds, 0.99))


def of(ended: Sequence[tuple[str, float]], status: str) -> list[float]:
    return [seconds for name, seconds in ended if name == status]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("batching", "at_once", "storm_s"),
    [
        pytest.param(
            BatchingOptions(True, BatchingParameters(max_batch_size=2, max_enqueued_batches=1000, num_batch_threads=1)),
            2,
            STORM_S,
            id="parameters",
        ),
        pytest.param(BatchingOptions(True, threads=1), 1, 6.0, id="adaptive"),
        pytest.param(BatchingOptions(), 1, 6.0, id="unbatched"),
    ],
)
def test_three_times_the_capacity(
    batching: BatchingOptions, at_once: int, storm_s: float, serve: Callable[..., Server], make_backend: Any,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    backend = make_backend(sleepy(at_once), {"x": ("float32", (None,))}, {"y": ("float32", (None,))})
    backend.calls["serving_default"] = backend.calls["s"]
    monkeypatch.setattr(backends, "load", lambda *_: backend)
    capacity = at_once / RUN_S
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"x")
    server = serve(tmp_path, batching=batching, max_queue_delay_s=MAX_DELAY_S, grpc=GrpcOptions(max_threads=1))
    clients = Clients(f"127.0.0.1:{server.grpc_port}")
    try:
        clients.one_by_one(0.5)
        calm = clients.one_by_one(2.0)
        storm = clients.storm(3 * capacity, storm_s)
        after = clients.one_by_one(1.0)
    finally:
        clients.close()
    accepted, refused = of(storm, "OK"), of(storm, "UNAVAILABLE")
    calm_p99 = p99(of(calm, "OK"))
    with capsys.disabled():
        sys.stdout.write(
            f"\n  unloaded p99 {calm_p99 * 1e3:.1f} ms; at 3 x capacity for {storm_s:g} s: accepted {len(accepted)} "
            f"({len(accepted) / storm_s:.0f}/s), p50 {np.median(accepted) * 1e3:.1f} p99 {p99(accepted) * 1e3:.1f} ms "
            f"({p99(accepted) / calm_p99:.1f} x); refused {len(refused)}, p50 {np.median(refused) * 1e3:.2f} "
            f"p99 {p99(refused) * 1e3:.1f} ms; in the second after: {len(of(after, 'OK'))} OK of {len(after)}, "
            f"p99 {p99(of(after, 'OK')) * 1e3:.1f} ms\n"
        )
    assert len(accepted) + len(refused) == len(storm), clients.odd
    assert len(accepted) >= 0.3 * capacity * storm_s
    assert len(refused) >= 0.3 * 3 * capacity * storm_s
    # Without a bound the last ones would wait for two thirds of the storm.
    assert np.median(accepted) <= max(3 * calm_p99, 0.5)
    assert p99(accepted) <= max(10 * calm_p99, 2.0)
    assert np.median(refused) < np.median(accepted)
    assert {name for name, _ in after} == {"OK"}
