"""Parameters of `mnist_softmax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.classifier import Classifier

__all__ = ["MnistSoftmax"]


class MnistSoftmax(Classifier):
    """One linear layer and a softmax on the flattened image: the network of the MNIST tutorials."""

    def build(self, data: InputBundle) -> Callable[..., Any]:
        """Return the model_fn; see ModelPlugin."""
        from moxserve_plugins.mnist_softmax.build import network

        return self.model_fn(data, network)
