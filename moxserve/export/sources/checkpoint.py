"""A checkpoint and the function that builds its model, as a source of an export.

    reference   model_fn in mode EXPORT, restored, in a graph of its own
    saved_model model_fn built a second time, signatures added, written, pruned
    verify      loaded back and compared with the reference, and with mode EVAL, on real rows

The training graph is never exported.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from moxserve.errors import UsageError
from moxserve.export.graphs import ModelSession, open_model
from moxserve.export.job import ExportJob
from moxserve.export.manifest import Source
from moxserve.export.place import place
from moxserve.export.savedmodel import write_saved_model
from moxserve.export.signatures import check_signatures, main_key
from moxserve.export.sources.base import StagedModel, find_scores, main_signature
from moxserve.export.verify import open_artifact, verify
from moxserve.tensorflow.executor import checkpoint
from moxserve.tensorflow.executor.remote import checkpoint_here

__all__ = ["CheckpointSource", "open_checkpoint"]

_LABEL_NAMES = ("label", "labels")


class CheckpointSource:
    """A model that is built and restored. See `OpenSource`.

    Args:
        job: what to export.
        reference: the model in mode EXPORT.
        known_as: prefix of the checkpoint, a URL where it was fetched from a store.
    """

    def __init__(self, job: ExportJob, reference: ModelSession, known_as: str) -> None:
        self.job = job
        self._known_as = known_as
        self._reference = reference

    @property
    def version(self) -> int | str:
        """The ExportSpec's version."""
        return self._reference.version

    def stage(self, directory: str) -> StagedModel:
        """Write the SavedModel and compare it with the graph of model_fn.

        Raises:
            ModelSpecError: the ExportSpec cannot be exported.
            CheckpointError: the checkpoint does not fit the model.
            VerificationError: the SavedModel answers differently.
        """
        job = self.job
        with place("writing the SavedModel"):
            written = write_saved_model(job, directory)
        with contextlib.ExitStack() as stack:
            with place("loading the SavedModel back"):
                artifact = stack.enter_context(open_artifact(directory))
            with place("verifying the SavedModel"):
                verified = verify(job, self._reference, artifact)
        main = main_signature(written.signatures, job.variants.signature or main_key(self._reference.endpoints))
        requests = {key: gathered.rows() for key, gathered in verified.gathered.items() if gathered.inputs}
        rows = requests.get(main, {})
        count = len(next(iter(rows.values()))) if rows else 0
        return StagedModel(
            signatures=written.signatures,
            main=main,
            rows=rows,
            expected=verified.gathered[main].expected(written.signatures[main]) if rows else {},
            labels=_labels(job, count),
            scores=find_scores(written.signatures[main], self._reference.endpoints.scores),
            verification=verified.verification,
            source=Source(checkpoint=self._known_as, global_step=checkpoint.global_step_of(job.checkpoint)),
            notes=(*written.notes, *verified.notes),
            requests=requests,
        )


@contextlib.contextmanager
def open_checkpoint(job: ExportJob) -> Iterator[CheckpointSource]:
    """Build the model in mode EXPORT and restore it.

    Raises:
        ModelSpecError: model_fn gives no ExportSpec in mode EXPORT, or one that cannot be exported.
        DataError: the checkpoint is in a store that cannot be read.
        CheckpointError: the checkpoint is missing or does not fit the model.
    """
    with contextlib.ExitStack() as stack:
        prefix, known_as = stack.enter_context(checkpoint_here(job.checkpoint))
        job = dataclasses.replace(job, checkpoint=prefix)
        with place("building the model for export"):
            reference = stack.enter_context(open_model(job))
            check_signatures(reference.endpoints)
        yield CheckpointSource(job, reference, known_as)


def _labels(job: ExportJob, count: int) -> np.ndarray | None:
    """Return the right classes of the first rows, where an input of model_fn holds them.

    Raises:
        UsageError: the input that was named holds no whole number for each row.
    """
    if not count:
        return None
    for spec, values in zip(job.inputs, job.samples, strict=True):
        fits = values.ndim == 1 and values.dtype.kind in "iu"
        if job.label_input == spec.name and not fits:
            raise UsageError(f"label_input {spec.name!r} is {spec}; expected one whole number for each row")
        if fits and (spec.name == job.label_input if job.label_input else spec.name in _LABEL_NAMES):
            return np.asarray(values[:count])
    return None
