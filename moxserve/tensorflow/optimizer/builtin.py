"""The seven built-in optimizers of MoXing, TensorFlow's own behind them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf1

__all__ = ["BUILTIN_OPTIMIZERS", "get_optimizer_fn"]

BUILTIN_OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adadelta": tf1.train.AdadeltaOptimizer,
    "adagrad": tf1.train.AdagradOptimizer,
    "adam": tf1.train.AdamOptimizer,
    "ftrl": tf1.train.FtrlOptimizer,
    "momentum": tf1.train.MomentumOptimizer,
    "rmsprop": tf1.train.RMSPropOptimizer,
    "sgd": tf1.train.GradientDescentOptimizer,
}

# MoXing's documents always name the momentum; TensorFlow alone demands it, so a plain call would fail late.
_DEFAULTS: dict[str, dict[str, Any]] = {"momentum": {"momentum": 0.9}}


def get_optimizer_fn(
    name: str, learning_rate: Any, scope: str | None = None, *args: Any, **kwargs: Any
) -> Callable[[], Any]:
    """Give a function that makes an optimizer: what `run(optimizer_fn=...)` takes.

    Args:
        name: adadelta, adagrad, adam, ftrl, momentum, rmsprop or sgd; case does not matter.
        learning_rate: a number or a scalar tensor.
        scope: variable scope that the optimizer is made in; None for none.
        *args: further positional arguments of the optimizer, after the learning rate.
        **kwargs: further arguments, such as `momentum=0.9` (the default) or `beta1=0.5`.

    Raises:
        UsageError: the name is unknown, or the optimizer has no such argument.
    """
    key = str(name).lower()
    if key not in BUILTIN_OPTIMIZERS:
        raise UsageError(f"unknown optimizer {name!r}; {did_you_mean(key, BUILTIN_OPTIMIZERS)}")
    kind = BUILTIN_OPTIMIZERS[key]
    options = kwargs if args else {**_DEFAULTS.get(key, {}), **kwargs}
    accepted = list(inspect.signature(kind).parameters)
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise UsageError(f"optimizer {name!r} has no argument {unknown[0]!r}; {did_you_mean(unknown[0], accepted)}")

    def optimizer_fn() -> Any:
        if scope is None:
            return kind(learning_rate, *args, **options)
        with tf1.variable_scope(scope):
            return kind(learning_rate, *args, **options)

    return optimizer_fn
