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
from moxserve.tensorflow.executor.keras_layers import fed_by_keras, teach
from moxserve.tensorflow.executor.precision import widen
from moxserve.tensorflow.executor.spec import ExportSpec, ModeKeys, ModelSpec
from moxserve.tensorflow.executor.tower_values import tower_weights
from moxserve.tensorflow.executor.variables import TowerContext, VariablePlan

__all__ = ["Branch", "Tower", "build_branch", "build_export_branch", "check_scalars"]

_EXAMPLE = "def model_fn(inputs, mode, **kwargs): ... return mox.ModelSpec(loss=loss, log_info={'loss': loss})"
_ASSIGNMENTS = ("AssignVariableOp", "AssignSubVariableOp", "AssignAddVariableOp")
_MOVING_AVERAGE = re.compile(r"moving_(mean|variance|stddev)\Z")


class Inputs(list[Any]):
    """The list that `model_fn` gets; says so when it is used as the tensor that it holds.

    Args:
        tensors: what it holds.
        groups: how many of them are from each `InputSpec.new_input`; empty for one group of all.
    """

    def __init__(self, tensors: Sequence[Any], groups: Sequence[int] = ()) -> None:
        super().__init__(tensors)
        self._groups = tuple(groups) or (len(self),)

    def get_input(self, index: int) -> list[Any]:
        """Return the tensors of one `InputSpec.new_input`, in the order of the calls.

        Raises:
            ModelSpecError: there were fewer calls.
        """
        if not 0 <= index < len(self._groups):
            raise ModelSpecError(
                f"inputs.get_input({index}): input_fn made {len(self._groups)} input(s), counted from 0",
                hint="each input_spec.new_input([...]) in input_fn makes one",
            )
        begin = sum(self._groups[:index])
        return self[begin : begin + self._groups[index]]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"inputs has no attribute {name!r}: {self.explanation}")

    @property
    def explanation(self) -> str:
        """What to say to somebody who takes the list for the tensor that it holds."""
        return (
            f"inputs is a list of {len(self)} tensor(s), also when input_fn returns a single one; take it apart: "
            "images = inputs[0], or images, labels = inputs"
        )


def _refuse_list(value: Inputs, dtype: Any = None, name: str | None = None, as_ref: bool = False) -> Any:
    # A ValueError on purpose: tf.stack tries this conversion first, and goes on element by element after one.
    raise ModelSpecError(f"model_fn used inputs as a tensor: {value.explanation}")


tf.register_tensor_conversion_function(Inputs, _refuse_list, priority=0)


@dataclass
class Tower:
    """One call of `model_fn`, on one device.

    Attributes:
        place: where it is.
        inputs: what `model_fn` got.
        spec: what it returned, checked.
        present: scalar bool tensor: whether a step has a batch for this tower; None where it always has.
        weight: scalar float tensor: its rows as a multiple of the towers' mean; None where all have the same.
        trainable: trainable variables that this call made or used; the first tower's, not copies of them.
        copies: the tower's own copies of variables, by the identity of the first tower's.
        updates: operations that keep moving averages (batch normalisation); empty except in TRAIN.
        after_update: functions that make an operation to run when the variables of a step have been updated.
        learning_rate_scale: what the optimizers' learning rates are multiplied by.
    """

    place: Place
    inputs: list[Any]
    spec: ModelSpec
    present: Any = None
    weight: Any = None
    trainable: list[Any] = field(default_factory=list)
    copies: dict[int, Any] = field(default_factory=dict)
    updates: list[Any] = field(default_factory=list)
    after_update: list[Callable[[], Any]] = field(default_factory=list)
    learning_rate_scale: float = 1.0

    @contextmanager
    def building(self) -> Iterator[None]:
        """Operations that are made inside are put where the tower is."""
        with ExitStack() as stack:
            if self.place.device:
                stack.enter_context(tf1.device(self.place.device))
            yield

    def weighted(self, loss: Any) -> Any:
        """The loss, multiplied so that the mean over the towers is the mean over all rows of the step."""
        return loss if self.weight is None else loss * tf.cast(self.weight, loss.dtype)

    def own(self, variable: Any) -> Any:
        """What this tower computes with in the place of a variable of the first tower: its copy, where it has one."""
        return self.copies.get(id(variable), variable)


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
    teach()
    branch = Branch(mode, [], VariablePlan() if after is None else after.plan)
    for place, inputs in zip(places, inputs_per_tower, strict=True):
        branch.towers.append(_build_tower(model_fn, branch, place, inputs, leads=after is None))
    weights = tower_weights(branch.towers) if mode == ModeKeys.TRAIN else [None] * len(branch.towers)
    for tower, weight in zip(branch.towers, weights, strict=True):
        tower.weight = weight
    return branch


