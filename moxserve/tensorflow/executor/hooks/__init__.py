"""Hooks for users: `base` has AggregativeSessionRunHook, which says how a hook behaves on several devices and workers
and what it can do; `feed` feeds placeholders; `evaluation` and `stopping` evaluate in the middle of training, and
decide on its end; `best` keeps the best checkpoints; `states` carries what hooks know over an interruption.

The life of a hook in a run: `begin` (graph open), `after_create_session` (graph frozen, variables restored), then for
each step `before_run` and `after_run`, and `end` unless the run failed. `run_context.request_stop()` ends the run after
this step.
"""

from moxserve.tensorflow.executor.hooks.base import AggregativeSessionRunHook, HookRun, check_hook, runs_inter_mode
from moxserve.tensorflow.executor.hooks.best import BestCheckpointHook
from moxserve.tensorflow.executor.hooks.evaluation import LogEvaluationMetricHook, MonitorHook
from moxserve.tensorflow.executor.hooks.feed import FeedSessionRunHook
from moxserve.tensorflow.executor.hooks.joining import RunHooks
from moxserve.tensorflow.executor.hooks.stopping import EarlyStoppingHook, PlateauLREarlyStoppingHook

__all__ = [
    "AggregativeSessionRunHook",
    "BestCheckpointHook",
    "EarlyStoppingHook",
    "FeedSessionRunHook",
    "HookRun",
    "LogEvaluationMetricHook",
    "MonitorHook",
    "PlateauLREarlyStoppingHook",
    "RunHooks",
    "check_hook",
    "runs_inter_mode",
]
