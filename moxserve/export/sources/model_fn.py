"""From words on a command line to a model_fn, its inputs and rows for them. TensorFlow comes with the user's code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from moxserve.errors import InvalidArgument, UsageError, did_you_mean
from moxserve.export.sources.samples import read_samples
from moxserve.types import DTYPES, Signature, TensorSpec, dtype_by_name

__all__ = ["load_model_fn", "parse_input", "read_rows"]

_INPUT = re.compile(r"(?P<name>[^=\s]+)\s*=\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\[\]]*)\]")
_SIZE = re.compile(r"[0-9]{1,18}")
_FREE = ("?", "none", "-1")
_EXPECTED = "expected NAME=DTYPE[SHAPE], such as images=uint8[?,28,28,1], with ? for the batch"


def parse_input(text: str) -> TensorSpec:
    """Read one input of model_fn.

    Args:
        text: such as `images=uint8[?,28,28,1]`; `?`, `None` or `-1` is a dimension that varies, `[]` a single value.

    Raises:
        UsageError: it is written otherwise, or there is no such element type.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"input {text!r}: {_EXPECTED}")
    words = [word.strip() for word in match["shape"].split(",")] if match["shape"].strip() else []
    sizes = []
    for word in words:
        if word.lower() not in _FREE and not _SIZE.fullmatch(word):
            raise UsageError(f"input {text!r}: {word!r} is no dimension; {_EXPECTED}")
        sizes.append(None if word.lower() in _FREE else int(word))
    try:
        dtype = dtype_by_name(match["dtype"])
    except InvalidArgument:
        known = [d.name for d in DTYPES]
        found = did_you_mean(match["dtype"], known)
        raise UsageError(f"input {text!r}: no element type {match['dtype']!r}; {found}") from None
    return TensorSpec(match["name"], dtype, tuple(sizes))


def read_rows(path: str, inputs: Sequence[TensorSpec], limit: int | None = None) -> list[np.ndarray]:
    """Read rows for the inputs of model_fn.

    Args:
        path: a file as `read_samples` takes it, with one array or key for each input, by name.
        inputs: of model_fn, in order.
        limit: only the first rows.

    Returns:
        One array for each input, in order.

    Raises:
        DataError: the file cannot be read, or does not fit.
    """
    signature = Signature("model_fn", "", {spec.name: spec for spec in inputs})
    samples = read_samples(path, signature, limit)
    return [samples.inputs[spec.name] for spec in inputs]


def load_model_fn(text: str) -> Callable[..., Any]:
    """Import a model_fn.

    Args:
        text: `package.module:name`, looked for in the working directory too, or `path/to/file.py:name`.

    Raises:
        UsageError: there is no such file, module or function, or importing it fails.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"model_fn {text!r}: expected package.module:function or file.py:function")
    module = _load_file(place) if place.endswith(".py") else _load_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise UsageError(f"{place} has no {name!r}; {did_you_mean(name, functions)}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{text} is a {type(found).__name__}; expected a function: model_fn(inputs, mode, **kwargs)")
    return found


def _load_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        # As `python -m` does; the function may import its neighbours only when it is called, so it stays.
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(
                f"there is no module {missing!r} in the working directory or among what is installed",
                hint="a file is named by its path: models/lenet.py:model_fn",
            ) from None
        raise _failed(name, error) from error
    except Exception as error:
        raise _failed(name, error) from error


def _load_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise UsageError(f"there is no file {path!r}, from which model_fn was to be taken")
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    if spec is None or spec.loader is None:
        raise UsageError(f"{path!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        # As when the file is run as a script: it may import what lies beside it.
        sys.path.insert(0, folder)
    sys.modules.setdefault(name, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        raise _failed(path, error) from error
    return module


def _failed(what: str, error: Exception) -> UsageError:
    """Say where in the user's code an import failed."""
    if isinstance(error, SyntaxError):
        return UsageError(f"{error.filename}:{error.lineno}: {error.msg}")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    return UsageError(f"importing {what} failed{where}: {type(error).__name__}: {error}")
