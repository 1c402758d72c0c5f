"""What the sample data sets share: a folder that appears complete or not at all, and is replaced only when it is one of
ours.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.file import publish_directory, staging_directory
from moxserve.file.atomic import TEMP_PREFIX

__all__ = ["MANIFEST", "check_formats", "labels_text", "publish_data_set", "write_bytes"]

MANIFEST = "dataset.json"


def check_formats(formats: Sequence[str], known: Sequence[str]) -> None:
    """Check what a caller wants written.

    Raises:
        UsageError: a format is unknown, or none was given.
    """
    if not formats:
        raise UsageError(f"no format given; choose from {', '.join(known)}")
    for name in formats:
        if name not in known:
            raise UsageError(f"unknown format {name!r}; {did_you_mean(name, known)}")


def publish_data_set(
    out: str | os.PathLike[str], make: Callable[[str], Mapping[str, Any]], *, force: bool = False
) -> Mapping[str, Any]:
    """Write a data set under a directory, which appears complete or not at all.

    Args:
        out: the directory to make. It may exist when it is empty.
        make: writes the files under the directory that it is given, and returns what `dataset.json` says.
        force: replace an earlier data set at `out`. A directory that holds anything else is never replaced.

    Returns:
        What `make` returned.

    Raises:
        DataError: `out` is taken.
    """
    target = os.path.abspath(out)
    _check_target(target, force)
    with staging_directory(os.path.dirname(target)) as staged:
        manifest = make(staged)
        write_bytes(os.path.join(staged, MANIFEST), json.dumps(manifest, indent=2).encode() + b"\n")
        _replace(staged, target)
    return manifest


def write_bytes(path: str, data: bytes) -> None:
    """Write a file of a data set, with its folder."""
    # Plain writes: the staging directory is flushed and renamed as a whole.
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)


def labels_text(labels: Sequence[str]) -> bytes:
    """Return the content of a labels.txt: `0: name`, one line a class."""
    return "".join(f"{index}: {label}\n" for index, label in enumerate(labels)).encode()


def _check_target(target: str, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise DataError(f"{target!r} is a file; expected a directory, or nothing, there")
    if not os.listdir(target):
        return
    if not force:
        raise DataError(f"{target!r} exists and is not empty", hint="give --force to replace a data set there")
    if not os.path.isfile(os.path.join(target, MANIFEST)):
        raise DataError(
            f"{target!r} holds no {MANIFEST}: it is no data set of ours, so --force does not replace it",
            hint="choose another directory",
        )


def _replace(staged: str, target: str) -> None:
    """Publish the staged directory, with any earlier one moved away first and removed last."""
    old = ""
    if os.path.isdir(target):
        old = os.path.join(os.path.dirname(target), f"{TEMP_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}")
        os.rename(target, old)
    try:
        publish_directory(staged, target)
    except BaseException:
        if old:
            os.rename(old, target)
        raise
    if old:
        shutil.rmtree(old, ignore_errors=True)
