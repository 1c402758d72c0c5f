"""The caller's side of a probe: starts the process, waits for it, reads what it left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import orjson
from pydantic import ValidationError

from moxserve import file
from moxserve.export.children import child_environment, how_it_ended, last_lines
from moxserve.export.manifest import Variant
from moxserve.export.variants.work import Rows
from moxserve.probe.request import ANSWER_FILE, LOG_FILE, REQUEST_FILE, Answer, Request, Stored
from moxserve.probe.result import ProbeOptions, ProbeResult
from moxserve.types import dtype_by_name

__all__ = ["probe"]

_LAST_LINES = 5


def probe(
    version_dir: str, variant: Variant | str | None, signature: str, rows: Rows, options: ProbeOptions | None = None
) -> ProbeResult:
    """Try one form of a version in a process of its own, and wait for it.

    Args:
        version_dir: the version, staged or published; a manifest need not be there.
        variant: as it is declared, or will be; the name of one that lies in the directory; None for the SavedModel.
        signature: key of the signature to call.
        rows: real rows; `inputs` are sent, `count` of them. Without any, the model is only loaded.
        options: None takes the defaults.

    Returns:
        What was found. A model that cannot be loaded, refuses a row, crashes or hangs is told in `error`.

    Raises:
        OSError: the process cannot be started, or there is no place for its files.
    """
    options = options or ProbeOptions()
    name = variant.name if isinstance(variant, Variant) else variant or "saved_model"
    request = Request(
        version_dir=os.path.abspath(version_dir),
        variant=variant if isinstance(variant, Variant) else None,
        name=name if variant is not None else "",
        signature=signature,
        rows=asdict(rows),
        options=asdict(options),
        parent=os.getpid(),
    )
    started = time.monotonic()
    scratch = file.staging_directory(options.scratch) if options.scratch else file.scratch_directory()
    with scratch as folder:
        file.write(os.path.join(folder, REQUEST_FILE), orjson.dumps(request.model_dump()), binary=True)
        error = _run(folder, options.timeout_s)
        return _result(name, folder, error, time.monotonic() - started)


def _run(folder: str, timeout_s: float) -> str:
    """Run the process; return how it ended where that was not by itself, and well."""
    with open(os.path.join(folder, LOG_FILE), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moxserve.probe", folder],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(),
            # A group of its own, so that what it starts ends with it; a key press on the terminal ends it through us.
            start_new_session=True,
        )
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return f"it was ended after {timeout_s:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"the process that ran it {how_it_ended(code)}" if code else ""


def _result(name: str, folder: str, error: str, seconds: float) -> ProbeResult:
    answer = _answer(os.path.join(folder, ANSWER_FILE))
    tail = last_lines(os.path.join(folder, LOG_FILE), _LAST_LINES)
    if answer is None:
        why = f"{error or 'the process that ran it left no answer'}{': ' + tail if tail else ''}"
        return ProbeResult(name, error=why, log=tail, seconds=seconds)
    if error:
        # It had told what it could; a crash while it ended, or while it was measured, counts all the same.
        error = f"{error}{' ' + answer.at if answer.at else ''}{': ' + tail if tail else ''}"
    return ProbeResult(
        variant=name,
        platform=answer.platform,
        error=error or answer.error,
        outputs=_load(folder, answer.outputs),
        singles=_load(folder, answer.singles),
        size_bytes=answer.size_bytes,
        digest=answer.digest,
        measured=answer.measured,
        notes=tuple(answer.notes),
        log=tail,
        seconds=seconds,
    )


def _answer(path: str) -> Answer | None:
    try:
        with open(path, "rb") as f:
            return Answer.model_validate_json(f.read())
    except (FileNotFoundError, ValidationError):
        return None


def _load(folder: str, stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    return {alias: _array(os.path.join(folder, one.file), one.dtype) for alias, one in stored.items()}


def _array(path: str, dtype: str) -> np.ndarray:
    # Strings are saved as objects; the files are our own child's.
    array: np.ndarray = np.load(path, allow_pickle=True)
    wanted = dtype_by_name(dtype).numpy
    return array if array.dtype == wanted or array.dtype.kind != "V" else array.view(wanted)
