"""Topology: which process this is, which devices it computes on, and how its session is configured.

One process with one device today. Whatever would need more refuses here, by name, so that no flag is silently ignored;
the rest of the executor only asks a Topology and never looks at flags about devices or workers itself.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        job: `ps`, `worker`, or empty for a single process.
        index: index within the job.
        workers: addresses of the workers; empty for a single process.
        devices: one device string a tower; the empty string leaves the choice to TensorFlow.
        inter_op_threads: threads that run operations, 0 for TensorFlow's choice.
        intra_op_threads: threads inside one operation, 0 for TensorFlow's choice.
    """

    job: str = ""
    index: int = 0
    workers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("",)
    inter_op_threads: int = 0
    intra_op_threads: int = 0

    @classmethod
    def from_flags(cls, store: FlagStore) -> Topology:
        """Read the topology from the flags.

        Raises:
            UsageError: the flags ask for several devices, several workers or a parameter server.
        """
        num_gpus = store.get("num_gpus")
        if num_gpus < 1:
            raise UsageError(f"flag --num_gpus={num_gpus}: at least 1 is needed; 1 also means CPU")
        if num_gpus > 1:
            raise UsageError(
                f"flag --num_gpus={num_gpus}: this version trains on one device per process",
                hint="leave --num_gpus out",
            )
        ps, workers = _hosts(store.get("ps_hosts")), _hosts(store.get("worker_hosts"))
        if ps or len(workers) > 1 or store.get("job_name") not in ("", "worker", "chief"):
            raise UsageError(
                f"flags --job_name={store.get('job_name')!r} --ps_hosts={','.join(ps)!r} "
                f"--worker_hosts={','.join(workers)!r}: this version trains in a single process",
                hint="leave the four cluster flags out, and unset TF_CONFIG",
            )
        return cls(
            job=store.get("job_name"),
            index=store.get("task_index"),
            workers=workers,
            devices=("/cpu:0",) if store.get("clone_on_cpu") else ("",),
            inter_op_threads=store.get("num_inter_threads"),
            intra_op_threads=store.get("num_intra_threads"),
        )

    @property
    def is_chief(self) -> bool:
        """Whether this process writes checkpoints and summaries."""
        return self.job in ("", "worker", "chief") and self.index == 0

    @property
    def num_workers(self) -> int:
        """How many processes train together."""
        return max(1, len(self.workers))

    def session_config(self) -> Any:
        """Build the ConfigProto of this process's session."""
        config = tf1.ConfigProto(
            allow_soft_placement=True,
            inter_op_parallelism_threads=self.inter_op_threads,
            intra_op_parallelism_threads=self.intra_op_threads,
        )
        config.gpu_options.allow_growth = True
        return config
