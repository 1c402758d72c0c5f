"""Running a list of transforms on a frozen graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from moxserve.errors import ExportError, did_you_mean
from moxserve.export.transforms import batchnorm, convolutions, structure, tables
from moxserve.export.transforms.graph import Request, with_nodes
from moxserve.export.transforms.language import Transform, parse_bool, parse_transforms
from moxserve.export.transforms.native import NativeTools
from moxserve.export.transforms.steps import Check, Rewrite, Stepper, TransformResult

__all__ = ["apply_transforms"]

_Own = Callable[[Any, Request], Any]
_OWN: Mapping[str, _Own] = {
    "flatten_atrous_conv": convolutions.flatten_atrous_conv,
    "fold_batch_norms": batchnorm.fold_batch_norms,
    "fold_old_batch_norms": batchnorm.fold_batch_norms,
    "fuse_convolutions": convolutions.fuse_convolutions,
    "fuse_pad_and_conv": convolutions.fuse_pad_and_conv,
    "fuse_resize_and_conv": convolutions.fuse_resize_and_conv,
    "fuse_resize_pad_and_conv": partial(convolutions.fuse_resize_and_conv, padded=True),
    "quantize_placeholders": tables.quantize_placeholders,
    "remove_control_dependencies": structure.remove_control_dependencies,
    "remove_nodes": structure.remove_nodes,
    "sparsify_gather": tables.sparsify_gather,
    "strip_unused_nodes": structure.strip_unused_nodes,
}
# Weights that these make are as small and as precise as was learned or asked for; constants of them would not be.
_QUANTIZED = (
    "FakeQuantWithMinMaxArgs",
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
    "QuantizeAndDequantizeV2",
    "QuantizeAndDequantizeV3",
    "QuantizeAndDequantizeV4",
    "Dequantize",
)
_VARIANT = 21  # DT_VARIANT
# Later graphs must not have it.
_LAST_WITH_TENSOR_ARRAY_V2 = 25
_RENAMING = ("obfuscate_names", "rename_node")


def apply_transforms(
    graph_def: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    transforms: str | Sequence[Transform],
    check: Check | None = None,
    limit: float | None = None,
    *,
    strict: bool = False,
    libraries: Sequence[str] = (),
) -> TransformResult:
    """Run transforms one after another; a result that is wrong is undone.

    Args:
        graph_def: a frozen graph; stays as it is.
        inputs: names of the nodes that signatures feed. They keep names and element types.
        outputs: names of the nodes that signatures fetch. They keep their names.
        transforms: what to do, in order.
        check: returns the relative L2 error of a graph against the untransformed one, see `output_check`; None to
            believe every transform.
        limit: largest error of exact transforms; quantizing ones may add their own, as the catalogue says. None for
            `DEFAULT_LIMIT`, or `SIMULATED_LIMIT` where the graph simulates quantization.
        strict: raise when a result is wrong.
        libraries: paths of custom operation libraries that the graph needs.

    Returns:
        The new graph and what each transform did.

    Raises:
        UsageError: the text of the transforms is wrong.
        ExportError: a transform failed and has no `ignore_errors`; names it and says why.
        VerificationError: a result is wrong, and `strict` is set.
    """
    if isinstance(transforms, str):
        transforms = parse_transforms(transforms)
    _check_endpoints(graph_def, inputs, outputs)
    stepper = Stepper(graph_def, list(inputs), list(outputs), check, limit, strict)
    with NativeTools(libraries) as tools:
        for transform in transforms:
            stepper.run(_rewrite(transform, stepper, tools))
    return stepper.result()


def _check_endpoints(graph_def: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    names = [node.name for node in graph_def.node]
    for side, wanted in (("input", inputs), ("output", outputs)):
        for name in wanted:
            if name not in names:
                raise ExportError(f"the graph has no node {name!r} for an {side}; {did_you_mean(name, names)}")
    if not outputs:
        raise ExportError("a graph without outputs cannot be transformed: everything in it is unused")


def _rewrite(transform: Transform, stepper: Stepper, tools: NativeTools) -> Rewrite:
    request = Request(stepper.inputs, stepper.outputs, transform.get, transform.all)
    own = _OWN.get(transform.name)
    run = partial(_native, tools, transform, request) if own is None else lambda graph: own(graph, request)
    return Rewrite(
        transform.name,
        transform.info.by,
        run,
        transform.arguments,
        transform.info.limit,
        transform.ignore_errors,
        ordered=transform.name == "sort_by_execution_order",
    )


def _native(tools: NativeTools, transform: Transform, request: Request, graph_def: Any) -> Any:
    """Run TensorFlow's implementation, with what it gets wrong or does not know put right before."""
    arguments = list(transform.arguments)
    outputs: list[str] = list(request.outputs)
    if transform.name in _RENAMING:
        if transform.name == "rename_node" and not _may_rename(transform, request, graph_def):
            return graph_def
        graph_def = _without_colocation(graph_def)
    elif transform.name == "fold_constants":
        arguments = _fold_arguments(transform, graph_def)
        # It refuses a node that is both, and such a node is not constant.
        outputs = [name for name in outputs if name not in request.inputs]
        if not outputs:
            return graph_def
    elif transform.name == "quantize_nodes" and transform.all("input_min"):
        graph_def = tables.quantize_placeholders(graph_def, request)
        arguments = [(key, value) for key, value in arguments if not key.startswith("input_")]
    changed = tools.transform(graph_def, request.inputs, outputs, _native_text(transform, arguments))
    if transform.name == "quantize_weights":
        tables.widen_empty_ranges(changed)
    if transform.name == "backport_tensor_array_v3" and any(node.op == "TensorArrayV2" for node in changed.node):
        changed.versions.CopyFrom(graph_def.versions)
        changed.versions.producer = min(changed.versions.producer, _LAST_WITH_TENSOR_ARRAY_V2)
    return changed


