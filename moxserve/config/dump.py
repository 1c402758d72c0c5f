"""A configuration written out again as YAML: for people, for the next run, and as a hash that names it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from moxserve.config.models import PluginConfig, path_role
from moxserve.config.pipeline import FOLDERS, VERSION, PipelineConfig
from moxserve.config.tree import scalar
from moxserve.registry import is_target

__all__ = ["config_hash", "to_data", "to_yaml"]


def to_data(
    config: PipelineConfig, *, defaults: bool = True, absolute: bool = False, folders: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a configuration as plain data, in the order in which stages run.

    Args:
        config: the configuration, variables filled in and overrides applied.
        defaults: with the values that nobody wrote.
        absolute: paths made absolute, so that the result holds in any current directory.
        folders: plugin folders to write down; those that the file names by default.
    """
    data: dict[str, Any] = {"version": VERSION}
    if config.description:
        data["description"] = config.description
    folders = folders or config.plugin_folders
    if folders:
        data[FOLDERS] = [os.path.abspath(folder) if absolute else folder for folder in folders]
    for name, stage in config.stages().items():
        values = stage.model_dump(mode="json", exclude_unset=not defaults)
        if absolute:
            _make_absolute(stage, values)
        # The plugin's name first, as people write it.
        plugin = {"plugin": values.pop("plugin")} if isinstance(stage, PluginConfig) else {}
        data[name] = {**plugin, **values}
    return data


def _make_absolute(stage: BaseModel, values: dict[str, Any]) -> None:
    for field, info in type(stage).model_fields.items():
        value = values.get(field)
        for inner, written in _nested(getattr(stage, field), value):
            _make_absolute(inner, written)
        if isinstance(value, list) and path_role(info.annotation, info.metadata):
            values[field] = [path if "://" in path else os.path.abspath(path) for path in value]
        if not isinstance(value, str) or "://" in value:
            continue
        if path_role(info.annotation, info.metadata):
            values[field] = os.path.abspath(value)
        elif field in ("plugin", "target") and is_target(value) and ".py:" in value:
            path, _, attribute = value.rpartition(":")
            values[field] = f"{os.path.abspath(path)}:{attribute}"


def _nested(value: Any, written: Any) -> Iterator[tuple[BaseModel, dict[str, Any]]]:
    """Yield the models in a field's value, each with what is written of it."""
    if isinstance(value, BaseModel) and isinstance(written, dict):
        yield value, written
    elif isinstance(value, Mapping) and isinstance(written, dict):
        for key, inner in value.items():
            yield from _nested(inner, written.get(key))
    elif isinstance(value, (list, tuple)) and isinstance(written, list):
        for inner, text in zip(value, written, strict=False):
            yield from _nested(inner, text)


class _Dumper(yaml.SafeDumper):
    """Lists on one line, mappings over several."""


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # PyYAML quotes what YAML 1.1 takes for something else; we read YAML 1.2, where 1e3 and 0o7 are numbers, too.
    plain = scalar(value) == value
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _text)


def to_yaml(data: Mapping[str, Any]) -> str:
    """Write plain data as YAML, keys in their order."""
    text: str = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def config_hash(config: PipelineConfig) -> str:
    """Return a SHA-256 over everything that a configuration says, defaults included, in hex."""
    text = json.dumps(to_data(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
