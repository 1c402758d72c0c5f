"""Where versions go: a local directory, or a prefix of a bucket (`s3://bucket/prefix`, `obs://…`). No TensorFlow.

Layout, as TensorFlow Serving reads it: `BASE/<version>/` with `saved_model.pb`, `variables/`, `assets/` and
`assets.extra/`. Readers see a whole version or none, whatever moment its exporter ends at.

Where to look: `base` (what a folder of versions can do), `local` and `s3` (the two ways), `retention` (old versions
go), `push` (a running server takes the new one).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from moxserve.export.publish.base import StagedVersion, VersionBase, exists_error
from moxserve.export.publish.local import LocalBase
from moxserve.export.versions import AUTO, next_number, normalize_version, parse_version
from moxserve.file.filesystem import is_remote

__all__ = [
    "StagedVersion",
    "absolute_base",
    "check_version",
    "list_versions",
    "next_version",
    "open_base",
    "open_publication",
    "version_path",
]


def open_base(base_dir: str) -> VersionBase:
    """Give the folder of versions that a path or URL means.

    Raises:
        UsageError: the URL cannot be right.
        MissingExtraError: the package that it needs is not installed.
    """
    if not is_remote(base_dir):
        return LocalBase(base_dir.removeprefix("file://"))
    from moxserve.export.publish.s3 import S3Base

    return S3Base(base_dir)


def absolute_base(base_dir: str) -> str:
    """Return a base directory as it can be told to somebody in another directory."""
    return base_dir.rstrip("/") if is_remote(base_dir) else os.path.abspath(base_dir)


def version_path(base_dir: str, version: int | str) -> str:
    """Return the path or URL of a version."""
    return f"{base_dir.rstrip('/')}/{version}" if is_remote(base_dir) else os.path.join(base_dir, str(version))


def list_versions(base_dir: str) -> list[int]:
    """Return the version numbers below a base directory, ascending; empty when it does not exist."""
    found = {parse_version(name) for name in open_base(base_dir).folders()}
    return sorted(v for v in found if v is not None)


def next_version(base_dir: str) -> int:
    """Return the number that the next export takes: the highest there plus one, at least 1.

    Raises:
        UsageError: the highest there is the largest number that a server can read.
    """
    return next_number(open_base(base_dir).in_use(), base_dir)


def check_version(base_dir: str, version: int | str) -> None:
    """Refuse a base directory or a version that cannot be published, before any work is done.

    Raises:
        UsageError: the version is no valid directory name, or the base directory is a file.
        VersionExistsError: it is there already, also under another spelling of the number (`7` and `007`).
        DataError: the store refuses, or cannot be reached.
    """
    _check(open_base(base_dir), normalize_version(version))


def _check(base: VersionBase, version: int | str) -> None:
    names = base.in_use()
    if version == AUTO:
        next_number(names, base.url)
        return
    same = isinstance(version, int) and version in {parse_version(name) for name in names}
    if same or base.taken(str(version)):
        raise exists_error(base, str(version))


@contextlib.contextmanager
def open_publication(base_dir: str, version: int | str = AUTO) -> Iterator[StagedVersion]:
    """Give a staging directory, and publish it when the block ends without an exception.

    Args:
        base_dir: base directory of the model, a path or `s3://bucket/prefix`; made if missing, a bucket is not.
        version: -1 for the next free number, or a number or folder name that is not taken.

    Yields:
        The staged version; after the block, `path`, `version` and `size_bytes` tell what went where.

    Raises:
        UsageError: the version is no valid directory name, or there is no such place.
        VersionExistsError: the version is there already. Nothing was published.
        ExportError: nothing can be written there.
        DataError: the store refuses, or cannot be reached. Nothing was published.
    """
    version, base = normalize_version(version), open_base(base_dir)
    _check(base, version)
    with base.publication(version) as staged:
        yield staged
