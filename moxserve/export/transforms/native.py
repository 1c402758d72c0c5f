"""TensorFlow's own graph tools, in a process of their own (`worker`): a crash there is an error here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from moxserve.errors import ExportError, MissingExtraError
from moxserve.export.transforms import worker

__all__ = ["NativeTools"]

_BINDING = os.path.join("python", "util", "_pywrap_transform_graph")
_TAIL_BYTES = 4000
_LAST_LINES = 3


class NativeTools:
    """Runs TensorFlow's Graph Transform Tool and Grappler; the process starts when the first is asked for.

    Args:
        libraries: paths of custom operation libraries that graphs need.
        timeout_s: longest time for one request.
    """

    def __init__(self, libraries: Sequence[str] = (), timeout_s: float = 600.0) -> None:
        self._libraries = list(libraries)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    def __enter__(self) -> NativeTools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def transform(self, graph_def: Any, inputs: Sequence[str], outputs: Sequence[str], transform: str) -> Any:
        """Run one transform of the Graph Transform Tool.

        Args:
            graph_def: any graph.
            inputs: names of its input nodes.
            outputs: names of its output nodes.
            transform: in the tool's language, values in double quotes.

        Returns:
            The new graph.

        Raises:
            ExportError: the transform failed or crashed, or this TensorFlow has no such tool.
        """
        names = [",".join(inputs).encode(), ",".join(outputs).encode()]
        return self._ask(graph_def, b"transform", *names, transform.encode())

    def grappler(self, graph_def: Any, kept: Sequence[str], passes: Sequence[str]) -> Any:
        """Run passes of Grappler.

        Args:
            graph_def: any graph.
            kept: names of the nodes that must stay.
            passes: names of the passes, in order.

        Returns:
            The new graph.

        Raises:
            ExportError: a pass failed or crashed.
        """
        return self._ask(graph_def, b"grappler", ",".join(kept).encode(), ",".join(passes).encode())

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was still to be written cannot be any more
                        pipe.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _ask(self, graph_def: Any, kind: bytes, *arguments: bytes) -> Any:
        process = self._start()
        if process.stdin is None or process.stdout is None:
            raise TypeError("the process of TensorFlow's graph tools was started without pipes")
        late = threading.Timer(self._timeout_s, process.kill)
        late.start()
        try:
            worker.send(process.stdin, kind, graph_def.SerializeToString(), *arguments)
            outcome, answer = worker.receive(process.stdout), worker.receive(process.stdout)
        except OSError:
            outcome = answer = None
        finally:
            late.cancel()
        if outcome is None or answer is None:
            raise self._died(process)
        if outcome == b"error":
            raise ExportError(_message(answer))
        return type(graph_def).FromString(answer)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, worker.__file__, _binding(), *self._libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
        )
        return self._process

    def _died(self, process: subprocess.Popen[bytes]) -> ExportError:
        code = process.wait()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _TAIL_BYTES))
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").split("\n") if line.strip()]
        self.close()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        told = " | ".join(lines[-_LAST_LINES:])
        return ExportError(f"TensorFlow's process {how}{': ' + told if told else ''}")


def _message(answer: bytes) -> str:
    lines = [line.strip() for line in answer.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _binding() -> str:
    """Return the path of TensorFlow's private binding of the Graph Transform Tool.

    Raises:
        MissingExtraError: TensorFlow is not installed.
        ExportError: this TensorFlow has no such binding.
    """
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise MissingExtraError("TensorFlow", "tensorflow", "transforming graphs")
    base = os.path.join(os.path.dirname(spec.origin), _BINDING)
    for suffix in (".so", ".pyd"):
        if os.path.exists(base + suffix):
            return base + suffix
    raise ExportError(
        f"this TensorFlow has no Graph Transform Tool ({_BINDING} is not in it)",
        hint="install TensorFlow 2.21, or use only transforms that docs/transforms.md says moxserve runs",
    )


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        # As in this process, and without the worker's folder, whose files may be called like a package.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
