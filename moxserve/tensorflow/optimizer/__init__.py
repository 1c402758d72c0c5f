"""Optimizers by name, wrappers around them, and learning rates that change.

builtin                    the seven of MoXing: get_optimizer_fn('momentum', learning_rate=0.01, momentum=0.9)
wrappers                   get_optimizer_wrapper_fn('lars', optimizer, ratio=0.001); a module for each wrapper
learning_rate_scheduler    piecewise_lr, linear_cosine_decay, polynomial_decay
dynamic_momentum(w)        DyMomentumOptimizer, DyMomentumWOptimizer
simple_sync_optimizer      SimpleSyncOptimizer
"""

from moxserve.tensorflow.optimizer.builtin import BUILTIN_OPTIMIZERS, get_optimizer_fn
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper
from moxserve.tensorflow.optimizer.wrappers import WRAPPERS, get_optimizer_wrapper_fn

__all__ = ["BUILTIN_OPTIMIZERS", "WRAPPERS", "OptimizerWrapper", "get_optimizer_fn", "get_optimizer_wrapper_fn"]
