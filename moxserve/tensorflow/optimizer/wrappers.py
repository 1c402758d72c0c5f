"""Optimizer wrappers by name: `get_optimizer_wrapper_fn('lars', optimizer, ratio=0.001)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.optimizer.batch_gradients import BatchGradients
from moxserve.tensorflow.optimizer.clip import Clip
from moxserve.tensorflow.optimizer.dgc import DeepGradientCompression
from moxserve.tensorflow.optimizer.easgd import Easgd
from moxserve.tensorflow.optimizer.lars import Lars
from moxserve.tensorflow.optimizer.loss_scale import LossScale
from moxserve.tensorflow.optimizer.simple_sync_optimizer import SimpleSyncOptimizer
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper

__all__ = ["WRAPPERS", "get_optimizer_wrapper_fn"]

WRAPPERS: dict[str, type[OptimizerWrapper]] = {
    kind.kind: kind
    for kind in (BatchGradients, Lars, Easgd, DeepGradientCompression, Clip, LossScale, SimpleSyncOptimizer)
}


def get_optimizer_wrapper_fn(name: str, optimizer: Any, **kwargs: Any) -> Callable[[], Any]:
    """Give a function that puts a wrapper around an optimizer.

        optimizer = mox.get_optimizer_fn("momentum", learning_rate=0.1)()
        optimizer = mox.get_optimizer_wrapper_fn("lars", optimizer, ratio=0.001, weight_decay=0.0001)()
        optimizer = mox.get_optimizer_wrapper_fn("batch_gradients", optimizer, num_batches=8)()

    Args:
        name: batch_gradients, clip, dgc, easgd, lars, loss_scale or simple_sync; case does not matter.
        optimizer: what goes inside, which may be a wrapper, too.
        **kwargs: options of the wrapper; docs/optimizers.md has them all.

    Raises:
        UsageError: the name is unknown, the wrapper has no such option, or one is missing. The returned function
            raises it where a value is out of range or the wrapper does not go around this optimizer.
    """
    key = str(name).lower()
    if key not in WRAPPERS:
        raise UsageError(f"unknown optimizer wrapper {name!r}; {did_you_mean(key, WRAPPERS)}")
    kind = WRAPPERS[key]
    options = dict(list(inspect.signature(kind).parameters.items())[1:])
    for given in kwargs:
        if given not in options:
            raise UsageError(f"optimizer wrapper {name!r} has no option {given!r}; {did_you_mean(given, options)}")
    missing = [o for o, p in options.items() if p.default is inspect.Parameter.empty and o not in kwargs]
    if missing:
        raise UsageError(f"optimizer wrapper {name!r} needs the option {missing[0]!r}")
    return lambda: kind(optimizer, **kwargs)
