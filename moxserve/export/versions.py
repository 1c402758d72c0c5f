"""What names a version: a number as TensorFlow Serving reads it, or a folder name of the user's. No TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral

from moxserve.errors import UsageError

__all__ = ["AUTO", "next_number", "normalize_version", "parse_version"]

AUTO = -1
_INT64_MAX = 2**63 - 1
_NUMBER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_NAME_BYTES = 255


def parse_version(name: str) -> int | None:
    """Read a directory name as TensorFlow Serving does: the whole name must be an int64.

    Returns:
        The number, or None when the name is no version.
    """
    if not _NUMBER.fullmatch(name):
        return None
    number = int(name)
    return number if -(2**63) <= number <= _INT64_MAX else None


def next_number(names: Iterable[str], base: str) -> int:
    """Return the number that the next version takes: the highest there plus one, at least 1.

    Args:
        names: of the folders in a base directory, of which some are versions.
        base: the directory, for the message.

    Raises:
        UsageError: the highest there is the largest number that a server can read.
    """
    number = max((found for name in names if (found := parse_version(name)) is not None), default=0)
    number = max(number, 0) + 1
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
        if len(name.encode(errors="surrogateescape")) > _NAME_BYTES:
            raise UsageError(
                f"version {name[:20] + '…'!r} has {len(name)} characters; a folder name has up to 255 bytes"
            )
        return name
    if number != AUTO and not 0 <= number <= _INT64_MAX:
        raise _no_version(version)
    return number


def _no_version(version: object) -> UsageError:
    return UsageError(f"version {version!r}: expected -1 (next free number), a whole number or a plain folder name")
