"""Local paths that stand for what is in a store: what is told of them is told by the URL."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator

from moxserve.errors import DataError, MoxserveError, first_line
from moxserve.file.filesystem import is_remote, join
from moxserve.file.local_copies import local_copy

__all__ = ["by_url", "copied_here", "known_as", "told_as", "url_of"]

# The URLs that files and folders of this process stand for.
_urls: dict[str, str] = {}


def url_of(path: str, folder: str, url: str) -> str:
    """Return the URL of what is in a folder that stands for a directory of a store; any other path as it is."""
    inside = os.path.relpath(path, folder)
    return path if inside.startswith("..") else join(url, "" if inside == "." else inside)


def known_as(path: str) -> str:
    """Return the URL of what is in a folder that stands for a directory of a store now; any other path as it is."""
    urls = (url_of(path, folder, url) for folder, url in tuple(_urls.items()))
    return next((url for url in urls if url != path), path)


def by_url(text: str) -> str:
    """Return a text with the URLs in it in place of the paths that stand for them now."""
    for folder, url in tuple(_urls.items()):
        text = text.replace(folder, url)
    return text


@contextlib.contextmanager
def told_as(folder: str, url: str) -> Iterator[None]:
    """Let errors, and `known_as`, speak of the directory in a store that a folder stands for, or of a file likewise.

    Raises:
        DataError: there is no room for the folder.
    """
    _urls[folder] = url
    try:
        yield
    except MoxserveError as error:
        error.message = error.message.replace(folder, url)
        error.hint = error.hint.replace(folder, url) if error.hint else _room_hint(error)
        error.args = (error.message,)
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(f"{url}: {first_line(error)}", hint=_room_hint(error)) from error
    finally:
        del _urls[folder]


@contextlib.contextmanager
def copied_here(url: str) -> Iterator[str]:
    """Give a local path with what is at a URL while the block runs, which is told by the URL; a local path as it is.

    Raises:
        MoxFileNotExistsException: it is not there.
        DataError: there is no room for it.
    """
    if not is_remote(url):
        yield url
        return
    with local_copy(url) as path, told_as(path, url.rstrip("/")):
        yield path


def _room_hint(error: Exception) -> str | None:
    """What to do where it is not the store that is full."""
    if os.strerror(errno.ENOSPC) not in str(error):
        return None
    return f"{tempfile.gettempdir()}, where it is kept meanwhile, is full; let TMPDIR name a folder with more room"
