"""What can be said about pruning, and its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.train_op import split_patterns

__all__ = ["Pruning"]

_UPDATES = 20


@dataclass(frozen=True)
class Pruning:
    """How many weights of a model become zero, and when.

    The share of zeros grows from 0 at `begin_step` to `sparsity` at `end_step` as a cubic function of the step: fast at
    first, when many weights are of no use, and slow at the end (Zhu and Gupta 2017, "To prune, or not to prune").

    Attributes:
        end_step: global step at which `sparsity` is reached. Training should go on for a while after it.
        sparsity: share of zeros in each kernel at the end.
        begin_step: global step that pruning begins at.
        every_steps: steps between two choices of what to prune; None for a twentieth of the schedule.
        exclude: regular expressions; a kernel is left alone if one is found in its name, such as `LeNet/conv1/weights`.
    """

    end_step: int
    sparsity: float = 0.8
    begin_step: int = 0
    every_steps: int | None = None
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UsageError: a number out of its range, or a pattern that is not a regular expression.
        """
        if not 0 < self.sparsity < 1:
            raise UsageError(f"pruning sparsity={self.sparsity!r}: expected a share between 0 and 1, such as 0.8")
        for name in ("begin_step", "end_step", "every_steps"):
            value = getattr(self, name)
            least = 1 if name == "every_steps" else 0
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UsageError(f"pruning {name}={value!r}: expected a whole number of at least {least}")
        if self.end_step < self.begin_step:
            raise UsageError(f"pruning end_step={self.end_step} is before begin_step={self.begin_step}")
        for pattern in self.exclude:
            split_patterns(pattern)

    @property
    def period(self) -> int:
        """Steps between two choices of what to prune."""
        return self.every_steps or max(1, (self.end_step - self.begin_step) // _UPDATES)

    def planned_step(self, step: int) -> int:
        """Return the last step, up to this one, that the schedule has a choice at; -1 before the first."""
        if step < self.begin_step:
            return -1
        if step >= self.end_step:
            return self.end_step
        return self.begin_step + (step - self.begin_step) // self.period * self.period

    def sparsity_at(self, step: int) -> float:
        """Return the share of zeros that the schedule wants once a step is done."""
        planned = self.planned_step(step)
        if planned < 0:
            return 0.0
        length = self.end_step - self.begin_step
        left = 1.0 - (planned - self.begin_step) / length if length else 0.0
        return self.sparsity * (1.0 - left**3)
