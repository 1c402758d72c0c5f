"""The part of a data set that a worker reads when its script does not say: in TRAIN its own, else everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moxserve.dataflow import seeds
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.flags import store

__all__ = ["input_of", "own_shard"]

# Of shuffled data sets that were given none; the same in all workers and in whoever replaces one.
_COMMON_SEED = 0
_building = threading.local()


@contextmanager
def input_of(*, training: bool) -> Iterator[None]:
    """The input of a run is built in here.

    Args:
        training: whether it is for TRAIN.
    """
    before = getattr(_building, "training", None)
    _building.training = training
    try:
        yield
    finally:
        _building.training = before


def own_shard(shard: tuple[int, int] | None, seed: int | None, *, shuffle: bool) -> tuple[tuple[int, int], int | None]:
    """Decide which part of a data set this process reads, and in whose order.

    Args:
        shard: as the script gave it: number of this worker, from 0, and how many there are; None for the default.
        seed: of the order, as the script gave it.
        shuffle: whether there is one.

    Returns:
        The shard; and the seed, which workers that share a shuffled data set must have in common.
    """
    if shard is not None:
        return shard, seed
    topology = Topology.from_flags(store)
    if topology.num_workers == 1 or topology.job != "worker":
        return (0, 1), seed
    training = getattr(_building, "training", None)
    if training is None:
        tf1.logging.warning(
            "a data set made outside of input_fn is read whole by each of the %d workers; make it in input_fn, or give "
            "shard=(mox.get_flag('task_index'), %d)",
            topology.num_workers,
            topology.num_workers,
        )
    if not training:
        return (0, 1), seed
    if shuffle and seed is None:
        seed = seeds.draw_seed() if seeds.is_fixed() else _COMMON_SEED
    return (topology.index, topology.num_workers), seed
