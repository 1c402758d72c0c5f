"""How many processes train together, and which one this is: for scripts that shard their data by hand.

    dataset = dataset.shard(ops_adapter.size(), ops_adapter.rank())

Data sets of `mox` do this by themselves.
"""

from __future__ import annotations

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.flags import store

__all__ = ["rank", "size"]


def size() -> int:
    """Return the number of workers that train together; 1 for a single process, and for an evaluator.

    The devices of a worker do not count: `input_fn` is called once for all of them.

    Raises:
        UsageError: the flags about the cluster contradict each other.
    """
    topology = Topology.from_flags(store)
    return 1 if topology.job == "evaluator" else topology.num_workers


def rank() -> int:
    """Return the number of this worker, from 0 to `size() - 1`; 0 for any process that is no worker.

    Raises:
        UsageError: the flags about the cluster contradict each other.
    """
    topology = Topology.from_flags(store)
    return topology.index if topology.job == "worker" else 0
