"""The access log: a line of JSON for each request.

    {"time":"2026-11-21T05:42:46.123Z","protocol":"grpc","method":"/tensorflow.serving.PredictionService/Predict",
     "model":"half","version":123,"signature":"serving_default","status":"OK","code":0,"duration_ms":0.412,
     "queue_ms":0.101,"run_ms":0.205,"request_bytes":45,"response_bytes":67,"peer":"127.0.0.1:40022",
     "request_id":"9f86d081884c7d65"}

`time` is when the request began. `version`, `signature`, `queue_ms` and `run_ms` are there only when the model was run,
and `trace_id` when requests are traced.
Lines are appended whole, so that several processes can share the file, and logrotate may move or cut it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import orjson

from moxserve.errors import UsageError
from moxserve.serving.observe.record import RequestRecord

__all__ = ["AccessLog"]

_LOOK_S = 1.0


class AccessLog:
    """The file.

    Args:
        path: made if it is not there, appended to if it is; `-` is stdout.

    Raises:
        UsageError: it cannot be opened.
    """

    name = "the access log"

    def __init__(self, path: str) -> None:
        self._path = "" if path == "-" else os.path.abspath(path)
        self._moved = False
        self._looked = time.monotonic()
        try:
            self._fd = self._open()
        except OSError as error:
            raise UsageError(
                f"--access_log={path}: {error.strerror or error}",
                hint="name a file in a directory that this user may write to, or - for stdout",
            ) from None

    def _open(self) -> int:
        if not self._path:
            return os.dup(sys.__stdout__.fileno() if sys.__stdout__ else 1)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def write(self, records: Sequence[RequestRecord], dropped: int) -> None:
        """Append a line for each record; see `Sink`."""
        self._follow()
        lines = [_line(_entry(record)) for record in records]
        if dropped:
            lines.append(_line({"time": _time(time.time_ns()), "dropped": dropped}))
        data = memoryview(b"".join(lines))
        while data:
            data = data[os.write(self._fd, data) :]

    def _follow(self) -> None:
        """Open the file anew when it was moved or removed, which is also seen without being told."""
        now = time.monotonic()
        if not self._path or (not self._moved and now - self._looked < _LOOK_S):
            return
        self._looked = now
        if self._moved or _other_file(self._path, self._fd):
            self._moved = False
            fresh = self._open()
            os.close(self._fd)
            self._fd = fresh

    def reopen(self) -> None:
        """Open the file anew at the next write; see `Sink`."""
        self._moved = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _other_file(path: str, fd: int) -> bool:
    with contextlib.suppress(OSError):
        there, ours = os.stat(path), os.fstat(fd)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
    return True


def _entry(record: RequestRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "time": _time(record.time_ns), "protocol": record.protocol, "method": record.method, "model": record.model,
    }  # fmt: skip
    if record.version is not None:
        entry |= {"version": record.version, "signature": record.signature}
    entry |= {"status": record.status, "code": record.code, "duration_ms": _ms(record.duration_s)}
    if record.run_s >= 0:
        entry |= {"queue_ms": _ms(record.queue_s), "run_ms": _ms(record.run_s)}
    entry |= {
        "request_bytes": record.request_bytes, "response_bytes": record.response_bytes, "peer": record.peer,
        "request_id": record.request_id,
    }  # fmt: skip
    if record.trace_id:
        entry["trace_id"] = record.trace_id
    return entry


def _time(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000 / 1e3, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _line(entry: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        # A name with half a surrogate pair is no UTF-8; it is written as \ud800.
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
