"""The one way from a source to a published version, behind `run(export_model=...)`, pipelines and the command line.

    source      read and found good (moxserve/export/sources/)
    staging     a hidden directory beside the other versions; everything below happens in it
      stage         a complete SavedModel, compared with the source on real rows
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
from collections.abc import Iterator

from moxserve import __version__, file
from moxserve.export.job import ExportResult, JobOptions
from moxserve.export.manifest import Manifest, SignatureEntry, Variant, Warmup, write_manifest
from moxserve.export.place import place
from moxserve.export.sources import open_source
from moxserve.export.sources.base import StagedModel
from moxserve.export.verify import open_artifact
from moxserve.export.versions import check_version, normalize_version, publish_version
from moxserve.export.warmup import replay, write_warmup
from moxserve.tensorflow.executor.env import tf

__all__ = ["export_tf_serving", "export_version"]


def export_version(job: JobOptions) -> ExportResult:
    """Make a SavedModel of a job's source, verify it, and publish it as a version that TensorFlow Serving reads.

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
        source = stack.enter_context(open_source(job))
        version = normalize_version(source.version if job.version is None else job.version)
        staged = stack.enter_context(publish_version(job.base_dir, version))
        model = source.stage(staged.staging)
        warmup = _finish(job, model, staged.staging)
    return ExportResult(
        path=staged.path,
        version=staged.version,
        signatures=model.signatures,
        max_abs_error=model.verification.max_abs_error,
        warmup_records=warmup.records,
        size_bytes=file.get_size(staged.path),
        seconds=time.monotonic() - started,
        verified_rows=model.verification.rows,
        notes=model.notes,
    )


export_tf_serving = export_version


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


def _finish(job: JobOptions, model: StagedModel, staging: str) -> Warmup:
    """Add warmup records and the manifest to a staged model."""
    with place("writing warmup records"):
        warmup = write_warmup(job, model, staging)
        if warmup.records:
            with open_artifact(staging) as artifact:
                replay(staging, artifact)
    with place("writing the manifest"):
        write_manifest(staging, _manifest(job, model, warmup))
    return warmup


def _manifest(job: JobOptions, model: StagedModel, warmup: Warmup) -> Manifest:
    return Manifest(
        tools={"moxserve": __version__, "tensorflow": tf.__version__},
        model_name=job.model_name,
        signatures={name: SignatureEntry.from_signature(s) for name, s in model.signatures.items()},
        source=model.source,
        variants=(Variant(name="saved_model", format="saved_model", verification=model.verification),),
        warmup=warmup,
        metadata=dict(job.metadata),
        op_libraries=model.op_libraries,
    )
