"""Parameters of `network`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.classifier import Classifier

__all__ = ["Network", "NetworkName"]

# Those of `NetworkKeys`, which cannot be read without importing TensorFlow.
NetworkName = Literal[
    "alexnet_v2", "cifarnet", "overfeat",
    "vgg_a", "vgg_16", "vgg_19", "vgg_a_bn", "vgg_16_bn", "vgg_19_bn",
    "inception_v1", "inception_v2", "inception_v3", "inception_v4", "inception_resnet_v2",
    "lenet",
    "resnet_v1_18", "resnet_v1_50", "resnet_v1_50_8k", "resnet_v1_101", "resnet_v1_152", "resnet_v1_200",
    "resnet_v2_50", "resnet_v2_101", "resnet_v2_152", "resnet_v2_200",
    "resnext_b_50", "resnext_b_101", "resnext_c_50", "resnext_c_101",
    "pvanet",
    "mobilenet_v1", "mobilenet_v1_075", "mobilenet_v1_050", "mobilenet_v1_025",
    "mobilenet_v2", "mobilenet_v2_140", "mobilenet_v2_035",
    "resnet_v1_20", "resnet_v1_110",
    "nasnet_cifar", "nasnet_mobile", "nasnet_large", "pnasnet_large", "pnasnet_mobile",
]  # fmt: skip


class Network(Classifier):
    """A network of the zoo by name, with slim's variables, so that published checkpoints fit."""

    name: NetworkName = Field(description="Which network; `moxserve models list` shows them.")
    weight_decay: float = Field(default=0.0, ge=0, description="Factor of the L2 losses of weights.")
    data_format: Literal["NHWC", "NCHW"] = Field(
        default="NHWC", description="Layout inside the network; NCHW is faster on GPUs. The export is NHWC always."
    )
    batch_norm_fused: bool = Field(default=True, description="Batch norms in one operation, which is faster.")
    batch_renorm: bool = Field(default=False, description="Batch renormalisation in place of batch norms.")
    batch_norm_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Decay of batch norms' moving averages; by default the network's own, but short runs want 0.9.",
    )
    labels_offset: int = Field(
        default=0,
        ge=0,
        description="Subtracted from the labels, whose first classes, such as a background, must have no images.",
    )
    aux_weight: float = Field(
        default=0.4, ge=0, description="Weight of the second classifier's loss, where a network has one while training."
    )
    options: dict[str, Any] = Field(
        default={}, description="Further options of the network, such as {dropout_keep_prob: 0.8}; see docs/models.md."
    )

    def build(self, data: InputBundle) -> Callable[..., Any]:
        """Return the model_fn; see ModelPlugin."""
        from moxserve_plugins.network.build import model_fn

        return model_fn(self, data)
