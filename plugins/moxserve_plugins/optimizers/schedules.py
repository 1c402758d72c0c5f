"""Learning rates of optimizer plugins: a number, or a schedule. No TensorFlow before one is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from moxserve.config.models import StrictModel
from moxserve.errors import UsageError
from moxserve.learning_rates import parse_stages

__all__ = ["LearningRate", "describe", "make"]


class Schedule(StrictModel, ABC):
    """A learning rate that changes with the global step."""

    schedule: str = Field(description="Which one: piecewise, linear_cosine or polynomial.")

    @abstractmethod
    def make(self) -> Any:
        """Make the learning rate as a tensor of the graph's global step."""


def _stages(value: str) -> str:
    try:
        parse_stages(value)
    except UsageError as error:
        raise ValueError(error.message.partition("\n")[0].removeprefix("learning-rate strategy, ")) from None
    return value


class Piecewise(Schedule):
    """Stages of epochs; see docs/optimizers.md for their grammar."""

    strategy: Annotated[str, AfterValidator(_stages)] = Field(
        description="Stages as epoch:rate, epoch:first->last or epoch:first=>last, with commas."
    )
    samples_per_epoch: int = Field(gt=0, description="Rows of an epoch.")
    rows_per_step: int = Field(gt=0, description="Rows that all devices take in a step.")

    def make(self) -> Any:
        """See Schedule."""
        from moxserve.tensorflow.optimizer.learning_rate_scheduler import piecewise_lr

        return piecewise_lr(self.strategy, self.samples_per_epoch, self.rows_per_step)


class LinearCosine(Schedule):
    """A line up, then linear cosine decay (Bello et al., 2017)."""

    max_lr: float = Field(gt=0, description="Largest rate.")
    min_lr: float = Field(default=0.0, ge=0, description="Smallest rate, at the start and at the end.")
    max_step: int = Field(gt=0, description="Steps of the whole training.")
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1, description="Share of the steps in which it grows.")
    decay_end_ratio: float = Field(default=1.0, gt=0, le=1, description="Share of the steps after which it stays low.")

    def make(self) -> Any:
        """See Schedule."""
        from moxserve.tensorflow.optimizer.learning_rate_scheduler import linear_cosine_decay

        return linear_cosine_decay(
            self.max_lr, self.min_lr, None, self.max_step, self.warmup_ratio, self.decay_end_ratio
        )


class Polynomial(LinearCosine):
    """A line up, then decay by a power of what is left."""

    power: float = Field(default=2.0, gt=0, description="1 is a line.")

    def make(self) -> Any:
        """See Schedule."""
        from moxserve.tensorflow.optimizer.learning_rate_scheduler import polynomial_decay

        return polynomial_decay(
            self.max_lr, self.min_lr, None, self.max_step, self.warmup_ratio, self.decay_end_ratio, self.power
        )


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic reads `true` as 1
        raise ValueError("expected a number")
    return value


def _which(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return str(value.get("schedule"))
    return getattr(value, "schedule", "number")


_which.__name__ = "schedule"  # pydantic's error names it

if TYPE_CHECKING:
    LearningRate = float | Schedule
else:
    LearningRate = Annotated[
        Union[  # noqa: UP007 - each branch has a tag
            Annotated[float, Field(gt=0), BeforeValidator(_number), Tag("number")],
            Annotated[Piecewise, Tag("piecewise")],
            Annotated[LinearCosine, Tag("linear_cosine")],
            Annotated[Polynomial, Tag("polynomial")],
        ],
        Discriminator(_which),
    ]


def make(rate: LearningRate) -> Any:
    """Give what an optimizer takes: the number, or a tensor of the current graph."""
    return rate.make() if isinstance(rate, Schedule) else rate


def describe(rate: LearningRate) -> str:
    """Say it in a few words, for `--dry-run`."""
    if not isinstance(rate, Schedule):
        return str(rate)
    return " ".join([rate.schedule, *(f"{k}={v}" for k, v in rate.model_dump(exclude={"schedule"}).items())])
