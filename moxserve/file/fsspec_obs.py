"""`obs://` for fsspec, and so for pandas, pyarrow, dask and whatever else opens URLs through it.

    pandas.read_csv("obs://bucket/table.csv")

fsspec finds this by the entry point `fsspec.specs`; `s3://` is left to its own `s3fs`. Keys and addresses are those of
`mox.file`: environment, files, `set_auth`.

Source: fsspec documentation, "Developing with fsspec" (AbstractFileSystem).
"""

from __future__ import annotations

from datetime import UTC, datetime
from glob import has_magic
from typing import IO, Any

from fsspec.spec import AbstractFileSystem

from moxserve.errors import UsageError
from moxserve.file import api
from moxserve.file.errors import MoxFileIsADirectoryException, missing
from moxserve.file.filesystem import FileSystem, join, locate

__all__ = ["ObsFileSystem"]


class ObsFileSystem(AbstractFileSystem):
    """Buckets behind `obs://`.

    Raises:
        UsageError: storage options were given; `mox.file.set_auth` takes them.
    """

    protocol = "obs"
    root_marker = ""
    cachable = False  # settings may change from one use to the next

    def __init__(self, **options: Any) -> None:
        unknown = set(options) - {"use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache"}
        if unknown:
            raise UsageError(
                f"obs:// takes no storage option {sorted(unknown)[0]!r}",
                hint="call moxserve.file.set_auth(ak=..., sk=..., server=...), or set the environment",
            )
        super().__init__(**options)

    def _place(self, path: str) -> tuple[FileSystem, str]:
        return locate(f"obs://{self._strip_protocol(path)}")

    def _named(self, path: str) -> str:
        return str(self._strip_protocol(path))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> IO[bytes]:
        del kwargs  # block sizes and caches: objects are streams here
        fs, url = self._place(path)
        if mode == "xb":
            if fs.exists(url):
                raise FileExistsError(17, "File exists", url)
            mode = "wb"
        return fs.open(url, mode)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return name, size, type and time of an object or directory.

        Raises:
            FileNotFoundError: it is not there.
        """
        del kwargs
        fs, url = self._place(path)
        found = fs.stat(url)
        return _info(self._named(path), found.is_directory, found.length, found.mtime_nsec)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a directory; of an object, the object alone.

        Raises:
            FileNotFoundError: it is not there.
        """
        del kwargs
        fs, url = self._place(path)
        base = self._named(path).rstrip("/")
        try:
            with fs.scan(url) as entries:
                listed = [_info(f"{base}/{e.name}", e.is_dir(), e.stat().length, e.stat().mtime_nsec) for e in entries]
        except FileNotFoundError:
            listed = [self.info(path)]
        return listed if detail else [entry["name"] for entry in listed]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """List everything below a directory, by one listing where directories and depths are not asked for."""
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth, withdirs, detail, **kwargs)
        fs, url = self._place(path)
        base = self._named(path).rstrip("/")
        try:
            found = {
                f"{base}/{i.name}": _info(f"{base}/{i.name}", False, i.size_bytes, i.mtime_ns) for i in fs.contents(url)
            }
        except FileNotFoundError:
            found = {base: self.info(path)} if fs.is_file(url) else {}
        return found if detail else sorted(found)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return an object's content, or a stretch of it; negative numbers count from its end."""
        del kwargs
        fs, url = self._place(path)
        with fs.open(url, "rb") as f:
            if start is None and end is None:
                return bytes(f.read())
            first, last, _ = slice(start, end).indices(f.seek(0, 2))
            f.seek(first)
            return bytes(f.read(max(0, last - first)))

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy an object, which the store does; of a directory make the like, as fsspec copies trees."""
        del kwargs
        (fs, source), (_, target) = self._place(path1), self._place(path2)
        try:
            api.copy(source, target)
        except MoxFileIsADirectoryException:
            if fs.is_file(source):
                raise
            fs.make_dirs(target)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Move an object or a directory; an object goes into what ends in a slash."""
        del recursive, maxdepth, kwargs
        (fs, source), (_, target) = self._place(path1), self._place(path2)
        if path2.endswith("/") and fs.is_file(source):
            target = join(target, source.rpartition("/")[2])
        api.rename(source, target)

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        api.remove(self._place(path)[1])

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove objects, what matches patterns, and directories when `recursive`.

        Raises:
            FileNotFoundError: it is not there, or nothing matches.
            IsADirectoryError: it is a directory, and `recursive` is false.
        """
        del maxdepth
        for one in [path] if isinstance(path, str) else path:
            for name in self._matching(one):
                self._rm(name, recursive)

    def _matching(self, path: str) -> list[str]:
        """Return what a pattern means; what is there under that very name is none."""
        if not has_magic(path) or self._place(path)[0].is_file(self._place(path)[1]):
            return [path]
        found: list[str] = self.glob(path)
        if not found:
            raise missing(path)
        return found

    def _rm(self, path: str, recursive: bool) -> None:
        fs, url = self._place(path)
        if fs.is_file(url):
            fs.remove(url, recursive=False)
        elif not fs.is_directory(url):
            raise missing(url)
        elif not recursive:
            raise MoxFileIsADirectoryException(f"{url!r} is a directory", hint="recursive=True removes directories")
        else:
            fs.remove(url.rstrip("/") + "/", recursive=True)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory."""
        del kwargs
        (api.make_dirs if create_parents else api.mk_dir)(self._place(path)[1])

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and its parents.

        Raises:
            FileExistsError: it is there, and `exist_ok` is false.
        """
        fs, url = self._place(path)
        if not exist_ok and fs.exists(url):
            raise FileExistsError(17, "File exists", url)
        fs.make_dirs(url)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory.

        Raises:
            OSError: there is something in it.
        """
        fs, url = self._place(path)
        if any(fs.listing(url, recursive=False)):
            raise OSError(39, "Directory not empty", url)
        fs.remove(url.rstrip("/") + "/", recursive=True)

    def modified(self, path: str) -> datetime:
        """When an object was written."""
        fs, url = self._place(path)
        return datetime.fromtimestamp(fs.stat(url).mtime_nsec / 1e9, UTC)

    created = modified


def _info(name: str, is_directory: bool, size: int, mtime_ns: int) -> dict[str, Any]:
    return {
        "name": name,
        "size": 0 if is_directory else size,
        "type": "directory" if is_directory else "file",
        "mtime": mtime_ns / 1e9,
        "LastModified": datetime.fromtimestamp(mtime_ns / 1e9, UTC),
    }
