"""Where the random numbers of data flows come from.

A stream of random numbers belongs to one object in one worker: its seed is made of the user's seed, the number of the
object (the order in which such objects were made) and the number of the worker. Two flows, or two workers, therefore
never draw the same numbers, and the same program draws the same ones again.

Generators of `get_rng` are known here, so that a worker can give each of them, wherever it is kept, a stream of the
worker's own, or of the datapoint that it works on: `reseed`.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from moxserve.errors import UsageError
from moxserve.file.forks import ForkLock

__all__ = [
    "as_worker",
    "become_worker",
    "draw_seed",
    "fix_rng_seed",
    "get_rng",
    "in_worker",
    "is_fixed",
    "next_number",
    "reseed",
    "restore",
    "seed_sequence",
    "snapshot",
    "worker_path",
]

_lock = ForkLock()
_seed: int | None = None
_numbers = itertools.count()
_place = threading.local()
# Of threads that a worker's flow started on its own.
_process_path: tuple[int, ...] = ()


def fix_rng_seed(seed: int | None) -> None:
    """Make every flow and augmentor that is made from now on draw the same numbers in each run of the program.

    Args:
        seed: at least 0; None takes fresh entropy again.

    Raises:
        UsageError: `seed` is negative, or no integer.
    """
    if seed is not None and (not isinstance(seed, (int, np.integer)) or seed < 0):
        raise UsageError(f"fix_rng_seed({seed!r}): expected an integer of at least 0, or None")
    seed = None if seed is None else int(seed)
    global _seed, _numbers
    with _lock:
        _seed, _numbers = seed, itertools.count()


def next_number() -> int:
    """Return the number of a new object; call it once, in its constructor."""
    with _lock:
        return next(_numbers)


def worker_path() -> tuple[int, ...]:
    """Return which worker this is: empty in the main program, a number for each level of workers inside workers."""
    return getattr(_place, "path", _process_path)


def in_worker(*path: int) -> AbstractContextManager[None]:
    """What is drawn inside comes from the streams of a worker, or of a datapoint.

    Args:
        path: numbers that are added to those of the worker that this already is.
    """
    return as_worker((*worker_path(), *path))


@contextmanager
def as_worker(path: tuple[int, ...]) -> Iterator[None]:
    """What is drawn inside comes from the streams of a worker; for a thread or process that was just started.

    Args:
        path: all numbers of the worker.
    """
    before = worker_path()
    _place.path = path
    try:
        yield
    finally:
        _place.path = before


def become_worker(path: tuple[int, ...]) -> None:
    """Make the whole of this process a worker, also threads that nobody tells which worker they are.

    Args:
        path: all numbers of the worker.
    """
    global _process_path
    _process_path = _place.path = path


def is_fixed() -> bool:
    """Return whether `fix_rng_seed` was given a seed."""
    return _seed is not None


def snapshot() -> tuple[int | None, int]:
    """Return the seed and the number of the next object, for a process that does not inherit them."""
    global _numbers
    with _lock:
        number = next(_numbers)
        _numbers = itertools.count(number)
        return _seed, number


def restore(state: tuple[int | None, int]) -> None:
    """Go on from what `snapshot` returned."""
    global _seed, _numbers
    with _lock:
        _seed, _numbers = state[0], itertools.count(state[1])


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


def draw_seed() -> int:
    """Return a seed for something that was given none: 62 bits, which `fix_rng_seed` makes the same in each run."""
    high, low = seed_sequence(next_number()).generate_state(2, np.uint32)
    return (int(high) << 30) | (int(low) >> 2)


class _Generator(np.random.RandomState):
    """A generator that `reseed` finds. A copy of it, in this process or another, begins the object's stream anew."""

    number: int
    bits: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return get_rng, (self.number,)

    def begin(self) -> None:
        """Begin the object's stream, with a lock that nobody holds."""
        self.bits = _bits(self.number)
        np.random.RandomState.__init__(self, self.bits)


def _bits(number: int) -> Any:
    return np.random.MT19937(seed_sequence(number))


_generators: weakref.WeakSet[_Generator] = weakref.WeakSet()


def _forked() -> None:
    # Another thread of the parent may have held any of these locks: it is not here to let them go.
    for generator in list(_generators):
        if _is_held(generator.bits.lock):
            generator.begin()
    if _is_held(np.random.mtrand.get_bit_generator().lock):
        np.random.mtrand.set_bit_generator(np.random.MT19937())


def _is_held(lock: Any) -> bool:
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def get_rng(number: int) -> np.random.RandomState:
    """Return a generator for an object, as tensorpack's flows have it in `rng`.

    Args:
        number: of the object, from `next_number`.
    """
    bits = _bits(number)
    generator = _Generator(bits)
    generator.number, generator.bits = number, bits
    with _lock:
        _generators.add(generator)
    return generator


def _words(value: int) -> list[int]:
    """Cut a number into 32 bits each, their count first."""
    words = []
    while value:
        value, low = value >> 32, value & 0xFFFFFFFF
        words.append(low)
    return [len(words), *words]


def reseed(*path: int) -> None:
    """Give every generator of this process, and those of `random` and `numpy.random`, the stream of its object here.

    For a worker that inherited them, or that works on another datapoint now. About 10 us a generator.

    Args:
        path: numbers that are added to those of the worker, such as a datapoint's.
    """
    with _lock:
        generators = list(_generators)
    if _seed is None:
        for generator in generators:
            generator.seed()
        random.seed()
        np.random.seed()
        return
    place = (*worker_path(), *path)
    key = [*_words(_seed), len(place), *(word for number in place for word in _words(number))]
    for generator in generators:
        generator.seed([0, generator.number & 0xFFFFFFFF, *key])
    random.seed(repr(key))
    np.random.seed([1, *key])
