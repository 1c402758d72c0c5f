"""Plugins by slot and name: where they are found, and how one is loaded when it is asked for.

A plugin is known by `slot.name` and a target `module:attribute`. Finding reads names only and imports nothing:

    entry points   group `moxserve.plugins` of any installed distribution; the entry's name is `slot.name`
    shipped        the package `moxserve_plugins` (folder `plugins/` of the repository)
    folders        a folder `plugins/` beside the YAML file or in the current directory: each `NAME.py` or
                   `NAME/__init__.py` in it with a literal `PLUGINS = {"slot.name": "NAME.module:attribute"}`

What a target must be is the slot's affair: see `moxserve.pipeline.slots`. A name given by two sources is refused when
it is used; everything else goes on working.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from moxserve.errors import PluginError, did_you_mean

__all__ = [
    "GROUP",
    "SLOTS",
    "Plugin",
    "Registry",
    "check_target",
    "discover",
    "is_target",
    "load_target",
]

SLOTS = ("input", "model", "optimizer", "run")
GROUP = "moxserve.plugins"
TABLE = "PLUGINS"
_SHIPPED = "moxserve_plugins"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that was found, not loaded.

    Attributes:
        slot: one of `SLOTS`; empty when the source is broken.
        name: what YAML says after `plugin:`.
        target: `module:attribute`.
        source: who brings it, for people: a distribution with its version, or a folder.
        folder: the folder that the module lies in; empty when it is importable.
        error: why it cannot be used although it was found; empty when nothing is known against it.
    """

    slot: str
    name: str
    target: str
    source: str
    folder: str = ""
    error: str = ""


class Registry:
    """Slot -> name -> plugin. Nothing is imported until `load`."""

    def __init__(self, plugins: Iterable[Plugin] = ()) -> None:
        self._plugins: dict[tuple[str, str], Plugin] = {}
        self._doubles: dict[tuple[str, str], list[Plugin]] = {}
        self._broken: list[Plugin] = []
        for plugin in plugins:
            self.add(plugin)

    def add(self, plugin: Plugin) -> None:
        """Take a plugin in.

        Raises:
            PluginError: another source brought that name already, or the slot is none. The registry stays usable: the
                name alone is refused from then on.
        """
        if plugin.error or plugin.slot not in SLOTS:
            error = plugin.error or f"{plugin.slot!r} is no slot; {did_you_mean(plugin.slot, SLOTS)}"
            self._broken.append(Plugin(plugin.slot, plugin.name, plugin.target, plugin.source, error=error))
            raise PluginError(f"plugin {plugin.slot}.{plugin.name} of {plugin.source}: {error}")
        key = (plugin.slot, plugin.name)
        first = self._plugins.setdefault(key, plugin)
        if first is not plugin:
            self._doubles.setdefault(key, [first]).append(plugin)
            raise PluginError(self._doubled(key))

    def _doubled(self, key: tuple[str, str]) -> str:
        sources = " and ".join(f"{p.source} ({p.target})" for p in self._doubles[key])
        return f"{key[0]} plugin {key[1]!r} is given twice: by {sources}"

    def __iter__(self) -> Iterator[Plugin]:
        """Yield every plugin by slot and name, the doubled and broken ones with their `error`."""
        for key in sorted(self._plugins, key=lambda k: (SLOTS.index(k[0]), k[1])):
            for plugin in self._doubles.get(key, [self._plugins[key]]):
                error = self._doubled(key) if key in self._doubles else ""
                yield Plugin(plugin.slot, plugin.name, plugin.target, plugin.source, plugin.folder, error)
        yield from self._broken

    def names(self, slot: str) -> list[str]:
        """Return the names in a slot, sorted.

        Raises:
            PluginError: there is no such slot.
        """
        if slot not in SLOTS:
            raise PluginError(f"{slot!r} is no plugin slot; {did_you_mean(slot, SLOTS)}")
        return sorted(name for s, name in self._plugins if s == slot)

    def find(self, slot: str, name: str) -> Plugin:
        """Return the plugin of a name.

        Raises:
            PluginError: there is none, the nearest names told; or there are two, both sources named.
        """
        names = self.names(slot)
        key = (slot, name)
        if key in self._doubles:
            raise PluginError(self._doubled(key), hint="remove or rename one of them")
        if key not in self._plugins:
            raise PluginError(f"no {slot} plugin {name!r}; {did_you_mean(name, names, limit=12)}")
        return self._plugins[key]

    def load(self, slot: str, name: str) -> Any:
        """Import a plugin: a name in the registry, `module:attribute` or `./file.py:attribute`.

        Raises:
            PluginError: unknown, doubled, or importing it failed; the cause is told and chained.
        """
        if is_target(name):
            return load_target(name)
        plugin = self.find(slot, name)
        try:
            return _load(plugin)
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(
                f"{slot} plugin {name!r} of {plugin.source} does not load: {type(error).__name__}: {error}"
            ) from error


