"""Evaluations in the middle of a training: the parameters, and the hooks of `mox` that they stand for.

The data is evaluated after every so many epochs on what the pipeline evaluates in the end, and `log_info` of the model
is what is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from moxserve.config.models import StrictModel

if TYPE_CHECKING:
    from moxserve.pipeline.slots import InputBundle
    from moxserve.tensorflow.executor.phases import Phase
    from moxserve.tensorflow.executor.spec import ModelSpec

__all__ = ["EarlyStopping", "EvaluatedModelFn", "Evaluation", "KeepBest", "Plateau"]


class _Judged(StrictModel):
    """What is judged, and how."""

    monitor: str = Field(min_length=1, description="Name in the model's log_info, such as loss or accuracy.")
    mode: Literal["auto", "max", "min"] = Field(
        default="auto",
        description="What is better; auto: more for names with acc, auc, precision, recall.",
    )


class EarlyStopping(_Judged):
    """When the training ends before max_number_of_steps."""

    patience: int = Field(default=3, ge=1, description="Evaluations in a row that may be no better than the best.")
    min_delta: float = Field(default=0.0, ge=0, description="By how much a value must be better to count as such.")


class Plateau(_Judged):
    """When the learning rate is lowered, and when that has not helped."""

    patience: int = Field(default=2, ge=1, description="Evaluations in a row without a better one that are a plateau.")
    min_delta: float = Field(default=0.0, ge=0, description="By how much a value must be better to count as such.")
    factor: float = Field(default=0.1, gt=0, lt=1, description="What a plateau multiplies the learning rate by.")
    max_plateaus: int = Field(default=3, ge=1, description="Which plateau in a row ends the training instead.")
    cooldown: int = Field(default=0, ge=0, description="Evaluations after a plateau that are not counted.")
    min_lr: float = Field(default=0.0, ge=0, description="The learning rate is not lowered further than this.")


class KeepBest(_Judged):
    """Which checkpoints are kept in log_dir/best; the best one is evaluated and exported in the end."""

    keep: int = Field(default=1, ge=1, description="How many checkpoints are kept.")


class Evaluation(StrictModel):
    """What is done every so many epochs of a training."""

    every_n_epochs: int = Field(default=1, ge=1, description="Epochs between evaluations.")
    early_stopping: EarlyStopping | None = Field(default=None, description="End when a value gets no better.")
    plateau: Plateau | None = Field(default=None, description="Lower the learning rate when a value gets no better.")
    keep_best: KeepBest | None = Field(default=None, description="Keep the checkpoints with the best values.")

    def around(self, model_fn: Callable[..., Any], data: InputBundle) -> EvaluatedModelFn:
        """Give a model_fn the hooks.

        Args:
            model_fn: of the pipeline.
            data: of the pipeline, with rows to evaluate on.
        """
        return EvaluatedModelFn(model_fn, self, data)


class EvaluatedModelFn:
    """A model_fn with hooks that evaluate it.

    Args:
        model_fn: as `mox.run` takes it.
        evaluation: which hooks.
        data: tells the sizes.
    """

    def __init__(self, model_fn: Callable[..., Any], evaluation: Evaluation, data: InputBundle) -> None:
        self._model_fn = model_fn
        self._evaluation = evaluation
        self._data = data

    def __call__(self, inputs: Any, mode: str) -> ModelSpec:
        """Build the model in a mode."""
        from moxserve.tensorflow.executor.calls import call_with_mode

        spec: ModelSpec = call_with_mode(self._model_fn, (inputs,), mode, "model_fn")
        spec.hooks += self._hooks(dict(spec.log_info))
        return spec

    def phases(self) -> list[Phase]:
        """What is trained before; with the same hooks."""
        from moxserve.tensorflow.executor.phases import phases_of

        return [
            replace(phase, model_fn=EvaluatedModelFn(phase.model_fn, self._evaluation, self._data))
            for phase in phases_of(self._model_fn)
        ]

    def _hooks(self, info: dict[str, Any]) -> list[Any]:
        import moxserve.tensorflow as mox

        wanted, data = self._evaluation, self._data
        sizes: dict[str, Any] = {
            "batch_size": data.batch_size,
            "samples_in_train": data.num_samples["TRAIN"],
            # All rows, also where the batches of an evaluation are smaller; the input ends by itself.
            "samples_in_eval": data.steps("EVAL") * data.batch_size,
            "evaluate_every_n_epochs": wanted.every_n_epochs,
        }
        tells = wanted.plateau is not None or wanted.early_stopping is not None
        hooks: list[Any] = [] if tells else [mox.LogEvaluationMetricHook(info, **sizes)]
        for kind, given in (
            (mox.BestCheckpointHook, wanted.keep_best),
            (mox.PlateauLREarlyStoppingHook, wanted.plateau),
            (mox.EarlyStoppingHook, wanted.early_stopping),
        ):
            if given is not None:
                hooks.append(kind(info, **sizes, **given.model_dump()))
        return hooks
