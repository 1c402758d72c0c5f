"""`moxserve export`: a trained model becomes a verified, measured version in every form that is asked for."""

from __future__ import annotations

from typing import Any

import click

from moxserve.cli.export_options import GroupedCommand, apply_options

__all__ = ["export"]


@click.command(
    cls=GroupedCommand,
    epilog="\b\nExamples:\n  moxserve export runs/digits --tf-serving models/digits\n"
    "  moxserve export runs/digits --frozen --onnx fp32,int8 --tflite int8\n"
    "  moxserve export saved_model --tf-serving models/x --openvino --rows x.npz\n"
    '  moxserve export runs/digits --onnx int8 --require "int8.accuracy_drop<=0.005"',
)
@click.argument("source", type=click.Path())
@apply_options
def export(source: str, base_dir: str | None, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Turn a trained model into a verified, measured, versioned artifact.

    SOURCE is a pipeline's YAML file, the directory of a run of it, a SavedModel, a frozen graph (.pb), a Keras file, or
    a checkpoint with --model-fn; here, or in a store (s3://…, obs://…). The SavedModel, and each variant that is asked
    for, is loaded back in its own runtime and compared with the source on real rows before anything is published. When
    the SavedModel answers differently, nothing is published and the exit code is 5; a variant that is not good enough
    is left out with a warning, unless --require asks for it.
    """
    from moxserve.cli.export_show import print_json, print_result, show_plan
    from moxserve.cli.export_source import open_job
    from moxserve.cli.signals import told_when_interrupted

    with open_job(source, base_dir, options) as job:
        if dry_run:
            show_plan(job, as_json=as_json)
            return
        from moxserve.export.exporter import export_version

        with told_when_interrupted(lambda: "interrupted before a version was published"):
            result = export_version(job, lambda message: click.echo(f"export: {message}", err=True))
    if as_json:
        print_json(job, result)
    else:
        print_result(job, result)
    if result.served_s is not None:
        click.echo(f"served by {job.push} after {result.served_s:.1f} s", err=True)
