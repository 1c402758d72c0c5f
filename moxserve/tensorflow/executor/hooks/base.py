"""AggregativeSessionRunHook, the base of hooks that say how they behave on several devices and workers, and HookRun,
what a run tells them about itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.checkpoint import Checkpointer
    from moxserve.tensorflow.executor.hook_towers import Gather
    from moxserve.tensorflow.executor.participants import Clock
    from moxserve.tensorflow.executor.workers import Workers

__all__ = ["AggregativeSessionRunHook", "HookRun", "check_hook", "runs_inter_mode"]

_QUESTIONS = ("support_aggregation", "support_sync_workers", "run_inter_mode")


@dataclass(frozen=True)
class HookRun:
    """What a run tells its hooks before `begin`.

    Attributes:
        clock: where the run stands.
        workers: the processes of the job.
        batch_size: rows of a step on one device, as given to `run`.
        makes_batches: whether the executor makes the batches (`auto_batch`), so that `batch_size` is what they are.
        checkpointer: writes the run's checkpoints; None where this process writes none.
    """

    clock: Clock
    workers: Workers
    batch_size: int
    makes_batches: bool
    checkpointer: Checkpointer | None = None

    @property
    def decides(self) -> bool:
        """Whether this process decides for the job: the chief, or the only one."""
        return self.workers.topology.is_chief

    @property
    def shares_decisions(self) -> bool:
        """Whether the workers make each step together, so that they must decide as one."""
        topology = self.workers.topology
        return topology.num_workers > 1 and topology.synchronous

    @property
    def steps_apart(self) -> bool:
        """Whether several workers make steps at their own pace."""
        topology = self.workers.topology
        return topology.num_workers > 1 and not topology.synchronous

    @property
    def replicas_per_step(self) -> int:
        """How many batches of `batch_size` rows the job takes for each global step."""
        topology = self.workers.topology
        alone = self.steps_apart and not topology.chief_counts
        return topology.num_devices if alone else topology.global_replicas


class AggregativeSessionRunHook(tf1.train.SessionRunHook):
    """A SessionRunHook that answers three questions, so that it can run on several devices and workers.

    Subclasses implement all three, each returning a bool.

    Attributes:
        monitor_info: name: scalar tensor; what `run_inter` averages. A hook whose `run_inter_mode()` is True sets it
            when it is made; where it is None, the `log_info` beside the hook is averaged.
        counts_global_steps: `next_active_step` is asked with global steps. Without it, these are used only where
            several workers must find the same steps.
        towers: where the hook gets the values of several devices: asks for them, and makes one of them.
        shares_evaluations: `run_inter` may answer with values of an evaluation that another such hook has asked for
            after the same step.
        scales_learning_rate: the run is to have the variable `mox/lr_scale`, which multiplies learning rates.
    """

    monitor_info: Mapping[str, Any] | None = None
    counts_global_steps: bool = False
    shares_evaluations: bool = False
    scales_learning_rate: bool = False
    _host: HookRun | None = None
    _inter: Callable[[int], dict[str, float]] | None = None
    towers: Gather | None = None

    # -- three questions

    def support_aggregation(self) -> bool:
        """Whether one hook gets the values of all devices (True) or the hook of each device runs for itself (False)."""
        raise self._unanswered("support_aggregation")

    def support_sync_workers(self) -> bool:
        """Whether all workers run the hook at the same steps and stop together (True), or each for itself (False)."""
        raise self._unanswered("support_sync_workers")

    def run_inter_mode(self) -> bool:
        """Whether the hook runs the intermediate mode of `run(inter_mode=...)`."""
        raise self._unanswered("run_inter_mode")

    # -- when

    def next_active_step(self, step: int) -> int:
        """Tell when the hook has work to do; override it, and the steps between cost nothing.

        Args:
            step: index of the step that is about to run, counted from 0 in each run; the global step with
                `counts_global_steps`, and where synchronous workers run the hook together.

        Returns:
            The first step, this one or a later one, around which `before_run` and `after_run` are to be called.
        """
        return step

    # -- state

    def save_state(self) -> Mapping[str, Any] | None:
        """Tell what the hook must know again when the run is resumed from the checkpoint that is about to be written.

        Returns:
            What JSON can hold; None for nothing.
        """
        return None

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `save_state` gave for the checkpoint that this run goes on from; runs after `begin` and
        before `after_create_session`.
        """

    def has_ended_training(self) -> bool:
        """Whether the restored state says that the training is over: there is nothing to go on with."""
        return False

    # -- evaluations

    def run_inter(self, n_steps: int = 0) -> dict[str, float]:
        """Run the intermediate mode, from the start of its input; no variable changes. Call it in `after_run`
        or `end`, or in `after_create_session` to know where training starts.

        Args:
            n_steps: how many steps; 0 to the end of the input. The input may end before.

        Returns:
            The mean of each value of `monitor_info` over the steps that were made, each weighted by its rows.

        Raises:
            ModelSpecError: the run has no intermediate mode.
            DataError: the input gave no rows.
        """
        if self._inter is None:
            raise ModelSpecError(
                f"{type(self).__name__} cannot run an intermediate mode here",
                hint="it needs run_inter_mode() to be True, run_mode TRAIN and run(inter_mode=mox.ModeKeys.EVAL)",
            )
        return self._inter(n_steps)

    # -- for the executor

    def join_run(self, run: HookRun) -> None:
        """Learn about the run; the executor calls it before `begin`."""
        self._host = run

    def bind_inter(self, inter: Callable[[int], dict[str, float]]) -> None:
        """Take what `run_inter` calls; the executor gives it before `begin`."""
        self._inter = inter

    def bind_towers(self, towers: Gather) -> None:
        """Take what gets the values of several devices; the executor gives it before `begin`."""
        self.towers = towers

    def _unanswered(self, method: str) -> ModelSpecError:
        return ModelSpecError(
            f"hook {type(self).__name__} does not implement {method}()",
            hint=f"an AggregativeSessionRunHook needs {', '.join(_QUESTIONS)}, each returning True or False",
        )


def runs_inter_mode(hook: Any) -> bool:
    """Whether a checked hook runs the intermediate mode of `run(inter_mode=...)`."""
    return isinstance(hook, AggregativeSessionRunHook) and hook.run_inter_mode()


def check_hook(hook: Any) -> None:
    """Check that an element of ModelSpec.hooks can be run.

    Raises:
        ModelSpecError: it is no hook, or leaves one of the three questions open.
    """
    if isinstance(hook, type) and issubclass(hook, tf1.train.SessionRunHook):
        raise ModelSpecError(
            f"ModelSpec.hooks holds the class {hook.__name__}", hint=f"give an object: {hook.__name__}(...)"
        )
    if not isinstance(hook, tf1.train.SessionRunHook):
        raise ModelSpecError(
            f"ModelSpec.hooks holds a {type(hook).__name__}, which is no hook",
            hint="derive it from mox.AggregativeSessionRunHook",
        )
    if isinstance(hook, AggregativeSessionRunHook):
        for question in _QUESTIONS:
            answer = getattr(hook, question)()
            if not isinstance(answer, bool):
                raise ModelSpecError(f"{type(hook).__name__}.{question}() returned {answer!r}; expected True or False")
