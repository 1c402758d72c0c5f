"""A variant run by the server's own backend, in a process of its own, before it is handed back.

With rows one at a time and with the same rows together: a runtime may answer otherwise to a single row, or end the
process (OpenVINO's int8 does both). What is compared is the variant with itself; how far it is from the source is
judged later, for every format alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from moxserve import file
from moxserve.errors import VerificationError
from moxserve.export.variants.feeds import batch_size
from moxserve.export.variants.work import Rows, Work
from moxserve.probe import ProbeOptions, probe
from moxserve.types import Signature

__all__ = ["try_out"]

_ROWS = 8
# Kernels for one row and for several round differently; beyond this it is another answer.
_APART = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 2e-2, "dynamic": 0.1, "int8": 0.05}
_EQUAL = 0.75
_TINY = 1e-6


def try_out(work: Work, key: str = "") -> None:
    """Load a finished variant as the server would, and ask it.

    Args:
        work: the model file is in its directory.
        key: of the signature, as the server calls it in a directory with this file alone; empty takes the work's.

    Raises:
        VerificationError: it cannot be loaded, ends the process, or answers otherwise to one row than to several.
    """
    name = work.target.name
    with file.scratch_directory() as folder:
        rows = _some_rows(work) or _made_up_rows(work.signature, folder)
        if rows is None:
            return
        size = batch_size(work.signature)
        options = ProbeOptions(batch=size or _ROWS, singles=_ROWS if size is None else 0, measure=False, scratch=folder)
        result = probe(work.directory, work.target.format, key or work.signature.name, rows, options)
    if result.error:
        raise VerificationError(f"{name} was made, but does not run: {result.error}")
    reason = _difference(result.singles, result.outputs, _APART[work.target.precision])
    if reason:
        raise VerificationError(
            f"{name} answers otherwise to a single row than to {_ROWS} rows: {reason}",
            hint="a fault of the runtime with this graph; leave this precision out, or exclude the operations at fault",
        )


def _some_rows(work: Work) -> Rows | None:
    rows = work.evaluation if work.evaluation.count else work.calibration
    if not rows.count:
        return None
    return replace(rows, count=min(rows.count, max(_ROWS, batch_size(work.signature) or 0)))


def _made_up_rows(signature: Signature, folder: str) -> Rows | None:
    """Write random rows that fit; None for a signature that they mean nothing to."""
    from moxserve.serving.backends.samples import made_up

    sample = next(made_up(signature), None)
    counts = {len(array) if array.ndim else 0 for array in sample.inputs.values()} if sample else set()
    if sample is None or len(counts) != 1 or 0 in counts:
        return None
    names = {alias: f"input_{i}.npy" for i, alias in enumerate(sample.inputs)}
    for alias, array in sample.inputs.items():
        np.save(os.path.join(folder, names[alias]), array)
    return Rows(folder, counts.pop(), names)


def _difference(singles: Mapping[str, np.ndarray], together: Mapping[str, np.ndarray], allowed: float) -> str:
    for alias, one in singles.items():
        if not one.ndim:
            continue  # not one a row
        many = together[alias][: len(one)]
        if one.shape != many.shape:
            return f"{alias!r} is {list(one.shape)} and {list(many.shape)}"
        if one.dtype.kind not in "fV":
            share = float((one == many).mean()) if one.size else 1.0
            if share < _EQUAL:
                return f"{alias!r}: {share:.3g} of the values are equal"
            continue
        a, b = one.astype(np.float64), many.astype(np.float64)
        error = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), _TINY))
        if not error <= allowed:
            return f"{alias!r} is off by {error:.2g} of its size"
    return ""
