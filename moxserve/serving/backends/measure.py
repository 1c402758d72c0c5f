"""Tells whether a variant answers as another form of the model does, and how fast it is. NumPy only."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from moxserve.errors import ServingError
from moxserve.export.manifest import Tolerance, Variant
from moxserve.export.tolerances import equal_share_for, tolerance_for
from moxserve.serving.backends.base import Backend
from moxserve.serving.backends.samples import Sample
from moxserve.serving.cpus import cpus

__all__ = ["difference", "runs_per_second", "tolerance_of"]

_TINY = 1e-12
_SLICES = 3
_MAX_CALLERS = 8


def tolerance_of(variant: Variant) -> Tolerance:
    """Return the tolerance that a variant declares, or the one that its precision allows."""
    return variant.tolerance or tolerance_for(variant.precision)


def difference(
    variant: Variant, got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> str:  # fmt: skip
    """Tell in what the answer of a variant differs from the one that is expected; empty when it is near enough."""
    for alias, want in expected.items():
        have = got[alias]
        if have.dtype != want.dtype or have.shape != want.shape:
            return f"{alias!r} is {have.dtype}{list(have.shape)} and should be {want.dtype}{list(want.shape)}"
        reason = _numbers(variant, have, want) if want.dtype.kind in "fVc" else _others(variant, have, want)
        if reason:
            return f"{alias!r}: {reason}"
    return ""


def _numbers(variant: Variant, have: np.ndarray, want: np.ndarray) -> str:
    if not want.size:
        return ""
    limits = tolerance_of(variant)
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    a, b = have.astype(kind), want.astype(kind)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return "numbers that are not finite are at other places"
    gap, size = np.abs(a - b)[finite], np.abs(b)[finite]
    if limits.atol is not None or limits.rtol is not None:
        outside = gap > (limits.atol or 0.0) + (limits.rtol or 0.0) * size
        if outside.any():
            return f"{int(outside.sum())} of {gap.size} numbers are off, by up to {gap.max():.3g}"
    if limits.rel_l2 is not None:
        error = float(np.linalg.norm(gap) / max(float(np.linalg.norm(size)), _TINY))
        if error > limits.rel_l2 and gap.max() > _TINY:
            return f"relative error {error:.3g}, at most {limits.rel_l2:g} is allowed"
    if limits.agreement is not None and want.ndim >= 2 and want.shape[-1] > 1:
        share = float((a.argmax(-1) == b.argmax(-1)).mean())
        if share < limits.agreement:
            return f"the largest entry is at the same place in {share:.3g} of the rows, not {limits.agreement:g}"
    return ""


def _others(variant: Variant, have: np.ndarray, want: np.ndarray) -> str:
    limits = tolerance_of(variant)
    needed = equal_share_for(variant.precision) if limits.agreement is None else limits.agreement
    share = float((have == want).mean()) if want.size else 1.0
    return "" if share >= needed else f"{share:.3g} of its values are equal, not {needed:g}"


def runs_per_second(backend: Backend, sample: Sample, budget_s: float) -> float:
    """Measure how many requests a backend answers when as many callers as there are CPUs ask at once.

    The best of three slices of time counts: what else the machine does only makes a slice worse.

    Args:
        backend: warmed up.
        sample: the request.
        budget_s: about how long to measure; a slow model takes longer, as each caller asks once in each slice.

    Raises:
        ServingError: a run failed.
    """
    callers = min(cpus(), _MAX_CALLERS)
    return max(_slice(backend, sample, callers, budget_s / _SLICES) for _ in range(_SLICES))


def _slice(backend: Backend, sample: Sample, callers: int, length_s: float) -> float:
    counts = [0] * callers
    failed: list[ServingError] = []
    began = time.monotonic()
    until = began + length_s

    def call(i: int) -> None:
        try:
            while counts[i] == 0 or time.monotonic() < until:
                backend.run(sample.signature, sample.inputs)
                counts[i] += 1
        except ServingError as error:
            failed.append(error)

    threads: Sequence[threading.Thread] = [threading.Thread(target=call, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(counts) / (time.monotonic() - began)
