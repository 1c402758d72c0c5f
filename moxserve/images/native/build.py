"""Compile the native decoder for this user, on this machine; or remove it. Nothing here runs unless it is asked for."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

from moxserve.errors import MoxserveError
from moxserve.file.atomic import fsync_directory, fsync_path, staging_directory, sweep
from moxserve.images.native.library import directory, library_path, source, trusted_directory

__all__ = ["Built", "NativeBuildError", "build", "remove"]

_COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT_S = 300
_LIBJPEG_HINT = (
    "install the development files of libjpeg-turbo 2 or newer: libjpeg62-turbo-dev (Debian), libjpeg-turbo8-dev "
    "(Ubuntu), libjpeg-turbo-devel (Fedora), jpeg-turbo (Homebrew); if they are in a place of their own, say so by "
    "CFLAGS=-I... and LDFLAGS=-L..."
)


class NativeBuildError(MoxserveError):
    """The native decoder cannot be built here. What was there before is untouched."""


@dataclass(frozen=True)
class Built:
    """A native decoder that was built.

    Attributes:
        path: the library.
        compiler: the command that compiled it.
    """

    path: str
    compiler: str


def build() -> Built:
    """Compile the native decoder, compare it with the decoders in Python, and only then put it in its place.

    CC, CFLAGS and LDFLAGS are heeded.

    Raises:
        NativeBuildError: a compiler or libjpeg-turbo is missing, the directory is not safe, or the library gives other
            pixels.
    """
    if os.name != "posix":
        raise NativeBuildError(f"the native decoder needs Linux or macOS; this is {sys.platform}")
    compiler = _compiler()
    path = library_path()
    _make_directory()
    sweep(directory())
    with staging_directory(directory()) as folder:
        made = os.path.join(folder, "windows.so")
        _compile(compiler, folder, made)
        # Whatever the user's umask: a library that others may change is not loaded.
        os.chmod(made, 0o600)
        _check(folder, made)
        fsync_path(made)
        os.replace(made, path)
        fsync_directory(directory())
    return Built(path, shlex.join(compiler))


def remove() -> list[str]:
    """Remove all native decoders of this user, also those of other versions of moxserve; return their paths.

    A process that has loaded one keeps it.
    """
    try:
        names = os.listdir(directory())
    except FileNotFoundError:
        return []
    paths = [
        os.path.join(directory(), name)
        for name in sorted(names)
        if name.startswith("windows-") and name.endswith(".so")
    ]
    for path in paths:
        os.unlink(path)
    return paths


def _compiler() -> list[str]:
    own = shlex.split(os.environ.get("CC", ""))
    if own:
        if shutil.which(own[0]) is None:
            raise NativeBuildError(f"no C compiler: CC={os.environ['CC']!r} is not found", hint="unset or correct CC")
        return own
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise NativeBuildError(
        f"no C compiler: none of {', '.join(_COMPILERS)} is found",
        hint="install one, such as gcc, or name it by CC",
    )


def _make_directory() -> None:
    try:
        os.makedirs(os.path.dirname(directory()), exist_ok=True)
        if not os.path.lexists(directory()):
            os.mkdir(directory(), 0o700)
    except OSError as error:
        raise NativeBuildError(f"{directory()} cannot be made: {error.strerror}") from error
    doubt = trusted_directory(directory())
    if doubt is not None:
        raise NativeBuildError(
            f"no library is loaded from there: {doubt}", hint="remove it, or name another cache by MOXSERVE_CACHE"
        )


def _compile(compiler: list[str], folder: str, made: str) -> None:
    code = os.path.join(folder, "windows.c")
    with open(code, "wb") as f:
        f.write(source())
    command = [
        *compiler, "-std=c99", "-O2", "-fPIC", "-shared", *shlex.split(os.environ.get("CFLAGS", "")), "-o", made, code,
        *shlex.split(os.environ.get("LDFLAGS", "")), "-ljpeg",
    ]  # fmt: skip
    done = _run(command, folder, {**os.environ, "LC_ALL": "C"})
    if done.returncode == 0:
        return
    said = done.stderr.strip()
    if "moxserve-needs-libjpeg-turbo-2" in said:
        raise NativeBuildError(
            f"{shlex.join(compiler)} finds a libjpeg that is not libjpeg-turbo 2", hint=_LIBJPEG_HINT
        )
    for missing in ("jpeglib.h", "-ljpeg", "library 'jpeg'"):
        if missing in said and ("not found" in said or "No such file" in said or "cannot find" in said):
            raise NativeBuildError(
                f"{shlex.join(compiler)} does not find libjpeg-turbo ({missing})", hint=_LIBJPEG_HINT
            )
    raise NativeBuildError(f"{shlex.join(command)} failed:\n{said[-2000:] or f'status {done.returncode}'}")


def _check(folder: str, made: str) -> None:
    """Compare in a process of its own, which has our modules, and nothing from the directory that we are called in."""
    modules = os.pathsep.join(place for place in sys.path if os.path.isabs(place))
    command = [sys.executable, "-m", "moxserve.images.native.check", made]
    done = _run(command, folder, {**os.environ, "PYTHONPATH": modules})
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    raise NativeBuildError(
        f"the native decoder was compiled, but does not work here: {said[-1] if said else f'status {done.returncode}'}",
        hint="nothing was installed; images are decoded as before",
    )


def _run(command: list[str], folder: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NativeBuildError(f"{shlex.join(command)} did not end within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise NativeBuildError(f"{command[0]} cannot be run: {error.strerror}") from error
