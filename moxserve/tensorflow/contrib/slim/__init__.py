"""The parts of `tf.contrib.slim` that the documents' scripts use: `layers`, and `tfexample_decoder`, which turns a
serialized tf.Example into items.
"""

from moxserve.tensorflow.contrib.slim import tfexample_decoder
from moxserve.tensorflow.contrib.slim.layers import flatten, fully_connected, one_hot_encoding

__all__ = ["flatten", "fully_connected", "one_hot_encoding", "tfexample_decoder"]
