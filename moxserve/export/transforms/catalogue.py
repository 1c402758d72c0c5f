"""Every transform of the Graph Transform Tool: its arguments, who runs it here, and what it does to numbers.

No TensorFlow. The documentation's tables are made from this, and so is what the parser accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["ALIASES", "DEFAULT_TRANSFORMS", "GONE", "QUANTIZED_LIMIT", "TRANSFORMS", "Argument", "By", "TransformInfo"]

Kind = Literal["string", "op", "int", "float", "bool", "dtype", "shape", "file"]
By = Literal["tensorflow", "moxserve"]

# Weights or activations in eight bits: a sanity bound on the relative L2 error; accuracy is judged on whole variants.
QUANTIZED_LIMIT = 0.2

# Safe for every graph that is served: nothing here changes an answer by more than rounding, nor when it is an error.
DEFAULT_TRANSFORMS = (
    "strip_unused_nodes remove_nodes(op=Identity, op=StopGradient, op=PreventGradient) "
    "fold_constants(ignore_errors=true) fold_batch_norms merge_duplicate_nodes(ignore_errors=true) "
    "strip_unused_nodes sort_by_execution_order(ignore_errors=true)"
)


@dataclass(frozen=True)
class Argument:
    """One argument of a transform.

    Attributes:
        name: as it is written.
        kind: of its value; `op` is the type of an operation, `shape` sizes with commas between, in quotes.
        help: what it does.
        default: as it is written; empty for none.
        required: there is no default.
        repeatable: may be given several times.
        minimum: least number allowed; None for any.
        maximum: greatest number allowed; None for any.
    """

    name: str
    kind: Kind
    help: str
    default: str = ""
    required: bool = False
    repeatable: bool = False
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class TransformInfo:
    """What a transform is.

    Attributes:
        summary: what it does, in a line.
        by: whose implementation runs.
        changes: what it does to the numbers that the graph computes.
        arguments: in the order of the documentation.
        limit: the relative L2 error that it may add where the caller's limit is smaller; 0 for the caller's.
        note: what else to know, such as where TensorFlow's own implementation is wrong; empty for nothing.
        together: groups of arguments of which none or all must be given, equally often.
    """

    summary: str
    by: By
    changes: str
    arguments: tuple[Argument, ...] = ()
    limit: float = 0.0
    note: str = ""
    together: tuple[tuple[str, ...], ...] = ()

    def argument(self, name: str) -> Argument | None:
        """Return the argument of that name, or None."""
        return next((a for a in self.arguments if a.name == name), None)


_NOTHING = "nothing"
_ROUNDING = "float rounding"
_TOLD = "as told"

_FOLDED = TransformInfo(
    "Multiply batch normalization into the weights of the convolution or matrix product before it.",
    "moxserve",
    _ROUNDING,
    note=(
        "Both names run the same pass: fused batch norms of all versions, the old monolithic one, and those made of "
        "single operations, with biases between, depthwise and transposed, NCHW. TensorFlow's own passes know no "
        "FusedBatchNormV2 and V3, and compute wrong numbers where weights or the convolution's result are shared."
    ),
)

_FUSED_NOTE = (
    "The kernels that TensorFlow's own pass puts in, FusedPadConv2D and FusedResizeAndPadConv2D, "
    "compute wrong numbers in TensorFlow 2.21."
)
_RESIZE = "A bilinear resize before a 1 x 1 convolution is done after it, on fewer numbers"
_RESIZE_NOTE = (
    f"{_FUSED_NOTE} Resizing and a pointwise convolution may change places, others stay as they are. "
    "Only where it saves work: a known size that grows, and no more channels out than in."
)
_PAD = "Zero padding before a convolution becomes the convolution's own"

TRANSFORMS: Mapping[str, TransformInfo] = {
    "add_default_attributes": TransformInfo(
        "Write attributes out that operations have since, and that are not in the graph, with their defaults.",
        "tensorflow",
        _NOTHING,
    ),
    "backport_concatv2": TransformInfo(
        "Replace ConcatV2 by Concat, for old runtimes.", "tensorflow", _NOTHING
    ),
    "backport_tensor_array_v3": TransformInfo(
        "Replace TensorArrayV3 and its operations by those of version 2, for old runtimes.", "tensorflow", _NOTHING
    ),
    "flatten_atrous_conv": TransformInfo(
        "Replace SpaceToBatchND, convolution, BatchToSpaceND by one dilated convolution.",
        "moxserve",
        _ROUNDING,
        note="TensorFlow's own pass takes any padding for SAME, which is wrong for others.",
    ),
    "fold_batch_norms": _FOLDED,
    "fold_constants": TransformInfo(
        "Compute what depends on constants only, once and for all.",
        "tensorflow",
        _ROUNDING,
        (
            Argument("clear_output_shapes", "bool", "drop recorded shapes first, which may be out of date", "true"),
            Argument("exclude_op", "op", "leave operations of this type alone", repeatable=True),
            Argument("exclude_node", "string", "leave the node of this name alone", repeatable=True),
            Argument(
                "max_constant_size_in_bytes", "int", "make no constant larger than this", "10485760", minimum=0
            ),
            Argument(
                "fold_quantized", "bool", "also compute FakeQuant operations and Dequantize of weights", "false"
            ),
        ),
        note=(
            "Learned ranges (FakeQuant operations) of weights and weights in eight bits stay, unlike in the original "
            "tool: folded, they would be plain floats again. So do the empty lists of loops, which no converter reads "
            "as constants."
        ),
    ),
    "fold_old_batch_norms": _FOLDED,
    "freeze_requantization_ranges": TransformInfo(
        "Replace ranges that quantized operations look for in each run by constants from a log of many runs.",
        "tensorflow",
        "8-bit ranges",
        (
            Argument("min_max_log_file", "file", "log of a graph with insert_logging", required=True),
            Argument(
                "min_percentile", "float", "percent of the smallest values to leave out", "5", minimum=0, maximum=100
            ),
            Argument(
                "max_percentile", "float", "percent of the largest values to leave out", "5", minimum=0, maximum=100
            ),
        ),
        QUANTIZED_LIMIT,
    ),
    "fuse_convolutions": TransformInfo(
        "Run fuse_pad_and_conv, fuse_resize_and_conv and fuse_resize_pad_and_conv.",
        "moxserve",
        _ROUNDING,
        note=f"The name that the original documentation has for the three. {_FUSED_NOTE}",
    ),
    "fuse_pad_and_conv": TransformInfo(
        f"{_PAD}.", "moxserve", _ROUNDING, note=f"{_FUSED_NOTE} Mirrored padding stays."
    ),
    "fuse_resize_and_conv": TransformInfo(f"{_RESIZE}.", "moxserve", _ROUNDING, note=_RESIZE_NOTE),
    "fuse_resize_pad_and_conv": TransformInfo(
        f"{_RESIZE}, also with mirrored padding between.", "moxserve", _ROUNDING, note=_RESIZE_NOTE
    ),
    "inline_partitionedcall": TransformInfo(
        "Put the body of each called function (PartitionedCall) in its place.", "tensorflow", _NOTHING
    ),
    "insert_logging": TransformInfo(
        "Print values to standard error whenever they are computed.",
        "tensorflow",
        _NOTHING,
        (
            Argument("op", "op", "after every operation of this type; without any, after all", repeatable=True),
            Argument("prefix", "string", "after every node whose name begins so", repeatable=True),
            Argument("show_op", "bool", "print the type of the operation before the values", "false"),
            Argument("show_name", "bool", "print the name of the node before the values", "false"),
            Argument("message", "string", "print this before the values"),
            Argument("first_n", "int", "print this many times, then no more; -1 for always", "-1", minimum=-1),
            Argument("summarize", "int", "print so many entries of each tensor", "1024", minimum=1),
        ),
    ),
    "merge_duplicate_nodes": TransformInfo(
        "Keep one of several constants, or of several operations on the same inputs, that are equal.",
        "tensorflow",
        _NOTHING,
    ),
    "obfuscate_names": TransformInfo(
        "Give all nodes but inputs and outputs short meaningless names.", "tensorflow", _NOTHING
    ),
    "quantize_nodes": TransformInfo(
        "Replace operations by their eight-bit forms, which find their ranges while they run.",
        "tensorflow",
        "8-bit weights and activations",
        (
            Argument("input_min", "float", "lowest value of the inputs, where it is known"),
            Argument("input_max", "float", "highest value of the inputs, where it is known"),
            Argument("fallback_min", "float", "lowest value of all activations, instead of looking for it"),
            Argument("fallback_max", "float", "highest value of all activations, instead of looking for it"),
        ),
        QUANTIZED_LIMIT,
        note=(
            "With input_min and input_max, inputs are quantized in that range inside the graph; the original tool "
            "would ask callers for eight-bit values, which the signature does not."
        ),
        together=(("input_min", "input_max"), ("fallback_min", "fallback_max")),
    ),
    "quantize_placeholders": TransformInfo(
        "Quantize float inputs in a known range, for quantize_nodes.",
        "moxserve",
        "8-bit inputs",
        (
            Argument("input_min", "float", "lowest value of the inputs", required=True),
            Argument("input_max", "float", "highest value of the inputs", required=True),
        ),
        QUANTIZED_LIMIT,
        note="A part of quantize_nodes in the original tool. Inputs stay float for callers.",
    ),
    "quantize_weights": TransformInfo(
        "Store large float constants in eight bits, and restore them when the graph is loaded.",
        "tensorflow",
        "8-bit weights",
        (Argument("minimum_size", "int", "constants with so many elements or more", "1024", minimum=2),),
        QUANTIZED_LIMIT,
        note="Constants of nothing but zeros, which TensorFlow's own pass restores as NaN, stay zeros.",
    ),
    "remove_attribute": TransformInfo(
        "Delete an attribute.",
        "tensorflow",
        _TOLD,
        (
            Argument("attribute_name", "string", "the attribute", required=True),
            Argument("op_name", "op", "only from operations of this type", "*"),
        ),
    ),
    "remove_control_dependencies": TransformInfo(
        "Delete edges that only order operations.",
        "moxserve",
        _NOTHING,
        note="Edges from a branch of an old-style condition stay: they say which branch runs.",
    ),
    "remove_device": TransformInfo("Delete what device an operation shall run on.", "tensorflow", _NOTHING),
    "remove_nodes": TransformInfo(
        "Delete operations, and pass on their first input in their place.",
        "moxserve",
        _TOLD,
        (
            Argument("op", "op", "type of operation", required=True, repeatable=True),
            Argument("max_inputs", "int", "also operations with so many inputs", "1", minimum=1),
        ),
        note=(
            "Operations that mark the branches of an old-style condition stay; without them TensorFlow's own pass "
            "changes what is computed."
        ),
    ),
    "rename_attribute": TransformInfo(
        "Rename an attribute.",
        "tensorflow",
        _TOLD,
        (
            Argument("old_attribute_name", "string", "its name", required=True),
            Argument("new_attribute_name", "string", "its new name", required=True),
            Argument("op_name", "op", "only of operations of this type", "*"),
        ),
    ),
    "rename_node": TransformInfo(
        "Rename a node. Inputs and outputs keep their names, by which signatures know them.",
        "tensorflow",
        _NOTHING,
        (
            Argument("old_node_name", "string", "its name", required=True),
            Argument("new_node_name", "string", "its new name", required=True),
        ),
    ),
    "rename_op": TransformInfo(
        "Change operations of one type to another.",
        "tensorflow",
        _TOLD,
        (
            Argument("old_op_name", "op", "the type", required=True),
            Argument("new_op_name", "op", "its new type", required=True),
        ),
    ),
    "round_weights": TransformInfo(
        "Round large float constants to few different values, which compress well.",
        "tensorflow",
        "weights to num_steps values",
        (Argument("num_steps", "int", "values in each constant", "256", minimum=2),),
        QUANTIZED_LIMIT,
    ),
    "set_device": TransformInfo(
        "Say what device operations shall run on.",
        "tensorflow",
        _NOTHING,
        (
            Argument("device", "string", 'the device, such as "/device:CPU:0"', required=True),
            Argument("if_default", "bool", "only operations without one", "false"),
        ),
    ),
    "sort_by_execution_order": TransformInfo("Put every node after its inputs.", "tensorflow", _NOTHING),
    "sparsify_gather": TransformInfo(
        "Store only the rows of a table that are not all zero, and look the others up as zeros.",
        "moxserve",
        _NOTHING,
        (
            Argument(
                "max_density", "float", "largest share of rows that may be in use", "0.5", minimum=0, maximum=1
            ),
        ),
        note=(
            "TensorFlow's own pass makes a hash table that something must fill first, which a frozen graph has not, "
            "and takes tables with one column only."
        ),
    ),
    "strip_unused_nodes": TransformInfo(
        "Delete what the outputs do not need; inputs inside the graph become placeholders.",
        "moxserve",
        _NOTHING,
        (
            Argument("type", "dtype", "of new placeholders; else what the graph has there"),
            Argument("shape", "shape", "of new placeholders; else what the graph has there"),
            Argument("name", "string", "name of an input that has a type and a shape of its own", repeatable=True),
            Argument("type_for_name", "dtype", "type of the input that `name` names", repeatable=True),
            Argument("shape_for_name", "shape", "shape of the input that `name` names", repeatable=True),
        ),
        note="Unlike the original tool, finds out types and shapes, and allows sizes that vary (-1).",
    ),
}  # fmt: skip

ALIASES: Mapping[str, str] = {"obsfucate_names": "obfuscate_names"}

# Names that TensorFlow's tool had once, and what became of them.
GONE: Mapping[str, str] = {
    "fake_quantize_training": "it rewrote training graphs; train with the pipeline's quantization-aware training",
    "remove_ema": "it undid fake_quantize_training, which is gone",
    "hoist_fake_quants": "it is a part of quantize_nodes",
    "fuse_remote_graph": "it was for a processor that TensorFlow no longer knows",
    "fold_moments": "the operation that it made is gone",
}
