"""The threads that images are decoded in: one pool a process, as many as there are cores, however many ask for more.

Decoding is bound by the processor, so a thread more than cores only takes caches and time slices from the others.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from moxserve.cores import available_cores
from moxserve.file.forks import ForkLock

__all__ = ["each"]

_lock = ForkLock()
_pool: ThreadPoolExecutor | None = None


def each(count: int, work: Callable[[int], None], threads: int | None = None) -> None:
    """Call `work(0)` to `work(count - 1)`, several at once, and wait for all.

    Args:
        count: how many calls.
        work: called in threads of the pool, in no certain order; for one thread, in that of the caller.
        threads: at most so many at once, and never more than there are cores; None: as many as there are cores.

    Raises:
        Exception: what `work` raised; the one with the lowest number of those that ran. No further call is begun then.
    """
    cores = available_cores()
    at_once = min(threads or cores, cores, count)
    numbers = itertools.count()
    errors: list[tuple[int, BaseException]] = []

    def run() -> None:
        # `next` on a counter is atomic: each number goes to one thread.
        while not errors and (number := next(numbers)) < count:
            try:
                work(number)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                errors.append((number, error))

    if at_once <= 1:
        run()
    else:
        _share(_shared(cores), run, at_once)
    if errors:
        try:
            raise min(errors, key=lambda pair: pair[0])[1]
        finally:
            errors.clear()  # its traceback holds this frame: with it here, only a search for garbage would find both


def _share(pool: ThreadPoolExecutor, run: Callable[[], None], at_once: int) -> None:
    """Run several times at once, and wait."""
    futures: list[Future[None]] = []
    try:
        while len(futures) < at_once:
            futures.append(pool.submit(run))
    except RuntimeError as error:
        # The end of the program begins with that of all pools; the thread of a library that asks now does it itself.
        if "shutdown" not in str(error):
            raise
        run()
    wait(futures)


def _shared(cores: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(cores, "moxserve-images")
        return _pool


def _forget() -> None:
    # The threads stayed in the parent.
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
