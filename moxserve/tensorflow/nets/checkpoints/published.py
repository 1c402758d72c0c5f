"""Which published checkpoints fit which network: TF-Slim's archives, and applications of Keras to convert."""

from __future__ import annotations

from moxserve.tensorflow.nets.checkpoints.keras_names import FAMILIES

__all__ = ["APPLICATIONS", "SLIM"]

_AVERAGES = "take its moving averages: --moving-averages"
_RESNET_V2 = "1001 classes; trained at 299x299 with inception_preprocessing"

# Name of the archive that TF-Slim's README links to, and what to mind.
SLIM: dict[str, tuple[str, str]] = {
    "inception_v1": ("inception_v1_2016_08_28.tar.gz", ""),
    "inception_v2": ("inception_v2_2016_08_28.tar.gz", ""),
    "inception_v3": ("inception_v3_2016_08_28.tar.gz", ""),
    "inception_v4": ("inception_v4_2016_09_09.tar.gz", ""),
    "inception_resnet_v2": ("inception_resnet_v2_2016_08_30.tar.gz", ""),
    "resnet_v1_50": ("resnet_v1_50_2016_08_28.tar.gz", ""),
    "resnet_v1_101": ("resnet_v1_101_2016_08_28.tar.gz", ""),
    "resnet_v1_152": ("resnet_v1_152_2016_08_28.tar.gz", ""),
    "resnet_v2_50": ("resnet_v2_50_2017_04_14.tar.gz", _RESNET_V2),
    "resnet_v2_101": ("resnet_v2_101_2017_04_14.tar.gz", _RESNET_V2),
    "resnet_v2_152": ("resnet_v2_152_2017_04_14.tar.gz", _RESNET_V2),
    "vgg_16": ("vgg_16_2016_08_28.tar.gz", ""),
    "vgg_19": ("vgg_19_2016_08_28.tar.gz", ""),
    "mobilenet_v1": ("mobilenet_v1_1.0_224.tgz", _AVERAGES),
    "mobilenet_v1_075": ("mobilenet_v1_0.75_224.tgz", _AVERAGES),
    "mobilenet_v1_050": ("mobilenet_v1_0.5_224.tgz", _AVERAGES),
    "mobilenet_v1_025": ("mobilenet_v1_0.25_224.tgz", _AVERAGES),
    "mobilenet_v2": ("mobilenet_v2_1.0_224.tgz", _AVERAGES),
    "mobilenet_v2_140": ("mobilenet_v2_1.4_224.tgz", _AVERAGES),
    "mobilenet_v2_035": ("mobilenet_v2_0.35_224.tgz", _AVERAGES),
    "nasnet_mobile": ("nasnet-a_mobile_04_10_2017.tar.gz", _AVERAGES),
    "nasnet_large": ("nasnet-a_large_04_10_2017.tar.gz", _AVERAGES),
    "pnasnet_large": ("pnasnet-5_large_2017_12_13.tar.gz", _AVERAGES),
    "pnasnet_mobile": ("pnasnet-5_mobile_2017_12_13.tar.gz", _AVERAGES),
}

# Network -> application of Keras whose weights `convert` takes.
APPLICATIONS: dict[str, str] = {name: keras for family in FAMILIES for name, keras in family.networks.items()}
