"""Where a model divides into a trunk, which stays as it is, and a head, which is trained.

Found in the graph, so that it works for any `model_fn`: the features are the tensors that depend on the first input,
not on the head's variables, and that go into an operation which does depend on them. Fed with features, the same graph
computes the head alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor.calls import call_with_mode
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.spec import ModeKeys, ModelSpec
from moxserve.tensorflow.executor.train_op import matches
from moxserve.tensorflow.executor.variables import TowerContext

__all__ = ["Cut", "as_applied", "cut_model"]

_SHOWN = 6


@dataclass(frozen=True)
class Cut:
    """A model, divided.

    Attributes:
        spec: what `model_fn` returned.
        features: what goes from the trunk into the head, `[batch, ...]` each.
        head: variables that are trained.
        trunk: variables that the features are computed with.
        operations: those between the first input and the features.
    """

    spec: ModelSpec
    features: list[Any]
    head: list[Any]
    trunk: list[Any]
    operations: list[Any]

    @property
    def digest(self) -> str:
        """Names what is computed, whatever the weights: equal for equal trunks."""
        found = hashlib.sha256()
        for op in sorted(self.operations, key=lambda op: op.name):
            node = tf1.NodeDef()
            node.CopyFrom(op.node_def)
            node.device = ""
            node.attr.pop("_class", None)
            found.update(node.SerializeToString(deterministic=True))
        found.update("\0".join(tensor.name for tensor in self.features).encode())
        return found.hexdigest()

    def use(self, features: Sequence[Any]) -> None:
        """Let the head take other tensors than the trunk's.

        Args:
            features: as many as `self.features`, in their order.

        Raises:
            ModelSpecError: the loss would still be computed from the first input.
        """
        given = dict(zip((tensor.ref() for tensor in self.features), features, strict=True))
        behind = _after([variable.handle.op for variable in self.head])
        for op in behind:
            for index, tensor in enumerate(op.inputs):
                if tensor.ref() in given:
                    op._update_input(index, given[tensor.ref()])


def as_applied(model_fn: Callable[..., Any], inputs: Sequence[Any]) -> ModelSpec:
    """Call a `model_fn` in EVAL, where dropout is off and batch norms use their averages, whatever the mode of the run.

    Raises:
        ModelSpecError: it gives no loss in EVAL.
    """
    context = TowerContext.current()
    updates = list(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS))
    training = context.training if context is not None else False
    try:
        if context is not None:
            context.training = False
        spec = call_with_mode(model_fn, (list(inputs),), ModeKeys.EVAL, "model_fn")
    finally:
        if context is not None:
            context.training = training
    tf1.get_collection_ref(tf1.GraphKeys.UPDATE_OPS)[:] = updates
    if not isinstance(spec, ModelSpec) or not spec.losses:
        raise ModelSpecError(
            "model_fn returned no ModelSpec with a loss in EVAL, which a training of the last layer is made of",
            hint="return ModelSpec(loss=...) in every mode",
        )
    return spec


def cut_model(model_fn: Callable[..., Any], inputs: Sequence[Any], head: Sequence[str] = ()) -> Cut:
    """Build a model in the current graph and divide it.

    Args:
        model_fn: the user's.
        inputs: its inputs, what the features are computed from first.
        head: patterns of the variables that are trained; empty for those of the last layer, which is the scope of the
            trainable variable that was made last.

    Raises:
        ModelSpecError: the model cannot be divided there.
        UsageError: no variable matches the patterns.
    """
    spec = as_applied(model_fn, inputs)
    results = [*spec.losses, *spec.log_info.values(), *spec.output_info.values()]
    needed = _before([tf.convert_to_tensor(tensor).op for tensor in results])
    used = [variable for variable in tf1.trainable_variables() if variable.handle.op in needed]
    chosen = _head(used, head)
    behind = _after([variable.handle.op for variable in chosen]) & needed
    features = _features(behind, inputs[0])
    if not features:
        raise ModelSpecError(
            f"the head ({_told(chosen)}) takes nothing that is computed from the first input",
            hint="give patterns of the variables to train that leave a trunk before them",
        )
    _check(features, set().union(*(_dependents(tensor) for tensor in inputs[1:])))
    operations = _before([tensor.op for tensor in features])
    handles = {op for op in operations if op.type == "VarHandleOp"}
    trunk = [variable for variable in tf1.global_variables() if variable.handle.op in handles]
    between = [op for op in operations if op not in handles and op is not inputs[0].op]
    return Cut(spec, features, chosen, trunk, between)


def _head(used: Sequence[Any], patterns: Sequence[str]) -> list[Any]:
    names = [variable.op.name for variable in used]
    if not names:
        raise ModelSpecError("model_fn made no trainable variables", hint="make them with tf.get_variable or layers")
    if patterns:
        chosen = [variable for variable in used if matches(variable.op.name, patterns)]
        if not chosen:
            raise UsageError(
                f"head={','.join(patterns)!r} matches none of the model's trainable variables",
                hint="the last are " + ", ".join(names[-_SHOWN:]),
            )
        return chosen
    scope = names[-1].rpartition("/")[0]
    return [v for v in used if (v.op.name.startswith(f"{scope}/") if scope else v.op.name == names[-1])]


def _features(behind: set[Any], first: Any) -> list[Any]:
    found: dict[Any, Any] = {}
    from_first = _dependents(first)
    for op in sorted(behind, key=lambda op: op._id):
        for tensor in op.inputs:
            if tensor.op not in behind and (tensor.op in from_first or tensor is first):
                found[tensor.ref()] = tensor
    return list(found.values())


def _check(features: Sequence[Any], from_others: set[Any]) -> None:
    for tensor in features:
        if tensor.op in from_others:
            raise ModelSpecError(f"{tensor.name!r} goes into the head and depends on other inputs than the first")
        if tensor.shape.rank == 0 or not tensor.dtype.is_floating:
            raise ModelSpecError(
                f"{tensor.name!r} ({tensor.dtype.name} {tensor.shape}) goes into the head and is no feature of a row",
                hint="give patterns of more variables as the head, or take sizes from static shapes in model_fn",
            )


def _told(variables: Iterable[Any]) -> str:
    return ", ".join(variable.op.name for variable in variables)


def _before(operations: Iterable[Any]) -> set[Any]:
    """The operations, and all that they depend on."""
    return _reach(operations, lambda op: [*(tensor.op for tensor in op.inputs), *op.control_inputs])


def _after(operations: Iterable[Any]) -> set[Any]:
    """The operations, and all that depend on their values."""
    return _reach(operations, lambda op: [user for tensor in op.outputs for user in tensor.consumers()])


def _dependents(tensor: Any) -> set[Any]:
    """The operations that depend on a tensor."""
    return _after(tensor.consumers())


def _reach(operations: Iterable[Any], following: Callable[[Any], Iterable[Any]]) -> set[Any]:
    seen: set[Any] = set()
    pending = list(operations)
    while pending:
        op = pending.pop()
        if op not in seen:
            seen.add(op)
            pending.extend(following(op))
    return seen


def drop_dependent(spec: ModelSpec, source: Any, summaries_before: Sequence[Any]) -> dict[str, Any]:
    """Return the log_info that no longer depends on a tensor, and take summaries that do out of the graph's collection.

    Raises:
        ModelSpecError: the loss depends on it.
    """
    after = _dependents(source)
    for loss in spec.losses:
        if loss.op in after:
            raise ModelSpecError(
                f"the loss {loss.name!r} depends on the first input also beside the head's features",
                hint="give patterns of more variables as the head",
            )
    summaries = tf1.get_collection_ref(tf1.GraphKeys.SUMMARIES)
    known = {id(item) for item in summaries_before}
    summaries[:] = [item for item in summaries if id(item) in known or getattr(item, "op", None) not in after]
    return {name: value for name, value in spec.log_info.items() if tf.convert_to_tensor(value).op not in after}
