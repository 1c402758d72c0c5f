"""What is known of a form of a model: how far its answers are from the source's, how fast, how large. Models only.

They stand in the manifest, where a server reads them, and in the report. Every number is finite, so that each can be
written as JSON and held against a limit. No TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Figures",
    "Machine",
    "Measured",
    "OutputCheck",
    "OutputFigures",
    "Timing",
    "Tolerance",
    "Verification",
]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class OutputFigures(_Facts):
    """How far one output is from what the source model answers.

    Attributes:
        output: alias.
        dtype: TensorFlow's name, such as `float32`.
        max_abs_error: largest `|got - expected|`; 0 for outputs that are no real numbers.
        max_rel_error: largest `|got - expected|` as a share of the largest `|expected|` of the whole output: elements
            that are nearly 0 would say nothing by themselves.
        rel_l2: `||got - expected|| / ||expected||`.
        sqnr_db: signal-to-quantization-noise ratio, `20 log10(||expected|| / ||got - expected||)`, between -400 and
            400; 400 for equal outputs.
        equal_share: of outputs that are no real numbers (whole numbers, booleans, strings), the share of values that
            are equal; None for real numbers.
        misplaced: values that are not finite here and finite in the source, or not the same infinity; they count in
            none of the other figures.
    """

    output: str
    dtype: str
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    rel_l2: float = 0.0
    sqnr_db: float = 400.0
    equal_share: float | None = None
    misplaced: int = 0


class Figures(_Facts):
    """How far a form of a model is from its source, on real rows.

    Attributes:
        rows: how many were compared.
        outputs: of all rows, answered in batches.
        single_rows: how many of the first rows were answered one at a time, too; runtimes go another way for them.
        singles: the outputs of those.
        problems: what keeps answers from being compared, such as a missing output; empty when all can be.
        scores: alias of the output whose largest entry is the model's choice; empty without one.
        top1_agreement: share of rows with the source's choice.
        top5_agreement: mean share of the first five choices that are among the source's first five; None with
            five classes or fewer, where that says nothing.
        accuracy: share of rows with the right choice; None when no labels are known.
        source_accuracy: the source model's, on the same rows.
    """

    rows: int
    outputs: tuple[OutputFigures, ...] = ()
    single_rows: int = 0
    singles: tuple[OutputFigures, ...] = ()
    problems: tuple[str, ...] = ()
    scores: str = ""
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    accuracy: float | None = None
    source_accuracy: float | None = None

    @property
    def accuracy_drop(self) -> float | None:
        """The source's accuracy minus this one's; negative when this one is better."""
        if self.accuracy is None or self.source_accuracy is None:
            return None
        return self.source_accuracy - self.accuracy

    @property
    def compared(self) -> Sequence[OutputFigures]:
        """Every output, in batches and alone."""
        return (*self.outputs, *self.singles)

    @property
    def max_abs_error(self) -> float:
        """Of all outputs."""
        return max((o.max_abs_error for o in self.compared), default=0.0)

    @property
    def max_rel_error(self) -> float:
        """Of all outputs."""
        return max((o.max_rel_error for o in self.compared), default=0.0)

    @property
    def rel_l2(self) -> float:
        """Of the output that is furthest off."""
        return max((o.rel_l2 for o in self.compared), default=0.0)

    @property
    def sqnr_db(self) -> float:
        """Of the output that is furthest off."""
        return min((o.sqnr_db for o in self.compared), default=400.0)


class OutputCheck(_Facts):
    """How far one output of one signature was from the reference."""

    signature: str
    output: str
    max_abs_error: float
    max_rel_error: float


class Verification(_Facts):
    """What was compared before the version was published.

    Attributes:
        mode: `samples` for real rows; `zeros` when there were none and one row of zeros was run; `loaded` when the
            model does not take zeros either and was only loaded.
        rows: how many real rows were compared.
        references: what the artifact was held against, such as `EXPORT graph` and `EVAL graph`.
        atol: absolute tolerance.
        rtol: relative tolerance.
        max_abs_error: over all outputs.
        outputs: per signature and output.
    """

    mode: Literal["samples", "zeros", "loaded"]
    rows: int = 0
    references: tuple[str, ...] = ()
    atol: float
    rtol: float
    max_abs_error: float = 0.0
    outputs: tuple[OutputCheck, ...] = ()


class Tolerance(_Facts):
    """How far the answers of a variant may be from those of the SavedModel; what is None is not asked.

    Attributes:
        atol: absolute, for each element; with `rtol`.
        rtol: relative, for each element: `|got - expected| <= atol + rtol * |expected|`.
        rel_l2: for each output, `||got - expected|| / ||expected||`.
        agreement: share of rows of each output of rank 2 or more whose largest entry is at the same place, 0 to 1.
    """

    atol: float | None = Field(default=None, ge=0)
    rtol: float | None = Field(default=None, ge=0)
    rel_l2: float | None = Field(default=None, ge=0)
    agreement: float | None = Field(default=None, ge=0, le=1)


class Machine(_Facts):
    """Where something was measured.

    Attributes:
        cpu: model name of the CPU, such as `Intel(R) Xeon(R) Platinum 8481C`.
        architecture: such as `x86_64`.
        cpus: how many the process could use.
        versions: package -> version, of the runtimes that are installed there.
    """

    cpu: str
    architecture: str = ""
    cpus: int
    versions: dict[str, str] = Field(default_factory=dict)


class Timing(_Facts):
    """How fast one batch size is answered by one caller.

    Attributes:
        batch: rows a call.
        calls: how many were timed.
        min_ms: of one call.
        p50_ms: of one call.
        p95_ms: of one call.
        rows_per_s: at the median call.
        best_rows_per_s: at the fastest call.
        cpu_ms: CPU time of a call, all threads together, on average.
    """

    batch: int
    calls: int
    min_ms: float
    p50_ms: float
    p95_ms: float
    rows_per_s: float
    best_rows_per_s: float
    cpu_ms: float


class Measured(_Facts):
    """What a form of a model costs, measured alone in a process of its own.

    Attributes:
        machine: where.
        load_s: until it could be called, its runtime already loaded.
        first_call_ms: of the first call after that, one row.
        timings: by batch size, ascending.
        base_memory_mb: resident memory before the model was loaded, with its runtime and the rows; MB are 1e6 bytes.
        peak_memory_mb: the most that the process ever took after that.
        threads: inside one operation, as asked for; 0 for what the runtime takes by itself.
    """

    machine: Machine
    load_s: float
    first_call_ms: float
    timings: tuple[Timing, ...] = ()
    base_memory_mb: float
    peak_memory_mb: float
    threads: int = 0

    def at(self, batch: int) -> Timing | None:
        """Return the timing of a batch size, None when it was not measured."""
        return next((t for t in self.timings if t.batch == batch), None)
