"""Workers: what happens between the processes of a job. See `base` for a single one."""

from moxserve.tensorflow.executor.workers.base import Startup, Workers, current_workers, workers_of

__all__ = ["Startup", "Workers", "current_workers", "workers_of"]
