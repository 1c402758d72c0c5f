"""SignatureDefs as `Signature`s, and the JSON of `GET /v1/models/<name>/metadata`.

The JSON is the response message of GetModelMetadata as protobuf prints it: proto field names, default values included,
int64 as text, an unset oneof left out. The SignatureDefMap, which travels in an Any over gRPC, stands there itself.
"""

from __future__ import annotations

import json
from typing import Any

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.types import Signature, TensorSpec, dtype_by_enum

__all__ = ["metadata_json", "signature_from_def", "signatures_from_map"]

_REF_OFFSET = 100


def _tensor_spec(alias: str, info: Any) -> TensorSpec:
    shape = info.tensor_shape
    dims = None if shape.unknown_rank else tuple(None if d.size < 0 else d.size for d in shape.dim)
    # A reference to a TF1 variable (DT_FLOAT_REF) is fetched as its value.
    enum = info.dtype - _REF_OFFSET if info.dtype > _REF_OFFSET else info.dtype
    return TensorSpec(alias, dtype_by_enum(enum), dims, info.name)


def signature_from_def(name: str, definition: Any) -> Signature | None:
    """Turn a SignatureDef into a Signature.

    Args:
        name: its key in the SavedModel.
        definition: a SignatureDef message of any pool.

    Returns:
        The signature with its tensors sorted by alias; None when one of them cannot travel in a request (a resource, a
        sparse tensor, or the init op, which is no tensor at all).
    """
    if any(
        info.WhichOneof("encoding") != "name" for info in [*definition.inputs.values(), *definition.outputs.values()]
    ):
        return None
    try:
        inputs = {alias: _tensor_spec(alias, info) for alias, info in sorted(definition.inputs.items())}
        outputs = {alias: _tensor_spec(alias, info) for alias, info in sorted(definition.outputs.items())}
    except InvalidArgument:
        return None
    return Signature(name, definition.method_name, inputs, outputs)


def signatures_from_map(signature_map: Any) -> dict[str, Signature]:
    """Return the callable signatures of a SignatureDefMap message, by key, sorted."""
    found = ((name, signature_from_def(name, d)) for name, d in sorted(signature_map.signature_def.items()))
    return {name: signature for name, signature in found if signature is not None}


def _to_dict(message: Any) -> dict[str, Any]:
    return messages.message_to_json_dict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def metadata_json(name: str, version: int, signature_map: Any) -> bytes:
    """Write the metadata answer of the REST API.

    Args:
        name: of the model.
        version: that was looked at.
        signature_map: its SignatureDefMap message.
    """
    body = {
        "model_spec": {"name": name, "signature_name": "", "version": str(version)},
        "metadata": {"signature_def": _to_dict(signature_map)},
    }
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()
