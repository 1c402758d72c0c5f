"""Runs each request by itself.

A model that is known to be quick runs right on the event loop: the way to a thread and back costs more than the run.
Every other one runs on the threads of the pool, so that the loop never waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from moxserve.serving.backends.base import Backend
from moxserve.serving.execution.context import RequestContext
from moxserve.serving.execution.pool import WorkPool

__all__ = ["DirectRunner"]

T = TypeVar("T")

_QUICK_S = 250e-6
_SURE_AFTER = 4
_WEIGHT = 0.2
_LAPSE_S = 0.005

Key = tuple[object, int]


class DirectRunner:
    """The runner of a server without batching; see `Runner`.

    Args:
        backend: that runs the model.
        pool: for runs that take their time.
    """

    def __init__(self, backend: Backend, pool: WorkPool) -> None:
        self._backend = backend
        self._pool = pool
        self._times = _Times()

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        context: RequestContext,
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Runner.run`."""
        key = (signature, _size(inputs).bit_length())
        if self._times.quick(key):
            return self._timed(key, lambda: self._backend.run(signature, inputs, outputs))
        return await self._pool.run(
            lambda: self._timed(key, lambda: self._backend.run(signature, inputs, outputs)), context
        )

    async def run_together(
        self, signatures: Sequence[str], array: np.ndarray, context: RequestContext
    ) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once; see `Runner.run_together`."""
        return await self._pool.run(lambda: self._backend.run_together(signatures, array), context)

    def _timed(self, key: Key, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        self._times.note(key, time.perf_counter() - began)
        return result

    def close(self) -> None:
        """Free what the runner holds; the pool is everybody's."""


def _size(inputs: Mapping[str, np.ndarray]) -> int:
    size = 0
    for array in inputs.values():
        # A string may be a word or a photograph.
        size += array.nbytes if array.dtype != object else sum(map(len, array.flat))
    return size


class _Times:
    """How long runs take, by signature and magnitude of the inputs.

    Magnitude, because one row may be quick and a thousand rows not. The first runs compile things and do not count
    as typical; one that takes far too long withdraws the trust at once.
    """

    def __init__(self) -> None:
        self._known: dict[Key, tuple[int, float]] = {}

    def quick(self, key: Key) -> bool:
        count, mean_s = self._known.get(key, (0, 0.0))
        return count >= _SURE_AFTER and mean_s < _QUICK_S

    def note(self, key: Key, seconds: float) -> None:
        count, mean_s = self._known.get(key, (0, 0.0))
        if seconds > _LAPSE_S:
            self._known[key] = (0, seconds)
        elif count == 0:
            self._known[key] = (1, seconds)
        else:
            self._known[key] = (count + 1, mean_s + _WEIGHT * (seconds - mean_s))
