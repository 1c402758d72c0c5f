"""`moxserve export`: a checkpoint of a pipeline becomes a verified, versioned artifact."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moxserve.export.job import ExportJob, ExportResult
    from moxserve.pipeline.runner import PreparedRun

__all__ = ["export"]


def _batch_sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read `1,8,32`."""
    if value is None:
        return None
    words = [word.strip() for word in value.split(",") if word.strip()]
    sizes = tuple(int(word) if word.isdecimal() else 0 for word in words)
    if not sizes or min(sizes) < 1:
        expected = "whole numbers of at least 1 with commas between, such as 1,8,32"
        raise click.BadParameter(f"{value!r}: expected {expected}", ctx, param)
    return sizes


@click.command(
    epilog="\b\nExamples:\n  moxserve export runs/digits --tf-serving models/digits\n"
    "  moxserve export pipelines/digits.yaml --tf-serving models/digits --version 7 --warmup-batches 1,16"
)
@click.argument("source", type=click.Path())
@click.option(
    "--tf-serving",
    "base_dir",
    type=click.Path(file_okay=False),
    help="Publish a SavedModel as DIR/<version>/, which TensorFlow Serving reads. "
    "Default: export.tf_serving of the pipeline.",
)
@click.option(
    "--model-name", help="Name that clients ask for. Default: export.model_name of the pipeline, or DIR's name."
)
@click.option(
    "--version", help="Number or folder name; -1 for the next free number. Default: what the model says, or -1."
)
@click.option("--checkpoint", type=click.Path(), help="Checkpoint prefix or folder. Default: the newest of the run.")
@click.option("--samples", type=click.IntRange(min=1), help="Real rows to verify and warm up with. Default: 64.")
@click.option("--warmup/--no-warmup", default=True, help="Write warmup records.  [default: warmup]")
@click.option("--warmup-batches", callback=_batch_sizes, help="Batch sizes of the warmup records. Default: 1,8,32.")
@click.option(
    "--atol", type=click.FloatRange(min=0), help="Absolute difference that verification lets pass. Default: 1e-5."
)
@click.option("--rtol", type=click.FloatRange(min=0), help="The same, relative to the reference. Default: 1e-4.")
@click.option(
    "--check-eval/--no-check-eval", default=True, help="Compare with the EVAL graph too.  [default: check-eval]"
)
@click.option("--dry-run", is_flag=True, help="Say what would be exported, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def export(source: str, base_dir: str | None, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Turn a checkpoint into a verified, versioned artifact.

    SOURCE is a pipeline's YAML file, or the directory of a run of it. The artifact is loaded back and compared with the
    training graph on real rows before it is published; when an answer differs, nothing is published and the exit code
    is 5.
    """
    from moxserve.pipeline.stage import silent, stage

    prepared = _prepare(source)
    with stage(prepared.loaded, "export", silent, prepared.data.diagnose):
        job = _job(prepared, base_dir, options)
        if dry_run:
            _show_plan(job, as_json)
            return
        from moxserve.export.exporter import export_tf_serving

        result = export_tf_serving(job)
    if as_json:
        _print_json(job, result)
    else:
        _print_result(job, result)


def _prepare(source: str) -> PreparedRun:
    """Build the pipeline that SOURCE names.

    Raises:
        UsageError: it is neither a pipeline file nor a directory.
    """
    from moxserve.cli.quiet import import_tensorflow
    from moxserve.config import load_pipeline
    from moxserve.errors import UsageError
    from moxserve.pipeline.runner import load_run, prepare

    if os.path.isdir(source):
        import_tensorflow()
        return load_run(source)
    if os.path.isfile(source) and source.endswith((".yaml", ".yml")):
        loaded = load_pipeline(source, check=True)
        import_tensorflow()
        return prepare(loaded)
    if os.path.isfile(f"{source}.index"):
        raise UsageError(
            f"{source!r} is a checkpoint, which does not say what its model is",
            hint=f"moxserve export RUN_DIR --checkpoint {source}",
        )
    raise UsageError(
        f"{source!r}: expected a pipeline file (.yaml) or the directory of a run",
        hint="moxserve pipeline list shows pipelines",
    )


def _job(prepared: PreparedRun, base_dir: str | None, options: dict[str, Any]) -> ExportJob:
    """Describe the export, options of the command line before those of the file.

    Raises:
        UsageError: nobody says where to.
    """
    import dataclasses

    from moxserve.errors import UsageError
    from moxserve.pipeline.steps import find_checkpoint

    told = prepared.config.export
    if base_dir is None and told is None:
        raise UsageError("nothing says what to make", hint="--tf-serving DIR, or export.tf_serving in the pipeline")
    base = base_dir or (told.tf_serving if told is not None else "")
    changes = {key: options[key] for key in ("samples", "atol", "rtol") if options[key] is not None}
    name = options["model_name"] or (told.model_name if told is not None else "default")
    changes["model_name"] = os.path.basename(os.path.abspath(base)) if name == "default" else name
    if not options["warmup"]:
        changes["warmup"] = []
    elif options["warmup_batches"] is not None:
        changes["warmup"] = list(options["warmup_batches"])
    checkpoint = find_checkpoint(options["checkpoint"]) if options["checkpoint"] else None
    job = prepared.export_job(base, checkpoint, **changes)
    return dataclasses.replace(job, version=options["version"], check_eval=options["check_eval"])


def _show_plan(job: ExportJob, as_json: bool) -> None:
    from moxserve.cli.render import echo_json, echo_table
    from moxserve.export.versions import AUTO, check_version, next_version, normalize_version

    version = normalize_version(AUTO if job.version is None else job.version)
    check_version(job.base_dir, version)
    facts = {
        "checkpoint": job.checkpoint,
        "inputs": ", ".join(str(spec) for spec in job.inputs),
        "samples": job.sample_rows,
        "path": os.path.join(job.base_dir, str(next_version(job.base_dir) if version == AUTO else version)),
        "model_name": job.model_name,
        "warmup_batches": list(job.warmup_batches),
        "atol": job.atol,
        "rtol": job.rtol,
    }
    if as_json:
        echo_json({"dry_run": True, **facts})
        return
    facts["warmup_batches"] = ", ".join(str(size) for size in job.warmup_batches) or "none"
    echo_table(("would use", "value"), [(key.replace("_", " "), value) for key, value in facts.items()])


def _print_json(job: ExportJob, result: ExportResult) -> None:
    from moxserve.cli.render import echo_json
    from moxserve.export.manifest import read_manifest

    manifest = read_manifest(result.path)
    verification = manifest.variants[0].verification if manifest is not None else None
    echo_json(
        {
            "path": os.path.abspath(result.path),
            "version": result.version,
            "model_name": job.model_name,
            "checkpoint": job.checkpoint,
            "signatures": {name: str(signature) for name, signature in result.signatures.items()},
            "size_bytes": result.size_bytes,
            "max_abs_error": result.max_abs_error,
            "verified_rows": result.verified_rows,
            "verification": verification.model_dump() if verification is not None else None,
            "warmup_records": result.warmup_records,
            "seconds": result.seconds,
            "notes": list(result.notes),
        }
    )


def _print_result(job: ExportJob, result: ExportResult) -> None:
    from moxserve.cli.render import echo_table

    click.echo(f"published {result.path}")
    rows = [
        ("version", result.version),
        ("size", f"{result.size_bytes / 1e6:.2f} MB"),
        ("max error", f"{result.max_abs_error:.2g} on {result.verified_rows} real rows"),
        ("warmup", f"{result.warmup_records} records"),
        ("seconds", f"{result.seconds:.1f}"),
    ]
    for name, value in rows:
        click.echo(f"  {name:<10}{value}")
    click.echo()
    signatures = [(n, _tensors(s.inputs), _tensors(s.outputs)) for n, s in result.signatures.items()]
    echo_table(("signature", "inputs", "outputs"), signatures, wrap={"inputs": 20, "outputs": 20})
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    click.echo()
    base = os.path.abspath(job.base_dir)
    if isinstance(result.version, int):
        click.echo(f"next: moxserve serve --model_name {job.model_name} --model_base_path {base}")
    else:
        click.echo(f"note: servers look for numbered versions; {result.version!r} is not one", err=True)


def _tensors(specs: Any) -> str:
    return ", ".join(str(spec) for spec in specs.values())
