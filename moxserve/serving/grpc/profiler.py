"""TensorFlow's profiler service: what TensorBoard's "Capture profile" and `profiler_client.trace` ask.

The original's service is part of TensorFlow and can only be had from Python with a server of its own, which listens on
every address of the machine, whatever --host says and without TLS. So the three methods are answered here, with
TensorFlow's profiler itself. The profile is written where the original writes it: on the server's disk, below the path
that the request names. How much is traced is TensorFlow's default (operations on the host and on devices, no Python):
in 2.21 its Python interface takes no levels, and warns of each that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from moxserve import file
from moxserve.errors import (
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    Unimplemented,
    serving_error,
)
from moxserve.protocol import profiler

__all__ = ["SERVICE", "ProfilerService"]

SERVICE = "tensorflow.ProfilerService"
_MAX_S = 3600.0
_MAX_WAIT_S = 60.0
_STRANGE = re.compile(r"[^A-Za-z0-9._-]")


class ProfilerService:
    """Takes one profile at a time of this process."""

    def __init__(self) -> None:
        self._session_id = ""
        self._ended: threading.Event | None = None

    def methods(self) -> Mapping[str, Callable[[bytes, Any], Awaitable[bytes]]]:
        """Return the methods by name."""
        return {"Profile": self._profile, "Monitor": self._monitor, "Terminate": self._terminate}

    async def _profile(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002 - gRPC gives it
        request = _parse(profiler.profile_request(), data)
        if not 0 < request.duration_ms <= _MAX_S * 1e3:
            raise InvalidArgument(f"duration_ms={request.duration_ms}: expected 1 to {_MAX_S * 1e3:.0f}")
        if not request.repository_root:
            raise InvalidArgument(
                "repository_root is empty: expected a directory of this server to write the profile to"
            )
        options = _options(request.opts)
        if self._ended is not None:
            raise Unavailable("another profile is being taken; try again when it has ended")
        self._session_id, self._ended = request.session_id, threading.Event()
        try:
            recorded = await asyncio.to_thread(_profile, request, options, self._ended)
        finally:
            self._ended.set()  # the caller may have left: then the profile ends early
            self._session_id, self._ended = "", None
        answer: bytes = profiler.profile_response()(empty_trace=not recorded).SerializeToString()
        return answer

    async def _monitor(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002
        # As TensorFlow's own service answers on everything but a TPU.
        raise Unimplemented("unimplemented.")

    async def _terminate(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002
        session_id = _parse(profiler.terminate_request(), data).session_id
        if self._ended is not None and session_id == self._session_id:
            self._ended.set()
        return b""


def _parse(message_class: Any, data: bytes) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        name = message_class.DESCRIPTOR.name
        raise InvalidArgument(f"the {len(data)} bytes of the request are no {name}: {error}") from None


def _options(data: bytes) -> Any:
    """Read a ProfileOptions message of TensorFlow's.

    Raises:
        Unavailable: there is no TensorFlow in this process to profile. It is not imported for that.
    """
    if "tensorflow" not in sys.modules:
        raise Unavailable(
            "the profiler is TensorFlow's, and none of the models that this server has loaded so far needed TensorFlow"
        )
    from tensorflow.tsl.profiler.protobuf.profiler_options_pb2 import ProfileOptions

    try:
        return ProfileOptions.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"opts is no ProfileOptions: {error}") from None


def _profile(request: Any, options: Any, ended: threading.Event) -> bool:
    """Profile this process and write the profile; blocks for the time that the request asks for.

    Returns:
        Whether anything was recorded. If nothing was, nothing is written, and the caller tries again.

    Raises:
        ServingError: TensorFlow refused, or the profile cannot be written.
    """
    from tensorflow.python.profiler.internal import _pywrap_profiler

    # The hosts of one profile begin together.
    ended.wait(min(_MAX_WAIT_S, max(0.0, (options.start_timestamp_ns - time.time_ns()) / 1e9)))
    session = _pywrap_profiler.ProfilerSession()
    with tempfile.TemporaryDirectory() as folder, _tensorflow_errors():
        session.start(folder, {})
        ended.wait(request.duration_ms / 1e3)
        session.export_to_tb()
        (written,) = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
        space: bytes = file.read(written, binary=True)
    return _write(space, request)


@contextlib.contextmanager
def _tensorflow_errors() -> Iterator[None]:
    from tensorflow.errors import OpError

    try:
        yield
    except OpError as error:
        raise serving_error(error.error_code, error.message) from None


def _write(space: bytes, request: Any) -> bool:
    """Write a serialized XSpace message where TensorBoard looks for it, if it holds anything; tell whether it does.

    Raises:
        ServingError: it cannot be written.
    """
    if not profiler.has_events(space):
        return False
    folder = os.path.join(request.repository_root, _STRANGE.sub("_", request.session_id) or "profile")
    path = os.path.join(folder, f"{_STRANGE.sub('_', request.host_name) or 'moxserve'}.xplane.pb")
    try:
        file.make_dirs(folder)
        file.write(path, space, binary=True)
    except OSError as error:
        raise FailedPrecondition(f"the profile cannot be written to {path}: {error}") from None
    except ValueError as error:
        raise InvalidArgument(f"repository_root={request.repository_root!r}: {error}") from None
    return True
