"""Which layer of Keras' applications has the weights of which layer of slim's networks: rules for each family.

A rule is a pattern of slim's scope, below the network's own, and what Keras calls the layer. Layers that Keras does not
name (`conv2d_17`) are numbered in the order in which both make them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.nets.catalog import network

__all__ = ["FAMILIES", "Family", "family_of"]

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Family:
    """Networks whose weights have the same names in Keras.

    Attributes:
        networks: name in our catalog -> in keras.applications.
        rules: pattern of a scope -> layer.
        classifiers: the layer of the logits, under one of these names.
        numbered: whether what no rule names is a `conv2d_N`, followed by a `batch_normalization_N`.
        epsilon: what Keras' batch norms add to variances beyond what ours add; the variances are larger by that.
        biases: whether convolutions have biases in Keras that are part of the batch norm after them here.
        options: that the network is built with to compute the same.
        note: what remains different.
    """

    networks: Mapping[str, str]
    rules: Sequence[Rule]
    classifiers: Sequence[str] = ("predictions",)
    numbered: bool = False
    epsilon: float = 0.0
    biases: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def layers(self, scopes: Iterable[str], present: Sequence[str]) -> dict[str, str]:
        """Return the layer of each scope; scopes without one (auxiliary classifiers) are left out.

        Args:
            scopes: of layers and batch norms, in the order in which they are made, without the network's own.
            present: names of the file's layers.

        Raises:
            DataError: the file has more or fewer numbered layers than the network.
        """
        named = {scope: self._named(scope) for scope in scopes}
        found = {scope: layer for scope, layer in named.items() if layer is not None}
        if self.numbered:
            unnamed = [scope for scope in named if scope not in found and not scope.startswith("AuxLogits/")]
            norms = [scope for scope in unnamed if scope.endswith("/BatchNorm")]
            found |= _by_number("conv2d", [scope for scope in unnamed if scope not in norms], present)
            found |= _by_number("batch_normalization", norms, present)
        return found

    def _named(self, scope: str) -> str | None:
        for pattern, layer in self.rules:
            match = re.fullmatch(pattern, scope)
            if match:
                return layer(match) if callable(layer) else match.expand(layer)
        return None


def _by_number(kind: str, scopes: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """Give numbered layers to scopes in their order; numbers begin anywhere, as Keras counts on from model to model."""
    numbers = {name: int(m.group(1) or 0) for name in names if (m := re.fullmatch(rf"{kind}(?:_(\d+))?", name))}
    layers = sorted(numbers, key=lambda name: numbers[name])
    if len(layers) != len(scopes):
        raise DataError(f"expected {len(scopes)} layers called {kind}_N, found {len(layers)}")
    return dict(zip(scopes, layers, strict=True))


def _unit(suffix: str) -> Callable[[re.Match[str]], str]:
    """Return what makes the name of a ResNet's layer: slim counts blocks from 1, Keras stages from 2."""
    return lambda match: f"conv{int(match[1]) + 1}_block{match[2]}_{match.expand(suffix)}"


def _nasnet(cells: int) -> tuple[Rule, ...]:
    """Rules of a NASNet with as many normal cells before each of its reductions."""

    def place(cell: str) -> tuple[str, str]:
        """Return kind and number of a cell in Keras, which counts the first reduction among the normal cells."""
        kind, _, number = cell.rpartition("_")
        if kind == "cell_stem":
            return "reduction", f"stem_{int(number) + 1}"
        if kind == "reduction_cell":
            return "reduction", f"reduce_{cells * (int(number) + 1)}"
        return "normal", str(int(number) + (int(number) >= cells))

    def inside(name: str, *, prefixed: bool = True) -> Callable[[re.Match[str]], str]:
        def make(match: re.Match[str]) -> str:
            kind, number = place(match[1])
            return f"{kind}_{name}_{number}" if prefixed else f"{name}_{number}"

        return make

    def separable(match: re.Match[str]) -> str:
        kind, number = place(match[1])
        combination = int(match[2]) + 1
        if kind == "reduction" and combination == 5:
            combination = 4  # as Keras has it
        norm = "_bn" if match[4] == "bn_sep" else ""
        return f"separable_conv_{match[5]}{norm}_{kind}_{match[3]}{combination}_{number}"

    cell = r"(cell_stem_\d|reduction_cell_\d|cell_\d+)/"
    return (
        ("conv0", "stem_conv1"),
        ("conv0_bn", "stem_bn1"),
        (cell + "1x1", inside("conv_1")),
        (cell + "beginning_bn", inside("bn_1")),
        (cell + r"path(\d)_conv", lambda match: inside(f"adjust_conv_{match[2]}", prefixed=False)(match)),
        (cell + "prev_1x1", inside("adjust_conv_projection", prefixed=False)),
        (cell + "(?:prev|final_path)_bn", inside("adjust_bn", prefixed=False)),
        (cell + r"comb_iter_(\d)/(left|right)/(separable|bn_sep)_\dx\d_(\d)", separable),
        ("final_layer/FC", "predictions"),
    )


