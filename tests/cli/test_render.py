"""Tables and JSON: plain into a pipe, wrapped on a terminal, and rich only there."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moxserve.cli.render import echo_json, echo_table


def test_plain_tables_are_aligned_and_never_wrapped(capsys: pytest.CaptureFixture[str]):
    echo_table(("name", "what"), [("a", "x" * 300), ("long name", None), ("n", 5)])
    assert capsys.readouterr().out == f"NAME       WHAT\na          {'x' * 300}\nlong name\nn          5\n"
    echo_table(("name", "what"), [])
    assert capsys.readouterr().out == "NAME  WHAT\n"


def test_json_takes_arrays_and_paths(capsys: pytest.CaptureFixture[str]):
    echo_json({"a": np.arange(2), "b": np.float32(0.5), "p": Path("x"), 3: None})
    assert capsys.readouterr().out == '{\n  "a": [\n    0,\n    1\n  ],\n  "b": 0.5,\n  "p": "x",\n  "3": null\n}\n'


@pytest.mark.slow
@pytest.mark.parametrize(("no_color", "heading"), [("", b"\x1b[1mPLUGIN"), ("1", b"PLUGIN")])
def test_tables_wrap_on_a_terminal(tmp_path: Path, no_color: str, heading: bytes):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "moxserve", "plugins", "list", "--slot", "model"]
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm", "NO_COLOR": no_color}
    done = subprocess.run(command, stdout=slave, cwd=tmp_path, env=environment, check=False)
    os.close(slave)
    with open(master, "rb", buffering=0) as terminal:
        output = terminal.read(65536)
    lines = output.replace(b"\x1b[1m", b"").replace(b"\x1b[0m", b"").decode().splitlines()
    assert done.returncode == 0
    assert heading in output
    assert max(len(line) for line in lines) <= 60
    assert len(lines) > 4  # three plugins and the heading, and descriptions that wrap
