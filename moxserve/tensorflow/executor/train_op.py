"""From losses and optimizers to the one operation that is a training step."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from moxserve.errors import ModelSpecError, UsageError, did_you_mean
from moxserve.tensorflow.executor.branch import Branch, Tower
from moxserve.tensorflow.executor.devices import GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import FlagStore
from moxserve.tensorflow.executor.hooks.lr_scale import LEARNING_RATES, LR_SCALE
from moxserve.tensorflow.executor.workers import Workers
from moxserve.tensorflow.optimizer.clip import Clip
from moxserve.tensorflow.optimizer.loss_scale import LossScale
from moxserve.tensorflow.optimizer.wrapper import AFTER_START, OptimizerWrapper, chain, unfit

__all__ = ["AFTER_START", "TrainOptions", "build_train_op", "matches", "split_patterns"]

_EXAMPLE = (
    "optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.01), or lambda: tf.train.MomentumOptimizer(0.01, 0.9)"
)


@dataclass(frozen=True)
class TrainOptions:
    """What flags say about gradients.

    Attributes:
        loss_scale: the loss is multiplied, the gradients divided by it; 1.0 is off, 0.0 finds it by itself.
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
            UsageError: a scale or limit is negative.
        """
        scale, clip = store.get("loss_scale"), store.get("gradient_clip")
        if scale < 0:
            raise UsageError(f"flag --loss_scale={scale}: expected a number above 0; 1 is off, 0 is dynamic")
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
    given = [_make_optimizer(factory) for factory in _factories(optimizer_fn, len(branch.spec.losses))]
    _check_own(given)
    with ExitStack() as undo:  # what is given may be given again, to the next run
        optimizers = [_with_options(optimizer, options, undo) for optimizer in given]
        _prepare_learning_rates(optimizers, branch, undo)
        return _train_op(branch, optimizers, global_step, options, workers)


def _train_op(
    branch: Branch, optimizers: Sequence[Any], global_step: Any, options: TrainOptions, workers: Workers
) -> Any:
    """Build the operation with optimizers that are ready; arguments as of `build_train_op`."""
    _tell_unmatched(branch.towers[0].trainable, options)
    gradients = [
        workers.devices.reduce([_gradients(tower, position, optimizer, options) for tower in branch.towers])
        for position, optimizer in enumerate(optimizers)
    ]
    # Where the workers share the variables and step together, one of them keeps the averages.
    towers = branch.towers if workers.updates_state else []
    updates = [_as_operation(item) for tower in towers for item in tower.updates]
    ready = [gradient for group in gradients for gradient, _ in group]
    applied: list[Any] = []
    for position, (optimizer, group) in enumerate(zip(optimizers, gradients, strict=True)):
        last = position == len(optimizers) - 1
        # The last one counts the step, after the others, because an optimizer may need to see the counter.
        waits = [*ready, *updates, *(applied if last else [])] if len(optimizers) > 1 or updates else []
        with tf1.control_dependencies(waits):
            applied.append(workers.apply(optimizer, group, global_step if last else None))
            # A training may begin to use a wrapper where its checkpoints know nothing of it.
            branch.plan.optional += [v for one in _wrappers(optimizer) for v in one.own_variables]
    with tf1.control_dependencies([*applied, *updates]):
        after = [make() for tower in towers for make in tower.after_update]
    with tf1.control_dependencies([*applied, *updates, *after]):
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
    if problem := unfit(optimizer):
        raise ModelSpecError(f"optimizer_fn returned {problem}", hint=_EXAMPLE)
    return optimizer


def _wrappers(optimizer: Any) -> list[OptimizerWrapper]:
    return [one for one in chain(optimizer) if isinstance(one, OptimizerWrapper)]


def _check_own(optimizers: Sequence[Any]) -> None:
    """Check that no wrapper is that of another loss or run: they have sums and counts of gradients.

    Raises:
        ModelSpecError: one is.
    """
    known: set[int] = set()
    graph = tf1.get_default_graph()
    for optimizer in optimizers:
        for one in _wrappers(optimizer):
            foreign = any(variable.graph is not graph for variable in one.own_variables)
            if foreign or id(one) in known:
                when = "as in an earlier run" if foreign else "twice"
                raise ModelSpecError(
                    f"optimizer_fn returned the same wrapper {one.kind!r} {when}; each loss and each run needs its own",
                    hint="call mox.get_optimizer_wrapper_fn(...)() inside of optimizer_fn",
                )
            known.add(id(one))


def _with_options(optimizer: Any, options: TrainOptions, undo: ExitStack) -> Any:
    """Put what the flags ask for around an optimizer, inside of wrappers that average what an update is made of."""

    def around(inner: Any) -> Any:
        if options.clip:
            inner = Clip(inner, options.clip, options.clip_type)
        if options.loss_scale == 0.0:
            return LossScale(inner, dynamic=True)
        return inner if options.loss_scale == 1.0 else LossScale(inner, options.loss_scale)

    averaging = [one for one in _wrappers(optimizer) if one.averages]
    if not averaging:
        return around(optimizer)
    undo.callback(setattr, averaging[-1], "_optimizer", averaging[-1].inner)
    averaging[-1].insert(around)
    return optimizer


def _prepare_learning_rates(optimizers: Sequence[Any], branch: Branch, undo: ExitStack) -> None:
    """Multiply the optimizers' learning rates with what the model and its hooks ask for, before they have built
    anything, and let summaries show those that change.

    Raises:
        ModelSpecError: an optimizer keeps none where the optimizers of `tf.train` do, or one of another graph.
    """
    factor: Any = branch.towers[0].learning_rate_scale
    wanted = any(getattr(hook, "scales_learning_rate", False) for hook in branch.spec.hooks)
    if wanted:
        variable = tf1.get_variable(LR_SCALE, [], tf.float32, tf1.ones_initializer(), trainable=False)
        branch.plan.optional.append(variable)
        scale = variable.read_value()
    done: set[int] = set()
    for optimizer in optimizers:
        where = _learning_rate(optimizer)
        if where is None:
            if wanted or factor != 1.0:
                raise ModelSpecError(
                    f"a learning rate that is scaled needs an optimizer with one; {type(optimizer).__name__} has none",
                    hint="leave learning_rate_scale, and hooks that lower the learning rate, out; or give an "
                    "optimizer of tf.train",
                )
            continue
        owner, name = where
        if id(owner) in done:  # one for several losses
            continue
        done.add(id(owner))
        rate = getattr(owner, name)
        _check_graph(rate, owner)
        undo.callback(setattr, owner, name, rate)
        if factor != 1.0:
            rate = _times(rate, factor)
        if wanted:
            rate = tf.cast(rate() if callable(rate) else rate, tf.float32)
            tf1.add_to_collection(LEARNING_RATES, rate)
            rate = rate * scale
        setattr(owner, name, rate)
        _summarise(rate)


def _check_graph(rate: Any, optimizer: Any) -> None:
    if tf1.is_tensor(rate) and getattr(rate, "graph", None) not in (None, tf1.get_default_graph()):
        raise ModelSpecError(
            f"the learning rate of {type(optimizer).__name__} is {rate.name!r}, a tensor of another graph",
            hint="make it inside of optimizer_fn, which is called in the graph of each run",
        )


def _learning_rate(optimizer: Any) -> tuple[Any, str] | None:
    """Find which optimizer of a chain has the learning rate, and the attribute's name."""
    while optimizer is not None:
        for name in ("_learning_rate", "_lr"):
            if getattr(optimizer, name, None) is not None:
                return optimizer, name
        optimizer = getattr(optimizer, "_optimizer", None) or getattr(optimizer, "_opt", None)
    return None


