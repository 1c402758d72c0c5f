"""Parameters of the seven built-in optimizers, and of several together. Fields are named as TensorFlow's arguments;
so are their defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from moxserve.config.models import told_apart_by
from moxserve.pipeline.slots import OptimizerPlugin
from moxserve_plugins.optimizers import schedules
from moxserve_plugins.optimizers.wrappers import Wrapper, wrap

__all__ = ["Adadelta", "Adagrad", "Adam", "Ftrl", "Momentum", "PerLoss", "RmsProp", "Sgd"]


class _BuiltIn(OptimizerPlugin):
    """An optimizer of `mox.get_optimizer_fn`."""

    builtin: ClassVar[str]

    learning_rate: schedules.LearningRate = Field(description="Step size: a number, or a schedule.")
    wrappers: list[Wrapper] = Field(default=[], description="Wrappers around it, from the inside out.")

    def describe(self) -> str:
        """Say in one line what it is."""
        values = {
            "learning_rate": schedules.describe(self.learning_rate),
            **self.model_dump(exclude={"plugin", "learning_rate", "wrappers"}),
        }
        told = ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
        around = "".join(f", in {one.wrapper}" for one in self.wrappers)
        return told + around

    def build(self) -> Callable[..., Any]:
        """Return the optimizer_fn; see OptimizerPlugin."""

        def optimizer_fn() -> Any:
            from moxserve.tensorflow import get_optimizer_fn

            arguments = self.model_dump(exclude={"plugin", "learning_rate", "wrappers"})
            rate = schedules.make(self.learning_rate)
            return wrap(get_optimizer_fn(self.builtin, rate, **arguments)(), self.wrappers)

        return optimizer_fn


class Adadelta(_BuiltIn):
    """Adadelta (Zeiler, 2012)."""

    builtin: ClassVar[str] = "adadelta"

    rho: float = Field(default=0.95, ge=0, lt=1, description="Decay of the averages.")
    epsilon: float = Field(default=1e-8, gt=0, description="Added where a division could be by zero.")


class Adagrad(_BuiltIn):
    """Adagrad (Duchi et al., 2011)."""

    builtin: ClassVar[str] = "adagrad"

    initial_accumulator_value: float = Field(default=0.1, gt=0, description="Start of the sum of squared gradients.")


class Adam(_BuiltIn):
    """Adam (Kingma and Ba, 2014)."""

    builtin: ClassVar[str] = "adam"

    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the mean of gradients.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the mean of squared gradients.")
    epsilon: float = Field(default=1e-8, gt=0, description="Added where a division could be by zero.")


class Ftrl(_BuiltIn):
    """FTRL-proximal (McMahan et al., 2013), with L1 and L2 regularization."""

    builtin: ClassVar[str] = "ftrl"

    learning_rate_power: float = Field(default=-0.5, le=0, description="How the step shrinks; 0 for a fixed one.")
    initial_accumulator_value: float = Field(default=0.1, ge=0, description="Start of the sum of squared gradients.")
    l1_regularization_strength: float = Field(default=0.0, ge=0, description="Factor of the L1 penalty.")
    l2_regularization_strength: float = Field(default=0.0, ge=0, description="Factor of the L2 penalty.")


class Momentum(_BuiltIn):
    """Gradient descent with momentum."""

    builtin: ClassVar[str] = "momentum"

    momentum: float = Field(default=0.9, ge=0, lt=1, description="Share of the last step that is kept.")
    use_nesterov: bool = Field(default=False, description="Nesterov's variant.")


class RmsProp(_BuiltIn):
    """RMSProp (Tieleman and Hinton, 2012)."""

    builtin: ClassVar[str] = "rmsprop"

    decay: float = Field(default=0.9, ge=0, lt=1, description="Decay of the mean of squared gradients.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Share of the last step that is kept.")
    epsilon: float = Field(default=1e-10, gt=0, description="Added where a division could be by zero.")
    centered: bool = Field(default=False, description="Normalize by the variance instead of the second moment.")


class Sgd(_BuiltIn):
    """Plain gradient descent."""

    builtin: ClassVar[str] = "sgd"


_BY_NAME: Mapping[str, type[_BuiltIn]] = {
    kind.builtin: kind for kind in (Adadelta, Adagrad, Adam, Ftrl, Momentum, RmsProp, Sgd)
}
if TYPE_CHECKING:
    _Any = _BuiltIn
else:
    _Any = told_apart_by("plugin", _BY_NAME)


class PerLoss(OptimizerPlugin):
    """An optimizer for each loss of the model, in the order of its losses; `wide_and_deep` has two."""

    optimizers: list[_Any] = Field(min_length=1, description="Built-in optimizers, as in the stage itself.")

    def describe(self) -> str:
        """Say what there is."""
        return "; ".join(f"{one.plugin} ({one.describe()})" for one in self.optimizers)

    def build(self) -> Any:
        """Return the optimizer_fns, one a loss; see OptimizerPlugin."""
        return [optimizer.build() for optimizer in self.optimizers]
