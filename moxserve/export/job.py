"""What is to be exported, and what came of it: the seam between training and export. No TensorFlow.

JobOptions          where the version goes, how it is verified, what is made beside the SavedModel
  ExportJob         of a checkpoint and the function that builds its model
  ModelFileJob      of a file or folder that holds a whole model, with rows by input name
    SavedModelJob   of any SavedModel
    GraphJob        of a frozen GraphDef
    KerasJob        of a Keras model file
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import UsageError
from moxserve.export.report.model import Report
from moxserve.export.targets import VariantOptions
from moxserve.types import Signature, TensorSpec, dtype_of

__all__ = ["ExportJob", "ExportResult", "GraphJob", "JobOptions", "KerasJob", "ModelFileJob", "SavedModelJob"]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What every export is told, whatever its source.

    Attributes:
        base_dir: BASE of `BASE/<version>/`.
        model_name: name that warmup records and the manifest carry.
        warmup_batches: batch sizes of the warmup records; empty for no warmup file.
        warmup_logs: request logs of a server, some of which become warmup records, too: files, folders or prefixes.
        atol: largest absolute difference that verification lets pass.
        rtol: the same, relative to the reference.
        metadata: put into the manifest as it is; must be JSON.
        version: overrides the model's version: -1 for the next free number, a number, or a folder name; None takes what
            the model says, or -1.
        variants: the further forms to make.
        label_input: the input of model_fn that holds the right class of each row; empty takes the one called `label` or
            `labels`.
        keep: how many versions are to be left below BASE, this one included; None leaves all.
        push: `host:port` of a server that is waited for until it serves the new version; empty waits for nobody.
        report_dir: folder for the report; empty writes it into the version only.
        op_libraries: shared objects with custom operations of the model.
    """

    base_dir: str
    model_name: str = "default"
    warmup_batches: Sequence[int] = (1, 8, 32)
    warmup_logs: Sequence[str] = ()
    atol: float = 1e-5
    rtol: float = 1e-4
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: int | str | None = None
    variants: VariantOptions = field(default_factory=VariantOptions)
    label_input: str = ""
    keep: int | None = None
    push: str = ""
    report_dir: str = ""
    op_libraries: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be exported, before any work is done.

        Raises:
            UsageError: an option is out of its range, or samples do not belong to the inputs.
        """
        if not self.model_name:
            raise UsageError("model_name is empty; expected the name that clients will ask for")
        for size in self.warmup_batches:
            if not _is_count(size):
                raise UsageError(f"warmup batch size {size!r}: expected a whole number of at least 1")
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            # Written so that NaN is refused as well.
            if not value >= 0:
                raise UsageError(f"{name} {value!r}: expected a number of at least 0")
        if self.keep is not None and not _is_count(self.keep):
            raise UsageError(f"keep {self.keep!r}: expected a whole number of at least 1, or None to keep all versions")

    @property
    def sample_rows(self) -> int:
        """How many real rows there are; 0 without samples."""
        return 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class ExportJob(JobOptions):
    """A checkpoint, the function that builds its model, and where the artifact goes.

    Attributes:
        model_fn: called once more, with mode EXPORT; its ModelSpec must carry an ExportSpec.
        inputs: the inputs of model_fn in order; first dimension None where the batch may vary.
        checkpoint: prefix of the checkpoint files; or a URL of it, or of the folder that it is in.
        samples: one array per input, equal first dimension: real rows, for verification and warmup.
        labels: class names by index, used when the ExportSpec has none.
        check_eval: also compare with the EVAL graph, where model_fn gives an ExportSpec in that mode too.
    """

    model_fn: Callable[..., Any]
    inputs: Sequence[TensorSpec]
    checkpoint: str
    samples: Sequence[np.ndarray] = field(default=(), kw_only=True)
    labels: Sequence[str] | None = field(default=None, kw_only=True)
    check_eval: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be exported; see JobOptions.

        Raises:
            UsageError: no inputs, an option out of its range, or samples that do not belong to the inputs.
        """
        if not self.inputs:
            raise UsageError("an export needs at least one input of model_fn; got none")
        super().__post_init__()
        names = [spec.name for spec in self.inputs]
        if self.label_input and self.label_input not in names:
            raise UsageError(f"label_input {self.label_input!r} is no input of model_fn; it has {', '.join(names)}")
        self._check_samples()

    def _check_samples(self) -> None:
        if len(self.samples) == 0:
            return
        if len(self.samples) != len(self.inputs):
            raise UsageError(f"samples has {len(self.samples)} arrays; model_fn has {len(self.inputs)} inputs")
        _check_rows({s.name: a for s, a in zip(self.inputs, self.samples, strict=True)})
        for spec, array in zip(self.inputs, self.samples, strict=True):
            if dtype_of(array) != spec.dtype or not _rows_fit(array, spec):
                got = f"{dtype_of(array).name}{list(array.shape)}"
                raise UsageError(f"samples of input {spec.name!r} are {got}; model_fn takes {spec}")

    @property
    def sample_rows(self) -> int:
        """How many real rows there are; 0 without samples."""
        return len(self.samples[0]) if len(self.samples) else 0


