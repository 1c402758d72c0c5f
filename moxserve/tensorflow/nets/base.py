"""What every network is built with. A builder is a function

    resnet_v1(images, build, *, <arguments of its row>, <options of users, with defaults>) -> (logits, end_points)

`images` are `[batch, height, width, channels]` floats, in `build.data_format`, of static height and width; logits are
`[batch, num_classes]`; end points are a dict in slim's order, under slim's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.layers import Layers, Normalization

__all__ = ["Build"]


@dataclass(frozen=True)
class Build:
    """How a network is built.

    Attributes:
        num_classes: length of the logits; None leaves the classifier away, and the last features take its place.
        training: whether dropout drops, and batch norms take the statistics of the batch.
        weight_decay: factor of the L2 losses of weights.
        data_format: `NHWC` or `NCHW`, of the images and all end points.
        fused: whether batch norms are one operation.
        renorm: whether batch norms are batch renormalisations (Ioffe 2017, arXiv:1702.03275).
        norm_decay: decay of the moving averages of batch norms; None: the network's own.
    """

    num_classes: int | None
    training: bool
    weight_decay: float = 0.0
    data_format: str = "NHWC"
    fused: bool = False
    renorm: bool = False
    norm_decay: float | None = None

    def norm(self, decay: float, epsilon: float, *, center: bool = True, scale: bool = False) -> Normalization:
        """Return the batch norm of a network, as this build wants it computed."""
        decay = decay if self.norm_decay is None else self.norm_decay
        return Normalization(decay, epsilon, center=center, scale=scale, fused=self.fused, renorm=self.renorm)

    def layers(self, **defaults: Any) -> Layers:
        """Return layers with a network's defaults and an empty dict of end points."""
        given = {"training": self.training, "data_format": self.data_format, "weight_decay": self.weight_decay}
        return Layers(**{**given, "end_points": {}, **defaults})
