"""`mox.prune_model_fn`: a model_fn whose kernels lose their smallest weights while they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor.calls import call_with_mode, check_callable
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.phases import Phase, phases_of
from moxserve.tensorflow.executor.spec import ModeKeys, ModelSpec
from moxserve.tensorflow.executor.train_op import matches
from moxserve.tensorflow.executor.variables import TowerContext, model_name
from moxserve.tensorflow.graph_edit import find_kernels
from moxserve.tensorflow.pruning.hook import SparsityHook
from moxserve.tensorflow.pruning.masks import chosen_at, make_masks, prune, share_of_zeros
from moxserve.tensorflow.pruning.options import Pruning

__all__ = ["PrunedModelFn", "prune_model_fn"]

_METRIC = "sparsity"


class PrunedModelFn:
    """Calls the user's model_fn, and in TRAIN has its kernels pruned after each step.

    Args:
        model_fn: the user's function.
        options: how much, and when.
    """

    def __init__(self, model_fn: Callable[..., Any], options: Pruning) -> None:
        self.model_fn = model_fn
        self.options = options

    def __call__(self, inputs: Any, mode: str, **kwargs: Any) -> Any:
        """Build the model in the current graph; the executor calls it as any model_fn."""
        graph = tf1.get_default_graph()
        before = len(graph.get_operations())
        spec = call_with_mode(self.model_fn, (inputs,), mode, "model_fn")
        if not isinstance(spec, ModelSpec) or mode not in (ModeKeys.TRAIN, ModeKeys.EVAL):
            return spec
        kernels = self._kernels(graph.get_operations()[before:])
        context = TowerContext.current()
        if mode == ModeKeys.EVAL or context is None or context.index:
            # The weights are zero themselves: there is nothing to do but to tell.
            spec.log_info.setdefault(_METRIC, share_of_zeros([v.read_value() for v in kernels]))
            return spec
        masks, last = make_masks(kernels), chosen_at()
        spec.log_info.setdefault(_METRIC, share_of_zeros([mask.stays.read_value() for mask in masks]))
        spec.hooks.append(SparsityHook(masks, self.options))
        context.after_update.append(lambda: prune(masks, last, self.options))
        return spec

    def _kernels(self, operations: list[Any]) -> list[Any]:
        """Return the variables to prune.

        Raises:
            ModelSpecError: there are none.
        """
        stored = [variable for kernel in find_kernels(operations) for variable in kernel.variables]
        every = {model_name(variable): variable for variable in stored if variable.trainable}
        kept = [variable for name, variable in every.items() if not matches(name, self.options.exclude)]
        if not kept:
            found = f"exclude leaves out all of {', '.join(every)}" if every else "model_fn has none"
            raise ModelSpecError(
                f"pruning: no kernel of a convolution or matrix product to prune: {found}",
                hint="exclude less" if every else "leave pruning out",
            )
        return kept

    def phases(self) -> list[Phase]:
        """Prune in what is trained before the model_fn, too; see `executor.phases`."""
        return [
            replace(phase, model_fn=PrunedModelFn(phase.model_fn, self.options)) for phase in phases_of(self.model_fn)
        ]


def prune_model_fn(model_fn: Callable[..., Any], options: Pruning) -> PrunedModelFn:
    """Make a model_fn whose kernels are pruned while they are trained: their smallest weights become zero.

    Kernels are what convolutions and matrix products compute with; biases and batch norms are left alone. Pruned
    weights are zero in every checkpoint, so that evaluation and export need nothing else. Which weights are pruned is
    kept in variables below `pruning/`; a checkpoint without them can be trained on.

    Args:
        model_fn: as `mox.run` takes it, or as `mox.quantize_model_fn` makes it; it does not change.
        options: how much, and when.

    Returns:
        What to give `mox.run` in its place.
    """
    check_callable(model_fn, "model_fn", "mox.prune_model_fn(model_fn, mox.Pruning(end_step=1000))")
    if not isinstance(options, Pruning):
        raise UsageError(f"prune_model_fn takes a mox.Pruning, not {type(options).__name__}")
    return PrunedModelFn(model_fn, options)
