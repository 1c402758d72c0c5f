"""`shift('os', 'mox')`: Python's own functions for files take `s3://` and `obs://` URLs, too; and back.

What is patched: `open` (also as `io.open`, and where `tarfile`, `bz2`, `lzma` and `tokenize` keep it), functions of
`os`, `os.path`, `glob` and `shutil`. Each is replaced by a function that looks at its path and calls the original
one, unless the path is a URL of a store. The original's meaning holds for stores, too: what raises FileNotFoundError or
FileExistsError of a local path does so of a URL.

Nothing else sees URLs: libraries that open files by themselves (OpenCV, HDF5, TensorFlow's own readers) take local
paths, see `local_copy`; pathlib turns `s3://` into `s3:/` before anybody could look; a name that was bound before
(`from os import listdir`) stays what it was; a process started by the spawn method must call `shift` again.

Source: MoXing guide §1.1.2.1 and §1.1.2.2.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.file import api
from moxserve.file.errors import MoxFileIsADirectoryException, MoxFileNotExistsException, missing
from moxserve.file.filesystem import Entries, join, locate
from moxserve.file.handle import canonical_mode

__all__ = ["shift"]

_URLS = ("s3://", "obs://")
_BYTE_URLS = (b"s3://", b"obs://")
_WORLDS = ("os", "mox")

Function = Callable[..., Any]


def is_url(path: Any) -> bool:
    """Whether a path, of any type that `open` takes, is a URL of a store."""
    if hasattr(path, "__fspath__"):
        path = os.fspath(path)
    if isinstance(path, str):
        return path.startswith(_URLS)
    return isinstance(path, bytes) and path.startswith(_BYTE_URLS)


# What each function does with a URL. Arguments are those of the original; what a store has no meaning for is taken and
# ignored (owners, file descriptors of directories).


def _open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    del closefd, opener
    fs, path = locate(file)
    if "x" in mode:
        if api.exists(path):
            raise FileExistsError(17, "File exists", path)
        mode = mode.replace("x", "w")
    canonical = canonical_mode(mode.replace("t", "", 1) or "r", path)
    if "b" in canonical:
        if encoding is not None or errors is not None or newline is not None:
            raise ValueError("binary mode doesn't take an encoding, errors or newline argument")
        return fs.open(path, canonical, buffering)
    return fs.open(path, canonical, buffering, encoding=encoding, errors=errors, newline=newline)


def _folder(path: str) -> str:
    return path if path.endswith("/") else f"{path}/"


@contextlib.contextmanager
def _telling_files(path: Any) -> Iterator[None]:
    """Tell of a file that was given in place of a directory as the system does."""
    try:
        yield
    except MoxFileNotExistsException:
        if _isfile(path):
            raise NotADirectoryError(20, "Not a directory", os.fsdecode(path)) from None
        raise


def _listdir(path: Any) -> list[Any]:
    with _telling_files(path):
        names = api.list_directory(path)
    return [os.fsencode(name) for name in names] if isinstance(path, bytes) else names


def _mkdir(path: Any, mode: int = 0o777, *, dir_fd: Any = None) -> None:
    del mode, dir_fd
    _refuse_existing(path)
    api.mk_dir(path)


def _makedirs(name: Any, mode: int = 0o777, exist_ok: bool = False) -> None:
    del mode
    if not exist_ok or locate(name)[0].is_file(locate(name)[1]):
        _refuse_existing(name)
    api.make_dirs(name)


def _refuse_existing(path: Any) -> None:
    if api.exists(path):
        raise FileExistsError(17, "File exists", os.fsdecode(path))


def _remove(path: Any, *, dir_fd: Any = None) -> None:
    del dir_fd
    fs, name = locate(path)
    if not fs.is_file(name) and fs.is_directory(name):
        raise MoxFileIsADirectoryException(f"{name!r} is a directory; shutil.rmtree removes directories")
    fs.remove(name, recursive=False)


def _rmdir(path: Any, *, dir_fd: Any = None) -> None:
    del dir_fd
    fs, name = locate(path)
    if not fs.is_directory(name):
        raise NotADirectoryError(20, "Not a directory", name) if fs.is_file(name) else missing(name)
    dirs, files = fs.listing(name, recursive=False)
    if dirs or files:
        raise OSError(39, "Directory not empty", name)
    fs.remove(_folder(name), recursive=True)


def _rename(src: Any, dst: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None) -> None:
    del src_dir_fd, dst_dir_fd
    api.rename(src, dst)


def _stat(path: Any, *, dir_fd: Any = None, follow_symlinks: bool = True) -> os.stat_result:
    del dir_fd, follow_symlinks
    return api.stat(path).result


def _access(path: Any, mode: int, **kwargs: Any) -> bool:
    del mode, kwargs
    return _exists(path)


def _scandir(path: Any) -> Entries:
    with _telling_files(path):
        return api.scan_dir(path)


def _walk(top: Any, topdown: bool = True, onerror: Any = None, followlinks: bool = False) -> Iterator[Any]:
    del onerror, followlinks
    walked = api.walk(top)
    # mox.file goes through a store from the top only; who empties directories needs it from the bottom.
    return walked if topdown else reversed(list(walked))


def _isfile(path: Any) -> bool:
    fs, name = locate(path)
    return fs.is_file(name)


def _exists(path: Any) -> bool:
    try:
        return api.exists(path)
    except MoxFileNotExistsException:  # not even the bucket
        return False


def _isdir(s: Any) -> bool:
    return api.is_directory(s)


def _getsize(filename: Any) -> int:
    return api.get_size(filename)


def _as_it_is(path: Any) -> Any:
    return os.fspath(path)


def _realpath(filename: Any, *, strict: bool = False) -> Any:
    if strict and not api.exists(filename):
        raise missing(os.fsdecode(filename))
    return os.fspath(filename)


def _modified(filename: Any) -> float:
    return api.stat(filename).result.st_mtime


def _never(path: Any) -> bool:
    del path
    return False


def _glob(pathname: Any, *, root_dir: Any = None, recursive: bool = False, **kwargs: Any) -> list[Any]:
    del kwargs
    base = "" if root_dir is None else _folder(os.fsdecode(root_dir))
    pattern = base + os.fsdecode(pathname)
    found = api.glob(pattern if recursive else re.sub(r"\*\*+", "*", pattern))
    names = [path[len(base) :] for path in found]
    return [os.fsencode(name) for name in names] if isinstance(pathname, bytes) else names


def _iglob(pathname: Any, **kwargs: Any) -> Iterator[Any]:
    return iter(_glob(pathname, **kwargs))


def _copyfile(src: Any, dst: Any, *, follow_symlinks: bool = True) -> Any:
    del follow_symlinks
    api.copy(src, dst)
    return dst


def _copy(src: Any, dst: Any, *, follow_symlinks: bool = True) -> Any:
    return _copyfile(src, _into(src, dst), follow_symlinks=follow_symlinks)


def _into(src: Any, dst: Any) -> Any:
    """Where something goes that is copied or moved to a path, which may be a directory."""
    if not api.is_directory(dst):
        return dst
    return join(os.fsdecode(dst), os.path.basename(os.fsdecode(src).rstrip("/")))


def _copytree(
    src: Any,
    dst: Any,
    symlinks: bool = False,
    ignore: Any = None,
    copy_function: Any = None,
    ignore_dangling_symlinks: bool = False,
    dirs_exist_ok: bool = False,
) -> Any:
    del symlinks, copy_function, ignore_dangling_symlinks
    if not dirs_exist_ok:
        _refuse_existing(dst)
    if ignore is None:
        api.copy_parallel(src, dst)
        return dst
    kept = list(_not_ignored(os.fsdecode(src), ignore))
    api.make_dirs(dst)
    if kept:
        api.copy_parallel(src, dst, file_list=kept)
    return dst


def _not_ignored(src: str, ignore: Function) -> Iterator[str]:
    """The files of a tree, relative to it, that a function such as `shutil.ignore_patterns(…)` makes leaves in."""
    for folder, dirs, files in api.walk(src):
        left_out = set(ignore(folder, [*dirs, *files]))
        dirs[:] = [name for name in dirs if name not in left_out]
        for name in files:
            if name not in left_out:
                yield join(folder, name)[len(_folder(src)) :]


def _rmtree(path: Any, ignore_errors: bool = False, onerror: Any = None, **kwargs: Any) -> None:
    del kwargs
    try:
        fs, name = locate(path)
        if not fs.is_directory(name):
            raise NotADirectoryError(20, "Not a directory", name) if fs.is_file(name) else missing(name)
        fs.remove(_folder(name), recursive=True)
    except OSError as error:
        if onerror is not None:
            onerror(shutil.rmtree, path, (type(error), error, error.__traceback__))
        elif not ignore_errors:
            raise


def _move(src: Any, dst: Any, copy_function: Any = None) -> Any:
    del copy_function
    target = _into(src, dst)
    if target is not dst and api.exists(target):
        raise shutil.Error(f"Destination path '{target}' already exists")
    api.rename(src, target)
    return target


# module, name, how many paths are looked at, what is called for URLs
_PATCHES: tuple[tuple[str, str, int, Function], ...] = (
    ("builtins", "open", 1, _open),
    ("os", "listdir", 1, _listdir),
    ("os", "mkdir", 1, _mkdir),
    ("os", "makedirs", 1, _makedirs),
    ("os", "remove", 1, _remove),
    ("os", "unlink", 1, _remove),
    ("os", "rmdir", 1, _rmdir),
    ("os", "rename", 2, _rename),
    ("os", "replace", 2, _rename),
    ("os", "stat", 1, _stat),
    ("os", "lstat", 1, _stat),
    ("os", "access", 1, _access),
    ("os", "scandir", 1, _scandir),
    ("os", "walk", 1, _walk),
    ("os.path", "exists", 1, _exists),
    ("os.path", "lexists", 1, _exists),
    ("os.path", "isdir", 1, _isdir),
    ("os.path", "isfile", 1, _isfile),
    ("os.path", "islink", 1, _never),
    ("os.path", "getsize", 1, _getsize),
    ("os.path", "getmtime", 1, _modified),
    ("os.path", "abspath", 1, _as_it_is),
    ("os.path", "normpath", 1, _as_it_is),
    ("os.path", "realpath", 1, _realpath),
    ("glob", "glob", 1, _glob),
    ("glob", "iglob", 1, _iglob),
    ("shutil", "copyfile", 2, _copyfile),
    ("shutil", "copy", 2, _copy),
    ("shutil", "copy2", 2, _copy),
    ("shutil", "copytree", 2, _copytree),
    ("shutil", "rmtree", 1, _rmtree),
    ("shutil", "move", 2, _move),
)
# Where else the same function is kept under a name of its own.
_ALIASES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("builtins", "open"): (
        ("io", "open"),
        ("tarfile", "bltn_open"),
        ("bz2", "_builtin_open"),
        ("tokenize", "_builtin_open"),
    ),
}
# `os` says by these sets what its functions can do; shutil looks the functions up there when it is imported.
_ABILITIES = ("supports_dir_fd", "supports_fd", "supports_follow_symlinks", "supports_effective_ids")


class _Switch:
    """Installs the functions, and takes them away again; they are made once."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._made: dict[tuple[str, str], tuple[Function, Function]] = {}
        self.on = False

    def turn_on(self) -> None:
        """Install what is not installed."""
        with self._lock:
            for module, name, paths, remote in _PATCHES:
                self._install(module, name, paths, remote)
            self.on = True

    def turn_off(self) -> None:
        """Put the originals back where nobody else has put something on top of ours, which then only passes through."""
        with self._lock:
            self.on = False
            for (module, name), (ours, original) in self._made.items():
                for place in self._places(module, name):
                    if getattr(*place, None) is ours:
                        setattr(*place, original)

    def _install(self, module: str, name: str, paths: int, remote: Function) -> None:
        places = self._places(module, name)
        known = self._made.get((module, name))
        if known is None:
            original = getattr(*places[0])
            known = self._made[module, name] = (self._dispatching(original, remote, paths), original)
            if module == "os":
                _same_abilities(*known)
        ours, original = known
        for place in places:
            if getattr(*place, None) is original:
                setattr(*place, ours)

    @staticmethod
    def _places(module: str, name: str) -> list[tuple[Any, str]]:
        listed = ((module, name), *_ALIASES.get((module, name), ()))
        return [(importlib.import_module(m), n) for m, n in listed]

    def _dispatching(self, original: Function, remote: Function, paths: int) -> Function:
        """Make the function that chooses; the look at a path is all that local paths pay."""
        names = list(inspect.signature(remote).parameters)[:paths]  # as those of the original

        @functools.wraps(original)
        def one(*args: Any, **kwargs: Any) -> Any:
            path = args[0] if args else kwargs.get(names[0])
            if path.__class__ is str:
                if not path.startswith(_URLS):
                    return original(*args, **kwargs)
            elif path.__class__ is int or not is_url(path):
                return original(*args, **kwargs)
            return remote(*args, **kwargs) if self.on else original(*args, **kwargs)

        @functools.wraps(original)
        def two(*args: Any, **kwargs: Any) -> Any:
            given = (*args[:2], *(kwargs.get(name) for name in names))
            if self.on and any(map(is_url, given)):
                return remote(*args, **kwargs)
            return original(*args, **kwargs)

        return one if paths == 1 else two


def _same_abilities(ours: Function, original: Function) -> None:
    for name in _ABILITIES:
        functions = getattr(os, name)
        if original in functions:
            functions.add(ours)


_SWITCH = _Switch()


def shift(src: str, dst: str) -> None:
    """Let Python's own functions for files work with `s3://` and `obs://`, or no longer: `shift('os', 'mox')`.

    Local paths keep what they had, for a fraction of a microsecond a call. Calling it twice is harmless, as is calling
    it while other threads work with files. `shift('mox', 'os')` takes it back.

    Args:
        src: what to go from, `os` or `mox`.
        dst: what to go to, the other one.

    Raises:
        UsageError: another name, or twice the same.
    """
    for world in (src, dst):
        if world not in _WORLDS:
            raise UsageError(f"shift({src!r}, {dst!r}): {did_you_mean(str(world), _WORLDS)}")
    if src == dst:
        raise UsageError(f"shift({src!r}, {dst!r}) changes nothing", hint="shift('os', 'mox'), or back")
    if dst == "mox":
        _SWITCH.turn_on()
    else:
        _SWITCH.turn_off()