def _build_tower(
    model_fn: Callable[..., Any], branch: Branch, place: Place, inputs: Sequence[Any], leads: bool
) -> Tower:
    mode, index = branch.mode, place.index
    plan = branch.plan.replica(index) if place.replica else branch.plan
    context = TowerContext(
        index,
        leads and (index == 0 or place.replica),
        plan,
        mode == ModeKeys.TRAIN,
        f"replica_{index}" if place.replica else "",
    )
    with _scopes(plan, context, mode, place):
        spec = call_with_mode(model_fn, (Inputs(inputs, getattr(inputs, "groups", ())),), mode, "model_fn")
        _check_spec(spec, mode, leads)
        widen(spec)
        tower = Tower(place, list(inputs), spec, present=getattr(inputs, "present", None))
        if index == 0:
            _complete_first(tower, context, mode)
        if context.first:
            context.keep_penalties(inputs)
    if index:
        tower.trainable = branch.towers[0].trainable
        tower.copies = branch.plan.copies_of(index)
    return tower


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
            if place.replica:
                stack.enter_context(tf1.name_scope(f"replica_{context.index}"))
            stack.enter_context(plan.recording())
        else:
            stack.enter_context(tf1.name_scope(f"{mode.lower()}_tower_{context.index}"))
            stack.enter_context(plan.replaying(mode))
        stack.enter_context(context.entered())
        yield


def _complete_first(tower: Tower, context: TowerContext, mode: str) -> None:
    """Note what only the first tower is asked for; the others would update the same averages a second time."""
    tower.trainable = context.collection(tf1.GraphKeys.TRAINABLE_VARIABLES)
    if mode == ModeKeys.TRAIN:
        tower.updates = [*context.collection(tf1.GraphKeys.UPDATE_OPS), *_keras_updates(context)]
        tower.after_update = context.after_update
        tower.learning_rate_scale = context.learning_rate_scale


def _keras_updates(context: TowerContext) -> list[Any]:
    """Find the assignments of Keras' batch normalisation, which Keras puts into no collection.

    Only moving averages that no `get_variable` made are looked at: other layers report their updates themselves, and an
    assignment to any other variable is the user's business.
    """
    averages = [v for v in context.collection(tf1.GraphKeys.GLOBAL_VARIABLES) if _MOVING_AVERAGE.search(v.op.name)]
    handles = {v.handle.op.name for v in averages if not context.is_by_name(v)} - context.frozen
    made = context.new_operations() if handles else []
    skip = {v.initializer.name for v in averages} | fed_by_keras(made)
    assignments = (op for op in made if op.type in _ASSIGNMENTS and op.name not in skip)
    return [op for op in assignments if op.inputs[0].op.name in handles]


def _check_spec(spec: Any, mode: str, leads: bool) -> None:
    if not isinstance(spec, ModelSpec):
        raise ModelSpecError(
            f"model_fn returned {type(spec).__name__} in {mode}; expected a mox.ModelSpec", hint=_EXAMPLE
        )
    _check_tensors(spec.output_info, "output_info")
    check_scalars(spec.log_info, "log_info")
    check_scalars({f"[{i}]": loss for i, loss in enumerate(spec.losses)}, "loss")
    for loss in spec.losses:
        if not loss.dtype.base_dtype.is_floating:
            raise ModelSpecError(
                f"ModelSpec.loss {loss.name!r} is {loss.dtype.base_dtype.name}, which has no gradient",
                hint="compute it from the model's output, in float32",
            )
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
        ModelSpecError: one is not a scalar tensor of the current graph, or no number.
    """
    _check_tensors(values, what)
    for name, value in values.items():
        if not (value.dtype.base_dtype.is_floating or value.dtype.base_dtype.is_integer):
            raise ModelSpecError(
                f"ModelSpec.{what}[{name!r}] is {value.dtype.base_dtype.name}; expected a number",
                hint="tf.cast(x, tf.float32) makes one of a bool; output_info takes other values",
            )
        if value.shape.rank not in (0, None):
            raise ModelSpecError(
                f"ModelSpec.{what}[{name!r}] has the shape {value.shape}; expected a scalar",
                hint="reduce it: tf.reduce_mean(x)",
            )
