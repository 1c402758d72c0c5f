"""Judge: whether a monitored value still gets better. No TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moxserve.errors import ModelSpecError, did_you_mean

__all__ = ["Judge", "more_is_better"]

_MODES = ("auto", "max", "min")
_MORE_IS_BETTER = ("acc", "auc", "precision", "recall")


def more_is_better(monitor: str, mode: str, hook: str) -> bool:
    """Tell whether larger values of what is monitored are the better ones.

    Args:
        monitor: its name.
        mode: `max`, `min`, or `auto`: more is better for names with acc, auc, precision or recall in them.
        hook: name of the class, for the error.

    Raises:
        ModelSpecError: there is no such mode.
    """
    if mode not in _MODES:
        raise ModelSpecError(f"{hook}(mode={mode!r}): {did_you_mean(str(mode), _MODES)}")
    return any(part in monitor.lower() for part in _MORE_IS_BETTER) if mode == "auto" else mode == "max"


@dataclass
class Judge:
    """Compares each value of one kind with the best before, and counts how long there was no better one.

    The first value has nothing to be compared with. NaN is never better.

    Attributes:
        monitor: name of the value.
        more: larger values are better.
        min_delta: what counts as better.
        best: None before the first value.
        waited: values in a row that were no better.
    """

    monitor: str
    more: bool
    min_delta: float = 0.0
    best: float | None = None
    waited: int = 0

    def take(self, value: float) -> bool:
        """Judge a value; tells whether it is the best so far."""
        better = self.best is None or self._is_better(value, self.best)
        if better:
            self.best = value
        self.waited = 0 if better else self.waited + 1
        return better

    def _is_better(self, value: float, best: float) -> bool:
        if math.isnan(best):
            return not math.isnan(value)
        return (value - best if self.more else best - value) > self.min_delta

    def state(self) -> dict[str, Any]:
        """Give what `restore` takes."""
        return {"monitor": self.monitor, "more": self.more, "best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Take a state; tells whether it was one of the same value, others are not taken."""
        if (state["monitor"], state["more"]) != (self.monitor, self.more):
            return False
        self.best, self.waited = state["best"], int(state["waited"])
        return True
