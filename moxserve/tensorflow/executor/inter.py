"""`run(inter_mode=...)`: a second branch in the graph of a training run, and who runs it in the middle of training.

`input_fn` and `model_fn` are called once more, in the intermediate mode, after the whole training step is built. The
branch shares the variables and changes none. Nothing of it reaches the training run but what its hooks carry over: of
the hooks that answer `run_inter_mode()` with True, the one that TRAIN's `model_fn` made takes part in training, and the
tensors that it asks for are those of its counterpart, which the second call of `model_fn` made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from moxserve.errors import DataError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.branch import Branch, Tower, build_branch, check_scalars
from moxserve.tensorflow.executor.devices import Devices
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.hooks import runs_inter_mode
from moxserve.tensorflow.executor.inputs import ModeInput, build_inputs
from moxserve.tensorflow.executor.loop import Loop
from moxserve.tensorflow.executor.participants import NEVER, Clock, InterStopped, Participant
from moxserve.tensorflow.executor.reporters import EvalMeans, add_scalars, own_suffix
from moxserve.tensorflow.executor.settings import Functions, Settings
from moxserve.tensorflow.executor.shared import Group, HookEvaluation, plain
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.executor.stepper import Stepper
from moxserve.tensorflow.executor.tower_collections import SESSION_COLLECTIONS
from moxserve.tensorflow.executor.tower_values import TowerValues, tower_values

__all__ = ["InterBranch", "build_inter"]

_CHANGES = ("Assign", "ResourceApply", "ResourceScatter", "ResourceSparseApply", "ResourceStridedSliceAssign")
_CURE = "run(inter_mode=mox.ModeKeys.EVAL)"


def build_inter(
    functions: Functions, settings: Settings, devices: Devices, train: Branch, clock: Clock
) -> InterBranch | None:
    """Build the branch of `settings.inter_mode` into the current graph, and give it to the hooks that run it.

    Args:
        functions: the user's.
        settings: of the run.
        devices: as for `train`.
        train: the branch of the run's own mode.
        clock: of the run.

    Returns:
        None where there is nothing to run: no `inter_mode`, no hook that runs it, or a run that does not train.

    Raises:
        ModelSpecError: a hook waits for an intermediate mode that was not asked for; or the hooks of the two branches
            do not match; or what they monitor cannot be had without an effect on training.
    """
    hooks = [hook for hook in train.spec.hooks if runs_inter_mode(hook)]
    mode = settings.inter_mode
    if settings.mode != ModeKeys.TRAIN:
        if mode is not None:
            tf1.logging.warning(
                "inter_mode=%r has no effect in %s: it runs in the middle of TRAIN", mode, settings.mode
            )
        return None
    if mode is None:
        if hooks:
            raise ModelSpecError(
                f"{type(hooks[0]).__name__} runs an intermediate mode, and inter_mode is not given", hint=_CURE
            )
        return None
    if not hooks:
        tf1.logging.warning(
            "inter_mode=%r has no effect: no hook of model_fn runs it; give ModelSpec(hooks=[...]) a "
            "mox.LogEvaluationMetricHook, a mox.EarlyStoppingHook, or a hook whose run_inter_mode() is True",
            mode,
        )
        return None
    with _contained(mode):
        inter = _build(functions, settings, devices, train)
    inter.clock = clock
    inter.bind(train.spec.hooks, forbidden={tensor.op.name for tower in train.towers for tensor in tower.inputs})
    return inter


def _build(functions: Functions, settings: Settings, devices: Devices, train: Branch) -> InterBranch:
    mode = str(settings.inter_mode)
    with tf.device("/cpu:0"), tf1.name_scope(f"{mode.lower()}_input"):
        source = build_inputs(functions.input_fn, mode, settings.batch_size, settings.auto_batch, len(devices.places))
    # Iterators that input_fn asked to be started with the tables must be started again for each evaluation, too.
    source.initializers[:0] = source.started_with_tables
    try:
        branch = build_branch(functions.model_fn, mode, source.towers, devices.places, after=train)
    except BaseException:
        source.close()
        raise
    writes = settings.log_dir is not None and settings.summary_every is not None and devices.topology.is_chief
    folder = os.path.join(str(settings.log_dir), mode.lower()) if writes else None
    return InterBranch(branch, source, folder)


@contextmanager
def _contained(mode: str) -> Iterator[None]:
    """Undo what is added to the graph's collections inside, but for what a session needs to start.

    Raises:
        ModelSpecError: a variable was made, which TRAIN does not know and nobody would ever train.
    """
    graph = tf1.get_default_graph()
    before = {key: len(graph.get_collection_ref(key)) for key in graph.get_all_collection_keys()}
    yield
    made = graph.get_collection(tf1.GraphKeys.GLOBAL_VARIABLES)[before.get(tf1.GraphKeys.GLOBAL_VARIABLES, 0) :]
    if made:
        names = ", ".join(repr(variable.op.name) for variable in made)
        raise ModelSpecError(
            f"input_fn and model_fn made variables in inter_mode={mode!r} that they do not make in TRAIN: {names}",
            hint="make the same variables in every mode",
        )
    for key in graph.get_all_collection_keys():
        if key not in SESSION_COLLECTIONS:
            del graph.get_collection_ref(key)[before.get(key, 0) :]


class InterBranch(Participant):
    """The branch of the intermediate mode. It takes part in training only to learn about the session.

    Args:
        branch: the model in the intermediate mode.
        source: its input.
        folder: of the event files that the means are written to, None for none.

    Attributes:
        clock: of the run, whose stopwatch an evaluation holds.
        stopped: asked between the steps of an evaluation; True breaks it off.
    """

    def __init__(self, branch: Branch, source: ModeInput, folder: str | None) -> None:
        self.branch = branch
        self.clock = Clock()
        self.stopped: Callable[[], bool] = lambda: False
        self._source = source
        self._folder = folder
        self._writer: Any = None
        self._fed = {tensor.op.name for tower in source.towers for tensor in tower} if source.participants else set()
        inputs = [tensor for tower in branch.towers for tensor in tower.inputs]
        self._step_op = tf.group(*inputs, name=f"{branch.mode.lower()}_step")
        self._session: Any = None

    # -- who asks for what

    def bind(self, hooks: Sequence[Any], forbidden: set[str]) -> None:
        """Give each hook of TRAIN the function that runs this branch for it.

        Args:
            hooks: those of TRAIN, in order; some run the intermediate mode.
            forbidden: operations of TRAIN's input, which an evaluation must not pull.

        Raises:
            ModelSpecError: the hooks have no counterparts here, or monitor what an evaluation cannot give.
        """
        running = [hook for hook in hooks if runs_inter_mode(hook)]
        expected = [type(hook).__name__ for hook in running]
        per_tower = [self._infos(tower, running, expected) for tower in self.branch.towers]
        groups = self._groups(hooks)
        for position, (hook, infos) in enumerate(zip(running, zip(*per_tower, strict=True), strict=True)):
            for info in infos:
                for name, tensor in info.items():
                    _check_harmless(tensor, f"{expected[position]}.monitor_info[{name!r}]", forbidden, self._fed)
            hook.bind_inter(HookEvaluation(tower_values(infos, self.branch.towers), groups[position]))

    def _groups(self, hooks: Sequence[Any]) -> list[Group]:
        """The group of each hook that runs the intermediate mode: see `shared`."""
        groups = []
        group = None
        for hook in hooks:
            shares = runs_inter_mode(hook) and hook.shares_evaluations
            if group is None or not shares:
                group = Group(self.run, self.clock)
            if runs_inter_mode(hook):
                groups.append(group)
            group = group if shares else None
        return groups

    def _infos(self, tower: Tower, hooks: Sequence[Any], expected: list[str]) -> list[dict[str, Any]]:
        """What the counterparts of the hooks monitor in a tower."""
        counterparts = [hook for hook in tower.spec.hooks if runs_inter_mode(hook)]
        kinds = [type(hook).__name__ for hook in counterparts]
        if kinds != expected:
            raise ModelSpecError(
                f"the hooks that run the intermediate mode are {expected} in TRAIN and {kinds} in {self.branch.mode}: "
                "they are matched in order",
                hint="return the same hooks from model_fn in both modes",
            )
        return [
            self._info(hook, counterpart.monitor_info or tower.spec.log_info, f"{name}.monitor_info")
            for hook, counterpart, name in zip(hooks, counterparts, kinds, strict=True)
        ]

    def _info(self, hook: Any, monitored: Mapping[str, Any], what: str) -> dict[str, Any]:
        info = dict(monitored)
        if not info:
            raise ModelSpecError(
                f"{what} is empty, and model_fn returned no log_info in {self.branch.mode}",
                hint="self.monitor_info = {'loss': loss}",
            )
        if hook.monitor_info and set(hook.monitor_info) != set(info):
            raise ModelSpecError(
                f"{what} has the names {sorted(hook.monitor_info)} in TRAIN and {sorted(info)} in {self.branch.mode}",
                hint="monitor the same values in both modes",
            )
        check_scalars(info, what)
        return info

    # -- participant

    def next_step(self, clock: Clock) -> int:
        """Never: training steps are none of its business."""
        return NEVER

    def begin(self) -> None:
        """The same for the input's participants."""
        for participant in self._source.participants:
            participant.begin()

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Remember where to run."""
        for participant in self._source.participants:
            participant.session_ready(session, coordinator)
        self._session = session
        self._stepper = Stepper(session, self._step_op, Clock(counts_globally=False))

    def close(self) -> None:
        """End the input, and flush the event file; not at `finish`, because a hook may evaluate in its `end`."""
        self._source.close()
        if self._writer is not None:
            self._writer.close()

    # -- running

    def run(self, values: Sequence[TowerValues], n_steps: int) -> dict[str, float]:
        """Run the branch from the start of its input.

        Args:
            values: scalar tensors of each tower of this branch.
            n_steps: how many steps; 0 to the end of the input.

        Returns:
            The mean of each value over the steps that were made and all towers, each weighted by its rows.

        Raises:
            ModelSpecError: the session is not open.
            UsageError: `n_steps` is negative, or 0 where the input never ends.
            DataError: the input gave nothing.
            InterStopped: a signal came.
        """
        if self._session is None:
            raise ModelSpecError(
                "run_inter() was called before the session was there", hint="call it in after_run or end"
            )
        if n_steps == 0 and self._source.endless:
            n_steps = self._source.steps
        if n_steps < 0 or (n_steps == 0 and self._source.endless):
            raise UsageError(
                f"run_inter(n_steps={n_steps!r}): expected a number of steps, or 0 for an input that ends",
                hint="leave .repeat() out of input_fn in this mode, or say how many steps",
            )
        with self.clock.aside():
            means = self._means(values, n_steps or NEVER)
            self._write(plain(means))
        return means

    def _write(self, means: Mapping[str, float]) -> None:
        if self._folder is None:
            return
        if self._writer is None:  # named apart from a run of EVAL, which writes here and may do so in the same second
            self._writer = tf1.summary.FileWriter(self._folder, filename_suffix=f".inter{own_suffix()}")
        add_scalars(self._writer, means, self.clock.global_step)

    def _means(self, values: Sequence[TowerValues], n_steps: int) -> dict[str, float]:
        means = EvalMeans(values)
        self._source.start(self._session)
        clock = self._stepper.clock = Clock(counts_globally=False, steps_per_epoch=n_steps)
        takers = [*self._source.participants, means]
        if Loop(self._stepper, takers, clock, self.stopped).run() == "signal":
            tf1.logging.warning("a signal came: the evaluation is broken off after %d steps", clock.run_step)
            raise InterStopped
        if not clock.run_step:
            raise DataError(
                f"input_fn gave no rows in {self.branch.mode}, or its input cannot be started again",
                hint="return a tf.data.Dataset, or make_one_shot_iterator().get_next(), which can be started again",
            )
        return means.means


def _check_harmless(tensor: Any, what: str, forbidden: set[str], fed: set[str]) -> None:
    """Check that a tensor can be computed without an effect on training, and without a feed that is not its input's.

    Raises:
        ModelSpecError: computing it changes a variable, pulls TRAIN's input or needs a placeholder.
    """
    pending, seen = [tf.convert_to_tensor(tensor).op], set()
    while pending:
        op = pending.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        if op.name in forbidden:
            raise ModelSpecError(
                f"{what} is computed from the input of TRAIN",
                hint="make the hook inside of model_fn, from the tensors of that call",
            )
        if op.name in fed:
            continue
        if op.type in ("Placeholder", "PlaceholderV2"):
            raise ModelSpecError(
                f"{what} depends on the placeholder {op.name!r}, which nobody feeds in the intermediate mode",
                hint="get the value from input_fn, or use tf.placeholder_with_default",
            )
        if op.type.startswith(_CHANGES):
            raise ModelSpecError(
                f"{what} changes the variable {op.inputs[0].op.name!r}; an evaluation must leave variables alone",
                hint="give the mean of one batch, tf.reduce_mean(...): the batches are averaged for you",
            )
        pending.extend(op.control_inputs)
        pending.extend(value.op for value in op.inputs)
