"""`moxserve run`: scripts in the forms of output, and how they end. On a terminal: tests/tensorflow/observe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write


def test_it_runs_as_with_python(run_moxserve: Run, script: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    path = script(
        "import sys, os, beside\n"
        "print(__name__, __file__ == sys.argv[0], sys.argv[1:], beside.WORD, 'tensorflow' in sys.modules)\n"
        "sys.exit(3)\n"
    )
    done = run_moxserve("run", path, "--json", "-x", "--help", "y")
    assert done.returncode == 3
    assert done.stdout == "__main__ True ['--json', '-x', '--help', 'y'] found False\n"
    assert done.stderr == ""


def test_errors(run_moxserve: Run, script: Callable[[str], Path], tmp_path: Path) -> None:
    ours = script("from moxserve.errors import UsageError\nraise UsageError('wrong', hint='so')\n")
    done = run_moxserve("run", ours)
    assert (done.returncode, done.stderr) == (2, "error: wrong\nhint: so\n")
    theirs = script("print('to stdout')\ndef f():\n    return 1 / 0\nf()\n")
    done = run_moxserve("run", "--json", theirs)
    assert done.returncode == 1
    (event,) = map(json.loads, done.stdout.splitlines())
    assert (event["event"], event["type"], event["exit_code"]) == ("error", "ZeroDivisionError", 1)
    printed, head, first, *rest = done.stderr.splitlines()
    assert (printed, head) == ("to stdout", "Traceback (most recent call last):")
    assert first == f'  File "{theirs}", line 4, in <module>'
    assert rest[-1] == "ZeroDivisionError: division by zero"
    for line, cure in (
        ("import moxing.tensorflow as mox", "import moxserve.tensorflow as mox"),
        ("raise AttributeError(\"module 'tensorflow' has no attribute 'flags'\")", "import tensorflow.compat.v1 as tf"),
    ):
        assert f"imports, here to: {cure}\n" in run_moxserve("run", script(line)).stderr
    leaving = script("import sys\nsys.exit('no data')\n")
    done = run_moxserve("run", "--json", leaving)
    assert (done.returncode, done.stderr) == (1, "no data\n")
    assert json.loads(done.stdout)["message"] == "no data"
    done = run_moxserve("run", tmp_path / "none.py")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    done = run_moxserve("run", "--json", "--quiet", ours)
    assert done.returncode == 2
    assert "--json and --quiet exclude each other" in done.stderr


@pytest.mark.slow
def test_json_lines(run_moxserve: Run, script: Callable[[str], Path]) -> None:
    path = script(
        "import moxserve.tensorflow as mox\n"
        "from moxserve.tensorflow.executor.env import tf, tf1\n"
        "def input_fn(mode, **k):\n"
        "    return tf1.data.Dataset.from_tensors([1.0]).repeat()\n"
        "def model_fn(inputs, mode, **k):\n"
        "    loss = tf.reduce_mean(inputs[0] * tf1.get_variable('w', []))\n"
        "    return mox.ModelSpec(loss=loss, log_info={'loss': loss})\n"
        "print('from the script')\n"
        "def run(**k):\n"
        "    mox.run(input_fn=input_fn, model_fn=model_fn, run_mode='TRAIN', batch_size=4,\n"
        "            optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.1), **k)\n"
        "run()\n"
        "run(max_number_of_steps=-1)\n"
    )
    done = run_moxserve("run", "--json", path, "--max_number_of_steps=20")
    assert done.returncode == 2
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["step", "step", "used", "result", "error"]
    assert [event["global_step"] for event in events if event["event"] == "step"] == [0, 10]
    assert events[-1]["message"] == "max_number_of_steps=-1: expected a whole number, 0 or more"
    assert "from the script" in done.stderr.splitlines()
    assert "oneDNN" not in done.stderr  # TensorFlow's start-up lines
