"""`moxserve inspect`: what is in models and checkpoints, and conversions between their formats.

Only commands that read values out of checkpoints import TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from moxserve.cli.inspect_show import echo_converted, echo_report
from moxserve.cli.main import LazyGroup

if TYPE_CHECKING:
    from moxserve.inspect.detect import Subject
    from moxserve.inspect.report import Report
    from moxserve.inspect.stores import Entry, Store

__all__ = ["inspect"]

_EPILOG = """\b
Examples:
  moxserve inspect show models/digits
  moxserve inspect variables models/digits --sort size --stats
  moxserve inspect checkpoint runs/digits --filter 'conv*'
  moxserve inspect convert models/digits/1 weights.npz

\b
PATH is a version directory or a folder of them (the newest is taken), a SavedModel, a GraphDef, a
checkpoint or a folder of them, the directory of a run, an .onnx, .tflite, .xml or .npz file, or a
TFRecord of requests; what it is is found out from what lies there. PATH may be a URL of a store
(s3://..., obs://...): what the command needs of it is fetched.

\b
Exit codes: 0 told; 1 a file is damaged; 2 PATH is nothing that can be inspected, or has not what
the command asks for; 5 what was found is not right, or two models differ.
"""


_TIMELINE = ("moxserve.cli.inspect_timeline:timeline", "Tell what costs most in a step's timeline.")


@click.group(cls=LazyGroup, lazy={"timeline": _TIMELINE}, epilog=_EPILOG)
def inspect() -> None:
    """Show what is in models and checkpoints; convert between formats."""


_PATH = click.argument("path", type=click.Path())
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
_TAGS = click.option("--tags", default="", metavar="A,B", help="Tags of the graph. Default: serve, or the first graph.")
_FILTER = click.option(
    "--filter", "patterns", multiple=True, metavar="GLOB",
    help="Only names that fit this shell pattern, such as 'conv*/weights'. May be repeated.",
)  # fmt: skip


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@inspect.command(epilog="\b\nExample:\n  moxserve inspect show models/digits")
@_PATH
@_TAGS
@click.option("--digests/--no-digests", default=True, help="Compare files with the checksums in the manifest of a "
              "version, which reads all of them.  [default: digests]")  # fmt: skip
@click.option("--all", "all_rows", is_flag=True, help="List every operation and record, not only the first 12.")
@_JSON
def show(path: str, tags: str, digests: bool, all_rows: bool, as_json: bool) -> None:
    """Tell what PATH is and what is in it."""
    from moxserve.inspect.describe import describe
    from moxserve.inspect.opened import opened

    with opened(path) as subject:
        echo_report(describe(subject, _words(tags), digests=digests, all_rows=all_rows or as_json), as_json)


@inspect.command(epilog="\b\nExample:\n  moxserve inspect signatures models/digits")
@_PATH
@_TAGS
@_JSON
def signatures(path: str, tags: str, as_json: bool) -> None:
    """List the signatures, or what a model takes and gives."""
    from moxserve.inspect.describe import describe
    from moxserve.inspect.detect import MODELS, need
    from moxserve.inspect.opened import opened

    with opened(path, "graph") as subject:
        report = describe(need(subject, MODELS, "signatures"), _words(tags), digests=False)
        report.facts, report.problems = {}, []
        report.tables = [table for table in report.tables if table.key in ("signatures", "ends", "tensors")]
        echo_report(report, as_json)


@inspect.command(epilog="\b\nExample:\n  moxserve inspect ops models/digits --nodes --filter '*Conv*'")
@_PATH
@click.option("--nodes", is_flag=True, help="List the nodes themselves, not how many there are of each operation.")
@_FILTER
@_TAGS
@_JSON
def ops(path: str, nodes: bool, patterns: tuple[str, ...], tags: str, as_json: bool) -> None:
    """Count operations by type, or list nodes.

    --filter goes by operation, and with --nodes by the name of the node, too.
    """
    from moxserve.inspect.opened import opened
    from moxserve.inspect.operations import operations

    with opened(path, "graph") as subject:
        echo_report(operations(subject, patterns, _words(tags), nodes=nodes), as_json)


@inspect.command(epilog="\b\nExample:\n  moxserve inspect variables models/digits --sort size --stats")
@_PATH
@_FILTER
@click.option("--sort", type=click.Choice(["name", "size"]), default="name", show_default=True, help="Order of rows.")
@click.option("--stats", is_flag=True, help="Read the values: least, largest, mean, deviation, share of zeros.")
@_JSON
def variables(path: str, patterns: tuple[str, ...], sort: str, stats: bool, as_json: bool) -> None:
    """List variables with shapes, sizes, statistics.

    Of a SavedModel, a checkpoint or an npz file; of a frozen graph its constants.
    """
    from moxserve.inspect.opened import opened
    from moxserve.inspect.report import Report
    from moxserve.inspect.stores import open_store, picked

    with opened(path, "values", _prepare) as subject:
        store = open_store(subject)
        entries = picked(store.entries, patterns)
        if sort == "size":
            entries = sorted(entries, key=lambda entry: (-entry.size_bytes, entry.name))
        report = Report(store.path, subject.kind, notes=subject.notes)
        _list_entries(report, store, entries, stats=stats)
        echo_report(report, as_json)


@inspect.command(epilog="\b\nExamples:\n  moxserve inspect checkpoint runs/digits --filter 'conv*'\n"
                 "  moxserve inspect checkpoint runs/digits --print global_step")  # fmt: skip
@_PATH
@_FILTER
@click.option(
    "--print", "printed", multiple=True, metavar="NAME", help="Print the value of a variable. May be repeated."
)
@click.option("--stats", is_flag=True, help="Read the values: least, largest, mean, deviation, share of zeros.")
@_JSON
def checkpoint(path: str, patterns: tuple[str, ...], printed: tuple[str, ...], stats: bool, as_json: bool) -> None:
    """List a checkpoint by its keys, or print values.

    PATH is the prefix (model.ckpt-300), one of its files, a folder of checkpoints, of which the newest is taken, or a
    SavedModel, whose variables are a checkpoint too.
    """
    from moxserve.inspect.opened import opened
    from moxserve.inspect.report import Report
    from moxserve.inspect.stores import CheckpointStore, checkpoint_prefix, picked

    with opened(path, "values", _prepare) as subject:
        store = CheckpointStore(checkpoint_prefix(subject))
        if printed:
            _print_values(store, picked(store.raw, printed), as_json)
            return
        report = Report(store.path, "checkpoint", notes=subject.notes, problems=store.problems())
        report.facts["shards"] = len(store.shards)
        _list_entries(report, store, picked(store.raw, patterns), stats=stats)
        echo_report(report, as_json)


def _prepare(subject: Subject, *, writes: bool = False) -> None:
    """Import TensorFlow, its start-up lines hidden, where the values of a checkpoint are read or written."""
    from moxserve.inspect.stores import needs_tensorflow

    if writes or needs_tensorflow(subject):
        from moxserve.cli.quiet import import_tensorflow

        import_tensorflow()


def _list_entries(report: Report, store: Store, entries: Sequence[Entry], *, stats: bool) -> None:
    from moxserve.inspect.report import Table, columns
    from moxserve.inspect.stores import statistics

    report.facts |= {
        "variables": len(entries),
        "parameters": sum(entry.parameters for entry in entries),
        "variables_bytes": sum(entry.size_bytes for entry in entries),
    }
    keyed = any(entry.key != entry.name for entry in entries)
    heading = "name:long " + ("key:long " if keyed else "") + "dtype shape:shape parameters:count size:bytes"
    if stats:
        heading += " min:figure max:figure mean:figure std:figure zeros:figure not_finite:count"
    rows: list[tuple[Any, ...]] = []
    for e in entries:
        row: tuple[Any, ...] = (e.name, *([e.key] if keyed else []), e.dtype, e.shape, e.parameters, e.size_bytes)
        if stats:
            s = statistics(store.read(e))
            row += (s.minimum, s.maximum, s.mean, s.std, s.zeros, s.not_finite)
        rows.append(row)
    report.tables.append(Table("variables", columns(heading), rows))


def _print_values(store: Store, entries: Sequence[Entry], as_json: bool) -> None:
    import numpy as np

    from moxserve.cli.render import echo_json

    if as_json:
        echo_json({entry.name: _plain(store.read(entry)) for entry in entries})
        return
    for entry in entries:
        value = store.read(entry)
        click.echo(f"{entry.name}: {entry.dtype}{list(entry.shape)}")
        click.echo(np.array2string(value, threshold=1000, max_line_width=100))


def _plain(value: Any) -> Any:
    """Make JSON of an array: text of bytes, numbers of the types that JSON does not have."""
    if value.dtype == object:
        decoded = [item.decode(errors="backslashreplace") for item in value.reshape(-1)]
        return decoded[0] if value.ndim == 0 else decoded
    if value.dtype.kind == "c":
        return [[item.real, item.imag] for item in value.reshape(-1).tolist()]
    return value.astype("float64").tolist() if value.dtype.kind == "V" else value.tolist()


@inspect.command(epilog="\b\nExamples:\n  moxserve inspect warmup models/digits\n"
                 "  moxserve inspect warmup requests.digits.20260101-1-0.tfrecord --json")  # fmt: skip
@_PATH
@_JSON
def warmup(path: str, as_json: bool) -> None:
    """List warmup records or a request log.

    Told are kind, signature, inputs and batch of each record, and what would keep a server from replaying it.
    """
    from moxserve.inspect.describe import record_tables
    from moxserve.inspect.opened import opened
    from moxserve.inspect.records import records_path
    from moxserve.inspect.report import Report

    with opened(path, "graph") as subject:
        report = Report(records_path(subject), "records", notes=subject.notes)
        record_tables(report, subject)
        echo_report(report, as_json)


@inspect.command(epilog="\b\nExample:\n  moxserve inspect graph models/digits --out logs/graph\n"
                 "  tensorboard --logdir logs/graph")  # fmt: skip
@_PATH
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for the event file.")
@_TAGS
@_JSON
def graph(path: str, out: str, tags: str, as_json: bool) -> None:
    """Write a graph for TensorBoard.

    Of a SavedModel, a GraphDef, or a checkpoint's .meta file.
    """
    from moxserve.cli.render import echo_json
    from moxserve.file.standins import by_url
    from moxserve.inspect.events import write_graph
    from moxserve.inspect.opened import delivered, opened

    with opened(path, "graph") as subject, delivered(out, whole=False) as folder:
        written, emptied = write_graph(subject, folder, _words(tags))
        written = by_url(written)
    for note in subject.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        echo_json({"path": written, "constants_without_values": emptied})
        return
    click.echo(f"wrote {written}" + (f" (without the values of {emptied} large constants)" if emptied else ""))
    click.echo(f"next: tensorboard --logdir {out}")


@inspect.command(epilog="\b\nExample:\n  moxserve inspect diff models/digits/1 models/digits/2")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--values/--no-values", default=True, help="Compare values, not only shapes.  [default: values]")
@_TAGS
@_JSON
def diff(a: str, b: str, values: bool, tags: str, as_json: bool) -> None:
    """Tell how two models or checkpoints differ.

    Signatures, operations, and the values of variables are compared.

    Exit code 0 when they are equal, 5 when they differ.
    """
    from moxserve.errors import VerificationError
    from moxserve.inspect.diff import compare
    from moxserve.inspect.opened import opened

    with opened(a, "values", _prepare) as first, opened(b, "values", _prepare) as second:
        report = compare(first, second, _words(tags), values=values)
        echo_report(report, as_json)
    if report.facts["different"]:
        raise VerificationError(f"{a} and {b} differ")


def _pairs(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> dict[str, str]:
    """Read `NAME=TENSOR` options."""
    found: dict[str, str] = {}
    for text in value:
        name, sign, tensor = text.partition("=")
        if not (name and sign and tensor) or name in found:
            raise click.BadParameter(f"{text!r}: expected NAME=TENSOR, each name once", ctx, param)
        found[name] = tensor
    return found


_CONVERT_EPILOG = """\b
Examples:
  moxserve inspect convert models/digits/1 graph.pbtxt          text that can be edited and read back
  moxserve inspect convert models/digits/1 weights.npz          what the signatures need
  moxserve inspect convert models/digits/1 old/model.ckpt       variables under their names
  moxserve inspect convert weights.npz old/model.ckpt
  moxserve inspect convert old/model.ckpt-300 saved --input x=images:0 --output y=logits:0
"""


@inspect.command(epilog=_CONVERT_EPILOG)
@click.argument("source", type=click.Path())
@click.argument("destination", type=click.Path())
@click.option("--to", type=click.Choice(["pb", "pbtxt", "npz", "checkpoint", "savedmodel"]), default=None,
              help="Form of DESTINATION. Default: by its suffix; without one a checkpoint becomes a SavedModel, "
              "anything else a checkpoint.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace DESTINATION if it is there.")
@click.option("--all", "everything", is_flag=True, help="Take all variables, not only those that signatures need.")
@_FILTER
@click.option("--input", "inputs", multiple=True, callback=_pairs, metavar="NAME=TENSOR",
              help="An input of the SavedModel that is made of a checkpoint. May be repeated.")  # fmt: skip
@click.option("--output", "outputs", multiple=True, callback=_pairs, metavar="NAME=TENSOR",
              help="An output of it; or, for npz, an output whose variables are wanted. May be repeated.")  # fmt: skip
@click.option("--meta", default="", type=click.Path(), help="Graph of the checkpoint. Default: PREFIX.meta beside it.")
@_TAGS
@_JSON
def convert(source: str, destination: str, tags: str, as_json: bool, **options: Any) -> None:
    """Convert SavedModel, checkpoint, pb, pbtxt, npz.

    What is written is whole or not there, and replaces nothing without --force. For a SavedModel that is fit for
    serving use moxserve export; for other runtimes, too.
    """
    from moxserve.file.standins import by_url, copied_here
    from moxserve.inspect.convert.run import Conversion, check_destination, convert, target_form
    from moxserve.inspect.opened import delivered, opened

    patterns = options.pop("patterns")
    asked = Conversion(destination, options.pop("to") or "", patterns=patterns, tags=_words(tags), **options)

    def begin(subject: Subject) -> None:
        form = target_form(subject, asked)
        check_destination(asked, form)
        if form not in ("pb", "pbtxt"):
            _prepare(subject, writes=form != "npz")

    with opened(source, "values", begin) as subject, copied_here(asked.meta) as meta, delivered(destination) as target:
        done = convert(subject, replace(asked, meta=meta, destination=target)).renamed(by_url)
    echo_converted(done, as_json)