def discover(folders: Iterable[str | os.PathLike[str]] = ("plugins",)) -> Registry:
    """Find all plugins. Reads names, imports nothing; what is broken or doubled is kept with its error.

    Args:
        folders: plugin folders to look into; one that does not exist is skipped.
    """
    registry = Registry()
    seen: set[str] = set()
    for plugin in [*_entry_points(), *_shipped(seen), *_from_folders(folders, seen)]:
        try:
            registry.add(plugin)
        except PluginError:
            # Kept in the registry: it is listed with its error, and refused when it is used.
            continue
    return registry


def _entry_points() -> Iterator[Plugin]:
    for entry in importlib.metadata.entry_points(group=GROUP):
        dist = entry.dist
        source = f"{dist.name} {dist.version}" if dist is not None else "an installed distribution"
        slot, _, name = entry.name.partition(".")
        error = "" if name else f"entry point {entry.name!r}: expected a name of the form slot.name"
        yield Plugin(slot, name, entry.value, source, error=error)


def _shipped(seen: set[str]) -> Iterator[Plugin]:
    spec = importlib.util.find_spec(_SHIPPED)
    if spec is not None and spec.origin:
        seen.add(os.path.realpath(spec.origin))
        yield from _from_table(spec.origin, "moxserve", folder="")


def _from_folders(folders: Iterable[str | os.PathLike[str]], seen: set[str]) -> Iterator[Plugin]:
    for folder in folders:
        path = os.path.abspath(folder)
        if not os.path.isdir(path):
            continue
        for child in sorted(os.listdir(path)):
            file = os.path.join(path, child)
            if os.path.isdir(file):
                file = os.path.join(file, "__init__.py")
            elif not child.endswith(".py"):
                continue
            # The repository's own plugins/ is the shipped package; one folder may also be named twice.
            if os.path.isfile(file) and os.path.realpath(file) not in seen:
                seen.add(os.path.realpath(file))
                yield from _from_table(file, f"folder {os.fspath(folder)}", folder=path)


def _from_table(file: str, source: str, folder: str) -> Iterator[Plugin]:
    """Read the literal `PLUGINS` table of a Python file without running it."""
    try:
        table = _read_table(file)
    except (SyntaxError, ValueError) as error:
        yield Plugin("", os.path.basename(file), file, source, folder, f"{file}: no readable {TABLE} table: {error}")
        return
    for key, target in table.items():
        slot, _, name = key.partition(".")
        wrong = "" if name else f"{file}: {key!r}: expected a name of the form slot.name"
        yield Plugin(slot, name, target, source, folder, wrong)


def _read_table(file: str) -> Mapping[str, str]:
    with open(file, encoding="utf-8") as f:
        module = ast.parse(f.read(), file)
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        if any(isinstance(t, ast.Name) and t.id == TABLE for t in targets):
            table = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
            if not isinstance(table, dict) or not all(isinstance(s, str) for s in [*table, *table.values()]):
                raise ValueError(f"{TABLE} is not a dict of strings")
            return table
    return {}


def is_target(name: str) -> bool:
    """Tell whether a name is `module:attribute` or `./file.py:attribute` rather than a registered name."""
    return ":" in name


def _split(target: str) -> tuple[str, str]:
    module, _, attribute = target.rpartition(":")
    if not module or not attribute.replace(".", "_").isidentifier():
        raise PluginError(f"{target!r}: expected module:attribute or ./file.py:attribute")
    return module, attribute


