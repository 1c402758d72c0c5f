"""The networks: one row each, with what is known of it before it is built. No TensorFlow here.

Sizes are `preprocessing.keys`', which augmentation needs too. Numbers of classes, offsets of labels and scopes are
those of slim's networks, so that published checkpoints fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.preprocessing.keys import default_image_size

__all__ = ["NETWORKS", "Network", "network"]

_PACKAGE = "moxserve.tensorflow.nets."


@dataclass(frozen=True)
class Network:
    """One row.

    Attributes:
        name: of `NetworkKeys`.
        scope: variable scope of all its variables; "" where slim's has none.
        paper: where it comes from.
        builder: `module:function` below this package; `base` tells what it is called with.
        arguments: keyword arguments that make this network of its family.
        channels: of its images.
        num_classes: of published checkpoints.
        labels_offset: what is subtracted from ImageNet's labels of 1,001 classes.
        logits_pattern: what the names of its last layer contain.
    """

    name: str
    scope: str
    paper: str
    builder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 3
    num_classes: int = 1000
    labels_offset: int = 0
    logits_pattern: str = "logits"

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the square images that it was made for."""
        return default_image_size(self.name)

    @property
    def target(self) -> str:
        """Full `module:function` of the builder."""
        return _PACKAGE + self.builder


_PAPERS = {
    "alexnet": "One weird trick for parallelizing convolutional neural networks (Krizhevsky 2014, arXiv:1404.5997)",
    "cifar": "The small network of the CIFAR-10 tutorial of TensorFlow (after Krizhevsky, cuda-convnet)",
    "lenet": "Gradient-based learning applied to document recognition (LeCun et al. 1998)",
    "overfeat": "OverFeat (Sermanet et al. 2014, arXiv:1312.6229)",
    "vgg": (
        "Very deep convolutional networks for large-scale image recognition (Simonyan, Zisserman 2014, arXiv:1409.1556)"
    ),
    "inception_v1": "Going deeper with convolutions (Szegedy et al. 2014, arXiv:1409.4842)",
    "inception_v2": "Batch normalization (Ioffe, Szegedy 2015, arXiv:1502.03167)",
    "inception_v3": "Rethinking the Inception architecture for computer vision (Szegedy et al. 2015, arXiv:1512.00567)",
    "inception_v4": (
        "Inception-v4, Inception-ResNet and the impact of residual connections on learning (Szegedy et al. 2016, "
        "arXiv:1602.07261)"
    ),
    "resnet_v1": "Deep residual learning for image recognition (He et al. 2015, arXiv:1512.03385)",
    "8k": "Accurate, large minibatch SGD (Goyal et al. 2017, arXiv:1706.02677), on the ResNet of He et al. 2015",
    "resnet_v2": "Identity mappings in deep residual networks (He et al. 2016, arXiv:1603.05027)",
    "resnext": "Aggregated residual transformations for deep neural networks (Xie et al. 2016, arXiv:1611.05431)",
    "pvanet": "PVANET (Kim et al. 2016, arXiv:1608.08021; Hong et al. 2016, arXiv:1611.08588)",
    "mobilenet_v1": "MobileNets (Howard et al. 2017, arXiv:1704.04861)",
    "mobilenet_v2": "MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)",
    "nasnet": "Learning transferable architectures for scalable image recognition (Zoph et al. 2017, arXiv:1707.07012)",
    "pnasnet": "Progressive neural architecture search (Liu et al. 2017, arXiv:1712.00559)",
}

