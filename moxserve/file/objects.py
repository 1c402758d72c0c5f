"""A file system made of objects: `s3://` and `obs://`, by the rules of `api`.

A store has no directories. There is one wherever a key goes on after a slash: `a/` when there is a key `a/b`, or the
empty object `a/` that consoles, and `make_dirs`, leave to hold a place. A file `a` and a directory `a/` may both be
there; without a slash at the end the file is meant first. The root of a bucket is a directory. Keys are never changed:
`a//b` and `a/./b` are keys of their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import IO, Any

from moxserve.errors import UsageError
from moxserve.file import patterns
from moxserve.file.entries import ObjectEntry, listed_result, stat_result
from moxserve.file.errors import (
    MoxFileIsADirectoryException,
    MoxFileNotExistsException,
    MoxFileObjectNotExistsException,
    MoxFileRespException,
    missing,
)
from moxserve.file.filesystem import Entries, FileInfo, Stat, join
from moxserve.file.keys import ObjectInfo
from moxserve.file.multipart import MIN_PART_BYTES, Copied, Piece
from moxserve.file.s3 import Bucket, open_bucket
from moxserve.file.streams import ObjectText, buffered
from moxserve.file.writer import Appending, WorkingCopy

__all__ = ["ObjectFileSystem"]


class ObjectFileSystem:
    """URLs of one scheme. Holds nothing: clients are kept by `client`.

    All methods raise MoxFileRespException when the store refuses or does not answer.

    Args:
        scheme: `s3` or `obs`.
    """

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def at(self, path: str) -> tuple[Bucket, str]:
        """Return the bucket and the key of a URL.

        Raises:
            UsageError: it names no bucket.
        """
        return open_bucket(path)

    # Files

    def open(self, path: str, mode: str, buffering: int = -1, **text: Any) -> IO[Any]:
        """Open an object.

        Raises:
            MoxFileNotExistsException: it is not there, and the mode does not make it.
            MoxFileIsADirectoryException: a directory is there, or the URL ends in a slash.
        """
        binary = "b" in mode
        if binary and any(value is not None for value in text.values()):
            raise UsageError(f"{path!r}: mode {mode!r} is binary and takes no {', '.join(text)}")
        if not binary and buffering == 0:
            raise UsageError(f"{path!r}: text needs a buffer; expected mode {mode}b with buffering=0")
        raw = self._raw(path, mode.replace("b", ""))
        raw.name, raw.mode = path, mode
        stream = buffered(raw, buffering)
        if binary:
            return stream
        if text.get("encoding") is None:
            text["encoding"] = "utf-8"
        wrapped = ObjectText(stream, line_buffering=buffering == 1, **text)
        wrapped.mode = mode  # type: ignore[misc]
        return wrapped

    def _raw(self, path: str, mode: str) -> Any:
        bucket, key = self.at(path)
        if not key or key.endswith("/"):
            raise MoxFileIsADirectoryException(f"{path!r} is a directory; expected a file")
        if mode == "a":
            return Appending(bucket, key)
        try:
            return bucket.open(key) if mode == "r" else WorkingCopy(bucket, key, mode)
        except MoxFileObjectNotExistsException as error:
            if error.resp.code != "NoSuchBucket" and bucket.has_any(f"{key}/"):
                raise MoxFileIsADirectoryException(f"{path!r} is a directory; expected a file") from None
            raise

    def write(self, path: str, data: bytes) -> None:
        """Replace an object, all or nothing."""
        with self.open(path, "wb", buffering=0) as f:
            f.write(data)

    def append_file(self, source: str, path: str) -> None:
        """Put one object behind another one; the content does not pass through here where it is 5 MiB and more.

        Raises:
            MoxFileNotExistsException: the source is not there.
        """
        bucket, key = self.at(path)
        other, source_key = self.at(source)
        found, old = other.info(source_key), bucket.info(key)
        if found is None:
            raise missing(source)
        if old is None or not old.size_bytes:
            bucket.copy_from(other, source_key, key)
            return
        if not found.size_bytes:
            return
        try:
            if _joined(other, source_key, found, bucket, key, old):
                return
        except MoxFileRespException as error:
            if error.resp.status != 501:  # a store that copies no parts
                raise
        with self.open(source, "rb") as data, self.open(path, "ab") as out:
            shutil.copyfileobj(data, out, 1 << 20)

    # What is there

    def exists(self, path: str) -> bool:
        """Tell whether there is an object or a directory.

        Raises:
            MoxFileNotExistsException: a key is asked for in a bucket that is not there.
        """
        bucket, key = self.at(path)
        if not key:
            return self._has_root(bucket)
        return (not key.endswith("/") and bucket.exists(key)) or self._is_directory(bucket, key)

    def is_directory(self, path: str) -> bool:
        """Tell whether there is a directory; false where there is no bucket."""
        bucket, key = self.at(path)
        if not key:
            return self._has_root(bucket)
        try:
            return self._is_directory(bucket, key)
        except MoxFileNotExistsException:
            return False

    def is_file(self, path: str) -> bool:
        """Tell whether there is an object."""
        bucket, key = self.at(path)
        return bool(key) and not key.endswith("/") and bucket.exists(key)

    def _has_root(self, bucket: Bucket) -> bool:
        try:
            bucket.has_any("")
        except MoxFileNotExistsException:
            return False
        return True

    def _is_directory(self, bucket: Bucket, key: str) -> bool:
        return bucket.has_any(_folder(key))

    def size(self, path: str, recursive: bool) -> int:
        """Return the size of an object, or of the objects directly in a directory, or of all below it.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        bucket, key = self.at(path)
        if key and not key.endswith("/"):
            found = bucket.info(key)
            if found is not None:
                return found.size_bytes
        total, any_found = 0, not key
        for page in bucket.pages(_folder(key), delimiter="" if recursive else "/"):
            any_found = any_found or bool(page.get("Contents") or page.get("CommonPrefixes"))
            total += sum(o["Size"] for o in page.get("Contents", ()))
        if not any_found:
            raise missing(path)
        return total

    def listing(self, path: str, recursive: bool) -> tuple[list[str], list[str]]:
        """Return directories (with `/` at the end) and objects, relative to the directory, in the order of their bytes.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        dirs: set[str] = set()
        files: list[str] = []
        for name, found in self._below(path, recursive):
            if found is None:
                dirs.add(name)
                continue
            if not name.endswith("/"):
                files.append(name)
            if recursive:
                dirs.update(_above(name))
        return sorted(dirs), sorted(files)

    def tree(self, path: str) -> tuple[list[str], dict[str, str | None]]:
        """Return what is below a directory, objects with size and tag of their content.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        dirs: set[str] = set()
        files: dict[str, str | None] = {}
        for name, found in self._below(path, recursive=True):
            if not name.endswith("/"):
                files[name] = f"{found['Size']} {found['ETag']}"
            dirs.update(_above(name))
        return sorted(dirs), {name: files[name] for name in sorted(files)}

    def contents(self, path: str) -> Iterator[FileInfo]:
        """Yield what a listing tells of each object below a directory.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        for name, found in self._below(path, recursive=True):
            if not name.endswith("/"):
                yield FileInfo(name, found["Size"], int(found["LastModified"].timestamp() * 1e9))

    def _below(self, path: str, recursive: bool) -> Iterator[tuple[str, Any]]:
        """Yield names relative to a directory, with what the listing tells of objects, None for directories.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        bucket, key = self.at(path)
        start = _folder(key)
        any_found = not start
        for page in bucket.pages(start, delimiter="" if recursive else "/"):
            for found in page.get("Contents", ()):
                any_found = True
                if found["Key"] != start:
                    yield found["Key"][len(start) :], found
            for found in page.get("CommonPrefixes", ()):
                any_found = True
                yield found["Prefix"][len(start) :], None
        if not any_found:
            raise missing(path)

    def scan(self, path: str) -> Entries:
        """Give the entries of a directory; where a file and a directory have one name, both.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        listed = [
            ObjectEntry(join(path, shown(name)), shown(name), listed_result(found))
            for name, found in self._below(path, recursive=False)
        ]
        return Entries(iter(sorted(listed, key=lambda entry: entry.name)))

    def walk(self, path: str, topdown: bool, onerror: Any, followlinks: bool) -> Iterator[Any]:
        """Walk a tree from the top, whatever `topdown` says, out of one listing; names taken out of it are left out."""
        del topdown, onerror, followlinks
        try:
            dirs, files = self.listing(path, recursive=True)
        except MoxFileNotExistsException:
            return
        tree: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
        for name in dirs:
            tree[name] = ([], [])
        for name in dirs:
            parent, last = _parent(name[:-1])
            tree[parent][0].append(shown(f"{last}/"))
        for name in files:
            parent, last = _parent(name)
            tree[parent][1].append(last)
        yield from _walked(path, tree)

    def glob(self, pattern: str) -> list[str]:
        """Return the URLs that match; the bucket is taken literally."""
        bucket, key = self.at(pattern)
        start = f"{self.scheme}://{bucket.name}/"
        if not key:
            return [pattern] if self._has_root(bucket) else []
        try:
            return sorted(start + name for name in patterns.expand(bucket, key))
        except MoxFileNotExistsException:
            return []

    def stat(self, path: str) -> Stat:
        """Return size, time and kind; of a directory the time when its place holder was written, if it has one.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        bucket, key = self.at(path)
        if key and not key.endswith("/"):
            found = bucket.info(key)
            if found is not None:
                return Stat(stat_result(False, found.size_bytes, found.modified), False)
        start = _folder(key)
        for page in bucket.pages(start, limit=1):
            first = next(iter(page.get("Contents", ())), None)
            if first is None and start:
                break
            marker = first if first and first["Key"] == start else None
            return Stat(stat_result(True, 0, marker["LastModified"] if marker else None), True)
        raise missing(path)

    # Directories, and removing

    def make_dirs(self, path: str) -> None:
        """Make a directory by an empty object that holds its place.

        Raises:
            MoxFileNotExistsException: there is no such bucket.
        """
        bucket, key = self.at(path)
        start = _folder(key)
        for page in bucket.pages(start, limit=1):
            first = next(iter(page.get("Contents", ())), None)
            if start and (first is None or first["Key"] != start):
                bucket.put_if(start, b"", {})

    def mk_dir(self, path: str) -> None:
        """Make a directory whose parent is there.

        Raises:
            MoxFileNotExistsException: the parent is not there.
        """
        _, key = self.at(path)
        parent = path.rstrip("/").rpartition("/")[0]
        if key.strip("/") and not self.is_directory(parent):
            raise missing(parent)
        self.make_dirs(path)

    def remove(self, path: str, recursive: bool) -> None:
        """Remove by MoXing's table.

        Raises:
            MoxFileNotExistsException: there is nothing of that name, and the URL has no slash at its end.
        """
        bucket, key = self.at(path)
        named = bool(key) and not key.endswith("/")
        if named and bucket.exists(key):
            bucket.delete([key])
            return
        if recursive:
            found = False
            for page in bucket.pages(_folder(key)):
                keys = [o["Key"] for o in page.get("Contents", ())]
                found = found or bool(keys)
                bucket.delete(keys)
        else:
            found = not named or self._is_directory(bucket, key)
        if named and not found:
            raise missing(path)

    def held(self, path: str) -> list[str]:
        """Return the names of the objects below a directory, and of those that hold places: no others can be removed.

        Raises:
            MoxFileNotExistsException: it is not there.
        """
        bucket, key = self.at(path)
        start = _folder(key)
        names = [found.key[len(start) :] for found in bucket.objects(start)]
        if start and not names:
            raise missing(path)
        return names

    def remove_files(self, folder: str, names: Sequence[str]) -> None:
        """Remove objects of a directory, and the place holders of directories among them."""
        bucket, key = self.at(folder)
        bucket.delete([_folder(key) + name for name in names])


