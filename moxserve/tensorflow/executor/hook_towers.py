"""Hooks of a model that is built on several devices: `model_fn` makes each hook once a tower.

    support_aggregation() True     the first tower's hook runs, and gets the values of all towers
    support_aggregation() False    the hook of each tower runs, and gets its own tower's values
    a plain SessionRunHook         the first tower's hook runs, with its own values

A hook asks for tensors of its own tower. What stands for them in another tower is found by its place: the tensor that
the other tower's hook keeps under the same name, or the one of the same name in the other tower's ModelSpec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.branch import Branch, Tower
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.hooks import AggregativeSessionRunHook, runs_inter_mode
from moxserve.tensorflow.executor.tower_values import tower_rows
from moxserve.tensorflow.executor.variables import reaches

__all__ = ["Gather", "tower_hooks"]


def tower_hooks(branch: Branch, runs_inter: bool) -> list[Any]:
    """Return the hooks that take part in a run, the first tower's before those of the others.

    Args:
        branch: of the run's own mode.
        runs_inter: whether there is an intermediate mode; hooks that run one have nothing to do in a run without.

    Raises:
        ModelSpecError: the towers have different hooks.
    """
    first, *others = [[h for h in t.spec.hooks if runs_inter or not runs_inter_mode(h)] for t in branch.towers]
    hooks = list(first)
    for index, listed in enumerate(others, 1):
        kinds, expected = ([type(hook).__name__ for hook in group] for group in (listed, first))
        if kinds != expected and not _only_first(first, listed):
            raise ModelSpecError(
                f"model_fn returned the hooks {expected} for the first device and {kinds} for device {index}",
                hint="return the same hooks in every call of model_fn",
            )
    for position, hook in enumerate(first):
        counterparts = [listed[position] for listed in others if position < len(listed)]
        if not isinstance(hook, AggregativeSessionRunHook) or not counterparts:
            continue
        if hook.support_aggregation():
            hook.bind_towers(Gather(hook, counterparts, branch.towers))
        elif not hook.run_inter_mode():  # one evaluation is for all devices
            hooks += [other for other in counterparts if not any(other is known for known in hooks)]
    return hooks


def _only_first(first: Sequence[Any], listed: Sequence[Any]) -> bool:
    """Whether a tower leaves out hooks that the first one adds at the end (pruning does)."""
    return [type(hook) for hook in first[: len(listed)]] == [type(hook) for hook in listed]


class Gather:
    """Lets a hook get the values of all towers: scalars averaged over the rows of the step, others one after another.

    Args:
        hook: the first tower's.
        counterparts: those of the other towers, which do not run.
        towers: of the branch.
    """

    def __init__(self, hook: Any, counterparts: Sequence[Any], towers: Sequence[Tower]) -> None:
        self._hook = hook
        self._counterparts = [other for other in counterparts if other is not hook]
        self._towers = list(towers)
        self._rows = [tower_rows(tower) for tower in towers]
        self._known: list[dict[str, Any]] = []
        self._told: set[str] = set()

    def begin(self) -> None:
        """Let the counterparts make the tensors that hooks make when they begin; the graph is still open."""
        for other in self._counterparts:
            other.begin()

    def expand(self, args: Any) -> Any:
        """Ask for the values of all towers in the place of the first one's."""
        if args is None or args.fetches is None:
            return args
        if not self._known:
            self._known = [self._pairs(index) for index in range(1, len(self._towers))]
        structures = [args.fetches, *(self._mapped(args.fetches, known) for known in self._known)]
        return tf1.train.SessionRunArgs([structures, self._rows], args.feed_dict, args.options)

    def reduce(self, values: Any, args: Any) -> Any:
        """Make one structure of the values of all towers.

        Args:
            values: SessionRunValues of what `expand` asked for.
            args: what the hook asked for.
        """
        if args is None or args.fetches is None:
            return values
        structures, rows = values.results
        weights = [1.0 if count is None else float(count) for count in rows]
        combined = self._combine(args.fetches, structures, weights)
        return tf1.train.SessionRunValues(combined, values.options, values.run_metadata)

    # -- which tensor stands for which

    def _pairs(self, index: int) -> dict[str, Any]:
        """For the tensors of the first tower, by name: what stands for them in another one."""
        first, other = self._towers[0], self._towers[index]
        pairs: list[tuple[Any, Any]] = list(zip(first.inputs, other.inputs, strict=True))
        for what in ("losses", "log_info", "output_info"):
            pairs += _matching(getattr(first.spec, what), getattr(other.spec, what))
        if len(self._counterparts) >= index:
            pairs += _matching(_attributes(self._hook), _attributes(self._counterparts[index - 1]))
        return {_name(mine): theirs for mine, theirs in pairs}

    def _mapped(self, structure: Any, known: Mapping[str, Any]) -> Any:
        if isinstance(structure, Mapping):
            return {key: self._mapped(value, known) for key, value in structure.items()}
        if isinstance(structure, (list, tuple)):
            return [self._mapped(value, known) for value in structure]
        return known.get(_name(structure), structure)

    # -- values

    def _combine(self, fetches: Any, values: Sequence[Any], weights: Sequence[float]) -> Any:
        if isinstance(fetches, Mapping):
            return {key: self._combine(fetches[key], [v[key] for v in values], weights) for key in fetches}
        if isinstance(fetches, (list, tuple)):
            parts = [
                self._combine(item, [v[position] for v in values], weights) for position, item in enumerate(fetches)
            ]
            return type(fetches)(*parts) if hasattr(fetches, "_fields") else type(fetches)(parts)
        if values[0] is None or _name(fetches) not in self._known[0]:
            self._tell(fetches)
            return values[0]
        try:
            return _combined([value for value, weight in zip(values, weights, strict=True) if weight], weights)
        except ValueError as error:
            raise ModelSpecError(
                f"{type(self._hook).__name__} asks for {_name(fetches)}, whose values on several devices do not fit "
                f"together: {error}",
                hint="let support_aggregation() return False: the hook of each device then gets its own values",
            ) from error

    def _tell(self, fetched: Any) -> None:
        """Warn once of a tensor that is the first tower's, and that nothing stands for in the others."""
        name = _name(fetched)
        if name in self._told or not name:
            return
        self._told.add(name)
        taken = {tensor.op for tensor in self._towers[0].inputs}
        tensor = fetched if tf1.is_tensor(fetched) else None
        if tensor is not None and reaches(tensor, taken):
            tf1.logging.warning(
                "%s asks for %s, and gets its value on the first device only: keep the tensor in an attribute of the "
                "hook, or in log_info or output_info of the ModelSpec, for the values of all devices",
                type(self._hook).__name__,
                name,
            )


