"""The TensorFlow server of this process: started once, kept for later runs of the same process."""

from __future__ import annotations

import os
import threading
from typing import Any

from moxserve.errors import UsageError, first_line
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers.peers import Peer, check_own, listening, members, wait_for

__all__ = ["own_peer", "server_of"]

# The library that TensorFlow talks through asks for it first, before `no_proxy`, which is others', too.
_NO_PROXY = "no_grpc_proxy"
_guard = threading.Lock()
_servers: dict[tuple[Any, ...], Any] = {}


def own_peer(topology: Topology) -> Peer:
    """This process among the members of its job."""
    return members(topology, topology.job)[topology.index]


def server_of(topology: Topology, config: Any, *, jobs: tuple[str, ...] = ("ps", "worker")) -> Any:
    """Start this process's server, or return the one that it has.

    Args:
        topology: of the job.
        config: ConfigProto of the server; the first run's counts.
        jobs: which processes the server knows.

    Raises:
        UsageError: the address is not of this machine, or taken; or this process has been another member of a job.
    """
    cluster = {job: list(hosts) for job in jobs if (hosts := {"ps": topology.ps, "worker": topology.workers}[job])}
    key = (topology.job, topology.index, topology.protocol, str(cluster))
    with _guard:
        if key in _servers:
            return _servers[key]
        own = own_peer(topology)
        for peer in members(topology, *jobs):
            _ = peer.port  # says which entry is wrong before anything is started
        if _servers:
            raise UsageError(
                f"{own} cannot join: this process has a server for another job already",
                hint="use the same cluster flags in all runs of a process",
            )
        check_own(own)
        _bypass_proxies(members(topology, "ps", "worker"))
        if topology.barrier:
            with listening(own):
                wait_for([p for p in members(topology, *jobs) if p != own], topology.start_timeout_s)
        try:
            server = tf1.train.Server(
                tf1.train.ClusterSpec(cluster),
                job_name=topology.job,
                task_index=topology.index,
                protocol=topology.protocol,
                config=config,
            )
        except tf.errors.OpError as error:
            raise UsageError(
                f"{own} (--server_protocol={topology.protocol}): no TensorFlow server could be started: "
                f"{first_line(error)}",
                hint="the port may have been taken just now; this TensorFlow knows the protocol 'grpc'",
            ) from error
        _servers[key] = server
        return server


def _bypass_proxies(peers: list[Peer]) -> None:
    """Let TensorFlow talk to the job's processes directly, whatever `http_proxy` says for everybody else."""
    exempt = os.environ.get(_NO_PROXY) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = dict.fromkeys([*filter(None, exempt.split(",")), "localhost", "127.0.0.1", *(p.host for p in peers)])
    os.environ[_NO_PROXY] = ",".join(hosts)
