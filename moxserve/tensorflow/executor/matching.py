"""The variables of a model held against those of a checkpoint: what is restored, what is not, and why.

`match` compares, `Match.restore` gives the variables their values, `Match.report` tells it all in groups; whatever
reads a checkpoint says it in those words.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from moxserve.errors import CheckpointError, did_you_mean, first_line
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.located import is_single_file, open_checkpoint
from moxserve.tensorflow.executor.train_op import matches

__all__ = ["CheckpointReport", "Match", "Misfit", "RestoreRules", "listed", "match", "name_of"]

AVERAGE = "ExponentialMovingAverage"
_LISTED = 8  # names told of a group
_TOLD = 20  # missing variables that are told one a line
_RESTORED_AT_ONCE = 64 << 20  # bytes of values held in memory before variables take them


class Change(Protocol):
    """A vocabulary that changes: see `warm_start.VocabularyChange`."""

    def misfit(self, name: str, found: Sequence[int], expected: Sequence[int]) -> str | None:
        """Tell what keeps a value from becoming the variable's."""

    def carried(
        self, name: str, value: Any, shape: Sequence[int], part: tuple[slice, ...] | None, own: Callable[[], Any]
    ) -> Any:
        """Return the variable's value."""


@dataclass(frozen=True)
class RestoreRules:
    """Which variables are taken from a checkpoint.

    Attributes:
        include: patterns (regular expressions, found anywhere in the name); empty for all.
        exclude: patterns, applied after `include`.
        partial: True: variables that are missing or of another shape keep their initial values. False: they are an
            error.
        optional: names that keep their initial values where they are missing, and nobody need be told.
        moving_averages: take `NAME/ExponentialMovingAverage` for the variable NAME where the checkpoint has it. The
            checkpoints of MobileNet and NASNet hold both, and their figures were measured with the averages.
        renamed: name in the checkpoint by name in the model; each must be there.
        changes: changed vocabulary by the name of the variable.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    partial: bool = False
    optional: frozenset[str] = frozenset()
    moving_averages: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True)
class Misfit:
    """A variable that is in the checkpoint, but is another one there.

    Attributes:
        name: of the variable.
        found: its shape in the checkpoint, or its dtype where the shapes are equal.
        expected: the same of the model.
    """

    name: str
    found: tuple[int, ...] | str
    expected: tuple[int, ...] | str

    def __str__(self) -> str:
        if isinstance(self.found, str):
            return f"{self.name} ({self.found} in the checkpoint, {self.expected} in the model)"
        return f"{self.name} (shape {list(self.found)} in the checkpoint, {list(self.expected)} in the model)"

    @property
    def outputs(self) -> tuple[int, int] | None:
        """How many outputs the layer has in the checkpoint and in the model, where only that differs."""
        if isinstance(self.found, str) or isinstance(self.expected, str) or not self.found or not self.expected:
            return None
        return (self.found[-1], self.expected[-1]) if self.found[:-1] == self.expected[:-1] else None


@dataclass(frozen=True)
class CheckpointReport:
    """What of a model a checkpoint gives.

    Attributes:
        path: of the checkpoint.
        form: "V2", or "V1" for a single file of before 2017.
        restored: variables that it gives, with their number of elements.
        averaged: those of them that are taken from their moving averages.
        renamed: those that have another name in it.
        changed: those whose vocabulary is another one.
        excluded: variables left out by the patterns.
        missing: variables that it lacks.
        misfits: variables that are other ones in it.
        unused: what it holds and the model does not want.
        parameters: elements of all variables of the model.
    """

    path: str
    form: str
    restored: Mapping[str, int]
    averaged: tuple[str, ...]
    excluded: tuple[str, ...]
    missing: tuple[str, ...]
    misfits: tuple[Misfit, ...]
    unused: tuple[str, ...]
    parameters: int
    renamed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many variables the model has."""
        return len(self.restored) + len(self.excluded) + len(self.missing) + len(self.misfits)

    @property
    def fits(self) -> bool:
        """Whether every variable that is not left out gets its value."""
        return not self.missing and not self.misfits

    @property
    def summary(self) -> str:
        """One line: how many variables and parameters are restored."""
        kinds = (
            (self.averaged, "from moving averages"),
            (self.renamed, "from other names"),
            (self.changed, "for another vocabulary"),
        )
        told = "".join(f", {len(names)} of them {how}" for names, how in kinds if names)
        return (
            f"{len(self.restored)} of {self.total} variables, "
            f"{sum(self.restored.values()):,} of {self.parameters:,} parameters{told}"
        )

    @property
    def problems(self) -> list[str]:
        """What keeps the checkpoint from fitting: a line for each variable, or for all that are missing if many are."""
        missing = self.missing if len(self.missing) <= _TOLD else (listed(self.missing),)
        return [f"missing in it: {told}" for told in missing] + [f"does not fit: {misfit}" for misfit in self.misfits]

    @property
    def advice(self) -> str | None:
        """What to do about misfits; None where there is nothing to say."""
        layers: dict[str, tuple[int, int]] = {}
        for misfit in self.misfits:
            outputs = misfit.outputs
            scope = misfit.name.rpartition("/")[0]
            if not scope or outputs is None or outputs != layers.setdefault(scope, outputs):
                return None
        return _advice(layers)

    def lines(self) -> list[tuple[str, str]]:
        """All of it for people, as (heading, text), without what does not apply."""
        found = [("restored", self.summary)]
        if self.excluded:
            found.append(("left out", f"{listed(self.excluded)} (by the patterns)"))
        if self.missing:
            found.append(("missing", listed(self.missing)))
        found += [("does not fit", str(misfit)) for misfit in self.misfits]
        if self.advice:
            found.append(("what to do", self.advice))
        if self.unused:
            found.append(("not used", listed(self.unused)))
        return found


