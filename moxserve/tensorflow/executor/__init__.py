"""The executor: graph mode, one session, one loop. `run` is the way in; `branch` builds, `loop` drives, `stepper` makes
a step.
"""

from moxserve.tensorflow.executor.flags import get_flag, set_flag
from moxserve.tensorflow.executor.hooks import (
    AggregativeSessionRunHook,
    BestCheckpointHook,
    EarlyStoppingHook,
    FeedSessionRunHook,
    LogEvaluationMetricHook,
    PlateauLREarlyStoppingHook,
)
from moxserve.tensorflow.executor.input_spec import InputSpec
from moxserve.tensorflow.executor.run import run
from moxserve.tensorflow.executor.spec import ExportKeys, ExportSpec, ModeKeys, ModelSpec, RunResult, SignatureSpec
from moxserve.tensorflow.executor.variables import get_collection, var_scope
from moxserve.tensorflow.executor.whole import auc, over_all_rows

__all__ = [
    "AggregativeSessionRunHook",
    "BestCheckpointHook",
    "EarlyStoppingHook",
    "ExportKeys",
    "ExportSpec",
    "FeedSessionRunHook",
    "InputSpec",
    "LogEvaluationMetricHook",
    "ModeKeys",
    "ModelSpec",
    "PlateauLREarlyStoppingHook",
    "RunResult",
    "SignatureSpec",
    "auc",
    "get_collection",
    "get_flag",
    "over_all_rows",
    "run",
    "set_flag",
    "var_scope",
]
