"""Warm start: a new training that takes what another model has learnt, under other names and for another vocabulary.

What a training goes on from is `checkpoint_path`: all that fits, with the optimizers' state and the step. A warm start
takes the model's own variables only (moving averages of batch norms included), and counts from step 0. It follows
`tf.estimator.WarmStartSettings`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import CheckpointError, DataError, UsageError, did_you_mean
from moxserve.file.handle import File
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.matching import RestoreRules
from moxserve.tensorflow.executor.train_op import split_patterns

__all__ = ["VocabularyChange", "WarmStart", "read_vocabulary"]

Patterns = str | Sequence[str]
_FILLS = ("zeros", "initial")


def read_vocabulary(source: str | os.PathLike[str] | Sequence[str], what: str = "vocabulary") -> tuple[str, ...]:
    """Read a vocabulary: the tokens of a file, one a line, or of a list.

    Args:
        source: path (local, or a URL that `mox.file` reads), or the tokens.
        what: how messages call it.

    Raises:
        DataError: a token is there twice, or the file is not UTF-8.
    """
    if isinstance(source, (str, os.PathLike)):
        what = os.fspath(source)
        with File(what, "rb") as file:
            data = file.read()
        try:
            tokens = tuple(data.decode("utf-8-sig").splitlines())
        except UnicodeDecodeError as error:
            raise DataError(f"{what} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}") from None
    else:
        tokens = tuple(str(token) for token in source)
    first: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if first.setdefault(token, number) != number:
            raise DataError(f"{what}: {token!r} is there twice, as number {first[token]} and {number} (from 0)")
    return tokens


@dataclass(frozen=True)
class VocabularyChange:
    """How the rows of a variable move when the vocabulary that they stand for changes.

    Rows beyond the vocabulary, for words that are not in it, are taken over one by one where there are as many of them
    as before, and are new otherwise.

    Args:
        new: the model's vocabulary: a file with one token a line, or the tokens.
        old: the checkpoint's, the same way.
        axis: of the variable, along which a token has its place: 0 for the rows of an embedding, -1 for the columns of
            a layer whose outputs are tokens or classes.
        new_rows: what tokens get that the old vocabulary lacks: "zeros", "initial" (what the variable's initializer
            gave them), or an initializer such as `tf.truncated_normal_initializer(stddev=0.1)`.

    Raises:
        UsageError: `new_rows` or `axis` is something else.
    """

    new: str | os.PathLike[str] | Sequence[str]
    old: str | os.PathLike[str] | Sequence[str]
    axis: int = 0
    new_rows: Any = "zeros"

    def __post_init__(self) -> None:
        """Check what can be checked without reading anything."""
        if self.new_rows not in _FILLS and not callable(self.new_rows):
            raise UsageError(
                f"VocabularyChange(new_rows={self.new_rows!r}): expected 'zeros', 'initial' or an initializer",
                hint="new_rows=tf.truncated_normal_initializer(stddev=0.1)",
            )
        if isinstance(self.axis, bool) or not isinstance(self.axis, int):
            raise UsageError(f"VocabularyChange(axis={self.axis!r}): expected a number of an axis, such as 0 or -1")

    def misfit(self, name: str, found: Sequence[int], expected: Sequence[int]) -> str | None:
        """Tell what keeps a value of the checkpoint from becoming the variable's, beside the vocabulary; None if
        nothing does.

        Args:
            name: of the variable.
            found: shape in the checkpoint.
            expected: shape of the variable.
        """
        if not -len(expected) <= self.axis < len(expected):
            return f"{name} has the shape {list(expected)}, and so no axis {self.axis}, where a vocabulary is changed"
        axis = self.axis % len(expected)
        if [*found[:axis], *found[axis + 1 :]] != [*expected[:axis], *expected[axis + 1 :]] or len(found) <= axis:
            return (
                f"{name} (shape {list(found)} in the checkpoint, {list(expected)} in the model, where only axis "
                f"{axis} may differ by a changed vocabulary)"
            )
        return None

    def sources(self, name: str, rows: int, wanted: int) -> np.ndarray:
        """Tell for each row of the variable which row of the checkpoint's it is; -1 where it is new.

        Args:
            name: of the variable, for messages.
            rows: how many there are in the checkpoint.
            wanted: how many the variable has.

        Raises:
            CheckpointError: a vocabulary has more tokens than there are rows.
        """
        new, old = read_vocabulary(self.new, "new vocabulary"), read_vocabulary(self.old, "old vocabulary")
        for tokens, size, where in ((new, wanted, "in the model"), (old, rows, "in the checkpoint")):
            if len(tokens) > size:
                raise CheckpointError(
                    f"vocabulary change of {name!r}: the vocabulary has {len(tokens)} tokens, and the variable "
                    f"{size} places {where}",
                    hint="is it the vocabulary of this variable, and is axis right?",
                )
        places = {token: place for place, token in enumerate(old)}
        taken = np.array([places.get(token, -1) for token in new], np.int64)
        beyond = wanted - len(new)
        same = beyond == rows - len(old)
        rest = np.arange(len(old), rows) if same else np.full(beyond, -1)
        return np.concatenate([taken, rest]).astype(np.int64)

    def carried(
        self,
        name: str,
        value: np.ndarray,
        shape: Sequence[int],
        part: tuple[slice, ...] | None,
        own: Callable[[], np.ndarray],
    ) -> np.ndarray:
        """Return a variable's value: what the checkpoint has for each token, and `new_rows` for the others.

        Args:
            name: of the variable.
            value: of the checkpoint, whole.
            shape: of the whole variable.
            part: the part of it that is wanted; None for all.
            own: returns the value that the (part of the) variable has so far.
        """
        axis = self.axis % value.ndim
        rows = self.sources(name, value.shape[axis], shape[axis])
        if part is not None:
            rows = rows[part[axis]]
            value = value[tuple(slice(None) if i == axis else piece for i, piece in enumerate(part))]
        is_new = rows < 0
        if is_new.all():
            result = np.zeros([*value.shape[:axis], len(rows), *value.shape[axis + 1 :]], value.dtype)
        else:
            result = np.take(value, np.where(is_new, rows[~is_new][0], rows), axis=axis)
        place: tuple[Any, ...] = (*[slice(None)] * axis, is_new)
        if is_new.any():
            result[place] = self._fill(result[place], own, place)
        return result

    def _fill(self, like: np.ndarray, own: Callable[[], np.ndarray], place: tuple[Any, ...]) -> Any:
        if self.new_rows == "zeros":
            return 0
        if self.new_rows == "initial":
            return own()[place]
        with tf1.Graph().as_default() as graph:  # the run's own graph is closed by now
            graph.seed = 1
            made = self.new_rows(list(like.shape), dtype=tf1.as_dtype(like.dtype))
            with tf1.Session(config=tf1.ConfigProto(device_count={"GPU": 0})) as session:
                return session.run(made)


@dataclass(frozen=True)
class WarmStart:
    """What a training takes from another model: `mox.run(..., warm_start=mox.WarmStart(path, ...))`.

    Counts only where `log_dir` has no checkpoint: a run that goes on goes on from its own.

    Args:
        checkpoint: prefix, file or folder of a checkpoint; or folder of a SavedModel, or of versions of one, whose
            newest is taken.
        variables: regular expressions, found anywhere in a name: only these variables of the model; empty for all.
        exclude: the same: but none of these.
        renamed: name in the checkpoint by name in the model. Two names that end with "/" (or "" for the old one) are
            scopes, and stand for everything in them.
        vocabularies: changed vocabulary by the name of the variable in the model.
        moving_averages: take `NAME/ExponentialMovingAverage` where the checkpoint has it.

    Raises:
        UsageError: a pattern is no regular expression, or a change of another kind.
    """

    checkpoint: str | os.PathLike[str]
    variables: Patterns = ()
    exclude: Patterns = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    vocabularies: Mapping[str, VocabularyChange] = field(default_factory=dict)
    moving_averages: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.checkpoint, (str, os.PathLike)) or not os.fspath(self.checkpoint):
            raise UsageError(f"WarmStart(checkpoint={self.checkpoint!r}): expected a path")
        _patterns(self.variables)
        _patterns(self.exclude)
        for name, change in self.vocabularies.items():
            if not isinstance(change, VocabularyChange):
                raise UsageError(
                    f"WarmStart(vocabularies={{{name!r}: {type(change).__name__}}}): expected a mox.VocabularyChange",
                    hint="vocabularies={'embedding/table': mox.VocabularyChange(new='new.txt', old='old.txt')}",
                )
        for new, old in self.renamed.items():
            if (old.endswith("/") or not old) != new.endswith("/"):
                raise UsageError(
                    f"WarmStart(renamed={{{new!r}: {old!r}}}): one is a scope, the other a variable",
                    hint="end both with '/' to rename a scope",
                )

    def rules(self, names: Sequence[str]) -> RestoreRules:
        """Return what is wanted of the checkpoint, for a model with variables of these names.

        Raises:
            UsageError: a name that `renamed` or `vocabularies` gives is not the model's.
        """
        for what, given in (("vocabularies", list(self.vocabularies)), ("renamed", list(self.renamed))):
            for name in given:
                if name not in names and not (name.endswith("/") and any(n.startswith(name) for n in names)):
                    raise UsageError(
                        f"WarmStart({what}=...) names {name!r}, which the model does not have; "
                        f"{did_you_mean(name, names)}"
                    )
        return RestoreRules(
            include=_patterns(self.variables),
            exclude=_patterns(self.exclude),
            partial=True,
            moving_averages=self.moving_averages,
            renamed=self._sources(names),
            changes=dict(self.vocabularies),
        )

    def _sources(self, names: Sequence[str]) -> dict[str, str]:
        """Name in the checkpoint by name in the model; the longest scope counts, a variable's own name before all."""
        sources: dict[str, str] = {}
        for name in names:
            known = [new for new in self.renamed if name == new or (new.endswith("/") and name.startswith(new))]
            if known:
                new = max(known, key=len)
                sources[name] = self.renamed[new] + name[len(new) :]
        return sources


def _patterns(given: Patterns) -> tuple[str, ...]:
    if isinstance(given, str):
        return split_patterns(given)
    return tuple(pattern for item in given for pattern in split_patterns(item))
