"""The JSON schema of a pipeline file, for editors: every plugin that loads, with its own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moxserve.config.models import PluginConfig
from moxserve.config.pipeline import FOLDERS, STAGES, VERSION
from moxserve.errors import PluginError
from moxserve.registry import SLOTS, Registry

__all__ = ["pipeline_schema"]


def pipeline_schema(registry: Registry) -> dict[str, Any]:
    """Build the schema (JSON Schema 2020-12). A plugin that does not load is left out.

    Args:
        registry: the plugins to offer.
    """
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        "version": {"const": VERSION, "description": "Version of the file format."},
        "description": {"type": "string", "description": "One line for `moxserve pipeline list`."},
        FOLDERS: {
            "type": "array",
            "items": {"type": "string"},
            "description": "Folders to look for plugins in, besides plugins/ here and beside the file.",
        },
    }
    for slot in SLOTS:
        properties[slot] = _slot(slot, registry, definitions)
    for name, model in STAGES.items():
        properties[name] = _or_null(_inlined(model.model_json_schema(), definitions))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moxserve pipeline",
        "type": "object",
        "properties": properties,
        "required": ["version", "input", "model", "run"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _slot(slot: str, registry: Registry, definitions: dict[str, Any]) -> dict[str, Any]:
    """One branch a plugin, told apart by `plugin`; and one for module:Class, whose parameters are not known."""
    branches = []
    for name in registry.names(slot):
        try:
            model = registry.load(slot, name)
        except PluginError:
            continue
        if isinstance(model, type) and issubclass(model, PluginConfig):
            branches.append(_plugin(name, model, definitions))
    branches.append(
        {
            "type": "object",
            "title": "module:Class or ./file.py:Class",
            "properties": {"plugin": {"type": "string", "pattern": ":"}},
            "required": ["plugin"],
        }
    )
    schema = {"oneOf": branches}
    return _or_null(schema) if slot == "optimizer" else schema


def _plugin(name: str, model: type[PluginConfig], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _inlined(model.model_json_schema(), definitions)
    description = schema["properties"].pop("plugin").get("description", "")
    schema["properties"] = {"plugin": {"const": name, "description": description}, **schema["properties"]}
    schema["required"] = ["plugin", *schema.get("required", [])]
    schema["title"] = name
    return schema


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), {"type": "null"}]}


def _inlined(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Move a model's own definitions up, where its references look for them."""
    definitions.update(schema.pop("$defs", {}))
    return schema
