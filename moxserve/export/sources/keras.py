"""A Keras model file (`.keras`, `.h5`) as a source: converted and run by Keras in a process of its own, then copied.

The SavedModel is compared with what Keras itself computed, not with Keras' SavedModel.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moxserve import file
from moxserve.errors import DataError, ExportError, MissingExtraError
from moxserve.export.children import child_environment, how_it_ended, last_lines
from moxserve.export.job import KerasJob
from moxserve.export.manifest import Source
from moxserve.export.place import place
from moxserve.export.savedmodel import channels_first_notes
from moxserve.export.sources import protos
from moxserve.export.sources.answers import Answers, Case, Origin, no_samples, stage_answers
from moxserve.export.sources.base import StagedModel
from moxserve.export.sources.keras_worker import KerasAnswer, KerasFailure, KerasTask
from moxserve.export.sources.saved_model import copy_saved_model
from moxserve.types import DEFAULT_SIGNATURE

__all__ = ["KerasSource", "open_keras"]

_WORKER = "moxserve.export.sources.keras_worker"


@dataclass(frozen=True)
class KerasSource:
    """A Keras file whose kind is known. See `OpenSource`.

    Attributes:
        job: what to export.
        legacy: the file is of Keras 2.
    """

    job: KerasJob
    legacy: bool

    @property
    def version(self) -> int | str:
        """-1: a Keras file asks for no number."""
        return -1

    def stage(self, directory: str) -> StagedModel:
        """Convert the model, and compare the SavedModel with what Keras computes.

        Raises:
            DataError: the samples do not fit.
            ExportError: Keras cannot load the file, or convert the model.
            VerificationError: the SavedModel answers differently.
        """
        with file.scratch_directory() as folder:
            with place("converting the Keras model"):
                answer = _convert(KerasTask(self.job, self.legacy), folder)
            model = os.path.join(folder, "model")
            meta = protos.read_meta_graph(model, ("serve",))
            keys = {DEFAULT_SIGNATURE: DEFAULT_SIGNATURE}
            with place("writing the SavedModel"):
                copy_saved_model(model, meta, keys, directory)
        notes = (f"loaded by Keras {answer.version}", *channels_first_notes(meta.graph_def))
        source = Source(kind="keras", path=os.path.abspath(self.job.path))
        origin = Origin(DEFAULT_SIGNATURE, keys, "Keras model", source, notes)
        return stage_answers(self.job, _answers(answer), directory, origin)


@contextlib.contextmanager
def open_keras(job: KerasJob) -> Iterator[KerasSource]:
    """Find out what kind of Keras file this is.

    Raises:
        ExportError: it is none, or holds weights only.
        MissingExtraError: the Keras that it needs is not installed.
    """
    with place("reading the Keras file"):
        legacy = _version(job.path) < 3
        package = "tf_keras" if legacy else "keras"
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "tensorflow", f"reading {job.path}, a file of Keras {2 if legacy else 3},")
    yield KerasSource(job, legacy)


def _version(path: str) -> int:
    """Return which generation of Keras wrote a file.

    Raises:
        ExportError: it is no Keras model.
    """
    if not os.path.isfile(path):
        raise ExportError(f"there is no file {path!r}; expected a Keras model, .keras or .h5")
    if zipfile.is_zipfile(path):
        return _of_zip(path)
    h5py: Any = importlib.import_module("h5py")
    if not h5py.is_hdf5(path):
        raise ExportError(f"{path} is no Keras model: neither a .keras archive nor an HDF5 file")
    with h5py.File(path, "r") as f:
        if "model_config" not in f.attrs:
            raise ExportError(
                f"{path} holds weights only, not the model that they belong to", hint="save it with model.save(PATH)"
            )
        return _major(f.attrs.get("keras_version", "2"))


def _of_zip(path: str) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            if "config.json" not in archive.namelist():
                raise ExportError(f"{path} is no Keras model: the archive has no config.json")
            metadata = json.loads(archive.read("metadata.json"))
            return _major(metadata.get("keras_version", "3"))
    except (zipfile.BadZipFile, KeyError, ValueError, AttributeError) as error:
        raise ExportError(f"{path} cannot be read as a Keras model: {type(error).__name__}: {error}") from error


def _major(version: str | bytes) -> int:
    text = version.decode() if isinstance(version, bytes) else str(version)
    number = text.partition(".")[0]
    return int(number) if number.isdecimal() else 2


def _convert(task: KerasTask, folder: str) -> KerasAnswer:
    with open(os.path.join(folder, "task"), "wb") as f:
        pickle.dump(task, f)
    log = os.path.join(folder, "log")
    environment = {
        **child_environment(),
        "TF_USE_LEGACY_KERAS": "1" if task.legacy else "0",
        "KERAS_BACKEND": "tensorflow",
    }
    with open(log, "wb") as out:
        code = subprocess.run(
            [sys.executable, "-m", _WORKER, folder], stdout=out, stderr=out, env=environment, check=False
        ).returncode
    if code or not os.path.exists(os.path.join(folder, "answer")):
        raise ExportError(f"the process that ran Keras {how_it_ended(code)}: {last_lines(log)}")
    with open(os.path.join(folder, "answer"), "rb") as f:
        answer = pickle.load(f)
    if isinstance(answer, KerasFailure):
        raise (DataError if answer.is_data else ExportError)(answer.message, hint=answer.hint or None)
    return answer


def _answers(told: KerasAnswer) -> Answers:
    answers = Answers(mode=("samples" if told.real else "zeros") if told.chunks else "loaded")
    for inputs, outputs in told.chunks:
        answers.cases.append(Case(DEFAULT_SIGNATURE, answers.rows, inputs, outputs))
        if told.real:
            answers.gathered.add(inputs, outputs)
            answers.rows += len(next(iter(inputs.values())))
    if told.real:
        answers.labels = None if told.labels is None else told.labels[: answers.rows]
    else:
        answers.notes.append(told.note or no_samples(answers.mode))
    if answers.gathered.note:
        answers.notes.append(answers.gathered.note)
    return answers
