"""The stages of a pipeline that are no plugins, and the base of every plugin's parameters. Pydantic, no TensorFlow."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

__all__ = [
    "EvaluateStage",
    "ExistingDir",
    "ExistingFile",
    "ExportStage",
    "OutputPath",
    "PathRole",
    "PluginConfig",
    "PredictStage",
    "StrictModel",
    "path_role",
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


class ExportStage(StrictModel):
    """What becomes of the trained checkpoint: an artifact in TensorFlow Serving's layout."""

    tf_serving: OutputPath = Field(
        min_length=1, description="Base directory: the artifact is BASE/<version>/, the version counts up."
    )
    model_name: str = Field(default="default", min_length=1, description="Name in warmup records and in the manifest.")
    samples: int = Field(default=64, ge=1, description="Rows of the evaluation data that verification and warmup use.")
    warmup: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1, 8, 32], description="Batch sizes of the warmup records; [] for none."
    )
    atol: float = Field(
        default=1e-5, ge=0, description="Largest absolute difference to the training graph that passes."
    )
    rtol: float = Field(default=1e-4, ge=0, description="The same, relative to the training graph's answer.")


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
