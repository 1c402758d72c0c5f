"""`moxserve loadtest`: load a running server and check limits."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from moxserve.cli.address import address_options, server_target

if TYPE_CHECKING:
    from moxserve_loadtests.limits import Limit
    from moxserve_loadtests.results import LoadResult

__all__ = ["loadtest"]

_EPILOG = """\b
Examples:
  moxserve loadtest --grpc localhost:8500 --model digits --users 8 --duration 10s \\
      --report report.html --fail-if "p95>50ms"
  moxserve loadtest --rest http://localhost:8501 --model digits --input data/digits/images/eval

\b
--fail-if METRIC OP NUMBER[UNIT], OP one of > >= < <=, METRIC one of
  p50 p90 p95 p99 avg min max   latency of successful requests (us, ms, s; plain is ms)
  rps rows_per_s                successful requests, or rows, a second
  fail_ratio generator_cpu      shares (plain or %)
  failures requests             counts

A true statement ends the command with exit code 1. So does any failed request, unless a limit
speaks of failures.
"""


@click.command(epilog=_EPILOG)
@address_options
@click.option("--model", required=True, metavar="NAME[:VERSION|@LABEL]", help="Which model.")
@click.option("--signature", default="serving_default", show_default=True, help="Key of the signature.")
@click.option("--users", type=click.IntRange(1), default=8, show_default=True,
              help="Concurrent users; each has a connection and one request at a time.")  # fmt: skip
@click.option(
    "--spawn-rate", type=click.FloatRange(0, min_open=True), help="Users started a second. [default: all at once]"
)
@click.option("--duration", default="10s", show_default=True, help="Length of the measurement: 10s, 1m30s.")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Rows a request.")
@click.option("--input", "source", metavar="PATH", help="Data set to send, or its URL; without it random data is sent.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True,
              metavar="S", help="Seconds for a request.")  # fmt: skip
@click.option("--report", metavar="FILE", help="HTML page to write, or its URL.")
@click.option("--fail-if", "limits", multiple=True, metavar="LIMIT", help="Such as 'p95>50ms'; may be repeated.")
@click.option("--no-progress", is_flag=True, help="No progress line (there is none without a terminal anyway).")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def loadtest(
    grpc_address: str | None,
    rest_url: str | None,
    model: str,
    signature: str,
    users: int,
    spawn_rate: float | None,
    duration: str,
    batch_size: int,
    source: str | None,
    timeout_s: float,
    report: str | None,
    limits: tuple[str, ...],
    no_progress: bool,
    as_json: bool,
) -> None:
    """Load a running server and check limits."""
    from moxserve_loadtests.limits import parse_duration, parse_limit
    from moxserve_loadtests.plan import LoadSpec, prepare

    from moxserve.cli.signals import told_when_interrupted
    from moxserve.file.standins import by_url, copied_here

    parsed = [parse_limit(text) for text in limits]
    duration_s = parse_duration(duration)
    _check_report(report)
    _check_locust()
    show = not no_progress and sys.stderr.isatty()
    with told_when_interrupted(lambda: "interrupted; " + (f"{report!r} was not written" if report else "no figures")):
        target = _target(grpc_address, rest_url)
        with copied_here(source or "") as here:
            plan = prepare(LoadSpec(target, model, signature, batch_size, here or None, timeout_s))
            plan = replace(plan, source=by_url(plan.source))
        result, page = _generate(plan, users, spawn_rate or float(users), duration_s, show=show)
    if report:
        from moxserve_loadtests.report import with_summary

        from moxserve import file

        file.write(report, with_summary(page, result, parsed))
    _print(result, parsed, report, as_json)
    _judge(result, parsed)


def _target(grpc_address: str | None, rest_url: str | None) -> str:
    if bool(grpc_address) == bool(rest_url):
        raise click.UsageError(f"Give one of --grpc HOST:PORT, --rest URL; got {'both' if rest_url else 'none'}.")
    return server_target(grpc_address, rest_url)


def _check_report(report: str | None) -> None:
    """Refuse a report that cannot be written now, not after the test."""
    from moxserve.errors import UsageError
    from moxserve.file.filesystem import is_remote
    from moxserve.file.writable import require_writable

    if report is None:
        return
    if is_remote(report):
        require_writable(report)
        return
    folder = os.path.dirname(os.path.abspath(report))
    if os.path.isdir(report) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(f"--report {report!r}: expected a file name in a folder that can be written")


def _check_locust() -> None:
    from importlib.util import find_spec

    from moxserve.errors import MissingExtraError

    if find_spec("locust") is None:
        raise MissingExtraError("locust", "loadtest", "moxserve loadtest")


def _generate(plan: Any, users: int, spawn_rate: float, duration_s: float, *, show: bool) -> tuple[LoadResult, str]:
    """Run the generator in a process of its own and read its results.

    Raises:
        MoxserveError: the generator failed.
    """
    from moxserve_loadtests.results import LoadResult

    from moxserve.errors import MoxserveError

    with tempfile.TemporaryDirectory(prefix="moxserve-loadtest-") as folder:
        with open(os.path.join(folder, "job.pickle"), "wb") as f:
            pickle.dump({"plan": plan, "users": users, "spawn_rate": spawn_rate, "duration_s": duration_s}, f)
        with open(os.path.join(folder, "log"), "w+b") as log:
            status = _run_generator(folder, log, duration_s, show=show)
            log.seek(0)
            tail = log.read().decode(errors="replace").strip()[-2000:]
        if status != 0:
            raise MoxserveError(f"the load generator ended with status {status}:\n{tail or '(it said nothing)'}")
        with open(os.path.join(folder, "result.json"), encoding="utf-8") as f:
            result = LoadResult.from_dict(json.load(f))
        with open(os.path.join(folder, "report.html"), encoding="utf-8") as f:
            return result, f.read()


def _run_generator(folder: str, log: Any, duration_s: float, *, show: bool) -> int:
    command = [sys.executable, "-m", "moxserve_loadtests.generator", folder]
    # A session of its own: Ctrl-C reaches this process, which then ends the generator and says what became of the work.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    try:
        with _progress_line(duration_s, show=show) as update:
            for line in process.stdout or ():
                update(json.loads(line))
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        if process.stdout:
            process.stdout.close()


@contextlib.contextmanager
def _progress_line(duration_s: float, *, show: bool) -> Iterator[Any]:
    """Show time and rate on stderr when that is a terminal."""
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("loading"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=duration_s, text="")

        def update(done: dict[str, Any]) -> None:
            rate = done["requests"] / done["seconds"]
            p95 = "" if done["p95_ms"] is None else f", p95 {done['p95_ms']:.1f} ms"
            failed = f", {done['failures']:,} failed" if done["failures"] else ""
            text = f"{done['seconds']:.0f} of {duration_s:.0f} s, {rate:,.0f} requests/s{p95}{failed}"
            bar.update(task, completed=done["seconds"], text=text)

        yield update


def _print(result: LoadResult, limits: Sequence[Limit], report: str | None, as_json: bool) -> None:
    from moxserve_loadtests.report import SATURATED
    from moxserve_loadtests.results import table

    if as_json:
        from moxserve.cli.render import echo_json

        checked = [
            {"limit": limit.text, "measured": limit.measured(result), "broken": limit.broken(result)}
            for limit in limits
        ]
        echo_json({**result.as_dict(), "limits": checked, "report": report})
    else:
        click.echo(f"loaded {result.model} at {result.target} with {result.users} users, {result.rows} rows a request")
        rows = [("payload", result.source), *table(result)]
        rows += [
            ("limit", f"{limit.describe(result)}, {'BROKEN' if limit.broken(result) else 'held'}") for limit in limits
        ]
        rows += [("report", report)] if report else []
        for name, text in rows:
            click.echo(f"  {name:<10}{text}")
        for message, count in result.errors.items():
            click.echo(f"  failure   {count:,} x {message}")
    if result.saturated:
        click.secho(f"warning: {SATURATED}", fg="yellow", err=True)


def _judge(result: LoadResult, limits: Sequence[Limit]) -> None:
    from moxserve_loadtests.limits import covers_failures

    from moxserve.errors import ClientError, LimitExceededError

    broken = [limit.describe(result) for limit in limits if limit.broken(result)]
    if broken:
        raise LimitExceededError(f"limit broken: {'; '.join(broken)}")
    if result.requests == 0:
        raise ClientError(f"no request finished within {result.duration_s:.1f} s", hint="a longer --duration")
    if result.failures and not covers_failures(limits):
        worst = next(iter(result.errors))
        raise LimitExceededError(
            f"{result.failures:,} of {result.requests:,} requests failed; the most frequent: {worst}",
            hint='say how many are acceptable, as in --fail-if "fail_ratio>1%"',
        )
