"""Parameters of `lenet`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import Field

from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.classifier import Classifier

__all__ = ["LeNet"]


class LeNet(Classifier):
    """slim's LeNet: two convolutions, two dense layers, dropout; 3.3 million weights on 28x28x1."""

    dropout_keep_prob: float = Field(
        default=0.5, gt=0, le=1, description="Probability that a unit of fc3 stays while training."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Factor of the L2 loss on all weights.")

    def build(self, data: InputBundle) -> Callable[..., Any]:
        """Return the model_fn; see ModelPlugin."""
        from moxserve_plugins.lenet.build import network

        return self.model_fn(data, partial(network, keep_prob=self.dropout_keep_prob, weight_decay=self.weight_decay))
