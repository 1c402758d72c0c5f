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
        normalized: whether it has batch norms.
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
    normalized: bool = True

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

_DEPTHS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3), "200": (3, 24, 36, 3)}


def _vgg(name: str, *convolutions: int, batch_norm: bool = False) -> Network:
    arguments = {"scope": name, "convolutions": convolutions, "batch_norm": batch_norm}
    return Network(
        name, name, _PAPERS["vgg"], "vgg:vgg", arguments, labels_offset=1, logits_pattern="fc8", normalized=batch_norm
    )


def _inception(name: str, scope: str, paper: str) -> Network:
    return Network(name, scope, _PAPERS[paper], f"{name}:{name}", num_classes=1001, logits_pattern="Logits")


def _resnet_v1(
    name: str, units: tuple[int, ...], *, paper: str = "resnet_v1", bottleneck: bool = True, zero_gamma: bool = False
) -> Network:
    arguments = {"scope": name, "units": units, "bottleneck": bottleneck, "zero_gamma": zero_gamma}
    return Network(name, name, _PAPERS[paper], "resnet_v1:resnet_v1", arguments, labels_offset=1)


def _resnet_v2(depth: str) -> Network:
    name = f"resnet_v2_{depth}"
    arguments = {"scope": name, "units": _DEPTHS[depth]}
    return Network(name, name, _PAPERS["resnet_v2"], "resnet_v2:resnet_v2", arguments, labels_offset=1)


def _resnext(form: str, depth: str) -> Network:
    name = f"resnext_{form}_{depth}"
    arguments = {"scope": name, "units": _DEPTHS[depth], "split": form == "b"}
    return Network(name, name, _PAPERS["resnext"], "resnext:resnext", arguments, labels_offset=1)


def _small_resnet(name: str, units: int) -> Network:
    arguments = {"scope": name, "units": units}
    return Network(name, name, _PAPERS["resnet_v1"], "resnet_small:resnet_small", arguments, num_classes=10)


def _mobilenet(name: str, version: int, depth_multiplier: float, **more: Any) -> Network:
    family = f"mobilenet_v{version}"
    arguments = {"depth_multiplier": depth_multiplier, **more}
    builder = f"{family}:{family}"
    return Network(
        name, f"MobilenetV{version}", _PAPERS[family], builder, arguments, num_classes=1001, logits_pattern="Logits"
    )


def _nasnet(name: str, num_classes: int = 1001) -> Network:
    family = name.partition("_")[0]
    return Network(name, "", _PAPERS[family], f"{family}:{name}", num_classes=num_classes, logits_pattern="final_layer")


_ROWS = (
    Network(
        "alexnet_v2", "alexnet_v2", _PAPERS["alexnet"], "alexnet:alexnet_v2",
        labels_offset=1, logits_pattern="fc8", normalized=False,
    ),
    Network("cifarnet", "CifarNet", _PAPERS["cifar"], "cifarnet:cifarnet", num_classes=10, normalized=False),
    Network(
        "overfeat", "overfeat", _PAPERS["overfeat"], "overfeat:overfeat",
        labels_offset=1, logits_pattern="fc8", normalized=False,
    ),
    _vgg("vgg_a", 1, 1, 2, 2, 2),
    _vgg("vgg_16", 2, 2, 3, 3, 3),
    _vgg("vgg_19", 2, 2, 4, 4, 4),
    _vgg("vgg_a_bn", 1, 1, 2, 2, 2, batch_norm=True),
    _vgg("vgg_16_bn", 2, 2, 3, 3, 3, batch_norm=True),
    _vgg("vgg_19_bn", 2, 2, 4, 4, 4, batch_norm=True),
    _inception("inception_v1", "InceptionV1", "inception_v1"),
    _inception("inception_v2", "InceptionV2", "inception_v2"),
    _inception("inception_v3", "InceptionV3", "inception_v3"),
    _inception("inception_v4", "InceptionV4", "inception_v4"),
    _inception("inception_resnet_v2", "InceptionResnetV2", "inception_v4"),
    Network(
        "lenet", "LeNet", _PAPERS["lenet"], "lenet:lenet",
        channels=1, num_classes=10, logits_pattern="fc4", normalized=False,
    ),
    _resnet_v1("resnet_v1_18", (2, 2, 2, 2), bottleneck=False),
    _resnet_v1("resnet_v1_50", _DEPTHS["50"]),
    _resnet_v1("resnet_v1_50_8k", _DEPTHS["50"], paper="8k", zero_gamma=True),
    _resnet_v1("resnet_v1_101", _DEPTHS["101"]),
    _resnet_v1("resnet_v1_152", _DEPTHS["152"]),
    _resnet_v1("resnet_v1_200", _DEPTHS["200"]),
    *(_resnet_v2(depth) for depth in _DEPTHS),
    _resnext("b", "50"),
    _resnext("b", "101"),
    _resnext("c", "50"),
    _resnext("c", "101"),
    Network("pvanet", "pvanet", _PAPERS["pvanet"], "pvanet:pvanet", labels_offset=1, logits_pattern="fc8"),
    _mobilenet("mobilenet_v1", 1, 1.0),
    _mobilenet("mobilenet_v1_075", 1, 0.75),
    _mobilenet("mobilenet_v1_050", 1, 0.5),
    _mobilenet("mobilenet_v1_025", 1, 0.25),
    _mobilenet("mobilenet_v2", 2, 1.0),
    _mobilenet("mobilenet_v2_140", 2, 1.4),
    _mobilenet("mobilenet_v2_035", 2, 0.35, finegrain_classification_mode=True),
    _small_resnet("resnet_v1_20", 3),
    _small_resnet("resnet_v1_110", 18),
    _nasnet("nasnet_cifar", num_classes=10),
    _nasnet("nasnet_mobile"),
    _nasnet("nasnet_large"),
    _nasnet("pnasnet_large"),
    _nasnet("pnasnet_mobile"),
)  # fmt: skip

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