def _advice(layers: Mapping[str, tuple[int, int]]) -> str | None:
    """What to do where layers differ in nothing but their number of outputs."""
    if not layers:
        return None
    told = "; ".join(f"{scope}: {a} classes in the checkpoint, {b} here" for scope, (a, b) in layers.items())
    advice = f"{told}: exclude '{','.join(layers)}' to start it afresh"
    counts = set(layers.values())
    if len(counts) == 1 and abs((pair := counts.pop())[0] - pair[1]) == 1:
        more = "a background class before them" if pair[0] > pair[1] else "no background class before them"
        advice += f", or build it with num_classes={pair[0]} (its classes have {more})"
    return advice


def listed(names: Collection[str]) -> str:
    """Tell names in few words: the first of them, those that accompany others by their kind, and how many they are."""
    if len(names) == 1:
        return next(iter(names))
    known = set(names)
    kinds: dict[str, int] = {}
    rest = []
    for name in names:
        base, _, kind = name.rpartition("/")
        if len(names) > _LISTED and base and (base in known or kind == AVERAGE or _is_slot(kind)):
            kinds[kind] = kinds.get(kind, 0) + 1
        else:
            rest.append(name)
    told = rest[:_LISTED]
    told += [f"{len(rest) - _LISTED} more"] if len(rest) > _LISTED else []
    told += [f"{count} of kind {kind}" for kind, count in kinds.items()]
    return f"{', '.join(told)} ({len(names)} variables)"


def _is_slot(kind: str) -> bool:
    """Whether a last component is one under which TensorFlow's optimizers keep what they know of a variable."""
    stem, _, number = kind.rpartition("_")
    return kind in _SLOTS or (number.isdigit() and stem in _SLOTS)


_SLOTS = frozenset({"Momentum", "RMSProp", "Adam", "Adagrad", "Adadelta", "Ftrl", "LARS", "LAMB"})


@dataclass
class Match:
    """The variables of a model held against a checkpoint.

    Attributes:
        reader: of the checkpoint.
        report: what fits and what does not.
        values: variables to restore, with the name and slice to read.
        changes: changed vocabulary by the name of the variable.
    """

    reader: Any
    report: CheckpointReport
    values: list[tuple[Any, str, tuple[slice, ...] | None]] = field(default_factory=list)
    changes: Mapping[str, Change] = field(default_factory=dict)

    def require(self) -> None:
        """Raise if anything is missing or does not fit.

        Raises:
            CheckpointError: with everything that does not.
        """
        if not self.report.fits:
            raise CheckpointError(
                f"checkpoint {self.report.path!r} does not fit the model:\n  " + "\n  ".join(self.report.problems),
                hint="did another model write it? checkpoint_path with an empty log_dir takes over what fits",
            )

    def restore(self, session: Any) -> None:
        """Give variables their values by running their initialisers with other input: works in a frozen graph.

        Args:
            session: of the variables' graph.

        Raises:
            CheckpointError: a value cannot be read.
        """
        # What a run costs grows with the graph, not with what it computes: one a variable would be quadratic.
        operations: list[Any] = []
        values: dict[Any, Any] = {}
        size = 0
        for variable, name, part in self.values:
            initial = variable.initializer.inputs[1]
            if initial in values or size >= _RESTORED_AT_ONCE:  # two variables may begin as the same tensor
                session.run(operations, values)
                operations, values, size = [], {}, 0
            value = self._value(session, variable, name, part)
            values[initial] = value
            size += np.asarray(value).nbytes
            operations.append(variable.initializer)
        session.run(operations, values)

    def _value(self, session: Any, variable: Any, name: str, part: tuple[slice, ...] | None) -> Any:
        value = self._read(name)
        own, shape, _ = _source_of(variable)
        if own in self.changes:
            return self.changes[own].carried(own, value, shape, part, lambda: session.run(variable))
        return value if part is None else value[part]

    def _read(self, name: str) -> Any:
        try:
            return self.reader.get_tensor(name)
        except (tf.errors.OpError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"checkpoint {self.report.path!r}: the value of {name!r} cannot be read: {first_line(error)}",
                hint="it is damaged or cut off: copy it again",
            ) from error


