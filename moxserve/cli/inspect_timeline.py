"""`moxserve inspect timeline`: what costs how much in the trace of a step. Needs no TensorFlow."""

from __future__ import annotations

import click

__all__ = ["timeline"]

_ROWS = 20


@click.command(
    epilog="\b\nExamples:\n  moxserve inspect timeline runs/digits/timeline/timeline-100.json\n"
    "  moxserve inspect timeline runs/digits/timeline/timeline-100.json --by operation --all"
)
@click.argument("file", type=click.Path())
@click.option(
    "--by",
    type=click.Choice(["type", "operation", "device"]),
    default="type",
    show_default=True,
    help="What is put together: operations of a type, runs of a node of the graph, a device.",
)
@click.option("--all", "all_rows", is_flag=True, help=f"List all, not only the dearest {_ROWS}.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def timeline(file: str, by: str, all_rows: bool, as_json: bool) -> None:
    """Tell what costs most in a step's timeline.

    FILE is a Chrome trace, such as --timeline_steps and mox.TimelineHook write; chrome://tracing and Perfetto show it.

    Times are added up over all calls, also of operations that ran at the same time; `wall ms` is from the start of the
    first to the end of the last.
    """
    from moxserve.cli.inspect_show import echo_report
    from moxserve.inspect.timeline import report_of

    echo_report(report_of(file, by, top=0 if all_rows or as_json else _ROWS), as_json)
