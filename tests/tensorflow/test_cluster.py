"""The topology of one process, and what it makes of the flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import devices_of
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.flags import store


def test_a_single_process_is_the_chief_with_one_device() -> None:
    topology = Topology.from_flags(store)
    assert (topology.is_chief, topology.num_workers, topology.distributed) == (True, 1, False)
    assert [place.device for place in devices_of(topology).places] == [""]


def test_a_cluster_of_one_worker_is_a_single_process() -> None:
    mox.set_flag("job_name", "worker")
    mox.set_flag("worker_hosts", "127.0.0.1:2222")
    topology = Topology.from_flags(store)
    assert (topology.is_chief, topology.num_workers) == (True, 1)


def test_thread_pools_reach_the_session() -> None:
    mox.set_flag("num_inter_threads", 3)
    mox.set_flag("num_intra_threads", 2)
    config = Topology.from_flags(store).session_config()
    assert (config.inter_op_parallelism_threads, config.intra_op_parallelism_threads) == (3, 2)
    assert config.allow_soft_placement


def test_clone_on_cpu_pins_the_model(train: Callable[..., mox.RunResult], linear: Any) -> None:
    devices: list[str] = []

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        devices.append(spec.loss.device)
        return spec

    train(model_fn=model_fn)
    mox.set_flag("clone_on_cpu", True)
    train(model_fn=model_fn)
    assert devices == ["", tf1.DeviceSpec.from_string("/cpu:0").to_string()]
