"""The exceptions of `mox.file`, by MoXing's names. Each is one of moxserve's errors and one of Python's OSErrors.

    MoxFileNotExistsException          FileNotFoundError     there is nothing of that name (local, or stat of an object)
    MoxFileIsADirectoryException       IsADirectoryError     a file is needed, a directory is there
    MoxFileNameDuplicateException      FileExistsError       a file and a directory would have one name
    MoxFileRespException               OSError               the store answered with a status of 300 and more: `.resp`
      MoxFilePermissionException       PermissionError         401 or 403
      MoxFileConnectionException       ConnectionError         it did not answer: `.resp.status` is 0
      MoxFileObjectNotExistsException  FileNotFoundError       404; also a MoxFileNotExistsException
    MoxFileReadException               OSError               it answered 200 and the body never came whole: `.resp`

So `except OSError` of code that was written for local files keeps its meaning.

Source: MoXing guide §1.1.2.3.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from moxserve.errors import DataError

__all__ = [
    "MoxFileConnectionException",
    "MoxFileIsADirectoryException",
    "MoxFileNameDuplicateException",
    "MoxFileNotExistsException",
    "MoxFileObjectNotExistsException",
    "MoxFilePermissionException",
    "MoxFileReadException",
    "MoxFileRespException",
    "Response",
    "missing",
]


@dataclass(frozen=True)
class Response:
    """What a store answered.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: the name of the status, or of what went wrong on the way.
        code: the store's error code, such as `AccessDenied`.
        message: the store's words.
        request_id: by which its operators find the request.
        header: its HTTP headers, names in lower case.
    """

    status: int
    reason: str = ""
    code: str = ""
    message: str = ""
    request_id: str = ""
    header: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def body(self) -> str:
        """The store's words, as `message`."""
        return self.message

    @property
    def errorCode(self) -> str:  # noqa: N802 - as scripts for Huawei's SDK read it
        """The store's error code, as `code`."""
        return self.code

    @property
    def errorMessage(self) -> str:  # noqa: N802
        """The store's words, as `message`."""
        return self.message

    @property
    def requestId(self) -> str:  # noqa: N802
        """The request's id, as `request_id`."""
        return self.request_id


class _FileError(DataError, OSError):
    """What the exceptions of this module have in common: the errno that Python's own would carry."""

    _errno: ClassVar[int] = errno.EIO

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = self._errno

    def __str__(self) -> str:
        return DataError.__str__(self)


class MoxFileNotExistsException(_FileError, FileNotFoundError):  # noqa: N818 - MoXing's name
    """The file or directory does not exist."""

    _errno = errno.ENOENT


class MoxFileIsADirectoryException(_FileError, IsADirectoryError):  # noqa: N818
    """A directory is where a file is needed."""

    _errno = errno.EISDIR


class MoxFileNameDuplicateException(_FileError, FileExistsError):  # noqa: N818 - MoXing's name
    """A file and a directory would have the same name, or two files one. Nothing was written."""

    _errno = errno.EEXIST


class _MoxFileBaseRespException(_FileError):  # noqa: N818 - MoXing's name
    """An error that a store's answer tells.

    Args:
        resp: the answer.
        message: what was done, where, and what came.
        hint: what to do about it.
    """

    def __init__(self, resp: Response, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message or f"the store answered {resp.status} {resp.code}", hint=hint)
        self.resp = resp

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.resp, self.message, self.hint)


def _rebuild(kind: Any, resp: Response, message: str, hint: str | None) -> Any:
    return kind(resp, message, hint=hint)


class MoxFileRespException(_MoxFileBaseRespException):
    """The store refused, with a status of 300 or more, or did not answer."""


class MoxFileReadException(_MoxFileBaseRespException):
    """The store accepted to send an object, and it did not arrive whole, however often it was asked for the rest."""


class MoxFilePermissionException(MoxFileRespException, PermissionError):  # noqa: N818
    """The store refused these credentials, or does not allow them that."""

    _errno = errno.EACCES


class MoxFileConnectionException(MoxFileRespException, ConnectionError):  # noqa: N818
    """The store did not answer."""


class MoxFileObjectNotExistsException(MoxFileRespException, MoxFileNotExistsException):
    """There is no such object or bucket."""

    _errno = errno.ENOENT


def missing(path: str) -> MoxFileNotExistsException:
    """Make the error of a path where nothing is."""
    return MoxFileNotExistsException(f"no such file or directory: {path!r}")