def _native_text(transform: Transform, arguments: Sequence[tuple[str, str]]) -> str:
    parts = []
    for key, value in arguments:
        argument = transform.info.argument(key)
        kind = argument.kind if argument else ""
        if kind == "int":
            value = str(int(value))
        elif kind == "float":
            value = repr(float(value))
        elif kind == "bool":
            value = str(parse_bool(value)).lower()
        if '"' in value or "\\" in value:
            raise ExportError(f"{key}={value!r}: TensorFlow's tool takes no quotes and no backslashes in a value")
        if value:
            parts.append(f'{key}="{value}"')
    return f"{transform.name}({', '.join(parts)})" if parts else transform.name


def _fold_arguments(transform: Transform, graph_def: Any) -> list[tuple[str, str]]:
    arguments = [(key, value) for key, value in transform.arguments if key != "fold_quantized"]
    excluded = [] if parse_bool(transform.get("fold_quantized")) else list(_QUANTIZED)
    excluded += sorted(_making_variants(graph_def))
    return [*arguments, *(("exclude_op", op) for op in excluded)]


def _making_variants(graph_def: Any) -> set[str]:
    """Return the types of operations that make variants, such as the empty lists of a loop.

    TensorFlow would make constants of them; no converter reads these.
    """
    from tensorflow.python.framework import op_def_registry

    definitions = {op: op_def_registry.get(op) for op in {node.op for node in graph_def.node}}
    return {
        op
        for op, definition in definitions.items()
        if definition is not None and any(output.type == _VARIANT for output in definition.output_arg)
    }


def _may_rename(transform: Transform, request: Request, graph_def: Any) -> bool:
    """Tell whether there is such a node.

    Raises:
        ExportError: it is an input or an output.
    """
    name = transform.get("old_node_name")
    if name in request.kept:
        side = "input" if name in request.inputs else "output"
        raise ExportError(f"{name!r} is an {side}: signatures know it by this name, which must stay")
    return any(node.name == name for node in graph_def.node)


def _without_colocation(graph_def: Any) -> Any:
    """Return a graph that does not say which nodes shall be on the same device: the tool would leave the old names."""
    if not any("_class" in node.attr for node in graph_def.node):
        return graph_def
    made = with_nodes(graph_def, graph_def.node)
    for node in made.node:
        node.attr.pop("_class", None)
    return made
