"""From losses and optimizers to the one operation that is a training step."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.errors import ModelSpecError, UsageError, did_you_mean
from moxserve.tensorflow.executor.branch import Branch, Tower
from moxserve.tensorflow.executor.devices import GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import FlagStore
from moxserve.tensorflow.executor.workers import Workers

__all__ = ["TrainOptions", "build_train_op", "matches", "split_patterns"]

_EXAMPLE = (
    "optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.01), or lambda: tf.train.MomentumOptimizer(0.01, 0.9)"
)


@dataclass(frozen=True)
class TrainOptions:
    """What flags say about gradients.

    Attributes:
        loss_scale: the loss is multiplied, the gradients divided by it; 1.0 is off.
        clip: limit; 0.0 is off.
        clip_type: `norm` (each gradient), `global_norm` (all together) or `value` (each element).
        include: patterns of variables to train; empty for all.
        exclude: patterns of variables not to train.
    """

    loss_scale: float = 1.0
    clip: float = 0.0
    clip_type: str = "global_norm"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def from_flags(cls, store: FlagStore) -> TrainOptions:
        """Read the options from the flags.

        Raises:
            UsageError: a scale or limit is not positive.
        """
        scale, clip = store.get("loss_scale"), store.get("gradient_clip")
        if scale <= 0:
            raise UsageError(f"flag --loss_scale={scale}: expected a number above 0; 1 is off")
        if clip < 0:
            raise UsageError(f"flag --gradient_clip={clip}: expected a limit above 0; 0 is off")
        return cls(
            scale,
            clip,
            store.get("gradient_clip_type"),
            split_patterns(store.get("trainable_include_patterns")),
            split_patterns(store.get("trainable_exclude_patterns")),
        )


def split_patterns(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of regular expressions.

    Raises:
        UsageError: one is not a valid expression.
    """
    patterns = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    return patterns


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a variable's name contains a match of one of the patterns."""
    return any(re.search(pattern, name) for pattern in patterns)


def build_train_op(branch: Branch, optimizer_fn: Any, global_step: Any, options: TrainOptions, workers: Workers) -> Any:
    """Build the operation of one training step: all gradients, then all updates, then the step count, then what the
    towers want done to the updated variables.

    Every gradient is computed before any variable changes, so several losses see the same variables.

    Args:
        branch: the TRAIN branch.
        optimizer_fn: function that returns an optimizer, or one function per loss.
        global_step: the step counter, incremented once.
        options: scaling, clipping, and which variables are trained.
        workers: how the towers of this process and of the others meet.

    Raises:
        ModelSpecError: an optimizer or a variable scope does not fit.
    """
    factories = _factories(optimizer_fn, len(branch.spec.losses))
    optimizers = [_make_optimizer(factory) for factory in factories]
    for optimizer in optimizers:
        _scale_learning_rate(optimizer, branch.towers[0].learning_rate_scale)
    gradients = [
        _clip(
            workers.devices.reduce([_gradients(tower, position, optimizer, options) for tower in branch.towers]),
            options,
        )
        for position, optimizer in enumerate(optimizers)
    ]
    updates = [_as_operation(item) for tower in branch.towers for item in tower.updates]
    ready = [gradient for group in gradients for gradient, _ in group]
    applied: list[Any] = []
    for position, (optimizer, group) in enumerate(zip(optimizers, gradients, strict=True)):
        last = position == len(optimizers) - 1
        # The last one counts the step, after the others, because an optimizer may need to see the counter.
        waits = [*ready, *updates, *(applied if last else [])] if len(optimizers) > 1 or updates else []
        with tf1.control_dependencies(waits):
            applied.append(workers.apply(optimizer, group, global_step if last else None))
    with tf1.control_dependencies([*applied, *updates]):
        after = [make() for tower in branch.towers for make in tower.after_update]
        after += workers.devices.after_update(branch)
    return tf.group(*applied, *updates, *after, name="train_op")


def _factories(optimizer_fn: Any, losses: int) -> list[Callable[[], Any]]:
    factories = list(optimizer_fn) if isinstance(optimizer_fn, (list, tuple)) else [optimizer_fn]
    if len(factories) == 1 and losses > 1 and not isinstance(optimizer_fn, (list, tuple)):
        factories *= losses
    if len(factories) != losses:
        raise ModelSpecError(
            f"optimizer_fn is a list of {len(factories)}, but model_fn returned {losses} loss(es)",
            hint="give one optimizer_fn per loss, or a single one for all",
        )
    return [_check_factory(factory) for factory in factories]


def _check_factory(factory: Any) -> Callable[[], Any]:
    if factory is None:
        raise ModelSpecError("run() needs optimizer_fn in TRAIN", hint=_EXAMPLE)
    if isinstance(factory, tf1.train.Optimizer) or (
        hasattr(factory, "apply_gradients") and not isinstance(factory, type)
    ):
        raise ModelSpecError(
            f"optimizer_fn is an optimizer ({type(factory).__name__}); expected a function that returns one",
            hint=f"put a lambda before it: optimizer_fn=lambda: tf.train.{type(factory).__name__}(...)",
        )
    if not callable(factory):
        raise ModelSpecError(f"optimizer_fn must be a function, not {type(factory).__name__}", hint=_EXAMPLE)
    checked: Callable[[], Any] = factory
    return checked


