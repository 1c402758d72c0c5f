"""The learning rate multiplier as a hook sees it: the variable `mox/lr_scale` of the training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.hooks.base import HookRun

__all__ = ["LEARNING_RATES", "LR_SCALE", "LearningRateScale"]

LR_SCALE = "mox/lr_scale"
# Collection of the learning rates, as scalar tensors, that the multiplier multiplies.
LEARNING_RATES = "mox/learning_rates"


class LearningRateScale:
    """Lowers the learning rates of a training; made while the graph is open, after the training step.

    Raises:
        ModelSpecError: the graph has no multiplier.
    """

    def __init__(self) -> None:
        found = [variable for variable in tf1.global_variables() if variable.op.name == LR_SCALE]
        if not found:
            raise ModelSpecError(
                f"the training has no variable {LR_SCALE}, which a hook lowers the learning rate with",
                hint="a hook says that it needs one with the class attribute scales_learning_rate = True",
            )
        self._read = found[0].read_value()
        self._value = tf1.placeholder(tf1.float32, [], "mox/new_lr_scale")
        self._assign = found[0].assign(self._value, read_value=False)
        self._rates: list[Any] = list(tf1.get_collection(LEARNING_RATES))

    def lower(self, session: Any, factor: float, least: float = 0.0) -> tuple[float, list[float]]:
        """Multiply the multiplier.

        Args:
            session: of the graph.
            factor: what it is multiplied by.
            least: no learning rate is lowered further than this.

        Returns:
            The multiplier, and the learning rates that follow from it at this step, as far as they are known.
        """
        scale, rates = session.run([self._read, self._rates])
        # A schedule may have gone below the limit by itself; the multiplier never goes up.
        limits = [min(least / rate, scale) for rate in rates if rate > 0]
        lowered = max([scale * factor, *limits])
        session.run(self._assign, {self._value: lowered})
        return float(lowered), [float(rate * lowered) for rate in rates]

    def follow(self, session: Any, run: HookRun) -> None:
        """Take the multiplier of the chief, where each worker has its own; all workers do this at the same step."""
        own = float(session.run(self._read))
        told = run.workers.from_chief(session, own)
        if told != own:
            session.run(self._assign, {self._value: told})
