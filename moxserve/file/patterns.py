"""`glob` over keys: listings that are no longer than the pattern needs.

`*`, `?` and `[…]` match within a name, `**` as a whole name any number of directories; names that begin with a dot only
match what begins with one, as in Python's glob.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moxserve.file.s3 import Bucket

__all__ = ["expand"]

_MAGIC = re.compile(r"[*?[]")


class _Tree:
    """The names below a directory of a bucket, from one listing of all of it."""

    def __init__(self, bucket: Bucket, start: str) -> None:
        self._below: dict[str, tuple[set[str], set[str]]] = {}
        for found in bucket.objects(start):
            self._add(start, found.key[len(start) :])

    def _add(self, here: str, name: str) -> None:
        head, slash, rest = name.partition("/")
        dirs, files = self._below.setdefault(here, (set(), set()))
        if slash:
            dirs.add(head)
            self._add(f"{here}{head}/", rest)
        elif head:
            files.add(head)

    def children(self, here: str) -> tuple[set[str], set[str]]:
        return self._below.get(here, (set(), set()))

    def __contains__(self, here: str) -> bool:
        return here in self._below


class _Search:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def find(self, here: str, segments: list[str], tree: _Tree | None) -> Iterator[str]:
        """Yield the keys that match.

        Args:
            here: the directory that is reached, with `/` at the end, or the root, empty.
            segments: what is left of the pattern; an empty last one asks for directories.
            tree: what is known of the names below.
        """
        head, rest = segments[0], segments[1:]
        if head == "**":
            yield from self._anywhere(here, rest, tree or _Tree(self._bucket, here))
        elif not _MAGIC.search(head):
            yield from self._literal(here, segments, tree)
        else:
            dirs, files = self._children(here, head, tree)
            if not rest:
                yield from (here + name for name in _matching(dirs | files, head))
                return
            for name in _matching(dirs, head):
                yield from self.find(f"{here}{name}/", rest, tree)

    def _literal(self, here: str, segments: list[str], tree: _Tree | None) -> Iterator[str]:
        """Go through the names without magic at once; look only at the end whether they are there."""
        count = next((n for n, name in enumerate(segments) if _MAGIC.search(name)), len(segments))
        path = here + "/".join(segments[:count])
        if count < len(segments):
            yield from self.find(f"{path}/", segments[count:], tree)
        elif self._exists(path, tree):
            yield path

    def _exists(self, path: str, tree: _Tree | None) -> bool:
        if tree is not None:
            parent, _, name = path.rpartition("/")
            dirs, files = tree.children(f"{parent}/" if parent else "")
            return (name in dirs or name in files) if name else path in tree
        if path.endswith("/"):
            return self._bucket.has_any(path)
        return self._bucket.exists(path) or self._bucket.has_any(f"{path}/")

    def _anywhere(self, start: str, rest: list[str], tree: _Tree) -> Iterator[str]:
        """Yield what matches in a directory and in all below it; a key may have hundreds of them one in another."""
        waiting = [start] if start in tree or not start else []
        while waiting:
            here = waiting.pop()
            dirs, files = tree.children(here)
            if rest:
                yield from self.find(here, rest, tree)
            else:
                if here and here == start:
                    yield here
                yield from (here + name for name in dirs | files if not name.startswith("."))
            waiting += [f"{here}{name}/" for name in dirs if not name.startswith(".")]

    def _children(self, here: str, pattern: str, tree: _Tree | None) -> tuple[set[str], set[str]]:
        if tree is not None:
            return tree.children(here)
        # Up to the first magic the store can do the matching.
        start = here + pattern[: _MAGIC.search(pattern).start()]  # type: ignore[union-attr]
        dirs: set[str] = set()
        files: set[str] = set()
        for page in self._bucket.pages(start, delimiter="/"):
            dirs.update(found["Prefix"][len(here) : -1] for found in page.get("CommonPrefixes", ()))
            files.update(found["Key"][len(here) :] for found in page.get("Contents", ()))
        return dirs, files - {""}


def _matching(names: set[str], pattern: str) -> list[str]:
    matches = re.compile(fnmatch.translate(pattern)).match
    hidden = pattern.startswith(".")
    return [name for name in names if matches(name) and (hidden or not name.startswith("."))]


def expand(bucket: Bucket, pattern: str) -> set[str]:
    """Return the keys and directories of a bucket that match a pattern; directories with `/` where the pattern has it.

    Args:
        bucket: the bucket.
        pattern: after the bucket's name and a slash.
    """
    return set(_Search(bucket).find("", pattern.split("/"), None))
