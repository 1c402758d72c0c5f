"""FeedSessionRunHook: values for the placeholders of a `model_fn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks.base import AggregativeSessionRunHook

__all__ = ["FeedSessionRunHook"]


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