def _summarise(rate: Any) -> None:
    """Show a learning rate that changes among the summaries, unless `optimizer_fn` does."""
    shown = (tensor.op.name for tensor in tf1.get_collection(tf1.GraphKeys.SUMMARIES))
    if tf1.is_tensor(rate) and rate.shape.rank == 0 and not any("learning_rate" in name for name in shown):
        tf1.summary.scalar("learning_rate", rate)


def _times(rate: Any, scale: float) -> Any:
    """Multiply a learning rate, which may be a number, a tensor or a function that returns one."""
    return (lambda: rate() * scale) if callable(rate) else rate * scale


def _gradients(tower: Tower, position: int, optimizer: Any, options: TrainOptions) -> GradsAndVars:
    loss = tower.spec.losses[position]
    variables = _select(tower.trainable, tower.spec.var_scopes[position], options)
    # Towers with copies of the variables compute gradients of these; everybody else knows the first tower's variables.
    known = {id(tower.own(variable)): variable for variable in variables}
    with tower.building():
        found = optimizer.compute_gradients(tower.weighted(loss), var_list=[tower.own(v) for v in variables])
    pairs = [(gradient, known[id(variable)]) for gradient, variable in found]
    used = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    unused = [variable.op.name for gradient, variable in pairs if gradient is None]
    if not used:
        raise ModelSpecError(
            f"the loss {loss.name!r} does not depend on any of its {len(variables)} trainable variables",
            hint="compute it from the model's output, with operations that have gradients",
        )
    if unused and tower.place.index == 0:
        tf1.logging.warning("no gradient of %s reaches %s: they are not trained", loss.name, ", ".join(sorted(unused)))
    return used


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


def _tell_unmatched(trainable: Sequence[Any], options: TrainOptions) -> None:
    """Warn of patterns that match nothing: a layer that somebody wanted to keep is trained, say."""
    for flag, patterns in (("include", options.include), ("exclude", options.exclude)):
        for pattern in patterns:
            if not any(matches(variable.op.name, (pattern,)) for variable in trainable):
                tf1.logging.warning(
                    "flag --trainable_%s_patterns: %r matches none of the model's %d trainable variables, such as %s",
                    flag, pattern, len(trainable), ", ".join(variable.op.name for variable in trainable[:3]),
                )  # fmt: skip


def _in_scope(variable: Any, scope: str) -> bool:
    name, scope = variable.op.name, scope.rstrip("/")
    return bool(name == scope or name.startswith(scope + "/"))


def _as_operation(item: Any) -> Any:
    return item if isinstance(item, tf1.Operation) else item.op
