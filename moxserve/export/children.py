"""What processes that an export starts have in common: their surroundings, their end, and what they said last."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

from moxserve.export.op_libraries import OP_LIBRARIES_VARIABLE, loaded_op_libraries

__all__ = ["child_environment", "die_with_parent", "how_it_ended", "last_lines"]

_TAIL_BYTES = 4000


def child_environment() -> dict[str, str]:
    """Return the environment of a Python process that imports what this one does."""
    return {
        **os.environ,
        # As in this process, and without the current directory, whose files may be called like a package.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        # Models are made for, and tried on, CPUs; a training may have the memory of the GPU.
        "CUDA_VISIBLE_DEVICES": "-1",
        # ONNX Runtime would tell its maker what it runs, and leave a file in TMPDIR.
        "ORT_DISABLE_TELEMETRY": os.environ.get("ORT_DISABLE_TELEMETRY", "1"),
        OP_LIBRARIES_VARIABLE: os.pathsep.join(loaded_op_libraries()),
    }


def die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is killed; elsewhere nothing happens."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """Tell in words how a process ended, `was ended by SIGSEGV` or `ended with exit code 1`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def last_lines(path: str, count: int = 3) -> str:
    """Return the last lines of a log, in one line; empty when it says nothing."""
    with open(path, "rb") as log:
        log.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
        lines = log.read().decode("utf-8", "replace").split("\n")
    told = [line.strip() for line in lines if line.strip()]
    return " | ".join(told[-count:])
