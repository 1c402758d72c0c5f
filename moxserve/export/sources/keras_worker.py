"""Turns a Keras model file into a SavedModel, and runs the model on rows: the program of a process of its own.

`python -m moxserve.export.sources.keras_worker FOLDER` reads `FOLDER/task` and writes `FOLDER/model`, a SavedModel, and
`FOLDER/answer`. Keras needs eager TensorFlow, which the exporting process, a training perhaps, may have switched off;
and which of its two generations is loaded can be said only once a process.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import DataError, ExportError, MoxserveError, first_line
from moxserve.export.children import die_with_parent
from moxserve.export.job import KerasJob
from moxserve.export.op_libraries import load_inherited
from moxserve.export.sources.samples import Samples, chunk_rows, given_samples, made_up_inputs
from moxserve.types import DEFAULT_SIGNATURE, Signature, TensorSpec, dtype_by_name

__all__ = ["KerasAnswer", "KerasFailure", "KerasTask", "main"]

Chunk = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class KerasTask:
    """What is to be done.

    Attributes:
        job: names the file, and the samples.
        legacy: the file is of Keras 2.
    """

    job: KerasJob
    legacy: bool


@dataclass(frozen=True)
class KerasAnswer:
    """What was done.

    Attributes:
        chunks: inputs and outputs by alias, as Keras itself computed them.
        real: whether they are real rows.
        labels: right classes of the rows, where they are known.
        version: of Keras.
        note: why the rows that there were could not be compared; empty otherwise.
    """

    chunks: Sequence[Chunk] = field(default_factory=list)
    real: bool = False
    labels: np.ndarray | None = None
    version: str = ""
    note: str = ""


@dataclass(frozen=True)
class KerasFailure:
    """Why nothing was done.

    Attributes:
        message: in one sentence.
        hint: what to do.
        is_data: the samples are to blame, not the model.
    """

    message: str
    hint: str = ""
    is_data: bool = False


class _Model:
    """A Keras model with names for what goes in and comes out.

    Args:
        model: the Keras model.
        path: its file, for messages.
        legacy: it is one of Keras 2.
    """

    def __init__(self, model: Any, path: str, legacy: bool) -> None:
        import tensorflow as tf

        self._tf = tf
        self._legacy = legacy
        self.model = model
        inputs = getattr(model, "inputs", None)
        if not inputs:
            raise ExportError(
                f"{path}: the model does not know its inputs: it was saved before it was built or called",
                hint="build it before saving: model.build(input_shape), or call it once",
            )
        names = getattr(model, "input_names", None) or [tensor.name for tensor in inputs]
        self.inputs = {
            _alias(name, i): tf.TensorSpec(tensor.shape, tensor.dtype, name=_alias(name, i))
            for i, (name, tensor) in enumerate(zip(names, inputs, strict=True))
        }

    def call(self, values: Any) -> dict[str, Any]:
        """Run the model as at inference; `values` are tensors in the order of `inputs`."""
        structure = getattr(self.model, "input", None)
        flat = list(values)
        packed = flat[0] if structure is None else self._tf.nest.pack_sequence_as(structure, flat)
        return self._named(self.model(packed, training=False))

    def _named(self, outputs: Any) -> dict[str, Any]:
        tf = self._tf
        if isinstance(outputs, Mapping):
            return {_alias(str(name), i): tf.identity(outputs[name]) for i, name in enumerate(sorted(outputs))}
        flat = tf.nest.flatten(outputs)
        names = list(getattr(self.model, "output_names", None) or [])
        if len(names) != len(flat) or len(set(names)) != len(names):
            names = [f"output_{i}" for i in range(len(flat))]
        return {_alias(name, i): tf.identity(tensor) for i, (name, tensor) in enumerate(zip(names, flat, strict=True))}

    def save(self, folder: str) -> None:
        """Write a SavedModel with the one signature."""
        tf = self._tf
        specs = list(self.inputs.values())
        if not self._legacy:
            # Variables of Keras 3 that are not trained are found by its own exporter only.
            archive = importlib.import_module("keras").export.ExportArchive()
            archive.track(self.model)
            archive.add_endpoint(DEFAULT_SIGNATURE, lambda *values: self.call(values), input_signature=specs)
            archive.write_out(folder, verbose=False)
            return
        function = tf.function(lambda *values: self.call(values), input_signature=specs)
        module = tf.Module()
        module.model = self.model
        module.serve = function
        tf.saved_model.save(module, folder, signatures={DEFAULT_SIGNATURE: function.get_concrete_function()})

    def signature(self) -> Signature:
        """Return what the model takes, as the rest of moxserve knows it."""
        specs = {
            alias: TensorSpec(alias, dtype_by_name(spec.dtype.name), tuple(spec.shape.as_list()))
            for alias, spec in self.inputs.items()
        }
        return Signature(DEFAULT_SIGNATURE, "", specs)

    def answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model on arrays by alias."""
        outputs = self.call([self._tf.constant(inputs[alias], spec.dtype) for alias, spec in self.inputs.items()])
        return {alias: np.asarray(tensor) for alias, tensor in outputs.items()}


