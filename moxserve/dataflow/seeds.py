"""Where the random numbers of data flows come from.

A stream of random numbers belongs to one object in one worker: its seed is made of the user's seed, the number of the
object (the order in which such objects were made) and the number of the worker. Two flows, or two workers, therefore
never draw the same numbers, and the same program draws the same ones again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["fix_rng_seed", "get_rng", "in_worker", "next_number", "seed_sequence", "worker_path"]

_lock = threading.Lock()
_seed: int | None = None
_numbers = itertools.count()
_place = threading.local()


def fix_rng_seed(seed: int | None) -> None:
    """Make every flow and augmentor that is made from now on draw the same numbers in each run of the program.

    Args:
        seed: at least 0; None takes fresh entropy again.
    """
    global _seed, _numbers
    with _lock:
        _seed, _numbers = seed, itertools.count()


def next_number() -> int:
    """Return the number of a new object; call it once, in its constructor."""
    with _lock:
        return next(_numbers)


def worker_path() -> tuple[int, ...]:
    """Return which worker this is: empty in the main program, a number for each level of workers inside workers."""
    return getattr(_place, "path", ())


@contextmanager
def in_worker(*path: int) -> Iterator[None]:
    """What is drawn inside comes from the streams of a worker, or of a datapoint.

    Args:
        path: numbers that are added to those of the worker that this already is.
    """
    before = worker_path()
    _place.path = (*before, *path)
    try:
        yield
    finally:
        _place.path = before


def seed_sequence(number: int, more: Sequence[int] = ()) -> np.random.SeedSequence:
    """Return the seed of an object's stream in this worker.

    Args:
        number: of the object, from `next_number`.
        more: what tells several streams of one object apart.
    """
    if _seed is None:
        return np.random.SeedSequence()
    path = worker_path()
    # The lengths keep (1, 2)+() and (1,)+(2,) apart.
    return np.random.SeedSequence([_seed, number, len(path), *path, *more])


def get_rng(number: int) -> np.random.RandomState:
    """Return a generator for an object, as tensorpack's flows have it in `rng`.

    Args:
        number: of the object, from `next_number`.
    """
    bits: Any = np.random.MT19937(seed_sequence(number))
    return np.random.RandomState(bits)
