"""One pass over the input of an intermediate mode for several hooks that evaluate after the same step.

Hooks that say `shares_evaluations`, and follow each other in `ModelSpec.hooks`, are a group: nobody between them may
change a variable. Before a step each of them announces that it will evaluate after it. The first one that does so
evaluates for all that have announced the same number of steps, and the others are given what is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from moxserve.tensorflow.executor.participants import Clock
from moxserve.tensorflow.executor.tower_values import TowerValues

__all__ = ["Group", "HookEvaluation", "plain"]

_SEPARATOR = "\0"
Run = Callable[[Sequence[TowerValues], int], dict[str, float]]


class Group:
    """Hooks whose evaluations may be one.

    Args:
        run: evaluates values over a number of steps.
        clock: of the training.
    """

    def __init__(self, run: Run, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self._step = -1
        self._announced: dict[HookEvaluation, int] = {}
        self._given: dict[HookEvaluation, tuple[int, dict[str, float]]] = {}

    def announce(self, member: HookEvaluation, n_steps: int) -> None:
        """Note that a member will evaluate after the step that is about to run."""
        if self._step != self._clock.run_step:
            self._step = self._clock.run_step
            self._announced.clear()
            self._given.clear()
        self._announced[member] = n_steps

    def evaluate(self, member: HookEvaluation, n_steps: int) -> dict[str, float]:
        """Evaluate for a member, and for those who announced the same; or take what an earlier one got for it."""
        announced = self._announced.pop(member, None)
        if self._clock.run_step != self._step + 1 or announced != n_steps:
            return self._run(member.values, n_steps)
        steps, given = self._given.pop(member, (0, {}))
        if given and steps == n_steps:
            return given
        together = [member, *(other for other, steps in self._announced.items() if steps == n_steps)]
        means = self._run(_merged(together), n_steps)
        for position, other in enumerate(together):
            self._given[other] = n_steps, {name: means[_key(position, name)] for name in other.values[0].values}
        return self._given.pop(member)[1]


class HookEvaluation:
    """What a hook evaluates; `run_inter` calls it.

    Args:
        values: what is averaged: scalar tensors of each tower.
        group: of the hook.
    """

    def __init__(self, values: Sequence[TowerValues], group: Group) -> None:
        self.values = values
        self._group = group

    def __call__(self, n_steps: int) -> dict[str, float]:
        """Evaluate; see AggregativeSessionRunHook.run_inter."""
        return self._group.evaluate(self, n_steps)

    def announce(self, n_steps: int) -> None:
        """Say before a step that this will be called after it."""
        self._group.announce(self, n_steps)


def plain(means: dict[str, float]) -> dict[str, float]:
    """Means under the names that hooks gave them; of the same names the first hook's."""
    return {name.partition(_SEPARATOR)[0]: value for name, value in reversed(means.items())}


def _key(position: int, name: str) -> str:
    return f"{name}{_SEPARATOR}{position}" if position else name


def _merged(members: Sequence[HookEvaluation]) -> list[TowerValues]:
    """The values of several hooks, tower by tower, under names that do not clash."""
    merged = []
    for tower, first in enumerate(members[0].values):
        values: Mapping[str, object] = {
            _key(position, name): tensor
            for position, member in enumerate(members)
            for name, tensor in member.values[tower].values.items()
        }
        merged.append(replace(first, values=values))
    return merged
