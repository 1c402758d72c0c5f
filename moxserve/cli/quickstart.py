"""`moxserve quickstart`: the main job from end to end, by the very commands that a user would type.

Each step is a `moxserve …` subprocess whose command line is printed first; the figures of the summary come from their
`--json` output and from the files they leave. Nothing here knows how a step works.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from moxserve.cli.paths import LocalPath
from moxserve.errors import MoxserveError
from moxserve.ports import free_port

MODEL = "digits"
_SERVER_START_S = 120.0
_SERVER_STOP_S = 60.0


def _pipeline_file() -> Path:
    """Find digits.yaml: in the checkout, or where the wheel puts it."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "pipelines", package / "_pipelines"):
        if (folder / "digits.yaml").is_file():
            return folder / "digits.yaml"
    raise MoxserveError("pipelines/digits.yaml is missing from this installation", hint="reinstall moxserve")


def _last_object(text: str) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        result = json.loads(text.rstrip().rpartition("\n")[2])
    return result


@dataclass
class Steps:
    """Runs moxserve commands one after the other and remembers how long each took.

    Attributes:
        seconds: wall time by step title.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, title: str, *args: str) -> dict[str, Any]:
        """Run one command with `--json` and return the object that it printed; of several, one a line, the last.

        Raises:
            MoxserveError: the command failed; its own message is on the terminal already.
        """
        self._announce(title, args)
        start = time.monotonic()
        done = subprocess.run([*_self(), *args, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        self.seconds[title] = time.monotonic() - start
        if done.returncode != 0:
            raise MoxserveError(f"step {title!r} ended with status {done.returncode}", hint="its output is above")
        return _last_object(done.stdout)

    @contextlib.contextmanager
    def server(self, *args: str, log: Path, address: str) -> Iterator[None]:
        """Run `moxserve serve` in the background for the length of the block, then stop it with SIGTERM.

        Raises:
            MoxserveError: it did not come up, or did not stop cleanly.
        """
        self._announce("serve", args)
        start = time.monotonic()
        with log.open("w") as out:
            process = subprocess.Popen([*_self(), *args], stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait_ready(process, address, log)
            self.seconds["serve (start)"] = time.monotonic() - start
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(_SERVER_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
        if status != 0:
            raise MoxserveError(f"the server ended with status {status} on SIGTERM", hint=f"its log is {log}")

    @staticmethod
    def _announce(title: str, args: tuple[str, ...]) -> None:
        click.secho(f"\n== {title}", bold=True, err=True)
        click.echo("$ moxserve " + shlex.join(args), err=True)


def _self() -> list[str]:
    return [sys.executable, "-m", "moxserve"]


def _wait_ready(process: subprocess.Popen[Any], address: str, log: Path) -> None:
    from moxserve.client import Client
    from moxserve.errors import ClientError

    deadline = time.monotonic() + _SERVER_START_S
    with Client(f"grpc://{address}") as client:
        while process.poll() is None:
            try:
                client.wait_ready(MODEL, timeout_s=1.0)
            except ClientError:
                if time.monotonic() > deadline:
                    break
            else:
                return
    tail = "\n".join(log.read_text().splitlines()[-5:])
    raise MoxserveError(f"the server did not become ready:\n{tail}", hint=f"its whole log is {log}")


@click.command()
@click.option(
    "--out",
    type=LocalPath("its commands take URLs one by one: see docs/files.md", file_okay=False, path_type=Path),
    default=Path("quickstart"),
    show_default=True,
    help="Folder for data, checkpoints, model and reports; training resumes from what is there.",
)
@click.option("--duration", default="5s", show_default=True, help="Length of the load test.")
@click.option("--users", default=4, show_default=True, help="Concurrent users of the load test.")
def quickstart(out: Path, duration: str, users: int) -> None:
    """Train, export, verify, serve, predict and load-test on real handwritten digits.

    \b
    Example:
      moxserve quickstart --out quickstart
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    steps = Steps()
    data, runs, models = out / "data", out / "run", out / "models" / MODEL
    if not data.exists():
        steps.run("data", "data", "digits", "--out", str(data))
    overrides = {
        "input.train_dir": data / "images" / "train",
        "input.eval_dir": data / "images" / "eval",
        "run.log_dir": runs,
        "export.tf_serving": models,
    }
    sets = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    trained = steps.run("train, export, verify", "pipeline", "run", str(_pipeline_file()), *sets)

    grpc, rest = free_port(), free_port()
    served = (
        "serve", f"--port={grpc}", f"--rest_api_port={rest}",
        f"--model_name={MODEL}", f"--model_base_path={models.resolve()}",
    )  # fmt: skip
    report = out / "loadtest.html"
    with steps.server(*served, log=out / "server.log", address=f"127.0.0.1:{grpc}"):
        target = ("--grpc", f"127.0.0.1:{grpc}", "--model", MODEL)
        images = ("--input", str(data / "images" / "eval"))
        predicted = steps.run("predict", "predict", *target, *images, "--output", str(out / "predictions.jsonl"))
        loaded = steps.run(
            "load test", "loadtest", *target, *images,
            "--users", str(users), "--duration", duration, "--report", str(report),
        )  # fmt: skip
    _summary(out, steps, trained, predicted, loaded, time.monotonic() - began)


def _summary(
    out: Path,
    steps: Steps,
    trained: dict[str, Any],
    predicted: dict[str, Any],
    loaded: dict[str, Any],
    seconds: float,
) -> None:
    exported = trained["export"]
    rows = [
        ("eval accuracy", f"{trained['evaluate']['accuracy']:.4f} (training graph)"),
        ("", f"{predicted['accuracy']:.4f} (served over gRPC, {predicted['rows']} images)"),
        ("artifact", f"{exported['path']} (version {exported['version']})"),
        ("verification", f"max abs error {exported['max_abs_error']:.2e}, {exported['warmup_records']} warmup records"),
        ("latency", f"p50 {loaded['p50_ms']:.1f} ms, p95 {loaded['p95_ms']:.1f} ms"),
        ("throughput", f"{loaded['rps']:.0f} requests/s with {loaded['users']} users, {loaded['failures']} failures"),
        ("time", f"{seconds:.0f} s: " + ", ".join(f"{k} {v:.0f} s" for k, v in steps.seconds.items())),
    ]
    click.secho("\nDone.", bold=True)
    for name, text in rows:
        click.echo(f"  {name:<14} {text}")
    click.secho("Where to look", bold=True)
    tensorboard = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    click.echo(f"  training       {tensorboard} --logdir {out / 'run'}")
    click.echo(f"  load test      {out / 'loadtest.html'} (open in a browser)")
    click.echo(f"  predictions    {out / 'predictions.jsonl'}")
    click.echo(f"  server log     {out / 'server.log'}")
    serve = f"moxserve serve --rest_api_port=8501 --model_name={MODEL} --model_base_path={out / 'models' / MODEL}"
    click.echo(f"  serve it again {serve}")
