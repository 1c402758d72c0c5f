"""Checkpoints of the networks: what of a network a checkpoint gives, and checkpoints made of others' weights.

`fit` compares, `converted` writes; `keras_files` reads files of Keras, `keras_names` knows whose layer is whose.
"""

from moxserve.tensorflow.nets.checkpoints.converted import Converted, convert
from moxserve.tensorflow.nets.checkpoints.fit import match

__all__ = ["Converted", "convert", "match"]
