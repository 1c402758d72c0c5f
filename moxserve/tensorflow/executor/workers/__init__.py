"""Workers: what happens between the processes of a job. See `base` for a single one.

part          which run of the script this is, and further attempts when other processes fail
peers         addresses, and waiting for those who are to answer there
server        the TensorFlow server of this process
serving       what a parameter server does
placement     where operations and variables are
servers       workers with parameter servers: asynchronous, synchronous
lockstep      workers that make each step together: synchronous, all_reduce
wire          how a step is broken that waits for another process
shards        the part of a data set that is this worker's
"""

from moxserve.tensorflow.executor.workers.base import Startup, Workers, current_workers, workers_of
from moxserve.tensorflow.executor.workers.part import Part

__all__ = ["Part", "Startup", "Workers", "current_workers", "workers_of"]
