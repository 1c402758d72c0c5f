"""Progress: what a line says, when it comes; the live line of a terminal."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.observe.live import LiveLine
from moxserve.tensorflow.executor.observe.progress import Progress
from moxserve.tensorflow.executor.participants import NEVER, Clock, StepContext

Train = Callable[..., mox.RunResult]


class Run:
    """A run whose steps take as long as a test says."""

    def __init__(self, clock: Clock, period_s: float = 10.0) -> None:
        self.clock = clock
        self.time = 0.0
        self.progress = Progress(period_s, now=lambda: self.time)
        self.progress.train_start(clock)

    def steps(self, count: int, step_s: float) -> None:
        """Make steps as the loop does."""
        for _ in range(count):
            active = (
                self.progress.next_step(self.clock) <= self.clock.run_step or self.progress.next_time() <= self.time
            )
            self.time += step_s
            self.clock.count()
            if active:
                self.progress.step_done(StepContext(None, self.clock))


def lines(console: Any) -> list[str]:
    return [line.removeprefix("INFO:tensorflow:") for line in console.lines if "progress: " in line]


def test_lines_and_time_left(console: Any) -> None:
    run = Run(Clock(global_step=100, steps_per_epoch=100))  # from a checkpoint at 100, to 200
    run.steps(1, 50.0)  # the first step pays for start-up, and is none to reckon by
    run.steps(11, 1.0)
    assert lines(console) == ["progress: 56 % (112 of 200 steps), 0:01:28 left"]
    run.steps(20, 2.0)  # slower from here on
    assert lines(console)[-1].endswith("left")
    assert len(lines(console)) == 4
    for _ in range(3):
        run.steps(6, 10.0)
    assert lines(console)[-1] == "progress: 75 % (150 of 200 steps), 0:08:20 left"  # at the speed of the last while


def test_unknown_end(console: Any) -> None:
    run = Run(Clock(steps_per_epoch=NEVER))
    run.steps(23, 1.0)
    assert lines(console) == ["progress: 12 steps, 1 steps/s", "progress: 23 steps, 1 steps/s"]


def test_evaluations_count_their_own_steps(console: Any) -> None:
    run = Run(Clock(global_step=5000, steps_per_epoch=24, counts_globally=False))
    run.steps(13, 1.0)
    assert lines(console) == ["progress: 50 % (12 of 24 steps), 0:00:12 left"]


@pytest.mark.parametrize(("flags", "wanted"), [({}, True), ({"progress_secs": 0}, False)])
def test_in_a_run(train: Train, console: Any, flags: dict[str, Any], wanted: bool) -> None:
    for name, value in {"progress_secs": 0.001, **flags}.items():
        mox.set_flag(name, value)
    train(max_number_of_steps=40, log_every_n_steps=10)
    assert bool(lines(console)) == wanted
    assert [line for line in console.lines if "sample/sec" in line][1].startswith(
        "INFO:tensorflow:step: 10(global step: 10)\tsample/sec: "
    )
    console.lines.clear()
    train(max_number_of_steps=40, log_every_n_steps=0)  # who wants no lines gets none
    assert console.lines == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str, width: int = 79) -> list[str]:
    """What a terminal shows: carriage returns and `erase line` followed."""
    shown, column, row = [""], 0, 0
    i = 0
    while i < len(text):
        if text.startswith("\x1b[K", i):
            shown[row] = shown[row][:column]
            i += 3
            continue
        if text[i] == "\n":
            shown.append("")
            row, column = row + 1, 0
        elif text[i] == "\r":
            column = 0
        else:
            shown[row] = shown[row][:column].ljust(column) + text[i] + shown[row][column + 1 :]
            column += 1
        i += 1
    return shown


def test_live_line_stays_below(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("tensorflow")
    logger.addHandler(handler)
    try:
        line = LiveLine.on_terminal()
        assert line is not None
        line.open()
        line.show("[##--] 50 %, " + "x" * 100)
        logger.warning("step: 1\tloss: 0.5")
        sys.stderr.write("half a ")
        line.show("[###-] 75 %")
        assert screen(terminal.getvalue())[-1] == "half a "  # nothing is put into somebody else's line
        print("line", file=sys.stderr)  # noqa: T201
        assert screen(terminal.getvalue()) == ["step: 1\tloss: 0.5", "half a line", "[###-] 75 %"]
        line.show("[##--] 50 %, " + "x" * 100)
        assert len(screen(terminal.getvalue())[-1]) == 39
        line.close()
    finally:
        logger.removeHandler(handler)
    assert screen(terminal.getvalue()) == ["step: 1\tloss: 0.5", "half a line", ""]
    assert sys.stderr is terminal
    assert handler.stream is terminal


def test_no_live_line_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert LiveLine.on_terminal() is None


@pytest.mark.slow
def test_moxserve_run_on_a_real_terminal(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import time\n"
        "import moxserve.tensorflow as mox\n"
        "from moxserve.tensorflow.executor.env import tf, tf1\n"
        "def input_fn(mode, **k):\n"
        "    return tf1.data.Dataset.from_tensors([1.0]).repeat()\n"
        "def model_fn(inputs, mode, **k):\n"
        "    loss = tf.reduce_mean(inputs[0] * tf1.get_variable('w', []))\n"
        "    return mox.ModelSpec(loss=loss, log_info={'loss': loss})\n"
        "mox.set_flag('progress_secs', 0.05)\n"
        "mox.run(input_fn=input_fn, model_fn=model_fn, optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.1),\n"
        "        run_mode='TRAIN', batch_size=4, max_number_of_steps=6001)\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "moxserve", "run", str(script), "--log_every_n_steps=2000"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    seen = b""
    try:
        while chunk := _read(ours):
            seen += chunk
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = seen.decode().replace("\r\n", "\n")
    assert " of 6001 steps), 0:00:0" in text
    assert "[####" in text
    shown = screen(text)
    steps = [line for line in shown if line.startswith("INFO:tensorflow:step: ")]
    assert [line.partition("\t")[0] for line in steps] == [
        f"INFO:tensorflow:step: {n}(global step: {n})" for n in (0, 2000, 4000, 6000)
    ]
    assert all(line.count("\t") == 2 for line in steps)
    assert not any(" of 6001 steps" in line for line in shown)  # gone in the end


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux tells that the other side is closed
        return b""
