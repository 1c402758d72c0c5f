"""Decides when a model runs: on the event loop, on a thread, alone or together with others.

`base` has the interface that a loaded version is run through, `context` what is known of a request besides its data,
`loop` the thread of the event loop, `pool` a bounded pool of threads, `direct` the runner that puts nothing together,
`factory` gives each version its runner.
"""

from __future__ import annotations

from moxserve.serving.execution.base import Runner
from moxserve.serving.execution.context import RequestContext
from moxserve.serving.execution.direct import DirectRunner
from moxserve.serving.execution.factory import RunnerFactory
from moxserve.serving.execution.loop import LoopThread
from moxserve.serving.execution.pool import WorkPool

__all__ = ["DirectRunner", "LoopThread", "RequestContext", "Runner", "RunnerFactory", "WorkPool"]
