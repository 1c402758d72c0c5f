"""Topology: which process of a job this is, how many devices it computes on, and how its sessions are configured.

The one reader of the flags about devices and workers. Everybody else asks a Topology, `devices` about what happens
between the devices of this process, and `workers` about what happens between processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.flags import FlagStore

__all__ = ["Topology"]


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(host.strip() for host in text.split(",") if host.strip())


@dataclass(frozen=True)
class Topology:
    """The place of this process in a job, and its devices.

    Attributes:
        job: `worker`, `ps` or `evaluator`; empty for a single process.
        index: index within the job; worker 0 is the chief.
        workers: addresses of the workers; empty for a single process.
        ps: addresses of the parameter servers; empty where the workers do without.
        num_devices: towers of this process.
        on_cpu: the towers stay on the CPU, as logical devices where there are several.
        synchronous: whether the workers make each step together.
        variable_update: `parameter_server`, `replicated`, `distributed_replicated` or `all_reduce`; what the flag says,
            or the default for this topology.
        parameter_device: `cpu` or `gpu`: where the gradients of one process meet.
        chief_counts: only the chief counts global steps.
        inter_op_threads: threads that run operations, 0 for TensorFlow's choice.
        intra_op_threads: threads inside one operation, 0 for TensorFlow's choice.
        protocol: of the TensorFlow servers.
        start_timeout_s: how long to wait for the other processes at start; 0 for ever.
        barrier: all processes of the job are waited for before the TensorFlow servers start.
        all_log: console lines come from all workers, not only from the chief.
    """

    job: str = ""
    index: int = 0
    workers: tuple[str, ...] = ()
    ps: tuple[str, ...] = ()
    num_devices: int = 1
    on_cpu: bool = False
    synchronous: bool = True
    variable_update: str = "parameter_server"
    parameter_device: str = "cpu"
    chief_counts: bool = False
    inter_op_threads: int = 0
    intra_op_threads: int = 0
    protocol: str = "grpc"
    start_timeout_s: int = 0
    barrier: bool = False
    all_log: bool = False

    @classmethod
    def from_flags(cls, store: FlagStore) -> Topology:
        """Read the topology from the flags.

        Raises:
            UsageError: the flags contradict each other.
        """
        num_devices = store.get("num_gpus")
        if num_devices < 1:
            raise UsageError(f"flag --num_gpus={num_devices}: at least 1 is needed; 1 also means CPU")
        job, index = _job(store.get("job_name"), store.get("task_index"))
        ps, workers = _hosts(store.get("ps_hosts")), _hosts(store.get("worker_hosts"))
        _check_cluster(job, index, ps, workers)
        update = store.get("variable_update") or ("all_reduce" if len(workers) > 1 and not ps else "parameter_server")
        if update in ("parameter_server", "distributed_replicated") and len(workers) > 1 and not ps:
            raise UsageError(
                f"flag --variable_update={update} with {len(workers)} workers needs --ps_hosts",
                hint="give --ps_hosts=host:port, or --variable_update=all_reduce",
            )
        if update in ("replicated", "all_reduce") and len(workers) > 1 and not store.get("sync_replicas"):
            raise UsageError(
                f"flag --sync_replicas=false with --variable_update={update}: each worker has the variables itself, so "
                "that they must step together",
                hint="give --ps_hosts for asynchronous workers, or leave --sync_replicas and --variable_update out",
            )
        return cls(
            job=job,
            index=index,
            workers=workers,
            ps=ps,
            num_devices=num_devices,
            on_cpu=store.get("clone_on_cpu"),
            synchronous=store.get("sync_replicas"),
            variable_update=update,
            parameter_device=store.get("local_parameter_device"),
            chief_counts=store.get("chief_inc_global_step"),
            inter_op_threads=store.get("num_inter_threads"),
            intra_op_threads=store.get("num_intra_threads"),
            protocol=store.get("server_protocol"),
            start_timeout_s=store.get("session_timeout"),
            barrier=store.get("sync_before_server"),
            all_log=not store.get("log_first_worker"),
        )

    @property
    def is_chief(self) -> bool:
        """Whether this process writes checkpoints and summaries."""
        return self.job in ("", "worker") and self.index == 0

    @property
    def is_follower(self) -> bool:
        """Whether another worker does what a job does once: exports, curves of an evaluation."""
        return self.job == "worker" and self.index > 0

    @property
    def num_workers(self) -> int:
        """How many processes train together."""
        return max(1, len(self.workers))

    @property
    def counters(self) -> int:
        """How many workers make their steps apart, all of which the global step counts."""
        return 1 if self.synchronous or self.chief_counts else self.num_workers

    @property
    def distributed(self) -> bool:
        """Whether there are other processes to talk to: several workers, or a parameter server."""
        return len(self.workers) > 1 or bool(self.ps)

    def alone(self) -> Topology:
        """Return the topology of this process's devices without the other processes."""
        return replace(self, job="", index=0, workers=(), ps=(), variable_update="parameter_server")

    @property
    def global_replicas(self) -> int:
        """How many towers of all processes make a step, each with a batch of its own."""
        return self.num_devices * self.num_workers

    @property
    def without_servers(self) -> bool:
        """Whether each worker has all variables itself, so that parameter servers have nothing to do."""
        return self.variable_update in ("replicated", "all_reduce")

    def session_config(self) -> Any:
        """Build the ConfigProto of this process's sessions."""
        config = tf1.ConfigProto(
            allow_soft_placement=True,
            inter_op_parallelism_threads=self.inter_op_threads,
            intra_op_parallelism_threads=self.intra_op_threads,
        )
        config.gpu_options.allow_growth = True
        return config


def _job(name: str, index: int) -> tuple[str, int]:
    """The name of the job as everybody else here knows it: a chief is a worker, a controller the first parameter server
    of a job whose platform calls it so.
    """
    return {"chief": "worker", "master": "worker", "controller": "ps"}.get(name, name), index


def _check_cluster(job: str, index: int, ps: tuple[str, ...], workers: tuple[str, ...]) -> None:
    members = {"ps": ps, "worker": workers}
    if not job:
        if len(workers) > 1 or ps:
            raise UsageError(
                f"flags --worker_hosts={','.join(workers)!r} --ps_hosts={','.join(ps)!r} name a cluster, and "
                "--job_name does not say which of its processes this is",
                hint="give --job_name=worker (or ps) and --task_index, or start all with: moxserve launch",
            )
        return
    if job in members and not members[job] and (ps or workers):
        raise UsageError(f"flag --job_name={job} needs --{job}_hosts, which is empty", hint=f"--{job}_hosts=host:port")
    if job == "ps" and not workers:
        raise UsageError("flag --job_name=ps needs --worker_hosts", hint="--worker_hosts=host:port,host:port")
    known = members.get(job) or ("",)
    if not 0 <= index < len(known) and job in members:
        raise UsageError(
            f"flag --task_index={index}: --{job}_hosts names {len(known)} process(es), counted from 0",
            hint="each process has the index of its own address in the list",
        )
