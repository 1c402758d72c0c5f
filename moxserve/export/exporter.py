"""The one way from a source to a published version, behind `run(export_model=...)`, pipelines and the command line.

    source      read and found good (moxserve/export/sources/)
    staging     a hidden directory beside the other versions; everything below happens in it
      stage         a complete SavedModel, compared with the source on real rows
      variants      further forms of it, each compared with the source and measured
      warmup        records made of real rows, replayed
      report        what was found, for programs and for people
      manifest      signatures, figures, digests of all files
    publish     flushed to disk and renamed to `BASE/<version>/`
    push, keep  a server is seen to serve it; old versions are removed

Whatever fails, the staging directory goes away and nothing is published.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

from moxserve.errors import UsageError, VerificationError
from moxserve.export.job import ExportResult, JobOptions
from moxserve.export.manifest import Manifest, SignatureEntry, Variant, Warmup, write_manifest
from moxserve.export.place import place
from moxserve.export.publish import check_version, open_publication
from moxserve.export.publish.push import push_target, push_version
from moxserve.export.publish.retention import apply_retention
from moxserve.export.report import Report, write_report
from moxserve.export.report.collect import report_of, tools
from moxserve.export.request_logs import find_logs
from moxserve.export.requirements import read_conditions
from moxserve.export.sources import open_source
from moxserve.export.sources.base import StagedModel
from moxserve.export.transforms.grappler import check_passes
from moxserve.export.variants.make import SAVED_MODEL, MadeVariants, make_variants
from moxserve.export.versions import normalize_version
from moxserve.export.warmup import WrittenWarmup, write_warmup
from moxserve.talk import Talk, silent
from moxserve.tensorflow.executor.env import tf

__all__ = ["REPORT_DIR", "check_job", "export_tf_serving", "export_version"]

# Loaders of SavedModels leave `assets.extra` alone.
REPORT_DIR = os.path.join("assets.extra", "report")


def export_version(job: JobOptions, talk: Talk = silent) -> ExportResult:
    """Make a SavedModel and the variants that are asked for, verify them, and publish them as one version.

    Args:
        job: what to export, and where to.
        talk: told in one line what happens; nothing is told without variants.

    Returns:
        The published version.

    Raises:
        UsageError: an option cannot be read, or does not go with the source.
        ModelSpecError: model_fn gives no ExportSpec in mode EXPORT, or one that cannot be exported.
        CheckpointError: the checkpoint is missing or does not fit the model.
        VersionExistsError: the version that was asked for is there already.
        VerificationError: the artifact does not answer as the model does, or not as the user requires.
        ExportError: TensorFlow or the file system failed.
        ServerUnreachableError: it is published, and nobody answers at `push`. All old versions are left.
        ClientError: it is published, and the server does not serve it. All old versions are left.
    """
    started = time.monotonic()
    check_job(job)
    with place("publishing the version"), _quiet(), contextlib.ExitStack() as stack:
        with place("opening the source"):
            source = stack.enter_context(open_source(job))
        version = normalize_version(source.version if job.version is None else job.version)
        staged = stack.enter_context(open_publication(job.base_dir, version))
        with place("making the SavedModel"):
            model = source.stage(staged.staging)
        made = _variants(job, model, staged.staging, talk)
        warmup = _finish(job, model, made, staged.staging)
    report = _final_report(job, made, str(staged.version), staged.path)
    served_s = None
    if job.push:
        # Before old versions go: a server that cannot load the new one needs them.
        talk(f"published {staged.path}; waiting until {job.push} serves it")
        served_s = push_version(job.push, job.model_name, staged.version)
    removed = apply_retention(job.base_dir, job.keep, staged.version) if job.keep is not None else []
    return ExportResult(
        path=staged.path,
        version=staged.version,
        signatures=model.signatures,
        max_abs_error=model.verification.max_abs_error,
        warmup_records=warmup.entry.records,
        size_bytes=staged.size_bytes,
        seconds=time.monotonic() - started,
        verified_rows=model.verification.rows,
        notes=(*job.variants.without_effect(), *model.notes, *made.notes, *_warnings(made), *warmup.notes),
        report=report,
        removed=removed,
        served_s=served_s,
    )


def check_job(job: JobOptions) -> None:
    """Refuse what cannot be exported before any work is done; the source is not looked at.

    Raises:
        UsageError: an option cannot be read, or contradicts another.
        VersionExistsError: the version that was asked for is there already.
        DataError: the store of the versions refuses, or cannot be reached.
    """
    if job.version is not None:
        check_version(job.base_dir, job.version)
    if job.push:
        push_target(job.push)
        if job.version is not None and isinstance(normalize_version(job.version), str):
            raise UsageError(
                f"version {job.version!r} cannot be pushed: servers look for numbers only",
                hint="-1 takes the next free number",
            )
    asked = job.variants
    read_conditions(asked.require, asked.limits, asked.targets, measure=asked.measure)
    check_passes(asked.grappler)
    find_logs(job.warmup_logs)
    _check_report_dir(job.report_dir)


def _check_report_dir(folder: str) -> None:
    if not folder or "://" in folder:
        return
    there = os.path.abspath(folder)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise UsageError(f"report folder {folder!r}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"report folder {folder!r}: nothing may be written to {there}")


def _variants(job: JobOptions, model: StagedModel, staging: str, talk: Talk) -> MadeVariants:
    """Make what is asked for beside the SavedModel.

    Raises:
        VerificationError: it is not what the user requires. The report is in `report_dir` all the same.
    """
    asked = job.variants
    # The SavedModel is tried for what is required of it alone, too.
    if not asked.targets and not asked.require and not job.report_dir:
        return MadeVariants()
    with place("making variants"):
        made = make_variants(job, model, staging, talk)
        made.report = report_of(job, model, made)
        if job.report_dir:
            with place("writing the report"):
                write_report(job.report_dir, made.report)
        if made.failure:
            hint = f"the report is in {job.report_dir}" if job.report_dir else "--report DIR keeps the report"
            raise VerificationError(made.failure, hint=hint)
        write_report(os.path.join(staging, REPORT_DIR), made.report)
    return made


def _final_report(job: JobOptions, made: MadeVariants, version: str, path: str) -> Report | None:
    """Say in the report where the version was published, which only now is known."""
    if made.report is None:
        return None
    report = made.report.model_copy(update={"version": version, "path": path})
    if job.report_dir:
        write_report(job.report_dir, report)
    return report


def _warnings(made: MadeVariants) -> Iterator[str]:
    for report in made.reports:
        if report.verdict in ("dropped", "failed"):
            yield f"variant {report.name} {report.verdict}: {'; '.join(report.reasons)}"


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


def _finish(job: JobOptions, model: StagedModel, made: MadeVariants, staging: str) -> WrittenWarmup:
    """Add warmup records and the manifest to a staged model."""
    with place("writing warmup records"):
        warmup = write_warmup(job, model, staging)
    with place("writing the manifest"):
        write_manifest(staging, _manifest(job, model, made, warmup.entry))
    return warmup


def _manifest(job: JobOptions, model: StagedModel, made: MadeVariants, warmup: Warmup) -> Manifest:
    alone = Variant(name=SAVED_MODEL, format="saved_model", verification=model.verification)
    return Manifest(
        tools=tools(),
        model_name=job.model_name,
        signatures={name: SignatureEntry.from_signature(s) for name, s in model.signatures.items()},
        source=model.source,
        variants=made.variants or (alone,),
        warmup=warmup,
        metadata={**model.metadata, **job.metadata},
        op_libraries=model.op_libraries,
    )
