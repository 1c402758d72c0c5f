"""Branch: `model_fn` built into a graph for one mode, on every device of the topology. THE code path of all four modes.

    build_branch         TRAIN, EVAL, PREDICT: an input source, then one tower a device
    build_export_branch  EXPORT: the caller brings the inputs, no device is pinned

The first tower of a graph's first branch is built without any extra scope, so that checkpoints hold the user's own
variable names. Every further tower reuses the variables of the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.calls import call_with_mode, check_callable
from moxserve.tensorflow.executor.devices import Place
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.hooks import check_hook
from moxserve.tensorflow.executor.spec import ExportSpec, ModeKeys, ModelSpec
from moxserve.tensorflow.executor.variables import TowerContext, VariablePlan

__all__ = ["Branch", "Tower", "build_branch", "build_export_branch", "check_scalars"]

_EXAMPLE = "def model_fn(inputs, mode, **kwargs): ... return mox.ModelSpec(loss=loss, log_info={'loss': loss})"
_ASSIGNMENTS = ("AssignVariableOp", "AssignSubVariableOp", "AssignAddVariableOp")
_MOVING_AVERAGE = re.compile(r"moving_(mean|variance|stddev)\Z")


class Inputs(list[Any]):
    """The list that `model_fn` gets; says so when it is used as the tensor that it holds."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"inputs has no attribute {name!r}: {self._explanation()}")

    def _explanation(self) -> str:
        return (
            f"inputs is a list of {len(self)} tensor(s), also when input_fn returns a single one; take it apart: "
            "images = inputs[0], or images, labels = inputs"
        )


def _refuse_list(value: Inputs, dtype: Any = None, name: str | None = None, as_ref: bool = False) -> Any:
    # A ValueError on purpose: tf.stack tries this conversion first, and goes on element by element after one.
    raise ModelSpecError(f"model_fn used inputs as a tensor: {value._explanation()}")


tf.register_tensor_conversion_function(Inputs, _refuse_list, priority=0)


@dataclass
class Tower:
    """One call of `model_fn`, on one device.

    Attributes:
        place: where it is.
        inputs: what `model_fn` got.
        spec: what it returned, checked.
        trainable: trainable variables that this call made or used.
        updates: operations that keep moving averages (batch normalisation); empty except in TRAIN.
        after_update: functions that make an operation to run when the variables of a step have been updated.
        learning_rate_scale: what the optimizers' learning rates are multiplied by.
    """

    place: Place
    inputs: list[Any]
    spec: ModelSpec
    trainable: list[Any] = field(default_factory=list)
    updates: list[Any] = field(default_factory=list)
    after_update: list[Callable[[], Any]] = field(default_factory=list)
    learning_rate_scale: float = 1.0


@dataclass
class Branch:
    """`model_fn` in one mode.

    Attributes:
        mode: one of ModeKeys.
        towers: one a device, at least one.
        plan: the variables, for later branches of the same graph.
    """

    mode: str
    towers: list[Tower]
    plan: VariablePlan

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec of the first tower."""
        return self.towers[0].spec

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the first tower."""
        return self.towers[0].inputs


def build_branch(
    model_fn: Callable[..., Any],
    mode: str,
    inputs_per_tower: Sequence[Sequence[Any]],
    places: Sequence[Place],
    *,
    after: Branch | None = None,
) -> Branch:
    """Build `model_fn` in the current graph, once per device.

    Args:
        model_fn: the user's function.
        mode: the mode that it is called with.
        inputs_per_tower: the inputs of each tower, as many as places.
        places: where the towers are.
        after: the graph's first branch, whose variables are shared; None when this is the first.

    Raises:
        ModelSpecError: `model_fn` did not return a ModelSpec that fits the mode.
    """
    check_callable(model_fn, "model_fn", _EXAMPLE)
    plan = VariablePlan() if after is None else after.plan
    towers: list[Tower] = []
    for place, inputs in zip(places, inputs_per_tower, strict=True):
        first = after is None and place.index == 0
        context = TowerContext(place.index, first, plan, mode == ModeKeys.TRAIN)
        with _scopes(plan, context, mode, place):
            spec = call_with_mode(model_fn, (Inputs(inputs),), mode, "model_fn")
            _check_spec(spec, mode, leads=after is None)
            towers.append(_tower(context, place, list(inputs), spec, mode))
            if first:
                plan.penalties = context.collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
    return Branch(mode, towers, plan)


def build_export_branch(model_fn: Callable[..., Any], inputs: Sequence[Any]) -> Branch:
    """Build `model_fn` for export, in the current graph: mode EXPORT, these inputs, no devices.

    Args:
        model_fn: the user's function.
        inputs: the tensors (placeholders, usually) that it gets, in the order of `input_fn`.

    Returns:
        The branch; `branch.spec.export_spec` says what goes in and out.

    Raises:
        ModelSpecError: `model_fn` returned no ModelSpec, or one without an ExportSpec.
    """
    return build_branch(model_fn, ModeKeys.EXPORT, [inputs], [Place()])


