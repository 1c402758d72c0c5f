"""The JSON of `GET /v1/models/<name>` and of `GET /v1/models`.

The first is a GetModelStatusResponse as protobuf prints it, default values included. The second, which
tensorflow_model_server does not have, lists the models of the configuration with their labels, in its order; its
versions are the elements of the first:

    {"models": [{"name": "half", "labels": {"stable": "124"}, "versions": [{"version": "124", "state": "AVAILABLE",
     "status": {"error_code": "OK", "error_message": ""}}]}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moxserve.protocol import messages

__all__ = ["ModelListing", "models_json", "status_json"]


@dataclass(frozen=True, slots=True)
class ModelListing:
    """One model of the list.

    Attributes:
        name: that requests use.
        labels: label -> version.
        status: GetModelStatusResponse message with all its versions; empty when none is known.
    """

    name: str
    labels: Mapping[str, int]
    status: Any


def status_json(response: Any) -> bytes:
    """Write a GetModelStatusResponse message as JSON: int64 as text, enums by name, proto field names."""
    return _dumps(_as_dict(response))


def models_json(models: Iterable[ModelListing]) -> bytes:
    """Write a list of models as JSON, numbers of versions as text."""
    listed = [
        {
            "name": model.name,
            "labels": {label: str(version) for label, version in sorted(model.labels.items())},
            "versions": _as_dict(model.status)["model_version_status"],
        }
        for model in models
    ]
    return _dumps({"models": listed})


def _as_dict(response: Any) -> dict[str, Any]:
    return messages.message_to_json_dict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _dumps(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()
