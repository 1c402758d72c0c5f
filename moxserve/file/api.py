"""The functions of `mox.file`, with MoXing's names and meaning, for local paths, `s3://` and `obs://`.

A path is a str, bytes or PathLike. `locate` finds its file system; the rest of this package does not know schemes.

Source: MoXing guide §1.1.2. `client_id`, which chose among several clients there, is accepted and changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from moxserve.errors import UsageError
from moxserve.file.copying import Place, copy_file
from moxserve.file.copying import rename as _rename
from moxserve.file.errors import MoxFileIsADirectoryException, MoxFilePermissionException
from moxserve.file.filesystem import Entries, Stat, Url, locate, text_of
from moxserve.file.handle import File
from moxserve.file.trees import CopyOptions, copy_tree

__all__ = [
    "append",
    "append_remote",
    "copy",
    "copy_parallel",
    "exists",
    "get_size",
    "glob",
    "is_directory",
    "list_directory",
    "make_dirs",
    "mk_dir",
    "read",
    "remove",
    "rename",
    "scan_dir",
    "stat",
    "walk",
    "write",
]


def read(url: Url, client_id: str | None = None, binary: bool = False) -> Any:
    """Return a whole file as str (UTF-8), or as bytes when `binary`.

    Args:
        url: the file.
        client_id: changes nothing.
        binary: give bytes.

    Raises:
        MoxFileNotExistsException: it is not there; of an object also a MoxFileRespException with status 404.
        MoxFileIsADirectoryException: it is a directory.
        MoxFileReadException: the store sent less than it announced, and never the rest.
        UnicodeDecodeError: it is no UTF-8.
    """
    # Text is UTF-8 whatever the locale says, as `write` puts it.
    with File(url, "rb") if binary else File(url, "r", encoding="utf-8") as f:
        return f.read()


def write(url: Url, data: str | bytes, binary: bool = False) -> None:
    """Replace a file's content, all or nothing: readers see the old file or the new one.

    Args:
        url: the file; local directories must be there.
        data: text, which is written as UTF-8, or bytes.
        binary: says that `data` are bytes; bytes are taken as they are without it too.

    Raises:
        MoxFileNotExistsException: the local directory is not there.
        MoxFileIsADirectoryException: it is a directory.
        UsageError: the data are neither text nor bytes.
    """
    fs, path = locate(url)
    fs.write(path, _payload(url, data))


def append(url: Url, data: str | bytes, binary: bool = False) -> None:
    """Append to a file, which is made if it is not there.

    What others append to an object at the same time stays too. Of an object of 5 MiB and more the store itself copies
    what is there; a smaller one is fetched and written anew.

    Args:
        url: the file.
        data: text, which is written as UTF-8, or bytes.
        binary: as for `write`.
    """
    data = _payload(url, data)
    with File(url, "ab") as f:
        f.write(data)


def _payload(url: Url, data: Any) -> Any:
    if isinstance(data, str):
        return data.encode()
    try:
        memoryview(data)  # bytes, and whatever else is a piece of memory: bytearray, an array of NumPy
    except TypeError:
        raise UsageError(f"{text_of(url)!r}: expected text or bytes to write, not {type(data).__name__}") from None
    return data


def append_remote(src_url: Url, dsturl: Url, client_id: str | None = None) -> None:
    """Append the content of one file to another one, which is made if it is not there.

    The document does not say which is which; by the names of the arguments the first one is put behind the second. In
    one store nothing is downloaded if the second has 5 MiB or more.

    Args:
        src_url: what is appended; it stays as it is.
        dsturl: what it is appended to.
        client_id: changes nothing.

    Raises:
        MoxFileNotExistsException: the source is not there.
    """
    source, target = Place.of(src_url), Place.of(dsturl)
    if source.remote == target.remote and (not source.remote or source.at()[0].store is target.at()[0].store):
        source.fs.append_file(source.path, target.path)
        return
    with File(src_url, "rb") as data, File(dsturl, "ab") as out:
        while chunk := data.read(1 << 20):
            out.write(chunk)


def exists(url: Url) -> bool:
    """Tell whether a file or directory is there.

    Raises:
        MoxFileNotExistsException: a key is asked for in a bucket that is not there; of the bucket's root it is False.
        MoxFileRespException: the store refuses to tell.
    """
    fs, path = locate(url)
    return fs.exists(path)


def is_directory(url: Url) -> bool:
    """Tell whether a directory is there, also if a file has the same name."""
    fs, path = locate(url)
    return fs.is_directory(path)


def get_size(url: Url, recursive: bool = False) -> int:
    """Return the size of a file in bytes, or of the files in a directory.

    Args:
        url: the file or directory; where both are there and the URL has no slash at its end, the file.
        recursive: count what is deeper in a directory, not only the files directly in it. Local directories are always
            counted so.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    fs, path = locate(url)
    return fs.size(path, recursive)


