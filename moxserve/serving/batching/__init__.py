"""Puts requests together that come at the same time, runs them as one, and gives each its rows.

`params` has what may be set, `lanes` which requests may meet, `queues` and `adaptive` when a batch is made and how
large it is, `scheduler` the threads, `merge` the arrays, `execute` the run of a batch, `runner` the way in from the
event loop, `runners` what a server makes of it all.
"""

from __future__ import annotations

from moxserve.serving.batching.params import BatchingOptions, BatchingParameters
from moxserve.serving.batching.runner import BatchingRunner
from moxserve.serving.batching.runners import BatchingRunners
from moxserve.serving.batching.scheduler import BatchThreads

__all__ = ["BatchThreads", "BatchingOptions", "BatchingParameters", "BatchingRunner", "BatchingRunners"]
