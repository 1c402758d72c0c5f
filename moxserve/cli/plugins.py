"""`moxserve plugins`: which plugins there are, and what each may be given. No TensorFlow."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from moxserve.cli.main import LazyGroup

__all__ = ["plugins"]


@click.group(
    cls=LazyGroup, lazy={}, epilog="\b\nExamples:\n  moxserve plugins list\n  moxserve plugins show input.image_folder"
)
def plugins() -> None:
    """List and show plugins."""


_JSON = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


@plugins.command("list", epilog="\b\nExample:\n  moxserve plugins list --slot model")
@click.option("--slot", help="Only this slot: input, model, optimizer or run.")
@click.option("--no-load", is_flag=True, help="Do not import the plugins: names and sources only.")
@_JSON
def list_(slot: str | None, no_load: bool, as_json: bool) -> None:
    """List all plugins: installed, shipped, and in ./plugins. One that is broken is listed with its error."""
    from moxserve.cli.render import echo_json, echo_table
    from moxserve.registry import discover

    registry = discover()
    if slot is not None:
        registry.names(slot)
    facts = [_facts(registry, plugin, load=not no_load) for plugin in registry if slot in (None, plugin.slot)]
    if as_json:
        echo_json(facts)
        return
    rows = [(f["plugin"], f["source"], f"does not load: {f['error']}" if f["error"] else f["summary"]) for f in facts]
    echo_table(("plugin", "source", "what"), rows, wrap={"what": 30})


def _facts(registry: Any, plugin: Any, load: bool) -> dict[str, Any]:
    from moxserve.config.pipeline import plugin_class
    from moxserve.errors import PluginError

    name = f"{plugin.slot}.{plugin.name}" if plugin.slot else plugin.name
    error, summary = plugin.error, ""
    if load and not error:
        try:
            model = plugin_class(registry.load(plugin.slot, plugin.name), plugin.slot, plugin.name)
        except PluginError as failed:
            error = failed.message
        else:
            summary = _summary(model)
    return {"plugin": name, "source": plugin.source, "target": plugin.target, "summary": summary, "error": error}


def _summary(model: type) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


@plugins.command(epilog="\b\nExample:\n  moxserve plugins show optimizer.adam")
@click.argument("name", metavar="SLOT.NAME")
@_JSON
def show(name: str, as_json: bool) -> None:
    """Show the parameters of a plugin, and its README."""
    from moxserve.cli.render import echo_json, echo_table
    from moxserve.config.pipeline import plugin_class
    from moxserve.registry import SLOTS, discover

    registry = discover()
    slot, _, short = name.partition(".")
    if not short or slot not in SLOTS:
        slot, short = _guess(registry, name)
    model = plugin_class(registry.load(slot, short), slot, short)
    found = registry.find(slot, short)
    parameters = [_parameter(key, info) for key, info in model.model_fields.items() if key != "plugin"]
    if as_json:
        facts = {"plugin": f"{slot}.{short}", "source": found.source, "target": found.target}
        echo_json({**facts, "summary": _summary(model), "parameters": parameters, "schema": model.model_json_schema()})
        return
    click.echo(f"{slot}.{short}: {_summary(model)}")
    click.echo(f"from {found.source} ({found.target})\n")
    if parameters:
        rows = [(p["name"], p["type"], p["default"], p["description"]) for p in parameters]
        echo_table(("parameter", "type", "default", "meaning"), rows, wrap={"meaning": 30})
    else:
        click.echo("no parameters")
    readme = _readme(model)
    if readme:
        click.echo(f"\n{readme.rstrip()}")


def _guess(registry: Any, name: str) -> tuple[str, str]:
    """Take a name without its slot when only one slot has it."""
    from moxserve.errors import PluginError, did_you_mean

    known = [(plugin.slot, plugin.name) for plugin in registry if plugin.slot]
    matches = sorted({slot for slot, short in known if short == name})
    if len(matches) == 1:
        return matches[0], name
    full = [f"{slot}.{short}" for slot, short in known]
    if matches:
        raise PluginError(f"{name!r} is in several slots; expected {' or '.join(f'{s}.{name}' for s in matches)}")
    shorts = [short for _, short in known]
    near = did_you_mean(name, full)
    if not near.startswith("did you mean"):
        near = did_you_mean(name, shorts, limit=len(shorts))
    raise PluginError(f"no plugin {name!r}; {near}")


def _parameter(name: str, info: Any) -> dict[str, Any]:
    from moxserve.config.tree import format_value

    return {
        "name": name,
        "type": _type_name(info),
        "required": info.is_required(),
        "default": "required" if info.is_required() else format_value(info.default),
        "description": info.description or "",
    }


def _type_name(info: Any) -> str:
    """Write a field's type for people: `int`, `float | null`, `'a' | 'b'`."""
    from moxserve.config.explain import type_name

    return type_name(info.annotation)


def _readme(model: type) -> str:
    folder = os.path.dirname(getattr(sys.modules[model.__module__], "__file__", None) or "")
    path = os.path.join(folder, "README.md")
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as f:
        return f.read()
