"""Parameters of `retrain`."""

from __future__ import annotations

import os

from pydantic import Field, field_validator

from moxserve.config.models import OutputPath, StrictModel
from moxserve.pipeline.slots import RunJob, RunPlugin, RunReport
from moxserve_plugins.run.config import are_patterns

__all__ = ["Distortions", "Retrain"]


class Distortions(StrictModel):
    """How training images are changed at random, anew in each step."""

    flip_left_right: bool = Field(default=False, description="Mirror half of the images.")
    random_crop: float = Field(default=0, ge=0, description="Margin to crop at random, in percent of the rest.")
    random_scale: float = Field(default=0, ge=0, description="Percent to magnify by at most.")
    random_brightness: float = Field(
        default=0, ge=0, le=100, description="Percent to multiply pixels by at most, up or down."
    )

    @property
    def any(self) -> bool:
        """Whether anything is changed."""
        return bool(self.flip_left_right or self.random_crop or self.random_scale or self.random_brightness)


class Retrain(RunPlugin):
    """Train the last layer of a trained network alone, on features that are computed once and kept on disk."""

    log_dir: OutputPath = Field(min_length=1, description="Folder for checkpoints, TensorBoard summaries and reports.")
    checkpoint_path: str = Field(
        min_length=1, description="Of the trained network: checkpoint, folder of one, or SavedModel."
    )
    bottleneck_dir: OutputPath | None = Field(
        default=None, description="Folder of the features, which trainings may share; log_dir/bottlenecks by default."
    )
    head: list[str] = Field(
        default=[], description="Patterns of the variables to train; by default those of the last layer."
    )
    max_number_of_steps: int = Field(ge=1, description="Step to stop at, counted over all runs in log_dir.")
    distortions: Distortions = Field(
        default=Distortions(),
        description="Random changes of the training images, new in each step. With any, features are not kept.",
    )
    log_every_n_steps: int = Field(default=100, ge=1, description="Steps from one console line to the next.")
    save_summary_steps: int = Field(default=100, ge=1, description="Steps from one TensorBoard summary to the next.")
    save_model_steps: int | None = Field(default=None, ge=1, description="Steps from one checkpoint to the next.")
    seed: int | None = Field(
        default=None, ge=0, description="Of the last layer's initial weights and the order of rows; drawn if absent."
    )

    _are_patterns = field_validator("head")(are_patterns)

    @property
    def bottlenecks(self) -> str:
        """Where the features are."""
        return self.bottleneck_dir or os.path.join(self.log_dir, "bottlenecks")

    def run(self, job: RunJob) -> RunReport:
        """Compute what is missing, train, and evaluate where there are evaluation data; see RunPlugin."""
        from moxserve_plugins.retrain.build import run

        return run(self, job)

    def describe(self) -> str:
        """Say what would be done."""
        what = ", ".join(self.head) if self.head else "the last layer"
        kept = "nothing is cached (distortions)" if self.distortions.any else f"features in {self.bottlenecks}"
        return f"train {what} of {self.checkpoint_path} to step {self.max_number_of_steps}, {kept}"
