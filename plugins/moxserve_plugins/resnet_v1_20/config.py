"""Parameters of `resnet_v1_20`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import Field

from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.classifier import Classifier

__all__ = ["ResNetV120"]


class ResNetV120(Classifier):
    """ResNet v1 of 20 layers for small images: 9 units of two 3x3 convolutions, batch norms; 0.27 million weights."""

    batch_norm_decay: float = Field(
        default=0.997, ge=0, lt=1, description="Decay of the moving mean and variance; short runs want 0.9."
    )
    weight_decay: float = Field(default=0.0001, ge=0, description="Factor of the L2 loss on all weights.")

    def build(self, data: InputBundle) -> Callable[..., Any]:
        """Return the model_fn; see ModelPlugin."""
        from moxserve_plugins.resnet_v1_20.build import network

        return self.model_fn(
            data, partial(network, batch_norm_decay=self.batch_norm_decay, weight_decay=self.weight_decay)
        )
