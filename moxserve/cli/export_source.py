"""Which job a `moxserve export SOURCE` is: what SOURCE names, and the options that go with it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moxserve.cli.export_options import stage_changes
from moxserve.cli.quiet import import_tensorflow
from moxserve.errors import UsageError

if TYPE_CHECKING:
    from moxserve.config.models import ExportStage
    from moxserve.export.job import JobOptions
    from moxserve.pipeline.prepared import PreparedRun

__all__ = ["open_job"]

_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
_KINDS = (
    "a pipeline file (.yaml), the directory of a run, a SavedModel, a frozen graph (.pb), a Keras file or a checkpoint"
)


@contextlib.contextmanager
def open_job(source: str, base_dir: str | None, options: Mapping[str, Any]) -> Iterator[JobOptions]:
    """Describe an export; what goes wrong inside the block is told as the pipeline's export stage, if there is one.

    Args:
        source: what the user named.
        base_dir: where to; None takes what the pipeline says.
        options: of the command line, by parameter name.

    Yields:
        The job.

    Raises:
        UsageError: the source is nothing that can be exported, or an option does not go with it.
    """
    prepared = _prepare(source)
    if prepared is None:
        job = _model_file(source, base_dir, options)
        import_tensorflow()
        yield job
        return
    from moxserve.pipeline.stage import silent, stage

    _refuse(options, ("model_fn", "inputs", "outputs", "tags", "rows"), "a pipeline or its run")
    with stage(prepared.loaded, "export", silent, prepared.data.diagnose):
        yield _of_pipeline(prepared, base_dir, options)


def _prepare(source: str) -> PreparedRun | None:
    """Build the pipeline that SOURCE names; None when it is something else."""
    from moxserve import file
    from moxserve.config import load_pipeline
    from moxserve.file.filesystem import is_remote, join
    from moxserve.pipeline.prepared import RESOLVED, load_run, prepare

    if source.endswith((".yaml", ".yml")) and (is_remote(source) or os.path.isfile(source)):
        loaded = load_pipeline(source, check=True)
        import_tensorflow()
        return prepare(loaded)
    if _is_file(join(source, RESOLVED)):
        import_tensorflow()
        return load_run(source)
    if file.is_directory(source) and not _saved_model(source):
        raise _no_source(source)
    return None


def _is_file(path: str) -> bool:
    """Whether there is a file, here or in a store."""
    from moxserve.file.filesystem import locate

    fs, path = locate(path)
    return fs.is_file(path)


def _no_source(folder: str) -> UsageError:
    """Say that a folder is nothing that can be exported, what it holds, and what may have been meant."""
    from moxserve import file
    from moxserve.file.filesystem import join
    from moxserve.pipeline.prepared import RESOLVED

    names = file.list_directory(folder)
    held = f"it holds {', '.join(names[:6])}{' …' if len(names) > 6 else ''}" if names else "it is empty"
    hint = "give the log_dir of a finished `moxserve pipeline run`, or the folder of a SavedModel"
    checkpoints = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if checkpoints:
        prefix = join(folder, checkpoints[-1])
        hint = f"a checkpoint needs its model: {prefix} --model-fn MODULE:NAME --input NAME=DTYPE[SHAPE]"
    return UsageError(f"{folder!r} holds no {RESOLVED}, which a run leaves there, and no SavedModel; {held}", hint=hint)


def _saved_model(source: str) -> str:
    """Return the directory of the SavedModel that SOURCE names, the newest version of a base; empty when it is none."""
    from moxserve import file
    from moxserve.export.versions import parse_version
    from moxserve.file.filesystem import join

    if source.rpartition("/")[2] in _SAVED_MODEL and _is_file(source):
        return os.path.dirname(source) or "."
    if not file.is_directory(source):
        return ""
    names = file.list_directory(source)
    if not set(names).isdisjoint(_SAVED_MODEL):
        return source
    # By name, not by number: `00000123` is a version, too.
    versions = [name for name in names if parse_version(name) is not None]
    newest = join(source, max(versions, key=lambda name: parse_version(name) or 0)) if versions else ""
    return newest if newest and any(_is_file(join(newest, name)) for name in _SAVED_MODEL) else ""


def _of_pipeline(prepared: PreparedRun, base_dir: str | None, options: Mapping[str, Any]) -> JobOptions:
    from moxserve.pipeline.steps import find_checkpoint

    told = prepared.config.export
    if base_dir is None and told is None:
        raise UsageError("nothing says what to make", hint="--tf-serving DIR, or export.tf_serving in the pipeline")
    base = base_dir or (told.tf_serving if told is not None else "")
    changes = stage_changes(options)
    name = options["model_name"] or (told.model_name if told is not None else "default")
    changes["model_name"] = _name_of(base) if name == "default" else name
    checkpoint = find_checkpoint(options["checkpoint"]) if options["checkpoint"] else None
    job = prepared.export_job(base, checkpoint, **changes)
    return dataclasses.replace(job, version=options["version"], check_eval=options["check_eval"])


def _name_of(base: str) -> str:
    return os.path.basename((base if "://" in base else os.path.abspath(base)).rstrip("/")) or "default"


def _model_file(source: str, base_dir: str | None, options: Mapping[str, Any]) -> JobOptions:
    """Describe the export of a model that has no pipeline."""
    from moxserve.export.options import read_stage

    _check_kind(source)
    if base_dir is None:
        raise UsageError("nothing says where to publish", hint="--tf-serving DIR")
    name = options["model_name"] or _name_of(base_dir)
    stage = read_stage({**stage_changes(options), "tf_serving": base_dir, "model_name": name})
    if _is_file(f"{source}.index"):
        return _of_checkpoint(source, stage, options)
    _refuse(options, ("checkpoint", "model_fn"), "a model that is whole")
    return _of_file(source, stage, options)


def _check_kind(source: str) -> None:
    """Refuse what is nothing that can be exported.

    Raises:
        UsageError: it is not.
    """
    from moxserve import file

    known = source.endswith((".pb", ".pbtxt", ".keras", ".h5", ".hdf5"))
    if _saved_model(source) or _is_file(f"{source}.index") or (_is_file(source) and known):
        return
    there = "" if file.exists(source) else "there is no such file or directory; "
    raise UsageError(f"{source!r}: {there}expected {_KINDS}", hint="moxserve pipeline list shows pipelines")


def _refuse(options: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    given = [name for name in names if options[name]]
    if given:
        spelled = {"inputs": "input", "outputs": "output"}.get(given[0], given[0]).replace("_", "-")
        raise UsageError(f"--{spelled} does not go with {what}")


def _rows(stage: ExportStage, options: Mapping[str, Any]) -> dict[str, Any]:
    from moxserve.export.options import sample_rows

    limit = sample_rows(stage)
    return {"samples_file": options["rows"] or "", "sample_limit": limit, "version": options["version"]}


def _of_file(source: str, stage: ExportStage, options: Mapping[str, Any]) -> JobOptions:
    from moxserve.export.job import GraphJob, KerasJob, SavedModelJob
    from moxserve.export.options import job_options

    common = {**job_options(stage), **_rows(stage, options)}
    folder = _saved_model(source)
    if folder:
        _refuse(options, ("inputs", "outputs"), "a SavedModel, which names its own")
        return SavedModelJob(folder, tags=tuple(options["tags"] or ("serve",)), **common)
    _refuse(options, ("tags",), "anything but a SavedModel")
    if source.endswith((".pb", ".pbtxt")):
        inputs, outputs = (dict(text.split("=", 1) for text in options[key]) for key in ("inputs", "outputs"))
        return GraphJob(source, inputs=inputs, outputs=outputs, **common)
    _refuse(options, ("inputs", "outputs"), "a Keras file, which names its own")
    return KerasJob(source, **common)


def _of_checkpoint(source: str, stage: ExportStage, options: Mapping[str, Any]) -> JobOptions:
    """Describe the export of a checkpoint and the function that builds its model."""
    from moxserve.export.options import job_options, sample_rows
    from moxserve.export.sources.model_fn import load_model_fn, parse_input, read_rows

    if not options["model_fn"]:
        raise UsageError(
            f"{source!r} is a checkpoint, which does not say what its model is",
            hint=f"moxserve export RUN_DIR --checkpoint {source}, or --model-fn MODULE:NAME --input NAME=DTYPE[SHAPE]",
        )
    _refuse(options, ("outputs", "tags", "checkpoint"), "a checkpoint and --model-fn")
    if not options["inputs"]:
        raise UsageError("--model-fn needs its inputs", hint="--input image=uint8[?,28,28,1], once for each, in order")
    from moxserve.export.job import ExportJob

    import_tensorflow()
    inputs = [parse_input(text) for text in options["inputs"]]
    samples = read_rows(options["rows"], inputs, sample_rows(stage)) if options["rows"] else ()
    return ExportJob(
        model_fn=load_model_fn(options["model_fn"]),
        inputs=inputs,
        checkpoint=source,
        samples=samples,
        version=options["version"],
        check_eval=options["check_eval"],
        **job_options(stage),
    )
