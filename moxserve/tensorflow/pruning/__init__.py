"""Magnitude pruning ("connection pruning"): `model` is the way in, `masks` does it, `hook` tells about it."""

from moxserve.tensorflow.pruning.model import PrunedModelFn, prune_model_fn
from moxserve.tensorflow.pruning.options import Pruning

__all__ = ["PrunedModelFn", "Pruning", "prune_model_fn"]
