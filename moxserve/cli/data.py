"""`moxserve data`: write sample data sets, look into data sets, measure how fast they are read.

The sample data sets of images are here; each other command has a file of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from moxserve.cli.main import LazyGroup
from moxserve.cli.paths import SEND_IT, LocalPath

__all__ = ["data"]


@click.group(
    cls=LazyGroup,
    lazy={
        "bench": ("moxserve.cli.data_bench:bench", "Measure how fast a data set is read, and where the time goes."),
        "inspect": ("moxserve.cli.data_inspect:inspect", "Show what is in a data set, and what is broken in it."),
        "native-decoder": (
            "moxserve.cli.data_native:native_decoder",
            "Build the optional decoder that reads crops of JPEGs faster.",
        ),
        "table": ("moxserve.cli.data_table:table", "Write a survey as CSV, Parquet and TFRecord."),
        "to-tfrecord": ("moxserve.cli.data_records:to_tfrecord", "Write images or tables of your own as TFRecord."),
    },
)
def data() -> None:
    """Write sample data sets; look into data sets of any kind, and measure how fast they are read."""


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every sample data set has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON."),
        click.option("--force", is_flag=True, help="Replace an earlier data set at --out."),
        click.option("--out", required=True, type=LocalPath(SEND_IT), help="Directory to make."),
    ):
        command = option(command)
    return command


def _tell(manifest: Mapping[str, Any], out: str, as_json: bool) -> None:
    from moxserve.cli.render import echo_json

    if as_json:
        echo_json({**manifest, "path": os.path.abspath(out)})
        return
    samples = manifest["samples"]
    click.echo(f"wrote {samples['train']} training and {samples['eval']} evaluation images to {out}")
    for name in manifest["formats"]:
        click.echo(f"  {os.path.join(out, name)}")


@data.command(
    short_help="Write handwritten digits: image folder, IDX, TFRecord.",
    epilog="\b\nExample:\n  moxserve data digits --out data/digits",
)
@_common
@click.option(
    "--formats",
    default="images,idx,tfrecord",
    show_default=True,
    help="What to write, separated by commas: images (folder per class), idx (MNIST's files), tfrecord.",
)
def digits(out: str, force: bool, as_json: bool, formats: str) -> None:
    """Write scikit-learn's 1,797 real handwritten digits with a fixed train/eval split."""
    from moxserve.data.digits import write_digits

    names = [name.strip() for name in formats.split(",") if name.strip()]
    _tell(write_digits(out, names, force=force), out, as_json)


@data.command(
    short_help="Write six textures: JPEG tiles, a folder per class.",
    epilog="\b\nExample:\n  moxserve data textures --out data/textures",
)
@_common
def textures(out: str, force: bool, as_json: bool) -> None:
    """Write 1,500 JPEG tiles of six real textures, a folder per class, with a fixed train/eval split."""
    from moxserve.data.textures import write_textures

    _tell(write_textures(out, force=force), out, as_json)


@data.command(
    short_help="Write scenes of digits with several labels each.",
    epilog="\b\nExample:\n  moxserve data multidigits --out data/multidigits",
)
@_common
def multidigits(out: str, force: bool, as_json: bool) -> None:
    """Write 2,500 scenes of one to four real digits with several labels each, with a fixed train/eval split."""
    from moxserve.data.multidigits import write_multidigits

    _tell(write_multidigits(out, force=force), out, as_json)
