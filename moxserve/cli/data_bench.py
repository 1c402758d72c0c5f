"""`moxserve data bench`: how fast a data set is read, and where the time goes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moxserve.data.bench import Bench

__all__ = ["bench"]


@click.command(epilog="\b\nExample:\n  moxserve data bench data/textures --augment resnet_v1_50 --steps 100")
@click.argument("path", type=click.Path())
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images of a batch.")
@click.option(
    "--image-size",
    type=click.IntRange(1),
    help="Height and width of what comes out.  [default: that of the network of --augment, or 224]",
)
@click.option(
    "--steps", type=click.IntRange(1), default=50, show_default=True, help="Batches to measure, after a few to warm up."
)
@click.option("--augment", metavar="NAME", help="Augment as for the training of this network, such as resnet_v1_50.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(path: str, batch_size: int, image_size: int | None, steps: int, augment: str | None, as_json: bool) -> None:
    """Read the images of PATH through our reader, as training does: images a second, and what each costs.

    PATH is a folder of images (a folder per class, or images/ and labels/), TFRecord files with image/encoded and
    image/class/label, or a folder of such parts, of which train is read. A data set in a store is fetched
    first. Images per second of CPU time compare between busy and idle machines.
    """
    from dataclasses import asdict, replace

    from moxserve.cli.quiet import import_tensorflow, verbose
    from moxserve.cli.render import echo_json
    from moxserve.data.bench import BenchOptions, run_bench
    from moxserve.file.standins import by_url, copied_here

    import_tensorflow()
    import moxserve.tensorflow  # noqa: F401 - it sets the level of TensorFlow's logger

    if not verbose():
        logging.getLogger("tensorflow").setLevel(logging.WARNING)
    with copied_here(path) as here, _bar(steps) as progress:
        found = run_bench(here, BenchOptions(batch_size, image_size, steps, augment, progress))
        found = replace(found, path=by_url(found.path))
    if as_json:
        echo_json(asdict(found))
    else:
        _echo(found)


def _echo(found: Bench) -> None:
    from moxserve.cli.render import echo_table
    from moxserve.inspect.report import shape_text

    click.secho(found.path, bold=True)
    click.echo(f"  kind                   {found.kind}")
    click.echo(f"  batches                {found.dtype}{shape_text(found.shape)}")
    click.echo(f"  images/s               {found.images_per_s:,.0f}")
    click.echo(f"  images per CPU-second  {found.images_per_cpu_s:,.0f}")
    click.echo(f"  cores busy             {found.cores_busy:.2f}")
    click.echo()
    decode, rest = ("decode, crop, resize", "colours, batch") if found.windows else ("decode", "resize, augment, batch")
    stages = {"read": found.read_ms, decode: found.decode_ms, rest: found.rest_ms}
    # What is measured apart may cost more than within the whole.
    total = max(found.total_ms, sum(stages.values()))
    rows = [(name, f"{ms:.3f}", f"{ms / total:.0%}") for name, ms in stages.items()]
    echo_table(
        ["stage", "CPU ms/image", "share"],
        [*rows, ("whole", f"{found.total_ms:.3f}", "")],
        right=("CPU ms/image", "share"),
    )


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[int], None]]:
    """Show how far it is, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=steps)
        yield lambda done: bar.update(task, completed=done)
