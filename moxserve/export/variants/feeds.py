"""Rows cut into the batches that a model takes, and its answers put together again. NumPy only, any runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from moxserve.export.variants.work import Rows
from moxserve.types import Signature

__all__ = ["Call", "answers", "batch_size", "batches"]

Call = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

_BATCH = 16


def batch_size(signature: Signature) -> int | None:
    """Return how many rows a model takes at once; None when that is free."""
    sizes = {spec.shape[0] for spec in signature.inputs.values() if spec.shape}
    fixed = sizes - {None}
    return fixed.pop() if len(fixed) == 1 else None


def batches(rows: Rows, size: int, limit: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of rows in batches of one size; what is left over at the end is filled up with the last row.

    Args:
        rows: real rows.
        size: rows a batch.
        limit: of rows; None takes all.
    """
    inputs = rows.load_inputs()
    count = rows.count if limit is None else min(limit, rows.count)
    for start in range(0, count, size):
        places = np.minimum(np.arange(start, start + size), count - 1)
        yield {alias: np.ascontiguousarray(array[places]) for alias, array in inputs.items()}


def answers(call: Call, signature: Signature, rows: Rows, limit: int | None = None) -> dict[str, np.ndarray]:
    """Ask a model all rows.

    Args:
        call: runs one batch, by alias.
        signature: tells whether the batch is fixed.
        rows: real rows.
        limit: of rows; None takes all.

    Returns:
        The outputs by alias, `[rows, ...]` each; one that is not one a row is given as it came last.
    """
    count = rows.count if limit is None else min(limit, rows.count)
    size = batch_size(signature) or max(1, min(_BATCH, count))
    found: dict[str, list[np.ndarray]] = {alias: [] for alias in signature.outputs}
    for batch in batches(rows, size, limit):
        for alias, value in call(batch).items():
            found[alias].append(np.asarray(value))
    return {alias: _together(parts, size, count) for alias, parts in found.items() if parts}


def _together(parts: list[np.ndarray], size: int, count: int) -> np.ndarray:
    if any(part.ndim == 0 or len(part) != size for part in parts):
        return parts[-1]
    return np.concatenate(parts)[:count]
