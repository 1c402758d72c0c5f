"""What is to be exported, and what came of it: the seam between training and export. No TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import UsageError
from moxserve.types import Signature, TensorSpec, dtype_of

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
        version: overrides the ExportSpec's version: -1 for the next free number, a number, or a folder name.
        check_eval: also compare with the EVAL graph, where model_fn gives an ExportSpec in that mode too.
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
    version: int | str | None = None
    check_eval: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be exported, before any work is done.

        Raises:
            UsageError: no inputs, a bad batch size or tolerance, or samples that do not belong to the inputs.
        """
        if not self.inputs:
            raise UsageError("an export needs at least one input of model_fn; got none")
        if not self.model_name:
            raise UsageError("model_name is empty; expected the name that clients will ask for")
        for size in self.warmup_batches:
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UsageError(f"warmup batch size {size!r}: expected a whole number of at least 1")
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            # Written so that NaN is refused as well.
            if not value >= 0:
                raise UsageError(f"{name} {value!r}: expected a number of at least 0")
        self._check_samples()

    def _check_samples(self) -> None:
        if len(self.samples) == 0:
            return
        if len(self.samples) != len(self.inputs):
            raise UsageError(f"samples has {len(self.samples)} arrays; model_fn has {len(self.inputs)} inputs")
        rows = {len(a) if np.ndim(a) else None for a in self.samples}
        if len(rows) != 1 or None in rows:
            shapes = ", ".join(f"{s.name} {list(np.shape(a))}" for s, a in zip(self.inputs, self.samples, strict=True))
            raise UsageError(f"samples must have one first dimension, the rows; got {shapes}")
        for spec, array in zip(self.inputs, self.samples, strict=True):
            if dtype_of(array) != spec.dtype or not _rows_fit(array, spec):
                got = f"{dtype_of(array).name}{list(array.shape)}"
                raise UsageError(f"samples of input {spec.name!r} are {got}; model_fn takes {spec}")

    @property
    def sample_rows(self) -> int:
        """How many real rows there are; 0 without samples."""
        return len(self.samples[0]) if len(self.samples) else 0


def _rows_fit(array: np.ndarray, spec: TensorSpec) -> bool:
    """Tell whether rows have the shape that an input takes; the first dimension is the caller's business."""
    if not spec.shape:
        return True
    row, wanted = array.shape[1:], spec.shape[1:]
    return len(row) == len(wanted) and all(w is None or n == w for n, w in zip(row, wanted, strict=True))


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
        verified_rows: how many real rows were compared; 0 when there were no samples.
        notes: what the caller should know, such as "no samples".
    """

    path: str
    version: int | str
    signatures: Mapping[str, Signature]
    max_abs_error: float
    warmup_records: int
    size_bytes: int
    seconds: float
    verified_rows: int = 0
    notes: Sequence[str] = ()
