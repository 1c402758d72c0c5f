"""Where an export comes from: each source becomes a complete, verified SavedModel in a directory.

    base        what a source gives; choosing the main signature
    checkpoint  model_fn and a checkpoint
    saved_model any SavedModel; protos reads and cleans them, samples finds real rows, parsing makes
                tf.Examples of them, answers compares
    graph       a frozen GraphDef
    keras       a Keras file; keras_worker converts it in a process of its own
    model_fn    what a command line says about a model_fn

Everything that comes after (variants, warmup, report) knows the model by its `StagedModel` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from moxserve.errors import UsageError
from moxserve.export.job import ExportJob, GraphJob, JobOptions, KerasJob, ModelFileJob, SavedModelJob
from moxserve.export.op_libraries import copy_op_libraries, load_op_library
from moxserve.export.sources.base import OpenSource, StagedModel
from moxserve.file.filesystem import is_remote
from moxserve.file.standins import copied_here
from moxserve.types import DEFAULT_SIGNATURE

__all__ = ["OpenSource", "StagedModel", "open_source", "stage_model"]


@contextlib.contextmanager
def open_source(job: JobOptions) -> Iterator[OpenSource]:
    """Read what a job is made of, so far as that is possible without writing anything.

    Args:
        job: of any kind. A model that is in a store is fetched.

    Yields:
        The source; it must be staged inside the block.

    Raises:
        UsageError: there is no source of that kind, or it is not what it was said to be.
        ExportError: it cannot be read.
        MoxFileNotExistsException: it is not in the store.
    """
    for path in job.op_libraries:
        load_op_library(path)
    with _here(job) as (job_here, url), _open(job_here) as source:
        yield _Named(_WithLibraries(source, job.op_libraries), url)


@contextlib.contextmanager
def _here(job: JobOptions) -> Iterator[tuple[JobOptions, str]]:
    """Let a local path stand for a model in a store; gives the URL too, empty for all other jobs."""
    if not isinstance(job, ModelFileJob) or not is_remote(job.path):
        yield job, ""
        return
    with copied_here(job.path) as path:
        yield replace(job, path=path), job.path


def _open(job: JobOptions) -> AbstractContextManager[OpenSource]:
    if isinstance(job, ExportJob):
        from moxserve.export.sources.checkpoint import open_checkpoint

        return open_checkpoint(job)
    if isinstance(job, SavedModelJob):
        from moxserve.export.sources.saved_model import open_saved_model

        return open_saved_model(job)
    asked = job.variants.signature
    if asked not in ("", DEFAULT_SIGNATURE):
        raise UsageError(f"there is no signature {asked!r}: such a model gets one, {DEFAULT_SIGNATURE!r}")
    if isinstance(job, GraphJob):
        from moxserve.export.sources.graph import open_graph

        return open_graph(job)
    if isinstance(job, KerasJob):
        from moxserve.export.sources.keras import open_keras

        return open_keras(job)
    raise UsageError(f"nothing exports a {type(job).__name__}")


@dataclass(frozen=True)
class _Named:
    """A source that is known by its URL, if it has one."""

    source: OpenSource
    url: str

    @property
    def version(self) -> int | str:
        return self.source.version

    def stage(self, directory: str) -> StagedModel:
        model = self.source.stage(directory)
        return replace(model, source=model.source.model_copy(update={"path": self.url})) if self.url else model


@dataclass(frozen=True)
class _WithLibraries:
    """A source whose libraries of custom operations go along with the model."""

    source: OpenSource
    libraries: Sequence[str]

    @property
    def version(self) -> int | str:
        return self.source.version

    def stage(self, directory: str) -> StagedModel:
        model = self.source.stage(directory)
        return replace(model, op_libraries=copy_op_libraries(self.libraries, directory, model.op_libraries))


def stage_model(job: JobOptions, directory: str) -> StagedModel:
    """Make a complete SavedModel of a job's source, compared with it.

    Args:
        job: of any kind.
        directory: empty directory to write into.

    Raises:
        UsageError: the job does not fit its source.
        ExportError: the source cannot be read or written.
        VerificationError: the SavedModel answers differently.
    """
    with open_source(job) as source:
        return source.stage(directory)