def _attributes(hook: Any) -> dict[str, Any]:
    return dict(getattr(hook, "__dict__", {}))


def _name(item: Any) -> str:
    return str(getattr(item, "name", item if isinstance(item, str) else ""))


def _matching(mine: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    """Pair the tensors that are at the same place in two structures of dicts, lists and tuples."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in mine.keys() & theirs.keys():
            yield from _matching(mine[key], theirs[key])
    elif isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)):
        for one, other in zip(mine, theirs, strict=False):
            yield from _matching(one, other)
    elif mine is not theirs and _is_fetchable(mine) and _is_fetchable(theirs):
        yield mine, theirs


def _is_fetchable(item: Any) -> bool:
    """Whether something is a tensor or an operation of its tower; variables are the same in all towers."""
    return isinstance(item, tf1.Operation) or (tf1.is_tensor(item) and not isinstance(item, tf.Variable))


def _combined(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """Average scalars, weighted; put others one after another."""
    arrays = [np.asarray(value) for value in values]
    if arrays[0].ndim:
        return np.concatenate(arrays)
    if arrays[0].dtype.kind not in "biufc":
        return values[0]
    mean = np.average(arrays, weights=[weight for weight in weights if weight])
    return mean.astype(arrays[0].dtype) if arrays[0].dtype.kind in "fc" else mean
