"""Runs converters in a process of their own, which is started again when one of them takes it down."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from types import TracebackType

from moxserve.export.variants.work import Built, Failure, Work

__all__ = ["Workshop"]

_TAIL_BYTES = 4000
_LAST_LINES = 3


class Workshop:
    """A process that converts models, one after another.

    Not `multiprocessing`: its way of starting a process runs the caller's main script a second time, which may be a
    training.

    Args:
        log: file for what the converters print; its end is told when the process dies.
    """

    def __init__(self, log: str) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def convert(self, work: Work) -> Built | Failure:
        """Make a variant.

        Returns:
            What was made, or why not; a converter that crashed is such a reason.
        """
        process = self._start()
        if process.stdin is None or process.stdout is None:
            raise TypeError("the process of the converters was started without pipes")
        try:
            pickle.dump(work, process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            return self._died(process)
        if not isinstance(answer, Built | Failure):
            raise TypeError(f"a converter answered with {type(answer).__name__}")
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                # What was still to be written cannot be any more.
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moxserve.export.variants.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
            )
        return self._process

    def _died(self, process: subprocess.Popen[bytes]) -> Failure:
        code = process.wait()
        self.close()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        told = _last_lines(self._log)
        return Failure(f"the process that converted it {how}{': ' + told if told else ''}")


def _environment() -> dict[str, str]:
    paths = [path for path in sys.path if path]
    return {
        **os.environ,
        # As in this process, and without the current directory, whose files may be called like a package.
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        # Converters see no GPU: what they make must not depend on it, and a training may have its memory.
        "CUDA_VISIBLE_DEVICES": "-1",
    }


def _last_lines(path: str) -> str:
    with open(path, "rb") as log:
        log.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
        lines = log.read().decode("utf-8", "replace").split("\n")
    told = [line.strip() for line in lines if line.strip()]
    return " | ".join(told[-_LAST_LINES:])
