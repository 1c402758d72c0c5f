"""`mox.quantize_model_fn`: a model_fn that builds the quantized form of what another one builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.calls import call_with_mode, check_callable
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.phases import Phase, phases_of
from moxserve.tensorflow.executor.spec import ModeKeys, ModelSpec
from moxserve.tensorflow.executor.variables import TowerContext
from moxserve.tensorflow.graph_edit import GraphEdit
from moxserve.tensorflow.quantization.options import Quantization
from moxserve.tensorflow.quantization.rewrite import rewrite

__all__ = ["QuantizedModelFn", "quantize_model_fn"]


class QuantizedModelFn:
    """Calls the user's model_fn and rewrites what it built, in every mode.

    Args:
        model_fn: the user's function.
        options: how.
    """

    def __init__(self, model_fn: Callable[..., Any], options: Quantization) -> None:
        self.model_fn = model_fn
        self.options = options

    def __call__(self, inputs: Any, mode: str, **kwargs: Any) -> Any:
        """Build the model in the current graph; the executor calls it as any model_fn."""
        graph = tf1.get_default_graph()
        before = len(graph.get_operations())
        spec = call_with_mode(self.model_fn, (inputs,), mode, "model_fn")
        if not isinstance(spec, ModelSpec):
            return spec  # the executor says what is wrong with it
        edit = GraphEdit(graph.get_operations()[before:], inputs)
        training = mode == ModeKeys.TRAIN
        done = rewrite(edit, self.options, training)
        edit.update_spec(spec)
        if training:
            context = TowerContext.current()
            if context is not None:
                context.learning_rate_scale *= self.options.learning_rate_scale
            tf1.logging.info(
                "quantization: %d kernels and %d ranges of activations in int8; %d batch norms folded%s",
                len(done.kernels),
                len(done.ranges),
                done.folded,
                f"; in floating point: {', '.join(done.left_out)}" if done.left_out else "",
            )
        return spec

    def phases(self) -> list[Phase]:
        """Train in floating point first, if the options say so; see `executor.phases`."""
        start = self.options.start_step
        own = [Phase(self.model_fn, start, "quantization")] if start else []
        return [*phases_of(self.model_fn), *own]


def quantize_model_fn(model_fn: Callable[..., Any], options: Quantization | None = None) -> QuantizedModelFn:
    """Make a model_fn for quantization-aware training.

    Convolutions and matrix products compute with kernels and activations that are rounded to int8, with gradients as if
    they were not; batch norms are folded into kernels with their moving averages, which stay as they are. Evaluation,
    prediction and export use the ranges that training learned. The variables of `model_fn` keep their names; those of
    the ranges are below `quantization/`, and a checkpoint without them can be trained on.

    Args:
        model_fn: as `mox.run` takes it; it does not change.
        options: default: everything is quantized from the first step.

    Returns:
        What to give `mox.run` in its place, in every mode.
    """
    check_callable(model_fn, "model_fn", "mox.quantize_model_fn(model_fn, mox.Quantization())")
    if options is not None and not isinstance(options, Quantization):
        raise UsageError(f"quantize_model_fn takes a mox.Quantization, not {type(options).__name__}")
    return QuantizedModelFn(model_fn, options or Quantization())
