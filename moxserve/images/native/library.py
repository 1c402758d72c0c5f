"""Find, trust, load and call the native decoder.

A library that is loaded can do whatever the user can, so it is only taken from a directory of the user's own that
nobody else may write to. Its name holds a hash of the source that it was compiled from: another version of moxserve
never finds it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import stat
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from moxserve.file.forks import ForkLock
from moxserve.file.places import cache_directory
from moxserve.images.geometry import Window
from moxserve.images.header import ImageHeader

__all__ = [
    "SWITCH",
    "NativeDecoder",
    "directory",
    "installed",
    "library_path",
    "source",
    "trusted",
    "trusted_directory",
]

SWITCH = "MOXSERVE_NATIVE_DECODER"

# The decoder begins up to two blocks before a window and ends up to three after it; blocks have 16 columns at most.
_MARGIN = 96
# Memory that a thread keeps for the next window; larger ones are made and given back.
_KEPT = 1 << 23

logger = logging.getLogger(__name__)


def source() -> bytes:
    """Return the C source."""
    return (Path(__file__).parent / "windows.c").read_bytes()


def directory() -> str:
    """Return where the library is kept."""
    return os.path.join(os.path.abspath(cache_directory()), "native")


def library_path() -> str:
    """Return the path that the library of this source on this platform has, whether it is there or not."""
    digest = hashlib.sha256(source()).hexdigest()[:16]
    return os.path.join(directory(), f"windows-{sysconfig.get_platform()}-{digest}.so")


def trusted(path: str) -> str | None:
    """Say why a library must not be loaded; None when it may.

    Raises:
        FileNotFoundError: it is not there.
    """
    return trusted_directory(os.path.dirname(path)) or _doubt(path, "file", stat.S_ISREG)


def trusted_directory(path: str) -> str | None:
    """Say why no library may be loaded from a directory; None when it may."""
    return _doubt(path, "directory", stat.S_ISDIR)


def _doubt(path: str, kind: str, is_kind: Callable[[int], bool]) -> str | None:
    found = os.lstat(path)
    if not is_kind(found.st_mode):
        return f"{path} is not a {kind} (a symbolic link is none)"
    if found.st_uid != os.geteuid():
        return f"{path} belongs to user {found.st_uid}, not to this one ({os.geteuid()})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} can be written to by others (mode {stat.S_IMODE(found.st_mode):o})"
    return None


class NativeDecoder:
    """Decodes windows of plain JPEGs. Threads share it; the interpreter's lock is let go of while it decodes.

    Args:
        path: the library; whether it may be trusted is the caller's business.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it is another library.
    """

    def __init__(self, path: str) -> None:
        # Other libraries of the process bring a libjpeg of their own: this one keeps to the one it was built against.
        mode = os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
        function = ctypes.CDLL(path, mode=mode).moxserve_decode_window
        function.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 7, ctypes.c_void_p, ctypes.c_int,
        ]  # fmt: skip
        function.restype = ctypes.c_int
        self._decode: Callable[..., int] = function
        self._memory = threading.local()

    def part(self, data: bytes, header: ImageHeader, channels: int, window: Window) -> tuple[np.ndarray, Window] | None:
        """Decode the part of a JPEG that lies in a window.

        Args:
            data: the image.
            header: what `read_header` says of it.
            channels: 1 (gray) or 3 (RGB).
            window: what is wanted; it may reach beyond the image.

        Returns:
            `[height, width, channels] uint8`, which the next call in this thread overwrites, and the window in its
            coordinates. None where another decoder must be asked: this one takes intact baseline JPEGs, gray or YCbCr
            of 4:4:4, 4:2:2 or 4:2:0.
        """
        if not header.height_at or header.components not in (1, 3):
            return None
        top, left = max(window.top, 0), max(window.left, 0)
        height = min(window.top + window.height, header.height) - top
        width = min(window.left + window.width, header.width) - left
        if height < 1 or width < 1:
            return None
        stride = min(header.width, width + _MARGIN)
        memory, address = self._scratch(height * stride * channels)
        data = bytes(data)  # itself, if it is bytes
        margin = self._decode(
            data, len(data), header.height, header.width, top, left, height, width, channels, address, stride
        )
        if margin < 0:
            return None
        rows = memory[: height * stride * channels].reshape(height, stride, channels)
        return rows[:, margin : margin + width], replace(window, top=window.top - top, left=window.left - left)

    def _scratch(self, size: int) -> tuple[np.ndarray, int]:
        """Memory of this thread and its address: fresh pages for each image would cost a tenth of decoding it."""
        if size > _KEPT:
            memory = np.empty(size, np.uint8)
            return memory, memory.ctypes.data
        kept = getattr(self._memory, "kept", None)
        if kept is None or kept[0].size < size:
            memory = np.empty(max(size, 1 << 20), np.uint8)
            kept = self._memory.kept = (memory, memory.ctypes.data)
        return kept


_deciding = ForkLock()
_decided: list[NativeDecoder | None] = []


def installed() -> NativeDecoder | None:
    """Return the native decoder if it was built and is not switched off (MOXSERVE_NATIVE_DECODER=0), else None.

    The first call decides for the process. A library that is there and cannot be used is told in the log, once.
    """
    if not _decided:
        with _deciding:
            if not _decided:
                _decided.append(_load())
    return _decided[0]


def _load() -> NativeDecoder | None:
    if os.environ.get(SWITCH) == "0" or os.name != "posix":
        return None
    try:
        path = library_path()
        doubt = trusted(path)
        if doubt is None:
            return NativeDecoder(path)
    except FileNotFoundError:
        return None
    except (OSError, AttributeError) as error:
        doubt = str(error)
    logger.warning("the native decoder is not used: %s; `moxserve data native-decoder` builds it anew", doubt)
    return None