_ROWS = (
    Network(
        "alexnet_v2", "alexnet_v2", _PAPERS["alexnet"], "alexnet:alexnet_v2", labels_offset=1, logits_pattern="fc8"
    ),
    Network("cifarnet", "CifarNet", _PAPERS["cifar"], "cifarnet:cifarnet", num_classes=10),
    Network("overfeat", "overfeat", _PAPERS["overfeat"], "overfeat:overfeat", labels_offset=1, logits_pattern="fc8"),
    Network(
        "vgg_a",
        "vgg_a",
        _PAPERS["vgg"],
        "vgg:vgg",
        arguments={"scope": "vgg_a", "convolutions": (1, 1, 2, 2, 2), "batch_norm": False},
        labels_offset=1,
        logits_pattern="fc8",
    ),
    Network(
        "vgg_16",
        "vgg_16",
        _PAPERS["vgg"],
        "vgg:vgg",
        arguments={"scope": "vgg_16", "convolutions": (2, 2, 3, 3, 3), "batch_norm": False},
        labels_offset=1,
        logits_pattern="fc8",
    ),
    Network(
        "vgg_19",
        "vgg_19",
        _PAPERS["vgg"],
        "vgg:vgg",
        arguments={"scope": "vgg_19", "convolutions": (2, 2, 4, 4, 4), "batch_norm": False},
        labels_offset=1,
        logits_pattern="fc8",
    ),
    Network(
        "vgg_a_bn",
        "vgg_a_bn",
        _PAPERS["vgg"],
        "vgg:vgg",
        arguments={"scope": "vgg_a_bn", "convolutions": (1, 1, 2, 2, 2), "batch_norm": True},
        labels_offset=1,
        logits_pattern="fc8",
    ),
    Network(
        "vgg_16_bn",
        "vgg_16_bn",
        _PAPERS["vgg"],
        "vgg:vgg",
        arguments={"scope": "vgg_16_bn", "convolutions": (2, 2, 3, 3, 3), "batch_norm": True},
        labels_offset=1,
        logits_pattern="fc8",
    ),
    Network(
        "vgg_19_bn",
        "vgg_19_bn",
        _PAPERS["vgg"],
        "vgg:vgg",
        arguments={"scope": "vgg_19_bn", "convolutions": (2, 2, 4, 4, 4), "batch_norm": True},
        labels_offset=1,
        logits_pattern="fc8",
    ),
    Network(
        "inception_v1",
        "InceptionV1",
        _PAPERS["inception_v1"],
        "inception_v1:inception_v1",
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "inception_v2",
        "InceptionV2",
        _PAPERS["inception_v2"],
        "inception_v2:inception_v2",
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "inception_v3",
        "InceptionV3",
        _PAPERS["inception_v3"],
        "inception_v3:inception_v3",
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "inception_v4",
        "InceptionV4",
        _PAPERS["inception_v4"],
        "inception_v4:inception_v4",
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "inception_resnet_v2",
        "InceptionResnetV2",
        _PAPERS["inception_v4"],
        "inception_resnet_v2:inception_resnet_v2",
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network("lenet", "LeNet", _PAPERS["lenet"], "lenet:lenet", channels=1, num_classes=10, logits_pattern="fc4"),
    Network(
        "resnet_v1_18",
        "resnet_v1_18",
        _PAPERS["resnet_v1"],
        "resnet_v1:resnet_v1",
        arguments={"scope": "resnet_v1_18", "units": (2, 2, 2, 2), "bottleneck": False, "zero_gamma": False},
        labels_offset=1,
    ),
    Network(
        "resnet_v1_50",
        "resnet_v1_50",
        _PAPERS["resnet_v1"],
        "resnet_v1:resnet_v1",
        arguments={"scope": "resnet_v1_50", "units": (3, 4, 6, 3), "bottleneck": True, "zero_gamma": False},
        labels_offset=1,
    ),
    Network(
        "resnet_v1_50_8k",
        "resnet_v1_50_8k",
        _PAPERS["8k"],
        "resnet_v1:resnet_v1",
        arguments={"scope": "resnet_v1_50_8k", "units": (3, 4, 6, 3), "bottleneck": True, "zero_gamma": True},
        labels_offset=1,
    ),
    Network(
        "resnet_v1_101",
        "resnet_v1_101",
        _PAPERS["resnet_v1"],
        "resnet_v1:resnet_v1",
        arguments={"scope": "resnet_v1_101", "units": (3, 4, 23, 3), "bottleneck": True, "zero_gamma": False},
        labels_offset=1,
    ),
    Network(
        "resnet_v1_152",
        "resnet_v1_152",
        _PAPERS["resnet_v1"],
        "resnet_v1:resnet_v1",
        arguments={"scope": "resnet_v1_152", "units": (3, 8, 36, 3), "bottleneck": True, "zero_gamma": False},
        labels_offset=1,
    ),
    Network(
        "resnet_v1_200",
        "resnet_v1_200",
        _PAPERS["resnet_v1"],
        "resnet_v1:resnet_v1",
        arguments={"scope": "resnet_v1_200", "units": (3, 24, 36, 3), "bottleneck": True, "zero_gamma": False},
        labels_offset=1,
    ),
    Network(
        "resnet_v2_50",
        "resnet_v2_50",
        _PAPERS["resnet_v2"],
        "resnet_v2:resnet_v2",
        arguments={"scope": "resnet_v2_50", "units": (3, 4, 6, 3)},
        labels_offset=1,
    ),
    Network(
        "resnet_v2_101",
        "resnet_v2_101",
        _PAPERS["resnet_v2"],
        "resnet_v2:resnet_v2",
        arguments={"scope": "resnet_v2_101", "units": (3, 4, 23, 3)},
        labels_offset=1,
    ),
    Network(
        "resnet_v2_152",
        "resnet_v2_152",
        _PAPERS["resnet_v2"],
        "resnet_v2:resnet_v2",
        arguments={"scope": "resnet_v2_152", "units": (3, 8, 36, 3)},
        labels_offset=1,
    ),
    Network(
        "resnet_v2_200",
        "resnet_v2_200",
        _PAPERS["resnet_v2"],
        "resnet_v2:resnet_v2",
        arguments={"scope": "resnet_v2_200", "units": (3, 24, 36, 3)},
        labels_offset=1,
    ),
    Network(
        "resnext_b_50",
        "resnext_b_50",
        _PAPERS["resnext"],
        "resnext:resnext",
        arguments={"scope": "resnext_b_50", "units": (3, 4, 6, 3), "split": True},
        labels_offset=1,
    ),
    Network(
        "resnext_b_101",
        "resnext_b_101",
        _PAPERS["resnext"],
        "resnext:resnext",
        arguments={"scope": "resnext_b_101", "units": (3, 4, 23, 3), "split": True},
        labels_offset=1,
    ),
    Network(
        "resnext_c_50",
        "resnext_c_50",
        _PAPERS["resnext"],
        "resnext:resnext",
        arguments={"scope": "resnext_c_50", "units": (3, 4, 6, 3), "split": False},
        labels_offset=1,
    ),
    Network(
        "resnext_c_101",
        "resnext_c_101",
        _PAPERS["resnext"],
        "resnext:resnext",
        arguments={"scope": "resnext_c_101", "units": (3, 4, 23, 3), "split": False},
        labels_offset=1,
    ),
    Network("pvanet", "pvanet", _PAPERS["pvanet"], "pvanet:pvanet", labels_offset=1, logits_pattern="fc8"),
    Network(
        "mobilenet_v1",
        "MobilenetV1",
        _PAPERS["mobilenet_v1"],
        "mobilenet_v1:mobilenet_v1",
        arguments={"depth_multiplier": 1.0},
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "mobilenet_v1_075",
        "MobilenetV1",
        _PAPERS["mobilenet_v1"],
        "mobilenet_v1:mobilenet_v1",
        arguments={"depth_multiplier": 0.75},
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "mobilenet_v1_050",
        "MobilenetV1",
        _PAPERS["mobilenet_v1"],
        "mobilenet_v1:mobilenet_v1",
        arguments={"depth_multiplier": 0.5},
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "mobilenet_v1_025",
        "MobilenetV1",
        _PAPERS["mobilenet_v1"],
        "mobilenet_v1:mobilenet_v1",
        arguments={"depth_multiplier": 0.25},
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "mobilenet_v2",
        "MobilenetV2",
        _PAPERS["mobilenet_v2"],
        "mobilenet_v2:mobilenet_v2",
        arguments={"depth_multiplier": 1.0},
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "mobilenet_v2_140",
        "MobilenetV2",
        _PAPERS["mobilenet_v2"],
        "mobilenet_v2:mobilenet_v2",
        arguments={"depth_multiplier": 1.4},
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "mobilenet_v2_035",
        "MobilenetV2",
        _PAPERS["mobilenet_v2"],
        "mobilenet_v2:mobilenet_v2",
        arguments={"depth_multiplier": 0.35, "finegrain_classification_mode": True},
        num_classes=1001,
        logits_pattern="Logits",
    ),
    Network(
        "resnet_v1_20",
        "resnet_v1_20",
        _PAPERS["resnet_v1"],
        "resnet_small:resnet_small",
        arguments={"scope": "resnet_v1_20", "units": 3},
        num_classes=10,
    ),
    Network(
        "resnet_v1_110",
        "resnet_v1_110",
        _PAPERS["resnet_v1"],
        "resnet_small:resnet_small",
        arguments={"scope": "resnet_v1_110", "units": 18},
        num_classes=10,
    ),
    Network("nasnet_cifar", "", _PAPERS["nasnet"], "nasnet:nasnet_cifar", num_classes=10, logits_pattern="final_layer"),
    Network(
        "nasnet_mobile", "", _PAPERS["nasnet"], "nasnet:nasnet_mobile", num_classes=1001, logits_pattern="final_layer"
    ),
    Network(
        "nasnet_large", "", _PAPERS["nasnet"], "nasnet:nasnet_large", num_classes=1001, logits_pattern="final_layer"
    ),
    Network(
        "pnasnet_large", "", _PAPERS["pnasnet"], "pnasnet:pnasnet_large", num_classes=1001, logits_pattern="final_layer"
    ),
    Network(
        "pnasnet_mobile",
        "",
        _PAPERS["pnasnet"],
        "pnasnet:pnasnet_mobile",
        num_classes=1001,
        logits_pattern="final_layer",
    ),
)

NETWORKS: Mapping[str, Network] = {row.name: row for row in _ROWS}


def network(name: str) -> Network:
    """Return the row of a network.

    Raises:
        UsageError: there is none of that name; the nearest ones are named.
    """
    if not isinstance(name, str):
        raise UsageError(f"the name of a network is a string, got {type(name).__name__}")
    if name not in NETWORKS:
        given = name.lower()
        # `resnet50` and `vgg16` are what others call some: names with the same words and numbers come first.
        parts = re.findall(r"[a-z]+|\d+", given)
        alike = [known for known in NETWORKS if parts and set(parts) <= set(re.findall(r"[a-z]+|\d+", known))]
        near = did_you_mean(given, NETWORKS) if len(alike) not in (1, 2, 3) else f"did you mean {_listed(alike)}?"
        raise UsageError(f"no network {name!r}; {near}")
    return NETWORKS[name]


def _listed(names: list[str]) -> str:
    return " or ".join(repr(name) for name in names)
