"""What a metric did in a trial, and which point of it is best.

In a learning-rate range test (Smith, "Cyclical Learning Rates for Training Neural Networks", 2015, arXiv:1506.01186)
the learning rate grows by the same factor at each step. The metric gets better while the rate is right, and worse when
it is too large; the rate to train with is well below the one at which the metric is best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Curve"]

_AS_GOOD = 0.05


@dataclass
class Curve:
    """A metric over the steps of a trial.

    Attributes:
        larger_is_better: True for an accuracy, False for a loss.
        window: points that are averaged; at most a tenth of the curve is.
        max_thres: after more points than this, one after the other, that are worse than the best one before by more
            than 5 %, what follows does not count.
        steps: step of each point, from 0.
        values: the metric there.
    """

    larger_is_better: bool
    window: int = 50
    max_thres: int = 10
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """Add a point."""
        self.steps.append(step)
        self.values.append(value)

    @property
    def diverged(self) -> bool:
        """Whether the last value is no number."""
        return bool(self.values) and not math.isfinite(self.values[-1])

    def smooth(self) -> np.ndarray:
        """The values, larger ones better, each averaged with its neighbours: `[points] float64`."""
        sign = 1.0 if self.larger_is_better else -1.0
        values = np.array([sign * v if math.isfinite(v) else -math.inf for v in self.values], np.float64)
        width = max(1, min(self.window, len(values) // 10))
        before, after = (width - 1) // 2, width // 2
        return np.array([values[max(0, i - before) : i + after + 1].mean() for i in range(len(values))], np.float64)

    def best(self) -> int:
        """Index of the best point before the curve goes down for good; -1 where there is none."""
        return self._best_and_edge()[0]

    def edge(self) -> int:
        """Index of the last point before that which is as good as the best one, but for 5 %; -1 where there is none.

        An accuracy may be good from small learning rates on: the largest rate that it bears says what is too large.
        """
        return self._best_and_edge()[1]

    def _best_and_edge(self) -> tuple[int, int]:
        smooth = self.smooth()
        best, edge, worse = -1, -1, 0
        for index, value in enumerate(smooth):
            if not math.isfinite(value) or worse > self.max_thres:
                break
            if best < 0 or value > smooth[best]:
                best = index
            if value >= smooth[best] - _AS_GOOD * abs(smooth[best]):
                edge, worse = index, 0
            else:
                worse += 1
        return best, edge

    def score(self) -> float:
        """The metric at the best point, larger ones better; minus infinity where there is none."""
        index = self.best()
        return -math.inf if index < 0 else float(self.smooth()[index])

    def last(self) -> float:
        """The metric at the end, averaged over `window` points, larger ones better."""
        if not self.values or not all(map(math.isfinite, self.values[-self.window :])):
            return -math.inf
        mean = float(np.mean(self.values[-self.window :]))
        return mean if self.larger_is_better else -mean
