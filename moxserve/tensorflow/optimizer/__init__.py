"""Optimizers by name: `get_optimizer_fn('momentum', learning_rate=0.01, momentum=0.9)`."""

from moxserve.tensorflow.optimizer.builtin import BUILTIN_OPTIMIZERS, get_optimizer_fn

__all__ = ["BUILTIN_OPTIMIZERS", "get_optimizer_fn"]
