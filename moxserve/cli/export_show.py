"""What `moxserve export` prints: the plan of a dry run, and what was published."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moxserve.export.job import ExportResult, JobOptions

__all__ = ["print_json", "print_result", "print_variants", "show_plan"]


def show_plan(job: JobOptions, *, as_json: bool) -> None:
    """Say what an export would do."""
    from moxserve.cli.render import echo_json, echo_table
    from moxserve.export.exporter import check_job
    from moxserve.export.publish import next_version, version_path
    from moxserve.export.versions import AUTO, normalize_version

    version = normalize_version(AUTO if job.version is None else job.version)
    check_job(job)
    inputs = getattr(job, "inputs", None)
    facts: dict[str, Any] = {"checkpoint": getattr(job, "checkpoint", None), "source": getattr(job, "path", None)}
    if isinstance(inputs, list | tuple):
        facts["inputs"] = ", ".join(str(spec) for spec in inputs)
    facts |= {
        "samples": job.sample_rows or str(getattr(job, "samples_file", "")) or 0,
        "path": version_path(job.base_dir, next_version(job.base_dir) if version == AUTO else version),
        "model_name": job.model_name,
        "variants": [target.name for target in job.variants.targets],
        "warmup_batches": list(job.warmup_batches),
        "atol": job.atol,
        "rtol": job.rtol,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    if as_json:
        echo_json({"dry_run": True, **facts})
        return
    for key in ("variants", "warmup_batches"):
        facts[key] = ", ".join(str(item) for item in facts[key]) or "none"
    echo_table(("would use", "value"), [(key.replace("_", " "), value) for key, value in facts.items()])


def print_json(job: JobOptions, result: ExportResult) -> None:
    """Print the facts of a published version."""
    from moxserve.cli.render import echo_json
    from moxserve.export.manifest import read_manifest
    from moxserve.export.publish import absolute_base

    manifest = read_manifest(result.path) if os.path.isdir(result.path) else None
    verification = manifest.variants[0].verification if manifest is not None else None
    echo_json(
        {
            "path": absolute_base(result.path),
            "version": result.version,
            "model_name": job.model_name,
            "checkpoint": getattr(job, "checkpoint", None),
            "source": getattr(job, "path", None),
            "signatures": {name: str(signature) for name, signature in result.signatures.items()},
            "size_bytes": result.size_bytes,
            "max_abs_error": result.max_abs_error,
            "verified_rows": result.verified_rows,
            "verification": verification.model_dump() if verification is not None else None,
            "warmup_records": result.warmup_records,
            "variants": [v.model_dump(mode="json") for v in result.report.variants] if result.report else [],
            "removed": list(result.removed),
            "seconds": result.seconds,
            "notes": list(result.notes),
        }
    )


def print_result(job: JobOptions, result: ExportResult) -> None:
    """Print what was published, for people."""
    from moxserve.cli.render import echo_table
    from moxserve.export.publish import absolute_base

    click.echo(f"published {result.path}")
    rows = [
        ("version", result.version),
        ("size", f"{result.size_bytes / 1e6:.2f} MB"),
        ("max error", f"{result.max_abs_error:.2g} on {result.verified_rows} real rows"),
        ("warmup", f"{result.warmup_records} records"),
        ("seconds", f"{result.seconds:.1f}"),
    ]
    if result.removed:
        rows.append(("removed", "version " + ", ".join(str(number) for number in result.removed)))
    for name, value in rows:
        click.echo(f"  {name:<10}{value}")
    click.echo()
    signatures = [(n, _tensors(s.inputs), _tensors(s.outputs)) for n, s in result.signatures.items()]
    echo_table(("signature", "inputs", "outputs"), signatures, wrap={"inputs": 20, "outputs": 20})
    print_variants(result)
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    click.echo()
    if isinstance(result.version, int):
        base, name = absolute_base(job.base_dir), shlex.quote(job.model_name)
        click.echo(f"next: moxserve serve --model_name {name} --model_base_path {shlex.quote(base)}")
    else:
        click.echo(f"note: servers look for numbered versions; {result.version!r} is not one", err=True)


def print_variants(result: ExportResult) -> None:
    """Print the table of variants, if there are any, and where the report is."""
    from moxserve.cli.render import echo_table
    from moxserve.export.report import render_summary

    if result.report is None:
        return
    table = render_summary(result.report)
    click.echo()
    echo_table(table.columns, table.rows)
    click.echo()
    click.echo(f"report: {os.path.join(result.path, 'assets.extra', 'report', 'report.html')}")


def _tensors(specs: Any) -> str:
    return ", ".join(str(spec) for spec in specs.values())
