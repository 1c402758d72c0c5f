"""A backend that tells what it ran and can be held up, and a runner on top of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.batching import BatchingParameters, BatchingRunner, BatchThreads
from moxserve.serving.execution import DirectRunner, RequestContext, WorkPool
from moxserve.serving.execution.admission import Admission
from moxserve.serving.metrics import ServingMetrics
from moxserve.types import Signature, TensorSpec, dtype_by_name

Arrays = Mapping[str, np.ndarray]


def spec(
    name: str, dtype: str = "float32", shape: Sequence[int | None] | None = (None,), tensor: str = ""
) -> TensorSpec:
    return TensorSpec(name, dtype_by_name(dtype), None if shape is None else tuple(shape), tensor or f"{name}:0")


class FakeBackend:
    """Runs `function` for every signature and notes each run; `hold` blocks what follows, `pause_s` slows it."""

    platform = "fake"
    signature_defs = None

    def __init__(self, function: Callable[[Arrays], dict[str, np.ndarray]], calls: Sequence[CallSignature]) -> None:
        self.function = function
        self.calls = {call.signature.name: call for call in calls}
        self.signatures = {name: call.signature for name, call in self.calls.items()}
        self.runs: list[tuple[str, dict[str, np.ndarray], tuple[str, ...]]] = []
        self.threads: list[str] = []
        self.pause_s = 0.0
        self.here = 0
        self._gate = threading.Event()
        self._gate.set()
        self.entered = threading.Semaphore(0)

    def hold(self) -> None:
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self.runs.append((signature, dict(inputs), tuple(outputs or ())))
        self.threads.append(threading.current_thread().name)
        self.entered.release()
        assert self._gate.wait(120), "nobody released the backend"
        if self.pause_s:
            time.sleep(self.pause_s)
        found = self.function(inputs)
        return {name: found[name] for name in outputs or found}

    def run_here(self, signature: str, inputs: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self.here += 1
        return self.run(signature, inputs, outputs)

    def run_together(self, signatures: Sequence[str], array: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [self.run(name, {"inputs": array}, self.calls[name].output_names) for name in signatures]

    def close(self) -> None:
        pass

    @property
    def sizes(self) -> list[int]:
        """Rows of each run."""
        return [len(next(iter(inputs.values()))) for _, inputs, _ in self.runs]


class Stage:
    """A runner over a fake backend with one batch thread, which `blocked` keeps busy while requests come in."""

    def __init__(
        self,
        backend: FakeBackend,
        parameters: BatchingParameters | None,
        *,
        threads: int = 1,
        admission: Admission | None = None,
        max_waiting: int = 1000,
    ) -> None:
        self.backend = backend
        self.metrics = ServingMetrics()
        self.pool = WorkPool(2, 100, "direct")
        self.threads = BatchThreads(threads, "batch", admission)
        direct = DirectRunner(backend, self.pool)
        self.runner = BatchingRunner(
            backend, direct, self.threads, parameters, max_waiting=max_waiting, metrics=self.metrics
        )

    async def ask(
        self, x: Any, signature: str = "s", outputs: Sequence[str] | None = None, context: RequestContext | None = None
    ) -> dict[str, np.ndarray]:
        inputs = dict(x) if isinstance(x, dict) else {"x": x if isinstance(x, np.ndarray) else np.float32(x)}
        return await self.runner.run(signature, inputs, outputs, context or RequestContext())

    async def busy(self, x: Any = (-1,), **options: Any) -> asyncio.Task[dict[str, np.ndarray]]:
        """Hold the backend, and occupy a batch thread with a request of its own; `backend.release` ends that."""
        while self.backend.entered.acquire(blocking=False):
            pass
        self.backend.hold()
        plug = asyncio.ensure_future(self.ask(np.float32(x) if isinstance(x, tuple) else x, **options))
        await self.entered()
        return plug

    async def entered(self) -> None:
        """Wait until the backend has one more run."""
        assert await asyncio.to_thread(self.backend.entered.acquire, True, 120)

    async def meet(self, *requests: Awaitable[Any]) -> list[Any]:
        """Send requests while a thread is busy, then let it go; returns answers and errors."""
        plug = await self.busy()
        tasks = [asyncio.ensure_future(request) for request in requests]
        await asyncio.sleep(0)
        self.backend.release()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await plug
        return answers

    def close(self) -> None:
        if isinstance(self.backend, FakeBackend):
            self.backend.release()
        self.runner.close()
        self.threads.close()
        self.pool.close()


def doubled(inputs: Arrays) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * 2, "z": inputs["x"] + 1}


@pytest.fixture
def backend() -> FakeBackend:
    """y = 2 x, z = x + 1; `same` names the same tensors otherwise."""
    tensors = {"x": "in:0", "y": "double:0", "z": "next:0"}
    s = Signature("s", "", {"x": spec("x", tensor="in:0")}, {n: spec(n, tensor=tensors[n]) for n in "yz"})
    return FakeBackend(doubled, [CallSignature(s)])


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(backend: FakeBackend) -> Iterator[MakeStage]:
    """`stage(**BatchingParameters)`, or `stage(adaptive=True)`; `backend=` for another one."""
    stages: list[Stage] = []

    def make(
        *, adaptive: bool = False, backend: FakeBackend = backend, threads: int = 1,
        admission: Admission | None = None, max_waiting: int = 1000, **parameters: Any,
    ) -> Stage:  # fmt: skip
        chosen = None if adaptive else BatchingParameters(**parameters)
        one = Stage(backend, chosen, threads=threads, admission=admission, max_waiting=max_waiting)
        stages.append(one)
        return one

    yield make
    for one in stages:
        one.close()


@pytest.fixture(scope="session")
def make_stage() -> Callable[..., Stage]:
    """`make_stage(backend, BatchingParameters or None, ...)`, to be closed by the caller; for hypothesis."""
    return Stage


@pytest.fixture(scope="session")
def make_backend() -> Callable[..., FakeBackend]:
    """`make_backend(function, inputs={alias: (dtype, shape)}, outputs={...}, defaults={}, method="")`."""

    def make(
        function: Callable[[Arrays], dict[str, np.ndarray]],
        inputs: Mapping[str, tuple[str, Any]],
        outputs: Mapping[str, tuple[str, Any]],
        *,
        defaults: Arrays | None = None,
        method: str = "",
    ) -> FakeBackend:
        signature = Signature(
            "s",
            method,
            {name: spec(name, dtype, shape) for name, (dtype, shape) in inputs.items()},
            {name: spec(name, dtype, shape) for name, (dtype, shape) in outputs.items()},
        )
        return FakeBackend(function, [CallSignature(signature, defaults)])

    return make


@pytest.fixture
def play() -> Callable[[Awaitable[Any]], Any]:
    """Run a coroutine to its end, on a loop of its own."""

    def run(coroutine: Any) -> Any:
        return asyncio.run(asyncio.wait_for(coroutine, 120))

    return run
