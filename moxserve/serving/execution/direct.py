"""Runs each request by itself.

A model that is known to be quick runs right on the event loop: the way to a thread and back costs more than the run.
Every other one runs on threads of its version's own, so that neither the loop nor another model waits for it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moxserve.serving.backends.base import Backend
from moxserve.serving.execution.admission import ServiceTimes
from moxserve.serving.execution.context import RequestContext
from moxserve.serving.execution.pool import WorkPool
from moxserve.serving.execution.quickness import Quickness, payload_bytes
from moxserve.serving.observe.current import current_record

__all__ = ["DirectRunner"]


class DirectRunner:
    """The runner of a server without batching; see `Runner`.

    Args:
        backend: that runs the model.
        pool: for runs that take their time; the runner's own, closed with it.
    """

    def __init__(self, backend: Backend, pool: WorkPool) -> None:
        self._backend = backend
        self._pool = pool
        self._known: dict[str, _Known] = defaultdict(_Known)

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        context: RequestContext,
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Runner.run`."""
        known, size = self._known[signature], payload_bytes(inputs.values())
        record = current_record()
        if known.quickness.suits(size):
            began = time.perf_counter()
            found = self._backend.run_here(signature, inputs, outputs)
            seconds = time.perf_counter() - began
            known.quickness.note(size, seconds, on_loop=True)
            if record is not None:
                record.ran(began, seconds)
            return found

        def work() -> dict[str, np.ndarray]:
            began = time.perf_counter()
            result = self._backend.run(signature, inputs, outputs)
            seconds = time.perf_counter() - began
            known.note(size, seconds)
            if record is not None:
                record.ran(began, seconds)
            return result

        return await self._pool.run(work, context, known.times.run_s(size))

    async def run_together(
        self, signatures: Sequence[str], array: np.ndarray, context: RequestContext
    ) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once; see `Runner.run_together`."""
        # By their number: every choice and order of signatures that callers think of would be kept for ever.
        known, size = self._known[f"\0{len(signatures)}"], payload_bytes([array])

        def work() -> list[dict[str, np.ndarray]]:
            began = time.perf_counter()
            result = self._backend.run_together(signatures, array)
            known.times.record(size, time.perf_counter() - began)
            return result

        return await self._pool.run(work, context, known.times.run_s(size))

    def close(self) -> None:
        """Begin nothing more, and wait for what was begun; see `Runner.close`."""
        self._pool.close(wait=True)


@dataclass(slots=True)
class _Known:
    """How long a signature takes, by the size of its inputs."""

    times: ServiceTimes = field(default_factory=ServiceTimes)
    quickness: Quickness = field(default_factory=Quickness)

    def note(self, size: int, seconds: float) -> None:
        self.times.record(size, seconds)
        self.quickness.note(size, seconds, on_loop=False)