def _check_rows(samples: Mapping[str, np.ndarray]) -> None:
    rows = {len(a) if np.ndim(a) else None for a in samples.values()}
    if len(rows) != 1 or None in rows:
        shapes = ", ".join(f"{name} {list(np.shape(a))}" for name, a in samples.items())
        raise UsageError(f"samples must have one first dimension, the rows; got {shapes}")


def _rows_fit(array: np.ndarray, spec: TensorSpec) -> bool:
    """Tell whether rows have the shape that an input takes; the first dimension is the caller's business."""
    if not spec.shape:
        return True
    row, wanted = array.shape[1:], spec.shape[1:]
    return len(row) == len(wanted) and all(w is None or n == w for n, w in zip(row, wanted, strict=True))


@dataclass(frozen=True)
class ModelFileJob(JobOptions):
    """A model that is whole on disk.

    Attributes:
        path: the file or folder.
        samples: alias -> rows of the main signature, equal first dimension.
        sample_labels: `[rows]` whole numbers, the right class of each row; None when they are not known.
        samples_file: file or folder to read samples and labels from instead, in any form that `moxserve predict`
            reads; empty for none.
        sample_limit: how many rows of it are read; None reads all.
    """

    path: str
    samples: Mapping[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    sample_labels: np.ndarray | None = field(default=None, kw_only=True)
    samples_file: str = field(default="", kw_only=True)
    sample_limit: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be exported; see JobOptions.

        Raises:
            UsageError: an option is out of its range, or the samples have no common rows.
        """
        super().__post_init__()
        if not self.path:
            raise UsageError("the path of the model is empty")
        if self.samples and self.samples_file:
            raise UsageError(f"samples are given twice: as arrays, and as the file {self.samples_file!r}")
        if self.sample_limit is not None and not _is_count(self.sample_limit):
            raise UsageError(f"sample_limit {self.sample_limit!r}: expected a whole number of at least 1, or None")
        if self.samples:
            _check_rows(self.samples)
        if self.label_input:
            raise UsageError(
                f"label_input {self.label_input!r} names an input of a model_fn, which {self.path!r} has not",
                hint="the right classes of the rows lie beside them, as `labels`",
            )
        labels = self.sample_labels
        if labels is None:
            return
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != self.sample_rows:
            raise UsageError(
                f"labels are {labels.dtype}{list(labels.shape)}; expected one whole number for each of the "
                f"{self.sample_rows} rows of the samples"
            )

    @property
    def sample_rows(self) -> int:
        """How many real rows were given as arrays; 0 without."""
        return len(next(iter(self.samples.values()))) if self.samples else 0


@dataclass(frozen=True)
class SavedModelJob(ModelFileJob):
    """Any SavedModel: of TensorFlow 1 or 2, of Keras, or a version that moxserve published.

    Attributes:
        tags: of the graph to take, where the SavedModel has several.
        signatures: key in the artifact -> key in the source; empty takes all signatures as they are.
    """

    tags: Sequence[str] = field(default=("serve",), kw_only=True)
    signatures: Mapping[str, str] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class GraphJob(ModelFileJob):
    """A frozen GraphDef, as `.pb` or `.pbtxt`.

    Attributes:
        inputs: alias -> name of a tensor in the graph; empty takes all placeholders.
        outputs: alias -> name of a tensor in the graph; empty takes all tensors that nothing else uses.
    """

    inputs: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    outputs: Mapping[str, str] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class KerasJob(ModelFileJob):
    """A Keras model file: `.keras`, or the older `.h5`."""


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
        notes: what the caller should know, such as "no samples", or which variant was dropped and why.
        report: what was found of each variant; None without variants.
        removed: old versions that were deleted.
        served_s: seconds until the server of `push` served it; None without one.
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
    report: Report | None = None
    removed: Sequence[int] = ()
    served_s: float | None = None