def list_directory(
    url: Url,
    recursive: bool = False,
    remove_sep: bool = True,
    skip_file: bool = False,
    skip_dir: bool = False,
) -> list[str]:
    """List a directory's entries, sorted (by code point, which is the order of stores), as paths relative to it.

    (MoXing's document says once that local paths are always listed recursively; its table of equivalents to
    os.listdir says not. It is as the table says.)

    Args:
        url: the directory.
        recursive: list everything below it.
        remove_sep: without it, directories end in `/`. With it, a file and a directory of one name are one entry.
        skip_file: leave files out.
        skip_dir: leave directories out.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    fs, path = locate(url)
    dirs, files = fs.listing(path, recursive)
    if remove_sep:
        # Only a directory without a name, of a key such as a//b, keeps its slash.
        dirs = [name[:-1] if len(name) > 1 else name for name in dirs]
    return sorted({*([] if skip_dir else dirs), *([] if skip_file else files)})


def make_dirs(url: Url) -> None:
    """Make a directory and its parents; harmless when it is there. In a store, an empty object holds its place."""
    fs, path = locate(url)
    fs.make_dirs(path)


def mk_dir(url: Url) -> None:
    """Make one directory; harmless when it is there.

    Raises:
        MoxFileNotExistsException: its parent is not there (an OSError).
    """
    fs, path = locate(url)
    fs.mk_dir(path)


def remove(url: Url, recursive: bool = False) -> None:
    """Remove a file or a directory.

        what is there        `name`               `name/`
        a file               the file             nothing
        a directory          nothing, or with     nothing, or with
                             recursive all of it  recursive all of it
        both (in a store)    the file             as a directory
        neither              an error             nothing

    Args:
        url: file or directory; the root of a bucket is a directory, and the bucket itself stays.
        recursive: remove directories.

    Raises:
        MoxFileNotExistsException: there is nothing of that name, and no slash at its end.
    """
    fs, path = locate(url)
    fs.remove(path, recursive)


def rename(src_url: Url, dst_url: Url) -> None:
    """Rename a file or directory, also between file systems.

    In and between stores everything is copied first; the source is removed when all copies are there. A file that is at
    the target is replaced, a directory there is merged into; where the source is file and directory, the file moves.

    Raises:
        MoxFileNotExistsException: the source is not there.
        MoxFileIsADirectoryException: a file would go where a directory is.
        UsageError: a directory of a store would be moved into itself.
    """
    source, target = Place.of(src_url), Place.of(dst_url)
    _not_onto_a_directory(source, target)
    _rename(source, target)


def copy(src_url: Url, dst_url: Url, client_id: str | None = None) -> None:
    """Copy one file; the target is replaced at once, when all of it is there.

    Args:
        src_url: the file.
        dst_url: the new file, not a directory that it goes into; local directories must be there.
        client_id: changes nothing.

    Raises:
        MoxFileNotExistsException: the source is not there.
        MoxFileIsADirectoryException: the source is a directory (`copy_parallel` copies those), or the target is one.
    """
    source, target = Place.of(src_url), Place.of(dst_url)
    _not_onto_a_directory(source, target)
    copy_file(source, target)


def _not_onto_a_directory(source: Place, target: Place) -> None:
    """Refuse a file where a store has a directory only: it was meant to go into it, and would stand beside it."""
    if not target.remote or target.path.endswith("/"):
        return
    with contextlib.suppress(MoxFilePermissionException):  # who may write may not be allowed to look
        place = target.fs
        if place.is_directory(target.path) and not place.is_file(target.path) and source.fs.is_file(source.path):
            raise MoxFileIsADirectoryException(
                f"{target.path!r} is a directory; expected the name of the new file", hint="add the file's name"
            )


def copy_parallel(
    src_url: Url,
    dst_url: Url,
    file_list: list[str] | None = None,
    threads: int = 16,
    is_processing: bool = True,
    use_queue: bool = True,
    progress: bool | None = None,
) -> None:
    """Copy a directory into another, which may exist and is merged into.

    Empty directories are copied too; symbolic links are followed. Within a store the store copies by itself. A file is
    complete or not there. A copy that was broken off (killed, without a network, disk full) goes on where it was when
    it is called again: files that it copied and that have not changed since are passed by. What it knows for that lies
    in moxserve's cache directory until the copy is complete.

    Args:
        src_url: source directory.
        dst_url: target directory.
        file_list: only these files, relative to the source.
        threads: how many copies run at once, in all processes together.
        is_processing: let processes share the work when there are thousands of files to or from a store; the result is
            the same. A few files are always copied by threads, which wait for the network as well as processes do.
        use_queue: accepted for compatibility: a queue is always used.
        progress: show a bar on stderr when the copy takes longer than two seconds; None: on a terminal only.

    Raises:
        MoxFileNotExistsException: the source is not a directory.
        MoxFileNameDuplicateException: a file would land on a directory or the other way round; nothing was written.
        UsageError: a name that leads out of the target, or files that would be copied over each other.
    """
    copy_tree(Place.of(src_url), Place.of(dst_url), file_list, CopyOptions(threads, is_processing, progress))


def glob(url: Url) -> list[str]:
    """Return the paths that match a pattern (`*`, `?`, `[]`, and `**` for any number of directories), sorted.

    In a store, the bucket is taken literally and the paths are URLs.
    """
    fs, path = locate(url)
    return fs.glob(path)


def scan_dir(url: Url) -> Entries:
    """Give the entries of a directory, as os.scandir does: iterate over it, or use it in a `with`.

    Raises:
        MoxFileNotExistsException: it is not there.
    """
    fs, path = locate(url)
    return fs.scan(path)


def stat(url: Url | None = None, *, src_url: Url | None = None) -> Stat:
    """Return size, time and kind of a file or directory, as os.stat and as MoXing name them.

    Args:
        url: the file or directory.
        src_url: the same, by the name that MoXing's document has for it.

    Raises:
        MoxFileNotExistsException: it is not there.
        UsageError: it is named twice, or not at all.
    """
    named = [given for given in (url, src_url) if given is not None]
    if len(named) != 1:
        raise UsageError("stat: expected one path or URL")
    fs, path = locate(named[0])
    return fs.stat(path)


def walk(
    url: Url, topdown: bool = True, onerror: Any = None, followlinks: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a directory tree, as os.walk does. The other arguments count for local directories only."""
    fs, path = locate(url)
    return fs.walk(path, topdown, onerror, followlinks)
