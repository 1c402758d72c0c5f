"""`moxserve data`: write sample data sets."""

from __future__ import annotations

import os

import click

from moxserve.cli.main import LazyGroup

__all__ = ["data"]


@click.group(
    cls=LazyGroup, lazy={"table": ("moxserve.cli.data_table:table", "Write a survey as CSV, Parquet and TFRecord.")}
)
def data() -> None:
    """Write sample data sets."""


@data.command(epilog="\b\nExample:\n  moxserve data digits --out data/digits")
@click.option("--out", required=True, type=click.Path(), help="Directory to make.")
@click.option(
    "--formats",
    default="images,idx,tfrecord",
    show_default=True,
    help="What to write, separated by commas: images (folder per class), idx (MNIST's files), tfrecord.",
)
@click.option("--force", is_flag=True, help="Replace an earlier data set at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def digits(out: str, formats: str, force: bool, as_json: bool) -> None:
    """Write scikit-learn's 1,797 real handwritten digits with a fixed train/eval split."""
    from moxserve.cli.render import echo_json
    from moxserve.data.digits import write_digits

    names = [name.strip() for name in formats.split(",") if name.strip()]
    manifest = write_digits(out, names, force=force)
    if as_json:
        echo_json({**manifest, "path": os.path.abspath(out)})
        return
    samples = manifest["samples"]
    click.echo(f"wrote {samples['train']} training and {samples['eval']} evaluation images to {out}")
    for name in manifest["formats"]:
        click.echo(f"  {os.path.join(out, name)}")
