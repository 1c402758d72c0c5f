"""Runs converters in a process of their own, which is started again when one of them takes it down."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from types import TracebackType

from moxserve.export.children import child_environment, how_it_ended, last_lines
from moxserve.export.variants.work import Built, Failure, Work

__all__ = ["Workshop"]

_LAST_WORDS_S = 60.0


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
                env=child_environment(),
            )
        return self._process

    def _died(self, process: subprocess.Popen[bytes]) -> Failure:
        try:
            code = process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            # It still runs, and what it said is no answer.
            process.kill()
            code = process.wait()
        self.close()
        told = last_lines(self._log)
        return Failure(f"the process that converted it {how_it_ended(code)}{': ' + told if told else ''}")