def _alias(name: str, index: int) -> str:
    """Make a name of Keras one that a signature can carry."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.partition(":")[0]).lstrip("_.-") or f"tensor_{index}"


def _load(task: KerasTask) -> tuple[Any, str]:
    keras = importlib.import_module("tf_keras" if task.legacy else "keras")
    loader = keras.models.load_model if task.legacy else keras.saving.load_model
    try:
        return loader(task.job.path, compile=False), keras.__version__
    except (ValueError, TypeError, KeyError, ImportError, OSError, AttributeError) as error:
        raise ExportError(
            f"{task.job.path}: Keras {keras.__version__} cannot load it: {_reason(error)}",
            hint="a model with layers of your own is exported by the program that knows them: "
            "tf.saved_model.save(model, DIR), then moxserve export DIR",
        ) from error


def _reason(error: Exception) -> str:
    """Return the sentence that tells the cause; Keras puts it after the whole configuration."""
    match = re.search(r"Exception encountered: (.+)", str(error))
    return match[1] if match else first_line(error)


def _run(task: KerasTask, folder: str) -> KerasAnswer:
    loaded, version = _load(task)
    model = _Model(loaded, task.job.path, task.legacy)
    model.save(os.path.join(folder, "model"))
    samples = given_samples(task.job, model.signature())
    chunks = _answers(model, samples)
    if chunks:
        return KerasAnswer(chunks, True, samples.labels, version)
    note = chunk_rows(model.signature().inputs.values(), len(samples))[2]
    for zeros in made_up_inputs(model.signature()):
        try:
            return KerasAnswer([(zeros, model.answer(zeros))], version=version, note=note)
        except Exception:  # noqa: BLE001 - the model's own refusal of made-up values says nothing
            continue
    return KerasAnswer(version=version, note=note)


def _answers(model: _Model, samples: Samples) -> Sequence[Chunk]:
    import tensorflow as tf

    chunks = []
    size, usable, _ = chunk_rows(model.signature().inputs.values(), len(samples))
    for first in range(0, usable, size):
        inputs = {alias: values[first : min(first + size, usable)] for alias, values in samples.inputs.items()}
        try:
            chunks.append((inputs, model.answer(inputs)))
        except (tf.errors.OpError, ValueError) as error:
            raise DataError(f"the model refuses the samples: {first_line(error)}") from error
    return chunks


def main() -> None:
    """Do the task in the folder that the command line names, and leave the answer there."""
    die_with_parent()
    folder = sys.argv[1]
    with open(os.path.join(folder, "task"), "rb") as f:
        task = pickle.load(f)
    answer: KerasAnswer | KerasFailure
    try:
        load_inherited()
        answer = _run(task, folder)
    except MoxserveError as error:
        answer = KerasFailure(error.message, error.hint or "", isinstance(error, DataError))
    with open(os.path.join(folder, "answer"), "wb") as f:
        pickle.dump(answer, f)


if __name__ == "__main__":
    # Pickles name classes by their module, and this one runs under another name.
    from moxserve.export.sources import keras_worker

    keras_worker.main()
