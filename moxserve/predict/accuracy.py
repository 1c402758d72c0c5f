"""Answers against labels: which output says the class, and how often it is right.

Chosen at the first answer, by this order: `classes` (numbers or names; with `scores` beside it, the best-scored of
several); `probabilities`, `scores` or `logits` (the largest of each row); the only output, when it is one number a row
or several scores a row. If none is there, no accuracy is told, and why not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.client.calls import Array
from moxserve.predict.readers import Label

__all__ = ["Accuracy"]

_SCORES = ("probabilities", "scores", "logits")
Guess = Callable[[Mapping[str, Array]], "str | int"]


class Accuracy:
    """Counts right answers.

    Args:
        classes: names by index, when the data set tells.
        classes_listed: their order comes from a labels.txt.

    Attributes:
        how: which output is compared with what; or why none is.
        total: rows with a label that were compared.
        right: how many of them were right.
    """

    def __init__(self, classes: Sequence[str] = (), classes_listed: bool = False) -> None:
        self._classes = classes
        self._listed = classes_listed
        self._guess: Guess | None = None
        self._chosen = False
        self.how = "no labels"
        self.total = 0
        self.right = 0

    @property
    def value(self) -> float | None:
        """Share of right answers; None when nothing was compared."""
        return self.right / self.total if self.total else None

    def add(self, outputs: Mapping[str, Array], label: Label | None) -> None:
        """Count one row.

        Args:
            outputs: of this row, without the batch dimension.
            label: None when unknown; the row is then left out.
        """
        if label is None:
            return
        if not self._chosen:
            self._chosen = True
            self._guess, self.how = self._choose(outputs)
        if self._guess is None:
            return
        guess = self._guess(outputs)
        truth = self._truth(label, guess)
        if truth is not None:
            self.total += 1
            self.right += truth == guess
        elif not self.total:
            self.how = f"labels are names, such as {label.name!r}, and the model answers with numbers of classes"

    def _truth(self, label: Label, guess: str | int) -> str | int | None:
        if isinstance(guess, str):
            return label.name if label.name is not None else str(label.index)
        if label.index is None and label.name is not None and label.name.isdecimal():
            return int(label.name)
        return label.index

    def _choose(self, outputs: Mapping[str, Array]) -> tuple[Guess | None, str]:
        scores = next((name for name in _SCORES if name in outputs and outputs[name].ndim == 1), None)
        unsure = self._order_is_unsure(len(outputs[scores])) if scores else None
        if "classes" in outputs:
            return self._choose_classes(outputs["classes"], scores, unsure)
        if unsure:
            return None, unsure
        if scores is None and len(outputs) == 1:
            name, only = next(iter(outputs.items()))
            if only.ndim == 0 and only.dtype.kind in "iuO":
                return lambda row: _plain(row[name][()]), f"output {name!r} against the labels"
            scores = name if only.ndim == 1 and only.size > 1 and only.dtype.kind in "fV" else None
        if scores is None:
            return None, f"no output tells the class; there are {', '.join(outputs)}"
        return _largest(scores), f"largest of output {scores!r} against the labels"

    def _choose_classes(self, classes: Array, scores: str | None, unsure: str | None) -> tuple[Guess | None, str]:
        if classes.ndim == 1 and classes.dtype.kind == "O" and scores:
            return _best_named(scores), f"best-scored of output 'classes' (by {scores!r}) against the label names"
        if classes.ndim > 0 and classes.size != 1:
            return None, f"output 'classes' has shape {list(classes.shape)} a row; expected one class"
        if classes.dtype.kind != "O" and unsure:
            return None, unsure
        return lambda row: _plain(row["classes"].reshape(-1)[0]), "output 'classes' against the labels"

    def _order_is_unsure(self, width: int) -> str | None:
        """Class numbers from sorted folder names are wrong when a class has no folder here."""
        if self._listed or not self._classes or len(self._classes) == width:
            return None
        return (
            f"{len(self._classes)} class folders for a model with {width} classes: a labels.txt must tell their numbers"
        )


def _plain(value: Any) -> str | int:
    return value.decode(errors="replace") if isinstance(value, bytes) else int(value)


def _largest(name: str) -> Guess:
    return lambda row: int(np.argmax(row[name]))


def _best_named(scores: str) -> Guess:
    return lambda row: _plain(row["classes"][int(np.argmax(row[scores]))])