@contextmanager
def _scopes(plan: VariablePlan, context: TowerContext, mode: str, place: Place) -> Iterator[None]:
    with ExitStack() as stack:
        if place.device:
            stack.enter_context(tf1.device(place.device))
        if context.first:
            stack.enter_context(plan.recording())
        else:
            stack.enter_context(tf1.name_scope(f"{mode.lower()}_tower_{context.index}"))
            stack.enter_context(plan.replaying(mode))
        stack.enter_context(context.entered())
        yield


def _tower(context: TowerContext, place: Place, inputs: list[Any], spec: ModelSpec, mode: str) -> Tower:
    tower = Tower(place, inputs, spec)
    tower.trainable = context.collection(tf1.GraphKeys.TRAINABLE_VARIABLES)
    if mode == ModeKeys.TRAIN and context.index == 0:  # later towers would update the same averages a second time
        tower.updates = [*context.collection(tf1.GraphKeys.UPDATE_OPS), *_keras_updates(context)]
        tower.after_update = context.after_update
        tower.learning_rate_scale = context.learning_rate_scale
    return tower


def _keras_updates(context: TowerContext) -> list[Any]:
    """Find the assignments of Keras' batch normalisation, which Keras puts into no collection.

    Only moving averages that no `get_variable` made are looked at: other layers report their updates themselves, and an
    assignment to any other variable is the user's business.
    """
    averages = [v for v in context.collection(tf1.GraphKeys.GLOBAL_VARIABLES) if _MOVING_AVERAGE.search(v.op.name)]
    handles = {v.handle.op.name for v in averages if not context.is_by_name(v)} - context.frozen
    skip = {v.initializer.name for v in averages}
    assignments = (op for op in context.new_operations() if op.type in _ASSIGNMENTS and op.name not in skip)
    return [op for op in assignments if op.inputs[0].op.name in handles]


def _check_spec(spec: Any, mode: str, leads: bool) -> None:
    if not isinstance(spec, ModelSpec):
        raise ModelSpecError(
            f"model_fn returned {type(spec).__name__} in {mode}; expected a mox.ModelSpec", hint=_EXAMPLE
        )
    _check_tensors(spec.output_info, "output_info")
    check_scalars(spec.log_info, "log_info")
    check_scalars({f"[{i}]": loss for i, loss in enumerate(spec.losses)}, "loss")
    if leads:  # a branch beside the first serves its hooks, who know what they need
        _check_needed(spec, mode)
    if spec.export_spec is not None and mode == ModeKeys.EXPORT:
        _check_tensors(spec.export_spec.inputs_dict, "export_spec.inputs_dict")
        _check_tensors(spec.export_spec.outputs_dict, "export_spec.outputs_dict")
    for hook in spec.hooks:
        check_hook(hook)


def _check_needed(spec: ModelSpec, mode: str) -> None:
    needed: dict[str, tuple[bool, str, str]] = {
        ModeKeys.TRAIN: (bool(spec.losses), "loss", "loss=loss"),
        ModeKeys.EVAL: (bool(spec.log_info), "log_info", "log_info={'loss': loss, 'accuracy': accuracy}"),
        ModeKeys.PREDICT: (bool(spec.output_info), "output_info", "output_info={'predictions': predictions}"),
        ModeKeys.EXPORT: (
            isinstance(spec.export_spec, ExportSpec),
            "export_spec",
            "export_spec=mox.ExportSpec(inputs_dict={'images': images}, outputs_dict={'logits': logits})",
        ),
    }
    given, name, example = needed[mode]
    if not given:
        raise ModelSpecError(
            f"model_fn returned a ModelSpec without {name}, which {mode} needs", hint=f"ModelSpec({example})"
        )


def _check_tensors(values: Mapping[str, Any], what: str) -> None:
    for name, value in values.items():
        if not tf1.is_tensor(value) and not isinstance(value, tf.Variable):
            raise ModelSpecError(
                f"ModelSpec.{what}[{name!r}] is a {type(value).__name__}, not a tensor",
                hint="give the tensor itself, as tf operations return it",
            )
        graph = getattr(value, "graph", None)
        if graph is not None and graph is not tf1.get_default_graph():
            raise ModelSpecError(
                f"ModelSpec.{what}[{name!r}] was made outside of model_fn",
                hint="each run has its own graph; make tensors inside",
            )


def check_scalars(values: Mapping[str, Any], what: str) -> None:
    """Check values that are printed or averaged.

    Args:
        values: name: value.
        what: the field of ModelSpec that they are from.

    Raises:
        ModelSpecError: one is not a scalar tensor of the current graph.
    """
    _check_tensors(values, what)
    for name, value in values.items():
        if value.shape.rank not in (0, None):
            raise ModelSpecError(
                f"ModelSpec.{what}[{name!r}] has the shape {value.shape}; expected a scalar",
                hint="reduce it: tf.reduce_mean(x)",
            )
