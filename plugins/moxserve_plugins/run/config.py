"""Parameters of the run plugins, and what each does: a few calls of `mox.run`."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from moxserve.config.models import ExistingFile, OutputPath, StrictModel
from moxserve.pipeline.slots import RunJob, RunPlugin, RunReport
from moxserve_plugins.run.evaluation import Evaluation

__all__ = [
    "FLAGS",
    "PATTERNS",
    "Evaluate",
    "Predict",
    "Train",
    "TrainAndEvaluate",
    "Vocabulary",
    "WarmStart",
    "are_patterns",
]

# Parameters of a training that are flags of `mox.run`.
PATTERNS = (
    "checkpoint_include_patterns",
    "checkpoint_exclude_patterns",
    "trainable_include_patterns",
    "trainable_exclude_patterns",
)
FLAGS = ("compute_dtype", "loss_scale", "deterministic")


def are_patterns(values: list[str]) -> list[str]:
    """Check that all are regular expressions; for fields of plugins.

    Raises:
        ValueError: one is not.
    """
    for value in values:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        if not value.strip() or "," in value:
            raise ValueError(f"expected patterns without commas, got {value!r}; give several as a list")
    return values


class Vocabulary(StrictModel):
    """How the rows of a variable move when the vocabulary that they stand for changes."""

    new: ExistingFile = Field(description="The model's vocabulary, one token a line.")
    old: ExistingFile = Field(description="The checkpoint's vocabulary, one token a line.")
    axis: int = Field(default=0, description="Axis of the variable: 0 for rows, -1 for columns.")
    new_rows: Literal["zeros", "initial"] = Field(
        default="zeros", description="What tokens get that the old vocabulary lacks: zeros, or their initial values."
    )


class WarmStart(StrictModel):
    """What a training takes from another model."""

    checkpoint: str = Field(min_length=1, description="Checkpoint, folder of one, or folder of a SavedModel.")
    variables: list[str] = Field(default=[], description="Take only variables whose names contain one of these.")
    exclude: list[str] = Field(default=[], description="Take no variables whose names contain one of these patterns.")
    renamed: dict[str, str] = Field(
        default={}, description="Name in the checkpoint by name in the model; scopes where both end with '/'."
    )
    vocabularies: dict[str, Vocabulary] = Field(
        default={}, description="Changed vocabulary by the variable whose rows or columns stand for its tokens."
    )

    _are_patterns = field_validator("variables", "exclude")(are_patterns)


class _Logged(RunPlugin):
    """What every run has."""

    log_dir: OutputPath = Field(min_length=1, description="Folder for checkpoints, TensorBoard summaries and reports.")
    log_every_n_steps: int = Field(default=100, ge=1, description="Steps from one console line to the next.")


class Train(_Logged):
    """Train, and go on from the newest checkpoint in log_dir when there is one."""

    max_number_of_steps: int = Field(ge=1, description="Step to stop at, counted over all runs in log_dir.")
    checkpoint_path: str | None = Field(
        default=None, description="Checkpoint, or folder of one, to start from when log_dir holds none."
    )
    warm_start: WarmStart | None = Field(
        default=None,
        description="What is taken from another model when log_dir holds no checkpoint; steps count from 0.",
    )
    checkpoint_include_patterns: list[str] = Field(
        default=[], description="Take only variables of checkpoint_path whose names contain one of these patterns."
    )
    checkpoint_exclude_patterns: list[str] = Field(
        default=[],
        description="Leave out variables of checkpoint_path whose names contain one; global_step counts from 0 then.",
    )
    trainable_include_patterns: list[str] = Field(
        default=[], description="Train only variables whose names contain one of these patterns."
    )
    trainable_exclude_patterns: list[str] = Field(
        default=[], description="Keep variables whose names contain one of these patterns as they are."
    )
    evaluation: Evaluation | None = Field(
        default=None, description="Evaluations in the middle of the training, and what follows from them."
    )
    compute_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None,
        description="What the model computes in while it trains; variables and exports are float32. Absent: float32.",
    )
    loss_scale: float | None = Field(
        default=None,
        ge=0,
        description="Multiplies the loss and divides the gradients, for float16; 0 finds it by itself.",
    )
    save_summary_steps: int = Field(default=100, ge=1, description="Steps from one TensorBoard summary to the next.")
    save_model_steps: int | None = Field(default=None, ge=1, description="Steps from one checkpoint to the next.")
    save_model_secs: float | None = Field(
        default=None, gt=0, description="Seconds from one checkpoint to the next; wins over save_model_steps."
    )
    deterministic: bool | None = Field(
        default=None,
        description="Make runs end with the same weights, bit for bit, also interrupted ones. Absent: false.",
    )
    seed: int | None = Field(
        default=None, ge=0, description="Of initial weights, dropout and all other random operations; drawn if absent."
    )

    _are_patterns = field_validator(*PATTERNS)(are_patterns)

    @model_validator(mode="after")
    def _starts_from_one(self) -> Train:
        if self.warm_start is not None and self.checkpoint_path is not None:
            raise ValueError("expected checkpoint_path or warm_start, not both: a training starts from one of them")
        return self

    def run(self, job: RunJob) -> RunReport:
        """Train; see RunPlugin."""
        from moxserve_plugins.run.build import train

        result = train(self, job)
        return RunReport(checkpoint=result.best or result.checkpoint, train=result)

    def describe(self) -> str:
        """Say what would be done."""
        stops = self.evaluation is not None and (self.evaluation.early_stopping or self.evaluation.plateau)
        until = f"at most to step {self.max_number_of_steps}" if stops else f"to step {self.max_number_of_steps}"
        return f"train {until}, checkpoints in {self.log_dir}"


class TrainAndEvaluate(Train):
    """Train, then evaluate the last checkpoint, or the best that is kept, on the whole evaluation data."""

    def run(self, job: RunJob) -> RunReport:
        """Train and evaluate; see RunPlugin."""
        from moxserve.pipeline.steps import evaluate
        from moxserve_plugins.run.build import train

        job.data.steps("EVAL")  # no evaluation data: better told before the training than after it
        result = train(self, job)
        if not job.leads:
            return RunReport(checkpoint=result.checkpoint, train=result)
        checkpoint = result.best or result.checkpoint
        metrics = evaluate(job.data, job.model_fn, checkpoint, job.log_dir)
        return RunReport(checkpoint=checkpoint, train=result, metrics=metrics, rows=job.data.num_samples["EVAL"])

    def describe(self) -> str:
        """Say what would be done."""
        return f"{super().describe()}, then evaluate"


class Evaluate(_Logged):
    """Evaluate a checkpoint on the whole evaluation data. Needs no optimizer."""

    trains: ClassVar[bool] = False

    checkpoint_path: str = Field(min_length=1, description="Checkpoint prefix, or the folder whose newest is taken.")

    def run(self, job: RunJob) -> RunReport:
        """Evaluate; see RunPlugin."""
        from moxserve.pipeline.steps import evaluate, find_checkpoint

        checkpoint = find_checkpoint(self.checkpoint_path)
        metrics = evaluate(job.data, job.model_fn, checkpoint, job.log_dir)
        return RunReport(checkpoint=checkpoint, metrics=metrics, rows=job.data.num_samples["EVAL"])

    def describe(self) -> str:
        """Say what would be done."""
        return f"evaluate {self.checkpoint_path}"


class Predict(_Logged):
    """Write predictions of the whole evaluation data with a checkpoint, one JSON object a line. Needs no optimizer."""

    trains: ClassVar[bool] = False

    checkpoint_path: str = Field(min_length=1, description="Checkpoint prefix, or the folder whose newest is taken.")
    output: OutputPath = Field(min_length=1, description="JSON Lines file to write, in the order of the data.")

    def run(self, job: RunJob) -> RunReport:
        """Predict; see RunPlugin."""
        from moxserve.pipeline.steps import find_checkpoint, predict

        checkpoint = find_checkpoint(self.checkpoint_path)
        rows = predict(job.data, job.model_fn, checkpoint, self.output, job.log_dir)
        return RunReport(checkpoint=checkpoint, rows=rows)

    def describe(self) -> str:
        """Say what would be done."""
        return f"predict with {self.checkpoint_path}, one line a row to {self.output}"
