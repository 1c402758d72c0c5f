"""The stages of a pipeline that are no plugins, and the base of every plugin's parameters. Pydantic, no TensorFlow."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from moxserve.errors import UsageError
from moxserve.export.targets import FORMATS, parse_targets

__all__ = [
    "EvaluateStage",
    "ExistingDir",
    "ExistingFile",
    "ExportStage",
    "OutputPath",
    "PathRole",
    "PluginConfig",
    "PredictStage",
    "PruningStage",
    "QuantizationStage",
    "StrictModel",
    "path_role",
    "told_apart_by",
]


@dataclass(frozen=True, slots=True)
class PathRole:
    """Marks a text field as a path, relative to the current directory.

    Attributes:
        must_be: `dir` or `file` when it must exist before a run; `out` when the run makes it.
    """

    must_be: str


def path_role(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return the role of a field's path, `dir`, `file` or `out`; empty when the field is no path."""
    for mark in (*metadata, *getattr(annotation, "__metadata__", ())):
        if isinstance(mark, PathRole):
            return mark.must_be
    # `ExistingDir | None` carries its mark inside the union.
    return next((role for inner in typing.get_args(annotation) if (role := path_role(inner))), "")


ExistingDir = Annotated[str, PathRole("dir")]
ExistingFile = Annotated[str, PathRole("file")]
OutputPath = Annotated[str, PathRole("out")]


