"""Layers under tensorpack's names, called as `Layer('name', x, ...)`, with `argscope` and `LinearWrap`.

`registry` has what makes a function a layer, `tower` what tells layers whether they train.
"""

from moxserve.tensorflow.layers.symbolic.argscope import (
    argscope,
    enable_argscope_for_function,
    enable_argscope_for_module,
    get_arg_scope,
)
from moxserve.tensorflow.layers.symbolic.convolutions import (
    Conv2D,
    Conv2DTranspose,
    Deconv2D,
    DepthwiseConv2D,
    FullyConnected,
    SeparableConv2D,
)
from moxserve.tensorflow.layers.symbolic.linear_wrap import LinearWrap
from moxserve.tensorflow.layers.symbolic.norms import BatchNorm, BatchRenorm, BNReLU, InstanceNorm, LayerNorm
from moxserve.tensorflow.layers.symbolic.others import (
    ConcatWith,
    Dropout,
    PReLU,
    regularize_cost,
    regularize_cost_from_collection,
)
from moxserve.tensorflow.layers.symbolic.pools import AvgPooling, FixedUnPooling, GlobalAvgPooling, MaxPooling
from moxserve.tensorflow.layers.symbolic.registry import VariableHolder, get_registered_layer, layer_register
from moxserve.tensorflow.layers.symbolic.tower import TowerContext, get_current_tower_context

__all__ = [
    "AvgPooling",
    "BNReLU",
    "BatchNorm",
    "BatchRenorm",
    "ConcatWith",
    "Conv2D",
    "Conv2DTranspose",
    "Deconv2D",
    "DepthwiseConv2D",
    "Dropout",
    "FixedUnPooling",
    "FullyConnected",
    "GlobalAvgPooling",
    "InstanceNorm",
    "LayerNorm",
    "LinearWrap",
    "MaxPooling",
    "PReLU",
    "SeparableConv2D",
    "TowerContext",
    "VariableHolder",
    "argscope",
    "enable_argscope_for_function",
    "enable_argscope_for_module",
    "get_arg_scope",
    "get_current_tower_context",
    "get_registered_layer",
    "layer_register",
    "regularize_cost",
    "regularize_cost_from_collection",
]
