"""Preprocessing and augmentation of images by the name of a network.

`keys` tells which network takes which family and size, `base` what the families share, a module each has the families,
`colors` the colour changes, `factory` the function that users call.
"""

from moxserve.tensorflow.preprocessing.factory import get_data_augmentation_fn
from moxserve.tensorflow.preprocessing.keys import PreprocessingKeys

__all__ = ["PreprocessingKeys", "get_data_augmentation_fn"]
