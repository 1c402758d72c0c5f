"""Checkpoints made of others' weights: of Keras' applications, of single-file checkpoints, of moving averages."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import CheckpointError, DataError, UsageError
from moxserve.tensorflow.executor.located import find_checkpoint, latest_checkpoint
from moxserve.tensorflow.executor.matching import RestoreRules, match
from moxserve.tensorflow.nets.catalog import network
from moxserve.tensorflow.nets.checkpoints.fit import network_variables
from moxserve.tensorflow.nets.checkpoints.keras_files import KerasWeights, open_weights
from moxserve.tensorflow.nets.checkpoints.keras_names import Family, family_of

__all__ = ["Converted", "convert"]

_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_LAYER = ("weights", "biases")
_SEPARABLE = ("depthwise_weights", "pointwise_weights", "biases")


@dataclass(frozen=True)
class Converted:
    """What became of a file.

    Attributes:
        network: whose checkpoint it is.
        checkpoint: its prefix.
        num_classes: length of the logits; None where the file has none, as without the top.
        variables: how many were written.
        parameters: their elements.
        size_bytes: of the checkpoint's files.
        left_out: variables of the network that the file has no values for.
        unused: layers of the file, or variables, that the network has no use for.
        options: that `get_model_fn` must be given for the network to compute what the file's did.
        notes: what else to know.
    """

    network: str
    checkpoint: str
    num_classes: int | None
    variables: int
    parameters: int
    size_bytes: int
    left_out: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def convert(name: str, path: str | os.PathLike[str], output: str, *, moving_averages: bool = False) -> Converted:
    """Write weights that others published as a checkpoint of a network, which `checkpoint_path` takes.

    Args:
        name: of the network.
        path: weights of the same application of Keras: `.h5`, `.weights.h5` or `.keras`, of weights alone or of a whole
            model, with or without the classifier, of any number of classes. Or a checkpoint of the network, whose other
            variables (optimizer slots, steps) are left out.
        output: prefix of the checkpoint; its folder is made if missing. A checkpoint that is there is replaced.
        moving_averages: of a checkpoint: take the moving averages of variables where it has them.

    Returns:
        What was written.

    Raises:
        UsageError: there is no such network or file, Keras has no such application, or moving averages are wanted of
            its file.
        CheckpointError: a checkpoint that cannot be read, or is not the network's.
        DataError: a file that cannot be read, or whose layers are not those of the network.
        MissingExtraError: h5py is not installed.
    """
    from moxserve.inspect.convert.arrays import write_checkpoint

    source = os.fspath(path)
    archived = os.path.isfile(source) and tarfile.is_tarfile(source)  # as checkpoints are published: told how to unpack
    is_checkpoint = archived or os.path.isdir(source) or latest_checkpoint(source) is not None
    if moving_averages and not is_checkpoint and os.path.isfile(source):
        raise UsageError(f"{source} is no checkpoint of TensorFlow; only those hold moving averages")
    made = _of_checkpoint(name, source, moving_averages) if is_checkpoint else _of_keras(name, source)
    prefix = os.path.abspath(output)
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    size = write_checkpoint(prefix, made.values)
    parameters = sum(value.size for value in made.values.values())
    return Converted(
        name, output, made.num_classes, len(made.values), parameters, size, made.left_out, made.unused, made.options,
        made.notes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    values: Mapping[str, np.ndarray]
    num_classes: int | None
    left_out: tuple[str, ...]
    unused: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# -- of checkpoints


def _of_checkpoint(name: str, path: str, moving_averages: bool) -> _Made:
    """Take the network's variables, whatever number of classes they are for."""
    prefix = find_checkpoint(path)
    if prefix is None:
        raise CheckpointError(f"no checkpoint at {path!r}", hint="give a prefix, a file or a folder")
    found = match(prefix, network_variables(name), RestoreRules(moving_averages=moving_averages))
    classes = {misfit.outputs[0] for misfit in found.report.misfits if misfit.outputs is not None}
    if len(classes) == 1:
        found = match(prefix, network_variables(name, classes.pop()), RestoreRules(moving_averages=moving_averages))
    found.require()
    values = {variable.op.name: found.reader.get_tensor(source) for variable, source, _ in found.values}
    return _Made(values, _classes(name, values), (), found.report.unused)


def _classes(name: str, values: Mapping[str, np.ndarray]) -> int | None:
    pattern = network(name).logits_pattern
    last = [value for key, value in values.items() if pattern in key and key.endswith("/biases")]
    return int(last[-1].size) if last else None


# -- of files of Keras


