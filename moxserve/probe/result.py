"""What a probe is asked, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moxserve.export.facts import Measured

__all__ = ["ProbeOptions", "ProbeResult"]


@dataclass(frozen=True)
class ProbeOptions:
    """How a form of a model is tried.

    Attributes:
        batch: rows a call when all rows are answered; a model of a fixed batch size takes that.
        singles: how many of the first rows are answered one at a time, too.
        measure: also measure speed and memory.
        batch_sizes: to measure.
        budget_s: about how long each of them is measured; a slow model takes longer, as it is called some times at
            least.
        timeout_s: after this the process is killed, and the result says so.
        tags: tag set of the MetaGraph to take from a SavedModel.
        intra_op_threads: threads inside one operation; 0 lets the runtime decide, as for a server.
        inter_op_threads: operations at once; 0 lets the runtime decide.
        op_libraries: shared libraries with operations that TensorFlow lacks, loaded before a SavedModel.
        scratch: folder for a temporary folder; empty takes the system's.
    """

    batch: int = 32
    singles: int = 8
    measure: bool = True
    batch_sizes: tuple[int, ...] = (1, 32)
    budget_s: float = 2.0
    timeout_s: float = 600.0
    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    op_libraries: tuple[str, ...] = ()
    scratch: str = ""


@dataclass(frozen=True)
class ProbeResult:
    """What a form of a model answered, and what it costs.

    Attributes:
        variant: its name; `saved_model` for the SavedModel itself.
        platform: the runtime, such as `onnxruntime`.
        error: why it could not be tried to the end, with what the process said last; empty when it could.
        outputs: answers to all rows, by alias, `[rows, ...]` each.
        singles: answers to the first rows, one at a time, by alias; empty when the batch size is fixed.
        size_bytes: of its files.
        digest: of its files, as in the manifest.
        measured: None when that was not asked for, or failed.
        notes: what was left out and why, one sentence each.
        log: the end of what the process printed.
        seconds: how long the process ran.
    """

    variant: str
    platform: str = ""
    error: str = ""
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    singles: Mapping[str, np.ndarray] = field(default_factory=dict)
    size_bytes: int = 0
    digest: str = ""
    measured: Measured | None = None
    notes: tuple[str, ...] = ()
    log: str = ""
    seconds: float = 0.0
