"""`moxserve predict`: a data set against a server or a model on disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from moxserve.cli.address import address_options, server_target
from moxserve.cli.paths import ExistingPath

if TYPE_CHECKING:
    from moxserve.client import Client
    from moxserve.predict import PredictJob, PredictSummary
    from moxserve.predict.run import Progress

__all__ = ["predict"]

_EPILOG = """\b
Examples:
  moxserve predict --grpc localhost:8500 --model digits \\
      --input data/digits/images/eval --output preds.jsonl
  moxserve predict --rest http://localhost:8501 --model digits:3 --input rows.jsonl --output preds.jsonl
  moxserve predict --local models/digits --input rows.npy --output preds.jsonl

--input takes a folder of pictures (folder per class: accuracy is told), a picture, .npy, .npz, an IDX image file,
.jsonl with one instance a line, .csv or .tsv with a column an input, or .tfrecord of tf.Examples. Float inputs get
pixels scaled to 0..1, integer inputs 0..255.
"""


@click.command(epilog=_EPILOG)
@address_options
@click.option(
    "--local",
    "local_dir",
    metavar="DIR",
    help="Run the model of this directory here, without a server; one in a store is fetched.",
)
@click.option("--model", metavar="NAME[:VERSION|@LABEL]", help="Which model; with --local its name is the folder's.")
@click.option(
    "--input",
    "source",
    required=True,
    metavar="PATH",
    type=ExistingPath(),
    help="The data set: a path, or a URL of a store.",
)
@click.option(
    "--output", required=True, metavar="FILE", help="JSONL file to write, or its URL; appears when it is complete."
)
@click.option("--signature", default="serving_default", show_default=True, help="Key of the signature.")
@click.option("--outputs", metavar="A,B", help="Write only these outputs.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Rows a request.")
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Requests in flight.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
@click.option("--label", metavar="NAME", help="Column, array, key or feature of --input that holds the labels; by "
              "default `label` or `labels`, if there is one.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True,
              metavar="S", help="Seconds for a request.")  # fmt: skip
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
              help="At a row that fails: stop and write nothing, or write its error and go on (exit 3).")  # fmt: skip
@click.option("--no-progress", is_flag=True, help="No progress bar (there is none without a terminal anyway).")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def predict(
    grpc_address: str | None,
    rest_url: str | None,
    local_dir: str | None,
    model: str | None,
    source: str,
    output: str,
    signature: str,
    outputs: str | None,
    batch_size: int,
    concurrency: int,
    limit: int | None,
    label: str | None,
    timeout_s: float,
    on_error: str,
    no_progress: bool,
    as_json: bool,
) -> None:
    """Predict a data set against a server or a model on disk.

    Writes one JSON line a row, in the order of the input: {"input": …, "label": …, "predictions": {…}}.
    """
    from moxserve.cli.signals import told_when_interrupted
    from moxserve.client import Client
    from moxserve.errors import ServerUnreachableError
    from moxserve.file.standins import by_url, copied_here
    from moxserve.predict import PredictJob, run_predict

    target, name = _target(grpc_address, rest_url, local_dir, model)
    names = [n.strip() for n in outputs.split(",") if n.strip()] if outputs else None
    skip = on_error == "skip"
    job = PredictJob(name, source, output, signature, names, batch_size, concurrency, limit, skip, label)
    done = 0

    def progress(rows: int, failed: int, total: int | None) -> None:
        nonlocal done
        done = rows + failed
        show(rows, failed, total)

    with (
        told_when_interrupted(lambda: f"interrupted after {done:,} rows; {output!r} was not written"),
        copied_here(local_dir or "") as here,
        Client(f"local:{here}" if here else target, timeout_s=timeout_s) as client,
        _model_loaded(client, name, here=local_dir is not None),
        _progress_bar(job, hidden=no_progress) as show,
    ):
        try:
            summary = run_predict(client, job, progress)
            summary = replace(summary, target=by_url(summary.target))
        except ServerUnreachableError as error:
            if not done:
                raise
            text = f"{error.message} (after {done:,} rows; {output!r} was not written)"
            raise ServerUnreachableError(text, hint=error.hint) from error
    _report(summary, as_json)


def _target(
    grpc_address: str | None, rest_url: str | None, local_dir: str | None, model: str | None
) -> tuple[str, str]:
    given = [name for name, value in (("--grpc", grpc_address), ("--rest", rest_url), ("--local", local_dir)) if value]
    if len(given) != 1:
        raise click.UsageError(
            f"Give one of --grpc HOST:PORT, --rest URL, --local DIR; got {' and '.join(given) or 'none'}."
        )
    if local_dir:
        return f"local:{local_dir}", model or os.path.basename(os.path.abspath(local_dir.rstrip("/") or "/"))
    if not model:
        raise click.UsageError("Missing option '--model': which model of the server?")
    return server_target(grpc_address, rest_url), model


@contextlib.contextmanager
def _model_loaded(client: Client, model: str, *, here: bool) -> Iterator[None]:
    """Load a model on disk before the progress bar begins, with its runtime's chatter off the terminal."""
    if here:
        from moxserve.cli.quiet import native_stderr_hidden, verbose

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose() else "2")
        with native_stderr_hidden(hidden=not verbose()):
            client.metadata(model)
    yield


@contextlib.contextmanager
def _progress_bar(job: PredictJob, *, hidden: bool) -> Iterator[Progress]:
    """Show rows done on stderr when that is a terminal."""
    if hidden or not sys.stderr.isatty():
        yield lambda _rows, _failed, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"predicting with {job.model}", total=None, rate="")

        def update(done: int, failed: int, total: int | None) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{(done + failed) / elapsed:,.0f} rows/s" if elapsed else ""
            bar.update(task, completed=done + failed, total=total, rate=rate + (f", {failed} failed" if failed else ""))

        yield update


def _report(summary: PredictSummary, as_json: bool) -> None:
    from moxserve.cli.render import echo_json
    from moxserve.errors import PartialFailureError

    if as_json:
        from dataclasses import asdict

        echo_json(asdict(summary))
    else:
        _print(summary)
    if summary.errors:
        raise PartialFailureError(
            f"{summary.errors} of {summary.rows + summary.errors} rows failed; the first: {summary.first_error}",
            hint=f"each has an error record in {summary.output}",
        )


def _print(summary: PredictSummary) -> None:
    version = "" if summary.version is None else f" version {summary.version}"
    click.echo(
        f"predicted {summary.rows:,} rows with {summary.model}{version} ({summary.signature}) at {summary.target}"
    )
    if summary.accuracy is not None:
        right = round(summary.accuracy * summary.accuracy_rows)
        click.echo(
            f"  accuracy  {summary.accuracy:.4f}  ({right:,} of {summary.accuracy_rows:,}; {summary.accuracy_how})"
        )
    else:
        click.echo(f"  accuracy  not known: {summary.accuracy_how}")
    click.echo(
        f"  speed     {summary.rows_per_s:,.0f} rows/s  ({summary.rows:,} rows in {summary.seconds:.2f} s, "
        f"{summary.requests:,} requests of up to {summary.batch_size}, {summary.concurrency} in flight)"
    )
    if summary.p50_ms is not None:
        click.echo(f"  latency   p50 {summary.p50_ms:.1f} ms, p95 {summary.p95_ms:.1f} ms a request")
    click.echo(f"  output    {summary.output}")
