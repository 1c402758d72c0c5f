"""Puts the arrays of several requests together, and takes what came out apart again. NumPy only.

Everything goes along dimension 0. Putting together is one copy into one new array; one request alone is not copied;
taking apart gives views.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from moxserve.errors import FailedPrecondition
from moxserve.serving.batching.scheduler import Task

__all__ = ["alike", "check_rows", "merge", "split"]


def alike(tasks: Sequence[Task], *, pad_lengths: bool) -> list[list[Task]]:
    """Sort tasks into those that can be put together, in the order of their first ones.

    Arrays go together when they have the same element type and the same dimensions but for the first. With
    `pad_lengths` the same number of dimensions is enough, unless an array is empty: there is nothing to fill it with.

    Args:
        tasks: of one queue.
        pad_lengths: whether `merge` may fill arrays up.
    """
    if len(tasks) == 1:
        return [list(tasks)]
    groups: dict[Hashable, list[Task]] = {}
    for task in tasks:
        groups.setdefault(_kind(task, pad_lengths), []).append(task)
    return list(groups.values())


def _kind(task: Task, pad_lengths: bool) -> Hashable:
    # A task without rows has none to fill a batch up with.
    return (
        task.rows == 0,
        *[(a.dtype, a.ndim if pad_lengths and a.size else a.shape[1:]) for a in task.arrays],
    )


def merge(tasks: Sequence[Task], rows: int) -> list[np.ndarray]:
    """Put the inputs of tasks together.

    Arrays whose other dimensions differ are filled up at their ends, each with its own first element. Rows that are
    missing at the end are copies of the first row of the last task.

    Args:
        tasks: that are `alike`.
        rows: of the result; not less than those of the tasks.

    Returns:
        One array [rows, ...] an input.
    """
    missing = rows - sum(task.rows for task in tasks)
    if len(tasks) == 1 and not missing:
        return list(tasks[0].arrays)
    return [_joined([task.arrays[i] for task in tasks], missing) for i in range(len(tasks[0].arrays))]


def _joined(arrays: Sequence[np.ndarray], missing: int) -> np.ndarray:
    last = arrays[-1]
    if any(array.shape[1:] != last.shape[1:] for array in arrays):
        return _filled(arrays, missing)
    if missing:
        arrays = [*arrays, np.broadcast_to(last[:1], (missing, *last.shape[1:]))]
    return np.concatenate(arrays)


def _filled(arrays: Sequence[np.ndarray], missing: int) -> np.ndarray:
    lengths = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    rows = sum(len(array) for array in arrays)
    result = np.empty((rows + missing, *lengths), arrays[0].dtype)
    begin = 0
    for array in arrays:
        part = result[begin : begin + len(array)]
        if array.shape != part.shape:
            part[...] = array[(0,) * array.ndim]
        part[tuple(map(slice, array.shape))] = array
        begin += len(array)
    result[rows:] = result[rows - len(arrays[-1])]
    return result


def check_rows(outputs: Sequence[np.ndarray], rows: int) -> None:
    """Check that outputs can be taken apart.

    Raises:
        FailedPrecondition: one has not as many rows as went in.
    """
    for array in outputs:
        if array.ndim == 0:
            raise FailedPrecondition("Batched output tensor has 0 dimensions")
        if len(array) != rows:
            raise FailedPrecondition(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors"
            )


def split(outputs: Sequence[np.ndarray], tasks: Sequence[Task]) -> None:
    """Give each task its rows of the outputs, as views. Rows that are left over are dropped."""
    begin = 0
    for task in tasks:
        end = begin + task.rows
        task.outputs = [array[begin:end] for array in outputs]
        begin = end
