"""The same command line for the C++ server: flags of `moxserve serve` as tensorflow_model_server takes them.

Its flags go over as they are, written `--name=value`, the only form that it reads. Ours are turned into its own where
they have an equivalent, left out with a warning where the answers stay the same without them, and refused where they do
not: a server that is not what was asked for is worse than none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import UsageError
from moxserve.serving.flags import FLAGS

__all__ = ["BINARY", "ENGINES", "Translation", "config_text", "find_binary", "translate", "written"]

BINARY = "tensorflow_model_server"
ENGINES = ("moxserve", BINARY)

_MODELS = ("model", "model_name", "model_base_path")
# Flag -> values (of MODEL=VALUE the last part) with which the C++ server does the same, and why not with others.
_REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "host": (("", "0.0.0.0", "::"), "it listens on every address of the machine; keep others out with a firewall"),
    "backend": (("auto", "tensorflow", "tflite"), "it runs SavedModels and TFLite models only"),
}


@dataclass(frozen=True)
class Translation:
    """A command line for the C++ server.

    Attributes:
        arguments: its flags, all but those that name models.
        models: name -> absolute base path of the models that the flags named; empty with a --model_config_file.
        warnings: what was left out, one sentence each.
    """

    arguments: tuple[str, ...]
    models: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def translate(given: Mapping[str, Any], unknown: Sequence[str] = ()) -> Translation:
    """Translate flags.

    Args:
        given: name -> value of the flags that the user gave; defaults are the same in both.
        unknown: arguments that are no flags of ours. It may know them, so they go over as they are.

    Raises:
        UsageError: a flag asks for something that the C++ server cannot do.
    """
    arguments: list[str] = []
    warnings: list[str] = []
    for flag in FLAGS:
        if flag.name not in given or flag.name in (*_MODELS, "engine"):
            continue
        value = given[flag.name]
        if not flag.ours:
            arguments.extend(written(flag.name, value))
            continue
        same, reason = _REFUSED.get(flag.name, ((), ""))
        if reason and any(each.rpartition("=")[2] not in same for each in (value if flag.repeats else (value,))):
            raise UsageError(
                f"--{flag.name}={', '.join(value) if flag.repeats else value} has no equivalent in {BINARY}: {reason}",
                hint=f"leave out --{flag.name}, or leave out --engine",
            )
        if not reason:
            warnings.append(f"--{flag.name} is left out: {BINARY} does not know it")
    return Translation((*arguments, *unknown), _models(given), tuple(warnings))


def written(name: str, value: Any) -> list[str]:
    """Return a flag as a command line has it, `--name=value`; several times for one that repeats."""
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{name}={str(each).lower() if isinstance(each, bool) else each}" for each in values]


def _models(given: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> absolute base path; the C++ server refuses relative ones."""
    if given.get("model_config_file"):
        return {}
    pairs = [text.partition("=")[::2] for text in given.get("model", ())]
    if base_path := given.get("model_base_path"):
        pairs.insert(0, (given.get("model_name", "default"), base_path))
    return {name: path if "://" in path else os.path.abspath(path) for name, path in pairs}


def config_text(models: Mapping[str, str]) -> str:
    """Write a ModelServerConfig in protobuf text for models that flags named.

    Args:
        models: name -> base path.
    """
    entries = (
        f"  config {{\n    name: {_quoted(name)}\n    base_path: {_quoted(path)}\n"
        '    model_platform: "tensorflow"\n  }\n'
        for name, path in models.items()
    )
    return f"model_config_list {{\n{''.join(entries)}}}\n"


def _quoted(text: str) -> str:
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{escaped}"'


def find_binary() -> str:
    """Return the path of the C++ server.

    Raises:
        UsageError: it is not on PATH.
    """
    path = shutil.which(BINARY)
    if path is None:
        raise UsageError(
            f"--engine={BINARY}: there is no {BINARY} on PATH",
            hint="install the package tensorflow-model-server of TensorFlow Serving, or have a container run it "
            f"(moxserve deploy docker-compose --engine {BINARY} ...), or leave out --engine",
        )
    return path
