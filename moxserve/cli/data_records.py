"""`moxserve data to-tfrecord`: write a data set as TFRecord files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from moxserve.cli.paths import SEND_IT, ExistingPath, LocalPath

__all__ = ["to_tfrecord"]

_EXAMPLES = """\b
Examples:
  moxserve data to-tfrecord flowers --out flowers-records --shards 8 --split train=0.9,eval=0.1
  moxserve data to-tfrecord table.csv --out table-records"""


@click.command("to-tfrecord", epilog=_EXAMPLES)
@click.argument("source", type=ExistingPath())
@click.option("--out", required=True, type=LocalPath(SEND_IT), help="Directory to make.")
@click.option("--shards", default=1, show_default=True, type=click.IntRange(min=1), help="Files of each split.")
@click.option(
    "--split",
    default="",
    metavar="NAME=PART,...",
    help="Split the samples, such as train=0.9,eval=0.1, classes in equal proportion.  "
    "[default: the source's own splits, or all as train]",
)
@click.option("--seed", default=0, show_default=True, help="Of the order of the records, and of the split.")
@click.option(
    "--on-bad-image",
    default="skip",
    show_default=True,
    type=click.Choice(["skip", "raise"]),
    help="What to do with images that are cut off or none.",
)
@click.option("--force", is_flag=True, help="Replace an earlier data set at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def to_tfrecord(
    source: str, out: str, shards: int, split: str, seed: int, on_bad_image: str, force: bool, as_json: bool
) -> None:
    """Write a data set as TFRecord files of tf.Examples.

    SOURCE is a folder with a folder a class; a folder with images/ and labels/ (several labels an image); a folder of
    such folders named train, eval, test or validation; a .csv or .tsv file; or a .npz file. One in a
    store (s3://, obs://) is fetched.
    """
    from moxserve.cli.render import echo_json
    from moxserve.data.to_tfrecord import RecordJob, parse_split, write_tfrecords
    from moxserve.file.standins import copied_here

    parts = parse_split(split)
    with copied_here(source) as here, _bar() as progress:
        job = RecordJob(here, out, shards, parts, seed, on_bad_image, force, progress)
        manifest = write_tfrecords(job)
    if as_json:
        echo_json({**manifest, "path": os.path.abspath(out)})
        return
    for name, count in manifest["samples"].items():
        click.echo(f"wrote {count} records to {os.path.join(out, f'{name}-*-of-{shards:05}.tfrecord')}")
    if manifest["skipped"]:
        click.echo(f"left out {manifest['skipped']} bad images", err=True)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Show how far it is, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
