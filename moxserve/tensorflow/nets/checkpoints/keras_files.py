"""Weights in files of Keras, by the names of layers; Keras is not needed, and no model is built.

Three layouts are read, each whole models or weights alone:

    .h5 of Keras 1, 2 and tf_keras, whole models of Keras 3   a group a layer, with its weights' names in `weight_names`
    .weights.h5 of Keras 3                                    `layers/conv2d_1/vars/0`, with the layer's name beside it
    .keras                                                    an archive of that and of the model's configuration, which
                                                              has the names where an older file lacks them
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.errors import DataError, MissingExtraError, UsageError
from moxserve.tensorflow.executor.located import is_complete, is_single_file

__all__ = ["KerasWeights", "open_weights"]

_ARCHIVED = "model.weights.h5"


class KerasWeights:
    """The weights of a file.

    Args:
        path: of the file.
        layers: the arrays of each layer that has some, in the order in which Keras keeps them.

    Attributes:
        path: of the file.
        names: of its layers with weights, in the order of the file.
    """

    def __init__(self, path: str, layers: Mapping[str, Sequence[Any]]) -> None:
        self.path = path
        self.names = list(layers)
        self._layers = layers

    def shapes(self, layer: str) -> list[tuple[int, ...]] | None:
        """Return the shapes of a layer's arrays; None where there is no such layer."""
        return [tuple(a.shape) for a in self._layers[layer]] if layer in self._layers else None

    def read(self, layer: str) -> list[np.ndarray]:
        """Return a layer's arrays.

        Raises:
            DataError: they cannot be read.
        """
        try:
            return [np.asarray(array) for array in self._layers[layer]]
        except OSError as error:
            raise DataError(f"{self.path}: the weights of layer {layer!r} cannot be read: {error}") from error


@contextlib.contextmanager
def open_weights(path: str) -> Iterator[KerasWeights]:
    """Open a file of Keras.

    Args:
        path: of a `.h5`, `.weights.h5` or `.keras` file.

    Raises:
        UsageError: there is no such file, or it is a checkpoint.
        DataError: it is no file of Keras, or one that does not name its layers.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "dataflow", "reading files of Keras") from None
    if is_complete(path) or is_single_file(path):
        raise UsageError(f"{path} is a checkpoint of TensorFlow, no file of Keras")
    config = None
    source: Any = path
    try:
        if zipfile.is_zipfile(path):
            config, source = _unpacked(path)
        with h5py.File(source, "r") as file:
            layers = _legacy(file) if _is_legacy(file) else _by_path(path, file, config)
            if not layers:
                raise DataError(f"{path} holds no weights of layers", hint="a file of Model.save or Model.save_weights")
            yield KerasWeights(path, layers)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as a file of Keras (HDF5, or a .keras archive): {error}",
            hint="a download that was cut off? a file of Model.save or Model.save_weights is expected",
        ) from error


def _unpacked(path: str) -> tuple[Any, io.BytesIO]:
    with zipfile.ZipFile(path) as archive:
        if _ARCHIVED not in archive.namelist():
            raise DataError(f"{path} is an archive without {_ARCHIVED}, so no model of Keras")
        return json.loads(archive.read("config.json")), io.BytesIO(archive.read(_ARCHIVED))


def _is_legacy(file: Any) -> bool:
    return "model_weights" in file or "layer_names" in file.attrs


def _legacy(file: Any) -> dict[str, list[Any]]:
    """Read the layout of Keras 2. A model inside a model is one layer there: the weights' own names tell theirs."""
    root = file.get("model_weights", file)
    layers: dict[str, list[Any]] = {}
    for group in map(_text, root.attrs["layer_names"]):
        for name in map(_text, root[group].attrs.get("weight_names", ())):
            parts = name.split("/")
            layers.setdefault(parts[-2] if len(parts) > 1 else group, []).append(root[group][name])
    return layers


def _by_path(path: str, file: Any, config: Any) -> dict[str, list[Any]]:
    """Read the layout of Keras 3."""
    named = _names_by_path(config)
    layers: dict[str, list[Any]] = {}
    nameless: list[str] = []

    def look(place: str, group: Any) -> None:
        if place.rpartition("/")[2] != "vars" or not hasattr(group, "keys") or not len(group):
            return
        if place.startswith("optimizer"):
            return
        owner = place.rpartition("/")[0]
        name = group.attrs.get("name", named.get(owner))
        if name is None:
            nameless.append(owner)
            return
        layers[_text(name)] = [group[key] for key in sorted(group, key=int)]

    file.visititems(look)
    if nameless:
        raise DataError(
            f"{path} does not name its layers, only numbers them by kind ({nameless[0]}), as tf_keras' .weights.h5 do",
            hint="save it as .keras, as .h5 (save_weights('weights.h5', save_format='h5')), or with Keras 3",
        )
    return layers


def _names_by_path(config: Any) -> dict[str, str]:
    """Return the names of a configuration's layers by where their weights are: `layers/conv2d_1`."""
    found: dict[str, str] = {}
    counts: dict[str, int] = {}
    for layer in (config or {}).get("config", {}).get("layers", ()):
        kind = _snake_case(layer["class_name"])
        number = counts[kind] = counts.get(kind, -1) + 1
        place = f"layers/{kind}" + (f"_{number}" if number else "")
        found[place] = layer.get("name") or layer["config"]["name"]
        inner = _names_by_path(layer) if "layers" in layer.get("config", {}) else {}
        found.update({f"{place}/{below}": name for below, name in inner.items()})
    return found


def _snake_case(name: str) -> str:
    """Write the name of a class as Keras does: `BatchNormalization` -> `batch_normalization`, `Conv2D` -> `conv2d`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
