"""A pipeline file, read: stages, plugins, and every problem at once with its place.

The order of work: YAML to a tree with places, `--set`, `${VARIABLES}`, the stages and their keys, then each plugin's
own parameters through its pydantic class, then (on request) what the files on disk have to say. What fails early does
not hide what fails later in another stage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from moxserve import file
from moxserve.config.explain import explain, is_near
from moxserve.config.interpolate import interpolate
from moxserve.config.models import (
    EvaluateStage,
    ExportStage,
    PluginConfig,
    PredictStage,
    PruningStage,
    QuantizationStage,
    path_role,
)
from moxserve.config.override import apply_overrides
from moxserve.config.tree import Node, Place, format_value, parse
from moxserve.errors import ConfigError, ConfigProblem, PluginError, did_you_mean
from moxserve.file.filesystem import is_remote
from moxserve.registry import SLOTS, Registry, discover

__all__ = ["STAGES", "VERSION", "LoadedPipeline", "PipelineConfig", "load_pipeline", "plugin_class", "plugin_folders"]

VERSION = 1
FOLDERS = "plugin_folders"
STAGES: Mapping[str, type[BaseModel]] = {
    "quantization": QuantizationStage,
    "pruning": PruningStage,
    "export": ExportStage,
    "evaluate": EvaluateStage,
    "predict": PredictStage,
}
_KEYS = ("version", "description", FOLDERS, *SLOTS, *STAGES)
_EXAMPLES = {
    "input": "input: {plugin: image_folder, train_dir: DIR, eval_dir: DIR, batch_size: 32}",
    "model": "model: {plugin: lenet}",
    "optimizer": "optimizer: {plugin: adam, learning_rate: 0.001}",
    "run": "run: {plugin: train_and_evaluate, log_dir: DIR, max_number_of_steps: 600}",
}


@dataclass(frozen=True)
class PipelineConfig:
    """A valid pipeline.

    Attributes:
        version: of the file format; 1.
        description: one line for `pipeline list`.
        input: where data come from.
        model: what is trained.
        optimizer: how; None when the run trains nothing.
        run: what is done.
        quantization: how the model is trained for int8, if it is.
        pruning: which of its weights become zero, if any.
        export: the artifact, if any.
        evaluate: a last evaluation, if any.
        predict: predictions, if any.
        plugin_folders: folders to look for plugins in, besides the usual ones.
    """

    version: int
    description: str
    input: PluginConfig
    model: PluginConfig
    optimizer: PluginConfig | None
    run: PluginConfig
    quantization: QuantizationStage | None = None
    pruning: PruningStage | None = None
    export: ExportStage | None = None
    evaluate: EvaluateStage | None = None
    predict: PredictStage | None = None
    plugin_folders: tuple[str, ...] = ()

    def stages(self) -> dict[str, BaseModel]:
        """Return the stages that are there, by name, in the order in which they run."""
        named = {name: getattr(self, name) for name in (*SLOTS, *STAGES)}
        return {name: stage for name, stage in named.items() if stage is not None}


@dataclass(frozen=True)
class LoadedPipeline:
    """A valid pipeline with the text it came from, so that later errors can still name their place.

    Attributes:
        path: the file.
        config: what it says.
        tree: the same, with places.
        folders: every plugin folder that counted, in the order of search.
    """

    path: str
    config: PipelineConfig
    tree: Node
    folders: tuple[str, ...] = ()

    def problem(self, key: str, message: str) -> ConfigProblem:
        """Make a problem of a dotted key, at the place where it, or the nearest thing around it, was written."""
        return _locate(self.tree, key.split("."), self.path).problem(message, key)


def plugin_folders(path: str | os.PathLike[str]) -> list[str]:
    """Return the plugin folders that count for a pipeline file: beside it, and in the current directory."""
    beside = os.path.join(os.path.dirname(os.fspath(path)), "plugins")
    same = os.path.realpath(beside) == os.path.realpath("plugins")
    return ["plugins"] if same else [beside, "plugins"]


def load_pipeline(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    registry: Registry | None = None,
    environment: Mapping[str, str] | None = None,
    check: bool = False,
) -> LoadedPipeline:
    """Read and check a pipeline file.

    Args:
        path: the YAML file.
        overrides: `KEY=VALUE` texts, as after `--set`.
        registry: where plugins are looked up; None finds them anew for this file.
        environment: variables for `${NAME}`; None takes the process's.
        check: also look at the files and modules that the pipeline names.

    Raises:
        ConfigError: all that is wrong, each with its place.
    """
    name = os.fspath(path)
    problems: list[ConfigProblem] = []
    tree = apply_overrides(_mapping(parse(_read(name), name)), tuple(overrides), problems)
    tree = interpolate(tree, os.environ if environment is None else environment, problems)
    own = _own_folders(tree, problems)
    folders = (*own, *plugin_folders(name))
    reader = _Stages(name, tree, discover(folders) if registry is None else registry, problems)
    loaded = LoadedPipeline(name, reader.read(own), tree, folders)
    if check and not problems:
        problems += _check(loaded)
    if problems:
        raise ConfigError(sorted(problems, key=lambda p: (p.path != name, p.line, p.column)))
    return loaded


def _read(path: str) -> str:
    try:
        if is_remote(path):
            return str(file.read(path))
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        if is_remote(path):
            raise ConfigError([Place(path).problem("there is no such object")]) from None
        folder = os.path.dirname(path) or "."
        known = [n for n in os.listdir(folder) if n.endswith((".yaml", ".yml"))] if os.path.isdir(folder) else []
        near = f"; {did_you_mean(os.path.basename(path), known)}" if known else f" (in {os.path.abspath(folder)})"
        raise ConfigError([Place(path).problem(f"no such file{near}")]) from None
    except IsADirectoryError:
        raise ConfigError([Place(path).problem("is a directory; expected a YAML file")]) from None
    except PermissionError:
        raise ConfigError([Place(path).problem("may not be read: permission denied")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Place(path).problem(f"is not UTF-8 text: {error}")]) from None


def _mapping(root: Node) -> Node:
    if isinstance(root.value, dict):
        return root
    if root.value is None:
        message = "the file is empty; expected the keys version, input, model, optimizer, run"
    else:
        message = f"expected a mapping with the keys version, input, model, …, got {format_value(root.data())}"
    raise ConfigError([root.place.problem(message)])


def _own_folders(tree: Node, problems: list[ConfigProblem]) -> tuple[str, ...]:
    """Return what the key `plugin_folders` names."""
    node = tree.child(FOLDERS)
    if node is None or node.value is None:
        return ()
    found = node.data()
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        problems.append(node.place.problem(f"expected a list of folders, got {format_value(found)}", FOLDERS))
        return ()
    for index, folder in enumerate(found):
        if not os.path.isdir(folder):
            place = _locate(node, [index], node.place.path)
            problems.append(place.problem(f"no such directory: {folder!r}", f"{FOLDERS}.{index}"))
    return tuple(found)


def _locate(node: Node, keys: Sequence[str | int], path: str) -> Place:
    """Return the place of a value, or of the innermost thing around it that is there."""
    place = Place(path)
    for key in keys:
        inner = node.child(int(key) if isinstance(key, str) and key.isdecimal() else key)
        if inner is None:
            break
        node = inner
        place = node.place
    return place


class _Stages:
    """Reads the stages of one tree and collects problems."""

    def __init__(self, path: str, tree: Node, registry: Registry, problems: list[ConfigProblem]) -> None:
        self._path = path
        self._nodes: dict[str, Node] = tree.value
        self._registry = registry
        self._problems = problems

    def read(self, folders: tuple[str, ...]) -> PipelineConfig:
        self._keys()
        # A stage with problems is None here; the caller raises before anyone sees it.
        stages: dict[str, Any] = {slot: self._plugin(slot) for slot in SLOTS}
        stages |= {name: self._stage(name, model) for name, model in STAGES.items()}
        self._required(cast("PluginConfig | None", stages["run"]))
        return PipelineConfig(VERSION, self._description(), plugin_folders=folders, **stages)

    def _keys(self) -> None:
        for key, node in self._nodes.items():
            if key not in _KEYS:
                place = node.key_place or node.place
                message = f"unknown stage {key!r}; {did_you_mean(key, _KEYS, limit=len(_KEYS))}"
                self._problems.append(place.problem(message, key))
        version = self._nodes.get("version")
        if version is None and not self._misspelt("version"):
            message = f"missing key 'version'; write `version: {VERSION}` at the top"
            self._problems.append(Place(self._path).problem(message))
        elif version is not None and (version.value != VERSION or isinstance(version.value, bool)):
            message = f"expected {VERSION}, the only version this moxserve reads, got {format_value(version.data())}"
            self._problems.append(version.place.problem(message, "version"))

    def _misspelt(self, key: str) -> bool:
        """Tell whether an unknown key, which is told anyway, was meant to be this one."""
        return any(name not in _KEYS and is_near(name, key) for name in self._nodes)

    def _description(self) -> str:
        node = self._nodes.get("description")
        if node is None or isinstance(node.value, str):
            return node.value if node is not None else ""
        self._problems.append(node.place.problem(f"expected text, got {format_value(node.data())}", "description"))
        return ""

    def _required(self, run: PluginConfig | None) -> None:
        trains = run is None or getattr(run, "trains", True)
        for slot in SLOTS:
            node = self._nodes.get(slot)
            needed = slot != "optimizer" or trains
            if needed and (node is None or node.value is None) and not self._misspelt(slot):
                why = f": run plugin {run.plugin!r} trains" if slot == "optimizer" and run is not None else ""
                place = Place(self._path) if node is None else (node.key_place or node.place)
                message = f"missing stage {slot!r}{why}; write for example `{_EXAMPLES[slot]}`"
                self._problems.append(place.problem(message))

    def _stage(self, name: str, model: type[BaseModel]) -> BaseModel | None:
        node = self._nodes.get(name)
        if node is None or node.value is None:
            return None
        return self._validate(name, model, node)

    def _plugin(self, slot: str) -> BaseModel | None:
        node = self._nodes.get(slot)
        if node is None or node.value is None:
            return None
        if not isinstance(node.value, dict):
            message = f"expected a mapping such as `{_EXAMPLES[slot]}`, got {format_value(node.data())}"
            self._problems.append(node.place.problem(message, slot))
            return None
        name = node.value.get("plugin")
        names = self._registry.names(slot)
        if name is None:
            message = f"missing key 'plugin'; one of {', '.join(names)}, or module:Class"
            self._problems.append((node.key_place or node.place).problem(message, slot))
            return None
        if not isinstance(name.value, str):
            message = f"expected a plugin's name, got {format_value(name.data())}; {did_you_mean('', names, limit=12)}"
            self._problems.append(name.place.problem(message, f"{slot}.plugin"))
            return None
        try:
            model = plugin_class(self._registry.load(slot, name.value), slot, name.value)
        except PluginError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._problems.append(name.place.problem(error.message + hint, f"{slot}.plugin"))
            return None
        return self._validate(slot, model, node)

    def _validate(self, stage: str, model: type[BaseModel], node: Node) -> BaseModel | None:
        if not isinstance(node.value, dict):
            message = f"expected a mapping, got {format_value(node.data())}"
            self._problems.append(node.place.problem(message, stage))
            return None
        try:
            return model.model_validate(node.data())
        except ValidationError as error:
            self._problems += explain(error, model, node, stage)
            return None


def plugin_class(found: Any, slot: str, name: str) -> type[PluginConfig]:
    """Make sure that a loaded plugin is a class of its slot.

    Raises:
        PluginError: it is something else; says what it is and what was expected.
    """
    if isinstance(found, type) and issubclass(found, PluginConfig):
        if found.slot == slot:
            return found
        raise PluginError(f"{name!r} is a plugin for {found.slot or 'no slot'}, not for {slot}")
    if slot == "model" and callable(found) and not isinstance(found, type):
        raise PluginError(f"{name!r} is a function, not a plugin; write {{plugin: function, target: {name}}}")
    base = f"moxserve.pipeline.slots.{slot.capitalize()}Plugin"
    raise PluginError(f"{name!r} is {type(found).__name__} {found!r}; expected a subclass of {base}")


def _check(loaded: LoadedPipeline) -> list[ConfigProblem]:
    """Look at what the pipeline names: paths first, then what each plugin knows to check."""
    problems: list[ConfigProblem] = []
    for name, stage in loaded.config.stages().items():
        missing = _missing_paths(name, stage, loaded)
        problems += missing
        if isinstance(stage, PluginConfig) and not missing:
            for field, message in _own_check(stage):
                problems.append(loaded.problem(f"{name}.{field}" if field else name, message))
    return problems + _check_start(loaded)


def _check_start(loaded: LoadedPipeline) -> list[ConfigProblem]:
    """Refuse a quantization that would begin when the run is over."""
    quantization, end = loaded.config.quantization, getattr(loaded.config.run, "max_number_of_steps", None)
    if quantization is None or not isinstance(end, int) or not 0 < end <= quantization.start_step:
        return []
    message = f"expected a step before run.max_number_of_steps, which is {end}, got {quantization.start_step}"
    return [loaded.problem("quantization.start_step", message)]


def _own_check(plugin: PluginConfig) -> list[tuple[str, str]]:
    try:
        return list(plugin.check())
    except Exception as error:  # noqa: BLE001 - a plugin's own code: told as a problem of that plugin
        return [("", f"the check of plugin {plugin.plugin!r} failed: {type(error).__name__}: {error}")]


def _missing_paths(name: str, stage: BaseModel, loaded: LoadedPipeline) -> list[ConfigProblem]:
    problems = []
    for field, info in type(stage).model_fields.items():
        role = path_role(info.annotation, info.metadata)
        value = getattr(stage, field)
        for key, inner in _nested(f"{name}.{field}", value):
            problems += _missing_paths(key, inner, loaded)
        if role not in ("dir", "file") or value is None:
            continue
        several = isinstance(value, list)
        for index, path in enumerate(value if several else [value]):
            key = f"{name}.{field}.{index}" if several else f"{name}.{field}"
            problems += [loaded.problem(key, message) for message in _missing(path, role)]
    return problems


def _nested(key: str, value: Any) -> Iterator[tuple[str, BaseModel]]:
    """Yield the models in a field's value, each with its dotted key."""
    if isinstance(value, BaseModel):
        yield key, value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner_key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _nested(f"{key}.{inner_key}", inner)


def _missing(path: str, role: str) -> list[str]:
    """Say what is wrong with a path that must be there; nothing when it is, or when it is no local one."""
    if "://" in path or (os.path.isdir(path) if role == "dir" else os.path.isfile(path)):
        return []
    kind = "directory" if role == "dir" else "file"
    if os.path.exists(path):
        return [f"expected a {kind}: {path!r} is {'a file' if kind == 'directory' else 'a directory'}"]
    return [f"no such {kind}: {path!r} (the current directory is {os.getcwd()})"]