_UNIT = r"block(\d)/unit_(\d+)/bottleneck_v\d/"
_RESNET_UNITS: tuple[Rule, ...] = (
    (_UNIT + "preact", _unit("preact_bn")),
    (_UNIT + "shortcut", _unit("0_conv")),
    (_UNIT + "shortcut/BatchNorm", _unit("0_bn")),
    (_UNIT + r"conv(\d)", _unit(r"\3_conv")),
    (_UNIT + r"conv(\d)/BatchNorm", _unit(r"\3_bn")),
    ("conv1", "conv1_conv"),
    ("conv1/BatchNorm", "conv1_bn"),
    ("postnorm", "post_bn"),
    ("logits", "predictions"),
)
_RESNET_EPSILON = 1.001e-5 - 1e-5
_NASNET_NOTE = "Keras' reduction cells pool zeros around their maps, ours the maps alone: borders differ a little"

FAMILIES: tuple[Family, ...] = (
    Family(
        {"resnet_v1_50": "ResNet50", "resnet_v1_101": "ResNet101", "resnet_v1_152": "ResNet152"},
        _RESNET_UNITS,
        epsilon=_RESNET_EPSILON,
        biases=True,
        options={"keras": True},
    ),
    Family(
        {"resnet_v2_50": "ResNet50V2", "resnet_v2_101": "ResNet101V2", "resnet_v2_152": "ResNet152V2"},
        _RESNET_UNITS,
        epsilon=_RESNET_EPSILON,
        options={"keras": True},
    ),
    Family(
        {"vgg_16": "VGG16", "vgg_19": "VGG19"},
        ((r"conv\d/conv(\d)_(\d)", r"block\1_conv\2"), ("fc6", "fc1"), ("fc7", "fc2"), ("fc8", "predictions")),
    ),
    Family(
        {
            "mobilenet_v1": "MobileNet",
            "mobilenet_v1_075": "MobileNet(alpha=0.75)",
            "mobilenet_v1_050": "MobileNet(alpha=0.5)",
            "mobilenet_v1_025": "MobileNet(alpha=0.25)",
        },
        (
            ("Conv2d_0", "conv1"),
            ("Conv2d_0/BatchNorm", "conv1_bn"),
            (r"Conv2d_(\d+)_([dp])(?:epth|oint)wise", r"conv_\2w_\1"),
            (r"Conv2d_(\d+)_([dp])(?:epth|oint)wise/BatchNorm", r"conv_\2w_\1_bn"),
            ("Logits/Conv2d_1c_1x1", "conv_preds"),
        ),
        classifiers=("conv_preds",),
    ),
    Family(
        {
            "mobilenet_v2": "MobileNetV2",
            "mobilenet_v2_140": "MobileNetV2(alpha=1.4)",
            "mobilenet_v2_035": "MobileNetV2(alpha=0.35)",
        },
        (
            ("Conv", "Conv1"),
            ("Conv/BatchNorm", "bn_Conv1"),
            ("Conv_1", "Conv_1"),
            ("Conv_1/BatchNorm", "Conv_1_bn"),
            (r"expanded_conv/(\w+)", r"expanded_conv_\1"),
            (r"expanded_conv/(\w+)/BatchNorm", r"expanded_conv_\1_BN"),
            (r"expanded_conv_(\d+)/(\w+)", r"block_\1_\2"),
            (r"expanded_conv_(\d+)/(\w+)/BatchNorm", r"block_\1_\2_BN"),
            ("Logits/Conv2d_1c_1x1", "predictions"),
        ),
        classifiers=("predictions", "Logits"),
    ),
    Family(
        {"inception_v3": "InceptionV3"},
        (("Logits/Conv2d_1c_1x1", "predictions"),),
        numbered=True,
        options={"create_aux_logits": False},
    ),
    Family(
        {"inception_resnet_v2": "InceptionResNetV2"},
        (
            (r"Repeat\w*/(block\d+_\d+)/Conv2d_1x1", r"\1_conv"),
            ("Block8/Conv2d_1x1", "block8_10_conv"),
            ("Conv2d_7b_1x1", "conv_7b"),
            ("Conv2d_7b_1x1/BatchNorm", "conv_7b_bn"),
            ("Logits/Logits", "predictions"),
        ),
        numbered=True,
        options={"create_aux_logits": False},
    ),
    Family({"nasnet_mobile": "NASNetMobile"}, _nasnet(4), note=_NASNET_NOTE),
    Family({"nasnet_large": "NASNetLarge"}, _nasnet(6), note=_NASNET_NOTE),
)


def family_of(name: str) -> Family:
    """Return the family of a network.

    Raises:
        UsageError: there is no such network, or Keras has no application that is the same.
    """
    network(name)
    for family in FAMILIES:
        if name in family.networks:
            return family
    known = ", ".join(sorted(known for family in FAMILIES for known in family.networks))
    raise UsageError(f"keras.applications has no network that is the same as {name}", hint=f"it has {known}")