def match(prefix: str, variables: Iterable[Any], rules: RestoreRules) -> Match:
    """Hold variables against a checkpoint. Nothing is restored yet.

    Args:
        prefix: the checkpoint, as `latest_checkpoint` returns it.
        variables: of the model.
        rules: what is wanted of it.

    Raises:
        CheckpointError: it cannot be read.
    """
    reader = open_checkpoint(prefix)
    comparison = _Comparison(reader, rules)
    for variable in variables:
        comparison.look_at(variable)
    return Match(reader, comparison.report(prefix), comparison.values, rules.changes)


class _Comparison:
    """One variable after the other is looked for in a checkpoint."""

    def __init__(self, reader: Any, rules: RestoreRules) -> None:
        self.rules = rules
        self.shapes: Mapping[str, Sequence[int]] = reader.get_variable_to_shape_map()
        self.dtypes: Mapping[str, Any] = reader.get_variable_to_dtype_map()
        self.values: list[tuple[Any, str, tuple[slice, ...] | None]] = []
        self._restored: dict[str, int] = {}
        self._groups: dict[str, list[str]] = {"averaged": [], "renamed": [], "excluded": [], "missing": []}
        self._misfits: list[Misfit] = []
        self._parameters = 0
        self._wanted: set[str] = set()

    def look_at(self, variable: Any) -> None:
        """Sort one variable into its group."""
        name, shape, part = _source_of(variable)
        source = self._source(name)
        if source in self.shapes or name not in self.rules.optional:
            self._parameters += math.prod(variable.shape.as_list())
        self._wanted |= {name, source}
        if (self.rules.include and not matches(name, self.rules.include)) or matches(name, self.rules.exclude):
            self._groups["excluded"].append(name)
        elif source not in self.shapes:
            if name in self.rules.renamed:
                raise CheckpointError(
                    f"{name!r} is to be {source!r} of the checkpoint, which has no such variable; "
                    f"{did_you_mean(source, self.shapes)}"
                )
            if name not in self.rules.optional:
                self._groups["missing"].append(name)
        elif (misfit := self._misfit(name, source, shape, variable.dtype.base_dtype)) is not None:
            self._misfits.append(misfit)
        else:
            self.values.append((variable, source, part))
            # A variable in parts is one of the checkpoint, and counts once.
            self._restored[name] = self._restored.get(name, 0) + math.prod(variable.shape.as_list())
            if source != name:
                self._groups["averaged" if source.endswith(f"/{AVERAGE}") else "renamed"].append(name)

    def _source(self, name: str) -> str:
        source = self.rules.renamed.get(name, name)
        average = f"{source}/{AVERAGE}"
        return average if self.rules.moving_averages and average in self.shapes else source

    def _misfit(self, name: str, source: str, shape: Sequence[int], dtype: Any) -> Misfit | None:
        change = self.rules.changes.get(name)
        if change is not None:
            if (told := change.misfit(name, self.shapes[source], shape)) is not None:
                raise CheckpointError(f"vocabulary change: {told}")
        elif list(self.shapes[source]) != list(shape):
            return Misfit(name, tuple(self.shapes[source]), tuple(shape))
        if self.dtypes[source] != dtype:
            return Misfit(name, self.dtypes[source].name, dtype.name)
        return None

    def report(self, prefix: str) -> CheckpointReport:
        """Put it together."""
        unused = set(self.shapes) - self._wanted - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
        return CheckpointReport(
            path=os.fspath(prefix),
            form="V1" if is_single_file(prefix) else "V2",
            restored=self._restored,
            averaged=tuple(dict.fromkeys(self._groups["averaged"])),
            excluded=tuple(dict.fromkeys(self._groups["excluded"])),
            missing=tuple(dict.fromkeys(self._groups["missing"])),
            misfits=tuple(self._misfits),
            unused=tuple(sorted(unused)),
            parameters=self._parameters,
            renamed=tuple(dict.fromkeys(self._groups["renamed"])),
            changed=tuple(name for name in self.rules.changes if name in self._restored),
        )


def name_of(variable: Any) -> str:
    """The name of a variable in checkpoints; that of the whole for one that is a part."""
    return _source_of(variable)[0]


def _source_of(variable: Any) -> tuple[str, list[int], tuple[slice, ...] | None]:
    """Name in the checkpoint, full shape there, and this part of it (for a partitioned variable)."""
    part = getattr(variable, "_save_slice_info", None) or (
        variable._get_save_slice_info() if hasattr(variable, "_get_save_slice_info") else None
    )
    if part is None:
        return variable.op.name, variable.shape.as_list(), None
    slices = tuple(slice(o, o + n) for o, n in zip(part.var_offset, part.var_shape, strict=True))
    return part.full_name, list(part.full_shape), slices