def _of_keras(name: str, path: str) -> _Made:
    family = family_of(name)
    with open_weights(path) as weights:
        classifier = next((layer for layer in family.classifiers if layer in weights.names), None)
        num_classes = None if classifier is None else (weights.shapes(classifier) or [(0,)])[0][-1]
        scopes = dict(_by_scope(name, network_variables(name, num_classes, **family.options)))
        try:
            layers = family.layers(scopes, weights.names)
        except DataError as error:
            raise _unlike(name, family, weights, [error.message]) from None
        reader = _Reader(weights, family)
        for scope, variables in scopes.items():
            if scope in layers:
                reader.take(layers[scope], variables, convolution=layers.get(scope.rpartition("/")[0]))
        missing = [layer for layer in reader.missing if layer not in family.classifiers]
        problems = [*([f"no layers {', '.join(missing[:8])} ({len(missing)})"] if missing else []), *reader.misfits]
        if problems:
            raise _unlike(name, family, weights, problems)
        left_out = [v.op.name for variables in scopes.values() for v in variables if v.op.name not in reader.values]
        unused = [layer for layer in weights.names if layer not in layers.values()]
    return _Made(
        reader.values,
        num_classes,
        tuple(left_out),
        tuple(unused),
        family.options,
        (family.note,) if family.note else (),
    )


def _by_scope(name: str, variables: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the variables of each layer and batch norm, by its scope below the network's own."""
    root = network(name).scope
    groups: dict[str, list[Any]] = {}
    for variable in variables:
        scope = variable.op.name.rpartition("/")[0]
        groups.setdefault(scope.removeprefix(f"{root}/") if root else scope, []).append(variable)
    yield from groups.items()


def _unlike(name: str, family: Family, weights: KerasWeights, problems: Sequence[str]) -> DataError:
    more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
    found = ", ".join(weights.names[:8])
    return DataError(
        f"{weights.path} does not hold the weights of {family.networks[name]}, which is {name} in Keras:\n  "
        + "\n  ".join(problems[:8])
        + more,
        hint=f"its {len(weights.names)} layers with weights begin with {found}",
    )


class _Reader:
    """Reads layers of Keras as variables of slim's.

    Attributes:
        values: by name of the variable.
        missing: layers that the file lacks.
        misfits: what has other shapes, for people.
    """

    def __init__(self, weights: KerasWeights, family: Family) -> None:
        self._weights = weights
        self._family = family
        self.values: dict[str, np.ndarray] = {}
        self.missing: list[str] = []
        self.misfits: list[str] = []

    def take(self, layer: str, variables: Sequence[Any], convolution: str | None) -> None:
        """Read a layer.

        Args:
            layer: its name in Keras.
            variables: that its arrays become.
            convolution: of a batch norm: the layer before it.
        """
        by_kind = {variable.op.name.rpartition("/")[2]: variable for variable in variables}
        kinds = [kind for kind in self._order(by_kind) if kind in by_kind]
        shapes = self._weights.shapes(layer)
        if shapes is None:
            self.missing.append(layer)
            return
        extra = 1 if self._family.biases and kinds == ["weights"] else 0
        wanted = [tuple(by_kind[kind].shape.as_list()) for kind in kinds]
        held = shapes[: len(shapes) - extra]
        if len(held) != len(wanted) or not all(map(_fits, held, wanted)):
            self.misfits.append(f"{layer}: expected arrays of {_told(wanted)}, found {_told(held)}")
            return
        arrays = dict(zip(kinds, self._weights.read(layer), strict=False))
        if "moving_variance" in arrays:
            self._adapt(arrays, convolution)
        for kind, array in arrays.items():
            self.values[by_kind[kind].op.name] = array.reshape(by_kind[kind].shape.as_list()).astype(np.float32)

    def _adapt(self, arrays: dict[str, np.ndarray], convolution: str | None) -> None:
        """Make a batch norm do what Keras' does with its own epsilon, and with the bias of the convolution before."""
        arrays["moving_variance"] = arrays["moving_variance"].astype(np.float64) + self._family.epsilon
        if self._family.biases and convolution is not None:
            before = self._weights.read(convolution)
            if len(before) > 1:
                arrays["moving_mean"] = arrays["moving_mean"].astype(np.float64) - before[1]

    @staticmethod
    def _order(by_kind: Mapping[str, Any]) -> tuple[str, ...]:
        if "moving_mean" in by_kind:
            return _NORM
        return _SEPARABLE if "depthwise_weights" in by_kind else _LAYER


def _fits(held: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array becomes a variable as it is, or as the matrix that a convolution over a whole map is."""
    if held == wanted:
        return True
    return len(held) == 2 and held[-1] == wanted[-1] and held[0] == np.prod(wanted[:-1])


def _told(shapes: Sequence[tuple[int, ...]]) -> str:
    return " ".join(str(list(shape)) for shape in shapes) or "none"
