"""How a version directory comes to be: complete, or not at all. No TensorFlow.

Layout, as TensorFlow Serving reads it: `BASE/<version>/` with `saved_model.pb`, `variables/`, `assets/` and
`assets.extra/`. A version is staged under a hidden temporary name in BASE (no number, so no server takes it for one),
flushed to disk and renamed into place.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

from moxserve import file
from moxserve.errors import UsageError, VersionExistsError

__all__ = [
    "AUTO",
    "StagedVersion",
    "check_version",
    "list_versions",
    "next_version",
    "normalize_version",
    "parse_version",
    "publish_version",
]

AUTO = -1
_INT64_MAX = 2**63 - 1
_NUMBER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_ATTEMPTS = 100


@dataclass
class StagedVersion:
    """A version under construction.

    Attributes:
        staging: directory to write into.
        path: where it is published; set when that has happened, empty before.
        version: number or name; -1 until the free number is taken.
    """

    staging: str
    path: str = ""
    version: int | str = AUTO


def parse_version(name: str) -> int | None:
    """Read a directory name as TensorFlow Serving does: the whole name must be an int64.

    Returns:
        The number, or None when the name is no version.
    """
    if not _NUMBER.fullmatch(name):
        return None
    number = int(name)
    return number if -(2**63) <= number <= _INT64_MAX else None


def list_versions(base: str) -> list[int]:
    """Return the version numbers below a base directory, ascending; empty when it does not exist."""
    if not file.is_directory(base):
        return []
    found = {parse_version(name) for name in file.list_directory(base, skip_file=True)}
    return sorted(v for v in found if v is not None)


def next_version(base: str) -> int:
    """Return the number that the next export takes: the highest there plus one, at least 1.

    Raises:
        UsageError: the highest there is the largest number that a server can read.
    """
    number = max([0, *list_versions(base)]) + 1
    if number > _INT64_MAX:
        raise UsageError(f"no version number is left above {number - 1} below {base!r}", hint="give a version yourself")
    return number


def normalize_version(version: object) -> int | str:
    """Bring a version that a user gave into one form: a number, also when it came as text, or a folder name.

    Returns:
        -1 (next free number), a number of at least 0, or a name that is no number.

    Raises:
        UsageError: it is none of those.
    """
    if isinstance(version, Integral) and not isinstance(version, bool):
        number: int | None = int(version)
    elif isinstance(version, str):
        number = parse_version(version)
    else:
        raise _no_version(version)
    if number is None:
        name = str(version)
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise _no_version(version)
        return name
    if number != AUTO and not 0 <= number <= _INT64_MAX:
        raise _no_version(version)
    return number


def _no_version(version: object) -> UsageError:
    return UsageError(f"version {version!r}: expected -1 (next free number), a whole number or a plain folder name")


def check_version(base: str, version: int | str) -> None:
    """Refuse a version that cannot be published, before any work is done.

    Raises:
        UsageError: it is no valid directory name.
        VersionExistsError: it is there already, also under another spelling of the number (`7` and `007`).
    """
    version = normalize_version(version)
    if version == AUTO:
        return
    taken = os.path.lexists(os.path.join(base, str(version)))
    if taken or (isinstance(version, int) and version in list_versions(base)):
        raise _exists(base, str(version))


def _exists(base: str, name: str) -> VersionExistsError:
    return VersionExistsError(
        f"Export directory already exists. Please specify a different export directory: {os.path.join(base, name)}",
        hint="give a version that does not exist, or -1 to take the next free number",
    )


@contextlib.contextmanager
def publish_version(base: str, version: int | str = AUTO) -> Iterator[StagedVersion]:
    """Give a staging directory, and publish it when the block ends without an exception.

    Args:
        base: base directory of the model; made if missing.
        version: -1 for the next free number, or a number or folder name that is not taken.

    Yields:
        The staged version; after the block, `path` and `version` tell where it went.

    Raises:
        UsageError: the version is no valid directory name.
        VersionExistsError: the version is there already. Nothing was published.
    """
    version = normalize_version(version)
    check_version(base, version)
    file.make_dirs(base)
    file.sweep(base)
    with file.staging_directory(base) as staging:
        staged = StagedVersion(staging)
        yield staged
        staged.version, staged.path = _rename_into_place(base, staging, version)


def _rename_into_place(base: str, staging: str, version: int | str) -> tuple[int | str, str]:
    if version != AUTO:
        final = os.path.join(base, str(version))
        try:
            file.publish_directory(staging, final)
        except VersionExistsError:
            raise _exists(base, str(version)) from None
        return version, final
    for _ in range(_ATTEMPTS):
        number = next_version(base)
        final = os.path.join(base, str(number))
        with contextlib.suppress(VersionExistsError):
            # Another exporter may take the number between the listing and the rename; then the next one is ours.
            file.publish_directory(staging, final)
            return number, final
    raise VersionExistsError(f"no free version number below {base!r} after {_ATTEMPTS} attempts")
