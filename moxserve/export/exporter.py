"""The one way from a checkpoint to a published version, behind `run(export_model=...)`, pipelines and the command line.

    reference   model_fn in mode EXPORT, restored, in a graph of its own
    staging     a hidden directory beside the other versions; everything below happens in it
      saved_model   model_fn built a second time, signatures added, written, pruned
      verify        loaded back and compared with the reference on real rows
      warmup        records made of real rows, replayed
      manifest      signatures, figures, digests of all files
    publish     flushed to disk and renamed to `BASE/<version>/`

Whatever fails, the staging directory goes away and nothing is published.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from moxserve import __version__, file
from moxserve.export.graphs import ModelSession, open_model
from moxserve.export.job import ExportJob, ExportResult
from moxserve.export.manifest import Manifest, SignatureEntry, Source, Variant, Verification, Warmup, write_manifest
from moxserve.export.place import place
from moxserve.export.savedmodel import write_saved_model
from moxserve.export.signatures import check_classify
from moxserve.export.verify import open_artifact, verify
from moxserve.export.versions import check_version, normalize_version, publish_version
from moxserve.export.warmup import replay, write_warmup
from moxserve.tensorflow.executor import checkpoint
from moxserve.tensorflow.executor.env import tf
from moxserve.types import Signature

__all__ = ["export_tf_serving"]


@dataclass
class _Staged:
    """What is in the staging directory."""

    signatures: Mapping[str, Signature]
    verification: Verification
    warmup: Warmup
    notes: list[str] = field(default_factory=list)


def export_tf_serving(job: ExportJob) -> ExportResult:
    """Make a SavedModel of a checkpoint, verify it, and publish it as a version that TensorFlow Serving reads.

    Args:
        job: what to export, and where to.

    Returns:
        The published version.

    Raises:
        ModelSpecError: model_fn gives no ExportSpec in mode EXPORT, or one that cannot be exported.
        CheckpointError: the checkpoint is missing or does not fit the model.
        VersionExistsError: the version that was asked for is there already.
        VerificationError: the artifact does not answer as the model does.
        ExportError: TensorFlow or the file system failed.
    """
    started = time.monotonic()
    if job.version is not None:
        check_version(job.base_dir, job.version)
    with place("publishing the version"), _quiet(), contextlib.ExitStack() as stack:
        with place("building the model for export"):
            reference = stack.enter_context(open_model(job))
            check_classify(reference.endpoints)
        version = normalize_version(reference.version if job.version is None else job.version)
        staged = stack.enter_context(publish_version(job.base_dir, version))
        written = _stage(job, reference, staged.staging)
    return ExportResult(
        path=staged.path,
        version=staged.version,
        signatures=written.signatures,
        max_abs_error=written.verification.max_abs_error,
        warmup_records=written.warmup.records,
        size_bytes=file.get_size(staged.path),
        seconds=time.monotonic() - started,
        verified_rows=written.verification.rows,
        notes=tuple(written.notes),
    )


class _NoInfo(logging.Filter):
    """Holds back the INFO lines of one thread; a process-wide level would do so to a training beside it, too."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread or record.levelno > logging.INFO


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back TensorFlow's own lines: they name the staging directory, which is gone when a user reads them."""
    hold, logger = _NoInfo(), tf.get_logger()
    logger.addFilter(hold)
    try:
        yield
    finally:
        logger.removeFilter(hold)


def _stage(job: ExportJob, reference: ModelSession, staging: str) -> _Staged:
    with place("writing the SavedModel"):
        model = write_saved_model(job, staging)
    with contextlib.ExitStack() as stack:
        with place("loading the SavedModel back"):
            artifact = stack.enter_context(open_artifact(staging))
        with place("verifying the SavedModel"):
            verification, notes = verify(job, reference, artifact)
        with place("writing warmup records"):
            warmup = write_warmup(job, reference, list(model.signatures), staging)
            replay(staging, artifact)
    with place("writing the manifest"):
        write_manifest(staging, _manifest(job, model.signatures, verification, warmup))
    return _Staged(model.signatures, verification, warmup, [*model.notes, *notes])


def _manifest(
    job: ExportJob, signatures: Mapping[str, Signature], verification: Verification, warmup: Warmup
) -> Manifest:
    return Manifest(
        tools={"moxserve": __version__, "tensorflow": tf.__version__},
        model_name=job.model_name,
        signatures={name: SignatureEntry.from_signature(s) for name, s in signatures.items()},
        source=Source(checkpoint=job.checkpoint, global_step=checkpoint.global_step_of(job.checkpoint)),
        variants=(Variant(name="saved_model", format="saved_model", verification=verification),),
        warmup=warmup,
        metadata=dict(job.metadata),
    )
