"""`moxserve data table`: write a real survey as CSV, Parquet and TFRecord."""

from __future__ import annotations

import os

import click

from moxserve.cli.paths import SEND_IT, LocalPath

__all__ = ["table"]


@click.command(epilog="\b\nExample:\n  moxserve data table --out data/table")
@click.option("--out", required=True, type=LocalPath(SEND_IT), help="Directory to make.")
@click.option(
    "--formats",
    default="csv,parquet,tfrecord",
    show_default=True,
    help="What to write, separated by commas: csv, parquet, tfrecord.",
)
@click.option("--force", is_flag=True, help="Replace an earlier data set at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def table(out: str, formats: str, force: bool, as_json: bool) -> None:
    """Write a real survey of 6,366 rows with a fixed train/eval split: numbers, categories, a class to predict."""
    from moxserve.cli.render import echo_json
    from moxserve.data.table import write_table

    names = [name.strip() for name in formats.split(",") if name.strip()]
    manifest = write_table(out, names, force=force)
    if as_json:
        echo_json({**manifest, "path": os.path.abspath(out)})
        return
    samples = manifest["samples"]
    click.echo(f"wrote {samples['train']} training and {samples['eval']} evaluation rows to {out}")
    for name in manifest["formats"]:
        click.echo(f"  {os.path.join(out, f'train.{name}')}, {os.path.join(out, f'eval.{name}')}")
