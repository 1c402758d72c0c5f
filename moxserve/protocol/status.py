"""The JSON of `GET /v1/models/<name>`: a GetModelStatusResponse as protobuf prints it, default values included."""

from __future__ import annotations

import json
from typing import Any

from moxserve.protocol import messages

__all__ = ["status_json"]


def status_json(response: Any) -> bytes:
    """Write a GetModelStatusResponse message as JSON: int64 as text, enums by name, proto field names."""
    body = messages.message_to_json_dict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()
