"""The entry point: suggestions, error lines and exit codes."""

from __future__ import annotations

import os
import sys

import pytest

from moxserve.cli import main as entry
from moxserve.errors import InterruptedRunError, MoxserveError, ServerUnreachableError, UsageError, VerificationError


def test_help_lists_every_command(run_moxserve) -> None:
    done = run_moxserve("--help")
    assert done.returncode == 0
    for name, (_, help_line) in entry.COMMANDS.items():
        assert name in done.stdout
        assert help_line in done.stdout
    assert "Exit codes" in done.stdout


def test_version(run_moxserve) -> None:
    from moxserve import __version__

    assert run_moxserve("--version").stdout.strip() == f"moxserve, version {__version__}"


def test_unknown_command_names_the_nearest(run_moxserve) -> None:
    done = run_moxserve("exprt")
    assert done.returncode == 2
    assert "No such command 'exprt'. Did you mean 'export'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MoxserveError("it failed", hint="try again"), 1),
        (UsageError("wrong"), 2),
        (ServerUnreachableError("nobody there"), 4),
        (VerificationError("differs"), 5),
        (InterruptedRunError("stopped", 15), 143),
    ],
)
def test_errors_become_one_line_and_a_status(error, status, monkeypatch, capsys) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.delenv("MOXSERVE_DEBUG", raising=False)
    monkeypatch.setattr(entry.cli, "main", fail)
    with pytest.raises(SystemExit) as caught:
        entry.main([])
    assert caught.value.code == status
    expected = f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")
    assert capsys.readouterr().err == expected


def test_what_the_system_refuses_is_one_line(run_moxserve) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc, where nobody may make a directory")
    done = run_moxserve("data", "digits", "--out", "/proc/digits")
    assert done.returncode == 1
    assert done.stderr.startswith("error: [Errno ")
    assert "/proc" in done.stderr
    assert "Traceback" not in done.stderr


def test_verbose_shows_the_traceback(monkeypatch) -> None:
    def fail(**_: object) -> None:
        raise UsageError("wrong")

    monkeypatch.setattr(entry.cli, "main", fail)
    with pytest.raises(UsageError):
        entry.main(["-v"])


def test_interrupt_is_130(monkeypatch, capsys) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry.cli, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        entry.main([])
    assert caught.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_closed_pipe_is_no_error() -> None:
    import subprocess

    command = f"{sys.executable} -m moxserve --help | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: moxserve")
    assert "Traceback" not in done.stderr