def _joined(source: Bucket, source_key: str, new: ObjectInfo, bucket: Bucket, key: str, old: ObjectInfo) -> bool:
    """Let the store put one object behind another; false where both are too small for parts."""
    taken = 0
    if old.size_bytes >= MIN_PART_BYTES:
        first: Piece | Copied = Copied(bucket.name, key, old.etag, 0, old.size_bytes)
    elif new.size_bytes > MIN_PART_BYTES:
        # The first part must hold 5 MiB: the old content, and as much of the new.
        with source.open(source_key) as reader:
            data = bucket.read(key)[0] + _read(reader, MIN_PART_BYTES)
        first, taken = Piece(len(data), data=data), MIN_PART_BYTES
    else:
        return False
    rest = Copied(source.name, source_key, new.etag, taken, new.size_bytes - taken)
    bucket.compose([first, rest], key, {"IfMatch": old.etag}, old.about)
    return True


def shown(name: str) -> str:
    """Return a name without the slash that marks a directory; one that is nothing but a slash (of `a//b`) keeps it."""
    return name[:-1] if len(name) > 1 and name.endswith("/") else name


def _folder(key: str) -> str:
    return key if not key or key.endswith("/") else f"{key}/"


def _above(name: str) -> Iterator[str]:
    """Yield the directories that a relative name is in, or is: `a/` and `a/b/` of `a/b/c` and of `a/b/`."""
    end = name.find("/")
    while end >= 0:
        yield name[: end + 1]
        end = name.find("/", end + 1)


def _parent(name: str) -> tuple[str, str]:
    """Split `a/b/c` into `a/b/` and `c`."""
    parent, sep, last = name.rpartition("/")
    return parent + sep, last


def _walked(path: str, tree: dict[str, tuple[list[str], list[str]]]) -> Iterator[Any]:
    waiting = [(path, "")]
    while waiting:
        path, name = waiting.pop()
        dirs, files = tree[name]
        yield path, dirs, files
        # What the caller has taken out of `dirs` is left out.
        waiting += [(join(path, d), name + d if d == "/" else f"{name}{d}/") for d in reversed(dirs)]


def _read(reader: Any, count: int) -> bytes:
    data = bytearray(count)
    reader.readinto(data)
    return bytes(data)
