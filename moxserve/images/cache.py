"""Caches of images on a local disk: of encoded bytes, for files that are slow to read, and of decoded pixels.

Both fill themselves as rows are read, in whichever process reads them first, and are found again by the next run. An
image is known by its path, size and time of change, so that a file that was changed is read anew. `pack` says how the
files are written, and why a killed writer leaves nothing that is taken for data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moxserve.images.pack import Key, PackStore

__all__ = ["BytesCache", "DecodedCache", "FileKey"]


@dataclass(frozen=True, slots=True)
class FileKey:
    """What tells one state of a file from all others.

    Attributes:
        path: of the file, or a name.
        size: in bytes.
        modified_ns: time of the last change, nanoseconds since 1970; or a checksum of the content.
    """

    path: str
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileKey:
        """Ask the file system.

        Raises:
            OSError: the file is not there.
        """
        found = os.stat(path)
        return cls(os.fspath(path), found.st_size, found.st_mtime_ns)

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> FileKey:
        """The key of bytes that come from no file, by their content."""
        import google_crc32c

        return cls(name, len(data), google_crc32c.value(data))

    def digest(self, what: str = "") -> Key:
        """Return 128 bits of it, and of what is stored."""
        text = f"{what}\0{self.size}\0{self.modified_ns}\0{self.path}".encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(text, digest_size=16).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class _Cache:
    """What both kinds do with their packs."""

    store: PackStore

    def commit(self) -> None:
        """Make what was kept so far outlast this process."""
        self.store.commit()

    def close(self) -> None:
        """Commit, and let another process write."""
        self.store.close()

    def remove(self) -> None:
        """Remove the cache from the disk."""
        self.store.remove()


class BytesCache(_Cache):
    """Keeps the bytes of files: for remote and slow ones, which are read through it once.

    Args:
        folder: made if missing; several processes may share it.
        max_bytes: no more than this is kept; None for no limit.
        fetch: reads a file, by its path; by default from the local file system.

    Raises:
        UsageError: `max_bytes` is negative.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_bytes: int | None = None,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        self.store = PackStore(os.path.join(folder, "bytes"), max_bytes)
        self._fetch = fetch or _read

    def read(
        self, path: str | os.PathLike[str], key: FileKey | None = None, fetch: Callable[[str], bytes] | None = None
    ) -> bytes:
        """Return a file's bytes, from the cache or from where it is.

        Args:
            path: the file.
            key: which state of it; asked of the local file system if not given.
            fetch: reads it if it is not kept, in place of that of the constructor.

        Raises:
            OSError: it cannot be read.
        """
        digest = (key or FileKey.of(path)).digest()
        entry = self.store.get(digest)
        if entry is not None:
            return entry.data.tobytes()
        data = (fetch or self._fetch)(os.fspath(path))
        self.store.put(digest, data)
        return data


class DecodedCache(_Cache):
    """Keeps decoded images, about 8 to 10 times the size of their JPEGs; windows are cut from the mapped pages.

    Args:
        folder: made if missing; several processes may share it.
        max_bytes: no more than this is kept; None for no limit.

    Raises:
        UsageError: `max_bytes` is negative.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.store = PackStore(os.path.join(folder, "decoded"), max_bytes)

    def get(self, key: FileKey, channels: int) -> np.ndarray | None:
        """Return a decoded image, `[height, width, channels] uint8`, read only; None if it is not kept."""
        entry = self.store.get(key.digest(f"decoded{channels}"))
        return None if entry is None else entry.data.reshape(entry.shape)

    def put(self, key: FileKey, image: np.ndarray) -> bool:
        """Keep a decoded image; tell whether it is kept."""
        height, width, channels = image.shape
        return self.store.put(key.digest(f"decoded{channels}"), np.ascontiguousarray(image), (height, width, channels))


def _read(path: str) -> bytes:
    with open(path, "rb") as f:
        return f.read()
