"""How many samples an epoch has: what was counted, unless the flags samples_per_epoch(_eval) say something else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from moxserve.tensorflow.executor.flags import get_flag

__all__ = ["HELD_OUT", "is_held_out", "samples_in_epoch", "samples_in_files"]

HELD_OUT = ("test", "validation", "val", "eval")
"""Names of the part of a data set that a model is not trained on."""

_WORDS = re.compile(r"[A-Za-z]+")


def samples_in_epoch(counted: int | Callable[[], int], *, training: bool = True) -> int:
    """Return how many samples an epoch of training, or an evaluation, has.

    Args:
        counted: their number, or a function that counts them where no flag says how many there are.
        training: False for an evaluation.

    Raises:
        UsageError: the flag is no number.
    """
    told = get_flag("samples_per_epoch" if training else "samples_per_epoch_eval")
    if told is not None:
        return int(told)
    return counted() if callable(counted) else counted


def is_held_out(folder: str, patterns: Iterable[str] = ()) -> bool:
    """Tell by their names whether files are evaluated on: a folder `eval`, or a pattern `validation-*`.

    Args:
        folder: of which the last part counts, unless a pattern says `train`.
        patterns: of the files in it.
    """
    named = {word.lower() for pattern in patterns for word in _WORDS.findall(os.path.basename(pattern))}
    if "train" not in named:
        named.update(word.lower() for word in _WORDS.findall(os.path.basename(os.fspath(folder).rstrip("/"))))
    return not named.isdisjoint(HELD_OUT) and "train" not in named


def samples_in_files(counted: int | Callable[[], int], folder: str, patterns: Iterable[str] = ()) -> int:
    """Return how many samples an epoch over some files has; their names say what they are for."""
    return samples_in_epoch(counted, training=not is_held_out(folder, patterns))
