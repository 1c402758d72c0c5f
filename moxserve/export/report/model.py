"""The report of an export: everything that was done and found, as `report.json` holds it.

Sizes are in bytes or MB (1e6 bytes), times in seconds or milliseconds, as the names say; shares are 0 to 1. A change
that breaks readers raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moxserve.export.document import Document
from moxserve.export.facts import Figures, Machine, Measured

__all__ = [
    "SCHEMA_VERSION",
    "CalibrationFacts",
    "Report",
    "RequirementResult",
    "SourceFacts",
    "Sparsity",
    "TransformStep",
    "VariantReport",
    "Verdict",
]

SCHEMA_VERSION = 1
Verdict = Literal["source", "published", "passed", "dropped", "failed"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class TransformStep(_Part):
    """One transform of the frozen graph.

    Attributes:
        name: such as `fold_constants`.
        arguments: as they were given.
        by: whose implementation ran, such as `tensorflow` or `moxserve`.
        nodes_before: in the graph.
        nodes_after: in the graph; the same when it was rolled back.
        bytes_before: of the graph as a file.
        bytes_after: likewise.
        error: largest error against the graph without transforms, on real rows; None when it was not compared.
        outcome: such as `applied`, `unchanged`, `rolled back`, `failed`.
        why: in a sentence, where the outcome needs one.
        seconds: that it took.
    """

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    by: str = ""
    nodes_before: int | None = None
    nodes_after: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    error: float | None = None
    outcome: str = ""
    why: str = ""
    seconds: float | None = None


class CalibrationFacts(_Part):
    """How the ranges of int8 were found.

    Attributes:
        method: `minmax`, `entropy`, `percentile`, or `learned` by quantization-aware training.
        rows: real rows that were used.
        per_channel: one scale for each output channel of a weight.
        exclude: patterns of operations that were to stay in floating point.
        max_drop: largest loss that was put up with; None for any.
        details: further facts, by name.
    """

    method: str
    rows: int = 0
    per_channel: bool = True
    exclude: tuple[str, ...] = ()
    max_drop: float | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class Sparsity(_Part):
    """How many weights of a variable are zero.

    Attributes:
        variable: its name.
        size: how many weights it has.
        zeros: how many of them are zero.
    """

    variable: str
    size: int
    zeros: int


class SourceFacts(_Part):
    """What was exported.

    Attributes:
        kind: such as `checkpoint`, `saved_model`, `frozen_graph`, `keras`.
        path: as the user named it.
        details: such as `global_step`.
    """

    kind: str
    path: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class RequirementResult(_Part):
    """One condition, held against one variant.

    Attributes:
        requirement: as the user wrote it.
        variant: its name.
        metric: that it is about.
        value: None when it is not known.
        passed: whether it holds; what is not known does not hold.
        why: when it does not hold.
    """

    requirement: str
    variant: str
    metric: str
    value: float | None = None
    passed: bool
    why: str = ""


class VariantReport(_Part):
    """One form of the model.

    Attributes:
        name: such as `onnx_int8`; `saved_model` for the SavedModel.
        format: `saved_model`, `onnx`, `openvino` or `tflite`.
        precision: of its arithmetic.
        path: in the version directory; empty when it was not made.
        verdict: `source` for the SavedModel that the others are held against; `published`; `passed` when it is good
            enough, but nothing of the export was published; `dropped` when it is over a
            limit; `failed` when it could not be made or run.
        reasons: why it was dropped or failed, one sentence each.
        size_bytes: of its files.
        digest: SHA-256 of its files, as in the manifest.
        build_s: that making it took.
        figures: against the SavedModel; None when it did not answer, or there were no rows to ask it.
        measured: None when it was not measured.
        notes: what the user should know, one sentence each.
        details: facts of the converter, such as `opset`, operations by type, and what stayed in floating point.
        log: the end of what its process printed, where that explains a failure.
    """

    name: str
    format: str
    precision: str = "float32"
    path: str = ""
    verdict: Verdict = "published"
    reasons: tuple[str, ...] = ()
    size_bytes: int = 0
    digest: str = ""
    build_s: float | None = None
    figures: Figures | None = None
    measured: Measured | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    log: str = ""


class Report(_Part, Document):
    """The whole of `report.json`.

    Attributes:
        schema_version: of this format.
        created: UTC, ISO 8601.
        model_name: as the exporter was told.
        version: name of the version directory; empty when nothing was published.
        path: where it was published; empty when nothing was.
        failure: why nothing was published; empty when something was.
        source: what was exported.
        signature: key of the one that variants serve.
        signatures: every signature, as text, by key.
        rows: real rows that the variants were compared on.
        labels_known: whether the right classes of these were known.
        calibration: None when nothing was calibrated.
        transforms: of the frozen graph, in order.
        nodes: in the frozen graph before the transforms; None when nothing was frozen.
        variants: the SavedModel first.
        requirements: conditions of the user, for each variant that they are about.
        sparsity: of pruned variables.
        notes: what the user should know, one sentence each.
        machine: where all this ran; None takes that of the first measured variant.
        tools: program -> version.
        options: as they were given, for repeating the export.
        phases: phase -> seconds.
    """

    schema_version: int = SCHEMA_VERSION
    created: datetime = Field(default_factory=lambda: datetime.now(timezone.utc).replace(microsecond=0))
    model_name: str
    version: str = ""
    path: str = ""
    failure: str = ""
    source: SourceFacts
    signature: str = ""
    signatures: dict[str, str] = Field(default_factory=dict)
    rows: int = 0
    labels_known: bool = False
    calibration: CalibrationFacts | None = None
    transforms: tuple[TransformStep, ...] = ()
    nodes: int | None = None
    variants: tuple[VariantReport, ...] = ()
    requirements: tuple[RequirementResult, ...] = ()
    sparsity: tuple[Sparsity, ...] = ()
    notes: tuple[str, ...] = ()
    machine: Machine | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    phases: dict[str, float] = Field(default_factory=dict)

    def variant(self, name: str) -> VariantReport | None:
        """Return the variant of a name."""
        return next((v for v in self.variants if v.name == name), None)

    @property
    def source_variant(self) -> VariantReport | None:
        """The form that the others are held against."""
        return next((v for v in self.variants if v.verdict == "source"), None)
