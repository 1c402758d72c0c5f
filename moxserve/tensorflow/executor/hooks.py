"""Hooks for users: AggregativeSessionRunHook, the base that says how a hook behaves on several devices, and
FeedSessionRunHook.

The life of a hook in a run: `begin` (graph open), `after_create_session` (graph frozen, variables restored), then for
each step `before_run` and `after_run`, and `end` unless the run failed. `run_context.request_stop()` ends the run after
this step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1

__all__ = ["AggregativeSessionRunHook", "FeedSessionRunHook", "check_hook"]

_QUESTIONS = ("support_aggregation", "support_sync_workers", "run_inter_mode")


class AggregativeSessionRunHook(tf1.train.SessionRunHook):
    """A SessionRunHook that answers three questions, so that it can run on several devices and workers.

    Subclasses implement all three, each returning a bool.
    """

    def support_aggregation(self) -> bool:
        """Whether one hook gets the values of all devices (True) or the hook of the first device runs alone (False)."""
        raise self._unanswered("support_aggregation")

    def support_sync_workers(self) -> bool:
        """Whether all workers run the hook at the same step (True) or each for itself (False)."""
        raise self._unanswered("support_sync_workers")

    def run_inter_mode(self) -> bool:
        """Whether the hook runs the intermediate mode of `run(inter_mode=...)`."""
        raise self._unanswered("run_inter_mode")

    def _unanswered(self, method: str) -> ModelSpecError:
        return ModelSpecError(
            f"hook {type(self).__name__} does not implement {method}()",
            hint=f"an AggregativeSessionRunHook needs {', '.join(_QUESTIONS)}, each returning True or False",
        )


class FeedSessionRunHook(AggregativeSessionRunHook):
    """Feeds the same values to placeholders at every step.

    Args:
        feed_dict: placeholder: array of a fitting shape; the dtype is converted.
    """

    def __init__(self, feed_dict: Mapping[Any, Any]) -> None:
        super().__init__()
        self.feed_dict = feed_dict

    def before_run(self, run_context: Any) -> Any:
        """Ask for the feeds; runs before each step."""
        if self.feed_dict:
            return tf1.train.SessionRunArgs(fetches=None, feed_dict=self.feed_dict)
        return None

    def support_aggregation(self) -> bool:
        """False: each device has its own placeholders."""
        return False

    def support_sync_workers(self) -> bool:
        """False: each worker feeds for itself."""
        return False

    def run_inter_mode(self) -> bool:
        """False: only the main mode is fed."""
        return False


def check_hook(hook: Any) -> None:
    """Check that an element of ModelSpec.hooks can be run.

    Raises:
        ModelSpecError: it is no hook, or leaves one of the three questions open.
    """
    if isinstance(hook, type) and issubclass(hook, tf1.train.SessionRunHook):
        raise ModelSpecError(
            f"ModelSpec.hooks holds the class {hook.__name__}", hint=f"give an object: {hook.__name__}(...)"
        )
    if not isinstance(hook, tf1.train.SessionRunHook):
        raise ModelSpecError(
            f"ModelSpec.hooks holds a {type(hook).__name__}, which is no hook",
            hint="derive it from mox.AggregativeSessionRunHook",
        )
    if isinstance(hook, AggregativeSessionRunHook):
        for question in _QUESTIONS:
            answer = getattr(hook, question)()
            if not isinstance(answer, bool):
                raise ModelSpecError(f"{type(hook).__name__}.{question}() returned {answer!r}; expected True or False")