def _is_file(module: str) -> bool:
    return module.endswith(".py") or "/" in module


def load_target(target: str) -> Any:
    """Import `module:attribute` or `./file.py:attribute`.

    The current directory counts as a place to import from, after all installed packages; so does the folder of the
    file, for what lies beside it.

    Raises:
        PluginError: it is not there, or importing it failed; the cause is told and chained.
    """
    module_name, attribute = _split(target)
    try:
        if _is_file(module_name):
            module = _import_file(module_name)
        else:
            _search_in(os.getcwd())
            module = importlib.import_module(module_name)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"{target!r} does not load: {type(error).__name__}: {error}") from error
    return _attribute(module, attribute, target)


def _load(plugin: Plugin) -> Any:
    module_name, attribute = _split(plugin.target)
    if plugin.folder:
        _import_top(plugin.folder, module_name.partition(".")[0])
    return _attribute(importlib.import_module(module_name), attribute, plugin.target)


def _attribute(module: ModuleType, attribute: str, target: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")]
            raise PluginError(f"{target!r} has no {part!r}; {did_you_mean(part, names)}")
        found = getattr(found, part)
    return found


def _search_in(folder: str) -> None:
    # Last, so that nothing installed is hidden by what happens to lie there.
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)


def _import_file(file: str) -> ModuleType:
    path = os.path.realpath(file)
    if not os.path.isfile(path):
        raise PluginError(f"no such file: {file!r} (looked for {os.path.abspath(file)})")
    stem = os.path.splitext(os.path.basename(path))[0]
    # Two files of one name, in two folders, are two modules.
    name = f"moxserve_file_{stem}_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        _search_in(os.path.dirname(path))
        _execute(name, path)
    return sys.modules[name]


def _import_top(folder: str, name: str) -> None:
    """Import the top module of a plugin folder under its own name, without putting the folder on sys.path."""
    candidates = [os.path.join(folder, name, "__init__.py"), os.path.join(folder, f"{name}.py")]
    path = next((p for p in candidates if os.path.isfile(p)), None)
    if path is None:
        raise PluginError(f"no module {name!r} in {folder}")
    loaded = sys.modules.get(name)
    if loaded is not None and os.path.realpath(loaded.__file__ or "") == os.path.realpath(path):
        return
    if loaded is not None or name in sys.stdlib_module_names:
        raise PluginError(f"{path}: a module called {name!r} is there already", hint="rename the plugin's module")
    _execute(name, path)


def _execute(name: str, path: str) -> None:
    packages = [os.path.dirname(path)] if os.path.basename(path) == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=packages)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def check_target(target: str) -> str:
    """Look for `module:attribute` or `./file.py:attribute` without running it.

    Returns:
        What is wrong with it, for a message; empty when nothing is known against it. A name that a module makes at
        run time (`from x import *`, `globals()`, `__getattr__`) is not looked for.
    """
    try:
        module_name, attribute = _split(target)
    except PluginError as error:
        return error.message
    if _is_file(module_name):
        path: str | None = module_name
        if not os.path.isfile(module_name):
            return f"no such file: {module_name!r} (looked for {os.path.abspath(module_name)})"
    else:
        _search_in(os.getcwd())
        try:
            spec = importlib.util.find_spec(module_name)
        except (ImportError, ValueError) as error:
            return f"no module {module_name!r}: {error}"
        if spec is None:
            return f"no module {module_name!r}, installed or in {os.getcwd()}"
        path = spec.origin
    return _check_attribute(path, attribute.partition(".")[0])


def _check_attribute(path: str | None, name: str) -> str:
    if path is None or not path.endswith(".py"):
        return ""
    try:
        with open(path, encoding="utf-8") as f:
            module = ast.parse(f.read(), path)
    except SyntaxError as error:
        return f"{path}:{error.lineno}: {error.msg}"
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    if name in names or "*" in names or "__getattr__" in names:
        return ""
    public = [n for n in names if not n.startswith("_")]
    return f"{path} defines no {name!r}; {did_you_mean(name, public)}"
