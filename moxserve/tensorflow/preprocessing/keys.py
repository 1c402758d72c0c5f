"""Which network takes which preprocessing, and at which size: the one place that knows.

Networks are named as MoXing's `NetworkKeys` name them (`resnet_v1_50`). No TensorFlow here.
"""

from __future__ import annotations

from moxserve.errors import UsageError, did_you_mean

__all__ = ["FAMILIES", "PREPROCESSINGS", "PreprocessingKeys", "default_image_size", "preprocessing_of"]

_VGG = "vgg_preprocessing"
_INCEPTION = "inception_preprocessing"
_CIFARNET = "cifarnet_preprocessing"
_LENET = "lenet_preprocessing"
_PVANET = "pvanet_preprocessing"

FAMILIES = (_VGG, _INCEPTION, _CIFARNET, _LENET, _PVANET)


class PreprocessingKeys:
    """The preprocessing of each network; the lower-case name of an attribute is what `get_data_augmentation_fn` takes.

    `VGG` and `INCEPTION` are aliases without a network of their own. The three small MobileNets are missing from
    MoXing's list; they are trained as the large one is.
    """

    ALEXNET_V2 = _VGG
    CIFARNET = _CIFARNET
    OVERFEAT = _VGG
    INCEPTION = _INCEPTION
    INCEPTION_V1 = _INCEPTION
    INCEPTION_V2 = _INCEPTION
    INCEPTION_V3 = _INCEPTION
    INCEPTION_V4 = _INCEPTION
    INCEPTION_RESNET_V2 = _INCEPTION
    LENET = _LENET
    RESNET_V1_18 = _VGG
    RESNET_V1_20 = _CIFARNET
    RESNET_V1_50 = _VGG
    RESNET_V1_50_8K = _VGG
    RESNET_V1_101 = _VGG
    RESNET_V1_110 = _CIFARNET
    RESNET_V1_152 = _VGG
    RESNET_V1_200 = _VGG
    RESNET_V2_50 = _VGG
    RESNET_V2_101 = _VGG
    RESNET_V2_152 = _VGG
    RESNET_V2_200 = _VGG
    RESNEXT_B_50 = _VGG
    RESNEXT_B_101 = _VGG
    RESNEXT_C_50 = _VGG
    RESNEXT_C_101 = _VGG
    VGG = _VGG
    VGG_A = _VGG
    VGG_16 = _VGG
    VGG_19 = _VGG
    VGG_A_BN = _VGG
    VGG_16_BN = _VGG
    VGG_19_BN = _VGG
    PVANET = _PVANET
    MOBILENET_V1 = _INCEPTION
    MOBILENET_V1_075 = _INCEPTION
    MOBILENET_V1_050 = _INCEPTION
    MOBILENET_V1_025 = _INCEPTION
    MOBILENET_V2 = _INCEPTION
    MOBILENET_V2_140 = _INCEPTION
    MOBILENET_V2_035 = _INCEPTION
    NASNET_CIFAR = _CIFARNET
    NASNET_MOBILE = _INCEPTION
    NASNET_LARGE = _INCEPTION
    PNASNET_LARGE = _INCEPTION
    PNASNET_MOBILE = _INCEPTION


# Network -> preprocessing.
PREPROCESSINGS: dict[str, str] = {
    key.lower(): value for key, value in vars(PreprocessingKeys).items() if not key.startswith("_")
}

# Sides in pixels; 224 where a network is not named. `inception` stands for its series, which MoXing puts at 299.
_SIZES = {
    "inception": 299,
    "inception_v3": 299,
    "inception_v4": 299,
    "inception_resnet_v2": 299,
    "nasnet_large": 331,
    "pnasnet_large": 331,
    "overfeat": 231,
    "cifarnet": 32,
    "nasnet_cifar": 32,
    "resnet_v1_20": 32,
    "resnet_v1_110": 32,
    "lenet": 28,
}


def preprocessing_of(name: str) -> str:
    """Return the preprocessing of a network, such as `vgg_preprocessing`.

    Args:
        name: of the network, such as `resnet_v1_50`.

    Raises:
        UsageError: there is no such network.
    """
    if not isinstance(name, str):
        raise UsageError(f"the name of a network is a string, got {type(name).__name__}")
    if name not in PREPROCESSINGS:
        raise UsageError(f"no network {name!r}; {did_you_mean(name.lower(), PREPROCESSINGS)}")
    return PREPROCESSINGS[name]


def default_image_size(name: str) -> int:
    """Return the side, in pixels, of the square images that a network was made for.

    Args:
        name: of the network.

    Raises:
        UsageError: there is no such network.
    """
    preprocessing_of(name)
    return _SIZES.get(name, 224)
