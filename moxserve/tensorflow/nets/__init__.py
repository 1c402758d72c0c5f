"""The model zoo: 44 networks by name, with slim's variables.

`keys` has the names, `catalog` what is known of each before it is built, `base` what builders are called with, a module
each has a family; `factory` has the functions that users call, `preprocess` what is done to images first, `summary`
what a network is made of.
"""

from moxserve.tensorflow.nets.factory import ModelMeta, get_model_fn, get_model_meta
from moxserve.tensorflow.nets.keys import NetworkKeys
from moxserve.tensorflow.nets.preprocess import default_preprocess_fn

__all__ = ["ModelMeta", "NetworkKeys", "default_preprocess_fn", "get_model_fn", "get_model_meta"]
