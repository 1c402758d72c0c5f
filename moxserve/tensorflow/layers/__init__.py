"""Layers for graph mode. `Layers` has those of the networks, with slim's names of variables; `Normalization` is how
they are normalised.
"""

from moxserve.tensorflow.layers.normalization import Normalization
from moxserve.tensorflow.layers.slim import Layers

__all__ = ["Layers", "Normalization"]