class StrictModel(BaseModel):
    """A mapping in which every key is known and a boolean is never taken for a number. Immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic reads `true` as 1; in a file that people write it is always a mistake.
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = {annotation, *typing.get_args(annotation)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("expected a number")
        return value


def told_apart_by(key: str, models: Mapping[str, type[BaseModel]]) -> Any:
    """Return the type of a mapping that is one of several models; one of its keys says which.

    Args:
        key: the key; each model has a field for it.
        models: what the key says -> model.
    """

    # Not pydantic's own discriminator by field, which does not go with a validator of all fields.
    def which(value: Any) -> Any:
        found = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
        return found if isinstance(found, str) else None

    which.__name__ = key  # pydantic's error names it
    tagged = tuple(Annotated[model, Tag(tag)] for tag, model in models.items())
    return Annotated[typing.Union[tagged], Discriminator(which)]  # noqa: UP007 - made of a mapping


def _as_words(value: Any) -> Any:
    """Read `true`, `int8`, `float32,int8` and `[float32, int8]` alike."""
    if isinstance(value, bool):
        return ("float32",) if value else ()
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


class PluginConfig(StrictModel):
    """The base of every plugin: its fields are the keys that YAML may hold beside `plugin:`.

    A subclass is importable without TensorFlow, says what it is in the first line of its docstring, and has the method
    of its slot (see `moxserve.pipeline.slots`).

    Attributes:
        slot: one of input, model, optimizer, run; set by the slot's base class.
    """

    slot: ClassVar[str] = ""

    plugin: str = Field(default="", description="Name of the plugin, module:Class or ./file.py:Class.")

    def check(self) -> Iterable[tuple[str, str]]:
        """Look for what is wrong before anything runs: cheap, without TensorFlow.

        Runs on `pipeline validate` and before `pipeline run`, when every field is valid and every path marked
        `ExistingDir` or `ExistingFile` is there.

        Returns:
            Pairs of a field's name (empty for the whole plugin) and what is wrong with it.
        """
        return ()


_WORDS = {"anyOf": [{"type": "boolean"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Precisions = Annotated[tuple[str, ...], BeforeValidator(_as_words), WithJsonSchema(_WORDS)]


def _patterns(value: list[str]) -> list[str]:
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {pattern!r}: {error}") from None
    return value


Patterns = Annotated[list[str], AfterValidator(_patterns)]


class QuantizationStage(StrictModel):
    """Train for int8: kernels and activations are rounded in training, batch norms folded; see docs/compression.md."""

    start_step: int = Field(
        default=0, ge=0, description="Step up to which the model is trained in floating point before that."
    )
    per_channel: bool = Field(
        default=True, description="One scale for each output channel of a convolution, not one for the whole kernel."
    )
    exclude: Patterns = Field(
        default=[], description="Regular expressions: kernels with such a name stay in floating point."
    )
    range_decay: float = Field(
        default=0.99, ge=0, lt=1, description="Decay of the averages that learn the ranges of activations."
    )
    learning_rate_scale: float = Field(
        default=1.0, gt=0, description="What the optimizer's learning rate is multiplied by while it is quantized."
    )


class PruningStage(StrictModel):
    """Make the smallest weights of each kernel zero while training; see docs/compression.md."""

    sparsity: float = Field(default=0.8, gt=0, lt=1, description="Share of zeros in each kernel at the end.")
    begin_step: int = Field(default=0, ge=0, description="Step that pruning begins at.")
    end_step: int = Field(ge=0, description="Step at which the sparsity is reached; train on for a while after it.")
    every_steps: int | None = Field(
        default=None, ge=1, description="Steps between two choices of what to prune; a twentieth of the way by default."
    )
    exclude: Patterns = Field(default=[], description="Regular expressions: kernels with such a name are left alone.")

    @field_validator("end_step")
    @classmethod
    def _after_begin(cls, value: int, info: ValidationInfo) -> int:
        begin = info.data.get("begin_step")
        if begin is not None and value < begin:
            raise ValueError(f"expected a step after begin_step, which is {begin}")
        return value


class ExportStage(StrictModel):
    """What becomes of the trained checkpoint: a version in TensorFlow Serving's layout, with variants beside it."""

    tf_serving: OutputPath = Field(
        min_length=1, description="Base directory or s3:// URL: the artifact is BASE/<version>/, the version counts up."
    )
    model_name: str = Field(default="default", min_length=1, description="Name in warmup records and in the manifest.")
    frozen: Precisions = Field(default=(), description="Frozen graphs to add: float32, bfloat16; `true` means float32.")
    onnx: Precisions = Field(default=(), description="ONNX models to add: float32, float16, dynamic, int8.")
    tflite: Precisions = Field(default=(), description="TFLite models to add: float32, float16, dynamic, int8.")
    openvino: Precisions = Field(default=(), description="OpenVINO models to add: float32, bfloat16, float16, int8.")
    signature: str = Field(
        default="", description="Signature that the variants serve; serving_default, or the only predict signature."
    )
    transforms: str | None = Field(
        default=None, description="Graph transforms before the conversion, in order; safe ones by default, '' for none."
    )
    grappler: list[str] = Field(default=[], description="Passes of TensorFlow's graph optimizer to run on the graph.")
    xla: bool = Field(default=False, description="Have XLA compile the frozen float32 variant when it is served.")
    opset: int = Field(default=17, ge=7, description="Opset of ONNX models.")
    calibration: Literal["minmax", "entropy", "percentile"] = Field(
        default="minmax", description="How the ranges of int8 are found."
    )
    calibration_rows: int = Field(default=128, ge=1, description="Rows of the evaluation data to find them with.")
    percentile: float = Field(default=99.99, gt=50, le=100, description="Of the values, for `calibration: percentile`.")
    per_channel: bool = Field(default=True, description="One scale for each output channel of a weight.")
    exclude: list[str] = Field(
        default=[], description="Shell patterns of operation names that stay in floating point in int8 variants."
    )
    max_drop: float | None = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest loss of int8, as a share of the rows, before operations are left in floating point; "
        "null for any.",
    )
    limit: list[str] = Field(
        default=[], description="Conditions that a variant must meet or is dropped: int8.top1_agreement>=0.99."
    )
    require: list[str] = Field(
        default=[], description="The same, but nothing is published; a name alone, such as onnx_int8, must be there."
    )
    measure: bool = Field(default=True, description="Measure speed, load time and memory of every variant.")
    report: OutputPath | None = Field(default=None, description="Folder for a copy of report.json and report.html.")
    samples: int | None = Field(
        default=None,
        ge=1,
        description="Rows of the evaluation data for verification and warmup; 64, or 256 when there are variants.",
    )
    label: str = Field(
        default="", description="Input that holds the right class of each row; the one called label(s) by default."
    )
    warmup: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1, 8, 32], description="Batch sizes of the warmup records; [] for none."
    )
    warmup_logs: list[str] = Field(
        default=[],
        description="Request logs of a server to take further warmup records from: files, folders or prefixes.",
    )
    atol: float = Field(
        default=1e-5, ge=0, description="Largest absolute difference to the training graph that passes."
    )
    rtol: float = Field(default=1e-4, ge=0, description="The same, relative to the training graph's answer.")
    keep: int | None = Field(default=None, ge=1, description="How many versions to keep; older ones are deleted.")
    push: str = Field(
        default="", description="HOST:PORT (gRPC) or http://… of a server: wait until it serves the version."
    )
    op_libraries: list[ExistingFile] = Field(
        default=[], description="Libraries of custom operations that the model needs; they become part of the version."
    )

    @field_validator(*FORMATS)
    @classmethod
    def _known_precisions(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # A UsageError is a ValueError, which pydantic tells with the key.
        return tuple(t.precision for word in value for t in parse_targets(str(info.field_name), word))

    @field_validator("transforms")
    @classmethod
    def _known_transforms(cls, value: str | None) -> str | None:
        from moxserve.export.transforms.language import parse_transforms

        try:
            parse_transforms(value or "")
        except UsageError as error:
            # The key says what it is about.
            raise ValueError(error.message.removeprefix("transforms, ")) from None
        return value

    @field_validator("grappler")
    @classmethod
    def _known_passes(cls, value: list[str]) -> list[str]:
        from moxserve.export.transforms.grappler import check_passes

        check_passes(value)
        return value

    @field_validator("limit", "require")
    @classmethod
    def _known_conditions(cls, value: list[str], info: ValidationInfo) -> list[str]:
        from moxserve.export.requirements import read_conditions

        targets = [t for name in FORMATS for word in info.data.get(name, ()) for t in parse_targets(name, word)]
        required = info.field_name == "require"
        try:
            read_conditions(value if required else (), () if required else value, targets)
        except UsageError as error:
            raise ValueError(error.message) from None
        return value


class EvaluateStage(StrictModel):
    """One pass over the whole evaluation data with the trained checkpoint; every row counts once."""

    output: OutputPath | None = Field(
        default=None, description="JSON file for the metrics; evaluation.json in the run's log_dir by default."
    )
    require: dict[str, float] = Field(
        default={}, description="Smallest value a metric may have, such as {accuracy: 0.97}; below it the run fails."
    )


class PredictStage(StrictModel):
    """Predictions of the whole evaluation data with the trained checkpoint, one JSON object a line."""

    output: OutputPath = Field(min_length=1, description="JSON Lines file to write, in the order of the data.")
