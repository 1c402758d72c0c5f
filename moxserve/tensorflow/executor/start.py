"""What a run starts from: the checkpoint in its `log_dir`, the one at `checkpoint_path`, a warm start, or nothing.

log_dir            exactly, names and shapes; `checkpoint_path` and `warm_start` do not count then
checkpoint_path    TRAIN: what fits and the flags allow, with the optimizers' state and the step. Else: everything
warm_start         TRAIN: the model's own variables, see `warm_start`
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from moxserve.errors import CheckpointError
from moxserve.file.standins import known_as
from moxserve.tensorflow.executor import checkpoint as checkpoints
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import store
from moxserve.tensorflow.executor.hooks.lr_scale import LR_SCALE
from moxserve.tensorflow.executor.settings import Settings
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.executor.train_op import split_patterns

__all__ = ["Start", "give_initial_value"]

# By graph, tensors that some variables begin as, each with a function that returns its value. Large values stay out of
# the graph this way, which has room for two gigabytes and is written into every events file.
_fed: weakref.WeakKeyDictionary[Any, list[tuple[Any, Callable[[], Any]]]] = weakref.WeakKeyDictionary()


def give_initial_value(shape: Sequence[int], dtype: Any, value: Callable[[], Any]) -> Any:
    """Return a tensor for an initializer whose value is fed when a run initialises its variables.

    Args:
        shape: of the value.
        dtype: of the value.
        value: returns it, when it is needed.
    """
    tensor = tf1.placeholder_with_default(tf.zeros(list(shape), dtype), list(shape), "initial_value")
    _fed.setdefault(tensor.graph, []).append((tensor, value))
    return tensor


def _feed_initial_values(session: Any, variables: Sequence[Any]) -> None:
    for tensor, value in _fed.get(session.graph, ()):
        begun = [v.initializer for v in variables if v.initializer.inputs[1] is tensor]
        if begun:
            session.run(begun, {tensor: value()})


class Start:
    """What a run starts from.

    Args:
        settings: of the run.

    Attributes:
        resume: checkpoint of `log_dir`; None if it has none.
        prefix: what is restored; None for nothing.
        warm: whether it is a warm start.

    Raises:
        CheckpointError: the mode needs a checkpoint and there is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._training = settings.mode == ModeKeys.TRAIN
        self.resume = settings.resume
        self.warm = self.resume is None and settings.warm_start is not None
        self.prefix = self._warm_prefix() if self.warm else self.resume
        if self.prefix is None:
            self.prefix = checkpoints.find_checkpoint(settings.checkpoint_path)
            self._require()

    def _warm_prefix(self) -> str:
        """The checkpoint of a warm start, which is no wish but a condition."""
        path = self._settings.warm_start.checkpoint if self._settings.warm_start is not None else None
        prefix = checkpoints.find_checkpoint(path)
        if prefix is None:
            raise CheckpointError(
                f"warm_start: no checkpoint at {str(path)!r}", hint="give a prefix, a file, a folder or a SavedModel"
            )
        return prefix

    def _require(self) -> None:
        """Apply the third rule of precedence: no checkpoint anywhere is fine in TRAIN only."""
        settings = self._settings
        start = settings.checkpoint_path
        given = {"log_dir": settings.shown(settings.log_dir), "checkpoint_path": start and known_as(start)}
        places = [f"{name}={path!r}" for name, path in given.items() if path is not None]
        if self.prefix is None and not self._training:
            where = " or ".join(places) or "log_dir and checkpoint_path are both None"
            raise CheckpointError(
                f"{settings.mode} needs a checkpoint; found none: {where}",
                hint="train first, or give checkpoint_path",
            )
        if self.prefix is None and settings.checkpoint_path is not None:
            tf1.logging.warning("no checkpoint in %s: training starts from initial values", " or ".join(places))

    def restore(
        self, session: Any, variables: Sequence[Any], model: Sequence[Any], global_step: Any, optional: Sequence[Any]
    ) -> None:
        """Give variables their values; nothing where there is nothing to start from.

        Args:
            session: of the run; its graph is frozen.
            variables: all that are saved.
            model: those that `model_fn` made, the optimizers' left out.
            global_step: the step counter, one of `variables`.
            optional: those that a training may start without.

        Raises:
            CheckpointError: the checkpoint cannot be read or does not fit.
        """
        if self.resume is None:
            _feed_initial_values(session, variables)
        if self.prefix is None:
            return
        if not self._training:
            self._restore_applied(session, self.prefix, variables, global_step)
            return
        wanted: Sequence[Any] = variables
        rules = checkpoints.RestoreRules(optional=frozenset(variable.op.name for variable in optional))
        warm_start = self._settings.warm_start
        if self.warm and warm_start is not None:
            wanted = [variable for variable in model if variable is not global_step]
            rules = warm_start.rules([checkpoints.name_of(variable) for variable in wanted])
        elif self.resume is None:
            wanted = [variable for variable in variables if variable.op.name != LR_SCALE]  # not its plateaus
            rules = checkpoints.RestoreRules(
                include=split_patterns(store.get("checkpoint_include_patterns")),
                exclude=split_patterns(store.get("checkpoint_exclude_patterns")),
                partial=True,
                optional=rules.optional,
                moving_averages=bool(store.get("checkpoint_moving_averages")),
            )
        checkpoints.restore_matching(session, self.prefix, wanted, rules)

    def _restore_applied(self, session: Any, prefix: str, variables: Sequence[Any], global_step: Any) -> None:
        """EVAL and PREDICT need everything but the step, which also stands in the name."""
        averages = self.resume is None and bool(store.get("checkpoint_moving_averages"))
        wanted = [v for v in variables if v is not global_step]
        checkpoints.restore(session, prefix, wanted, moving_averages=averages)
        step = checkpoints.global_step_of(prefix)
        session.run(global_step.initializer, {global_step.initializer.inputs[1]: step})

    def is_done(self, global_step: int) -> bool:
        """Whether a training has reached its goal before it begins; says what to do then."""
        goal = self._settings.max_steps
        if not self._training or not goal or global_step < goal:
            return False
        advice = (
            "raise max_number_of_steps to go on, or give another log_dir to start again"
            if self.resume is not None
            else "to count from 0 with its weights: mox.set_flag('checkpoint_exclude_patterns', 'global_step')"
        )
        tf1.logging.warning(
            "Nothing to train: checkpoint %s is at step %d, and max_number_of_steps is %d; %s",
            known_as(self.prefix or ""),
            global_step,
            goal,
            advice,
        )
        return True
