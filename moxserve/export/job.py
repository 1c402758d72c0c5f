"""What is to be exported, and what came of it: the seam between training and export. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.types import Signature, TensorSpec

__all__ = ["ExportJob", "ExportResult"]


@dataclass(frozen=True)
class ExportJob:
    """A checkpoint, the function that builds its model, and where the artifact goes.

    Attributes:
        model_fn: called once more, with mode EXPORT; its ModelSpec must carry an ExportSpec.
        inputs: the inputs of model_fn in order; first dimension None where the batch may vary.
        checkpoint: prefix of the checkpoint files.
        base_dir: BASE of `BASE/<version>/`.
        samples: one array per input, equal first dimension: real rows, for verification and warmup.
        model_name: name that warmup records and the manifest carry.
        labels: class names by index, used when the ExportSpec has none.
        warmup_batches: batch sizes of the warmup records; empty for no warmup file.
        atol: largest absolute difference that verification lets pass.
        rtol: the same, relative to the reference.
        metadata: put into the manifest as it is; must be JSON.
    """

    model_fn: Callable[..., Any]
    inputs: Sequence[TensorSpec]
    checkpoint: str
    base_dir: str
    samples: Sequence[np.ndarray] = ()
    model_name: str = "default"
    labels: Sequence[str] | None = None
    warmup_batches: Sequence[int] = (1, 8, 32)
    atol: float = 1e-5
    rtol: float = 1e-4
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportResult:
    """A published version.

    Attributes:
        path: the version directory.
        version: its number or name.
        signatures: by key.
        max_abs_error: largest absolute difference to the reference over all signatures and samples.
        warmup_records: how many warmup records were written.
        size_bytes: of the whole directory.
        seconds: wall time of the export.
    """

    path: str
    version: int | str
    signatures: Mapping[str, Signature]
    max_abs_error: float
    warmup_records: int
    size_bytes: int
    seconds: float