def _make_optimizer(factory: Callable[[], Any]) -> Any:
    optimizer = factory()
    if not isinstance(optimizer, tf1.train.Optimizer):
        raise ModelSpecError(
            f"optimizer_fn returned {type(optimizer).__name__}; expected a tf.compat.v1.train.Optimizer", hint=_EXAMPLE
        )
    return optimizer


def _scale_learning_rate(optimizer: Any, scale: float) -> None:
    """Multiply an optimizer's learning rate, before it has built anything.

    Raises:
        ModelSpecError: it keeps none where the optimizers of `tf.train` do.
    """
    if scale == 1.0:
        return
    for name in ("_learning_rate", "_lr"):
        if getattr(optimizer, name, None) is not None:
            setattr(optimizer, name, _times(getattr(optimizer, name), scale))
            return
    inner = getattr(optimizer, "_optimizer", None) or getattr(optimizer, "_opt", None)
    if inner is None:
        raise ModelSpecError(
            f"learning_rate_scale={scale:g} needs an optimizer with a learning rate; "
            f"{type(optimizer).__name__} has none",
            hint="leave learning_rate_scale out, and give the learning rate that the training is to have",
        )
    _scale_learning_rate(inner, scale)


def _times(rate: Any, scale: float) -> Any:
    """Multiply a learning rate, which may be a number, a tensor or a function that returns one."""
    return (lambda: rate() * scale) if callable(rate) else rate * scale


def _gradients(tower: Tower, position: int, optimizer: Any, options: TrainOptions) -> GradsAndVars:
    loss = tower.spec.losses[position]
    variables = _select(tower.trainable, tower.spec.var_scopes[position], options)
    scaled = loss * tf.cast(options.loss_scale, loss.dtype) if options.loss_scale != 1.0 else loss
    pairs = optimizer.compute_gradients(scaled, var_list=variables)
    used = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    unused = [variable.op.name for gradient, variable in pairs if gradient is None]
    if not used:
        raise ModelSpecError(
            f"the loss {loss.name!r} does not depend on any of its {len(variables)} trainable variables",
            hint="compute it from the model's output, with operations that have gradients",
        )
    if unused:
        tf1.logging.warning("no gradient of %s reaches %s: they are not trained", loss.name, ", ".join(sorted(unused)))
    if options.loss_scale != 1.0:
        used = [(_map_values(g, lambda x: x / tf.cast(options.loss_scale, x.dtype)), v) for g, v in used]
    return used


def _map_values(gradient: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to a gradient's numbers, sparse ones included."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)


def _clip(pairs: GradsAndVars, options: TrainOptions) -> GradsAndVars:
    if not options.clip:
        return pairs
    gradients, variables = zip(*pairs, strict=True)
    if options.clip_type == "global_norm":
        clipped, _ = tf.clip_by_global_norm(list(gradients), options.clip)
    elif options.clip_type == "norm":
        clipped = [tf.clip_by_norm(g, options.clip) for g in gradients]
    else:
        clipped = [_map_values(g, lambda x: tf.clip_by_value(x, -options.clip, options.clip)) for g in gradients]
    return list(zip(clipped, variables, strict=True))


def _select(trainable: Sequence[Any], scopes: Sequence[str] | None, options: TrainOptions) -> list[Any]:
    selected = list(trainable)
    if not selected:
        raise ModelSpecError("model_fn made no trainable variables", hint="make them with tf.get_variable or layers")
    for scope in scopes or ():
        if not any(_in_scope(v, scope) for v in trainable):
            known = {v.op.name.split("/")[0] for v in trainable}
            raise ModelSpecError(
                f"var_scopes names {scope!r}, which holds no trainable variable; {did_you_mean(scope, known)}"
            )
    if scopes is not None:
        selected = [v for v in selected if any(_in_scope(v, scope) for scope in scopes)]
    if options.include:
        selected = [v for v in selected if matches(v.op.name, options.include)]
    selected = [v for v in selected if not matches(v.op.name, options.exclude)]
    if not selected:
        raise UsageError(
            f"flags --trainable_include_patterns={','.join(options.include)!r} "
            f"--trainable_exclude_patterns={','.join(options.exclude)!r} leave no variable to train",
            hint="the model has " + ", ".join(v.op.name for v in trainable[:8]),
        )
    return selected


def _in_scope(variable: Any, scope: str) -> bool:
    name, scope = variable.op.name, scope.rstrip("/")
    return bool(name == scope or name.startswith(scope + "/"))


def _as_operation(item: Any) -> Any:
    return item if isinstance(item, tf1.Operation) else item.op
