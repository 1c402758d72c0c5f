"""Every error that moxserve raises on purpose, and how the outside world sees it.

    MoxserveError                     exit 1   500  UNKNOWN
      x UsageError                    exit 2   400  INVALID_ARGUMENT     wrong command line, flag or argument
        + ConfigError                                                    a file that the user wrote is wrong
        + MissingExtraError                                              an optional package is not installed
        x PluginError                                                    a plugin is unknown, doubled or broken
        x ModelSpecError                                                 a user function broke its contract
      x DataError                     exit 1   400  INVALID_ARGUMENT     data that cannot be read or does not fit
      x CheckpointError               exit 1   404  NOT_FOUND            no checkpoint, or one that does not fit
      x ExportError                   exit 1   500  INTERNAL             an artifact could not be made
        + VersionExistsError          exit 1   409  ALREADY_EXISTS
        + VerificationError           exit 5   500  DATA_LOSS            the artifact answers differently
      x ServingError                  one class a status: InvalidArgument, NotFound, FailedPrecondition,
                                      Unimplemented, Internal, Unavailable, ResourceExhausted, DeadlineExceeded,
                                      Cancelled, DataLoss, AlreadyExists, PermissionDenied, Aborted, OutOfRange,
                                      Unauthenticated, UnknownError
      x ClientError                   exit 1
        + ServerUnreachableError      exit 4   503  UNAVAILABLE
        + RequestError                          as the server answered
      x PartialFailureError           exit 3   500  DATA_LOSS            some rows failed; the rest is written
      x LimitExceededError            exit 1                             a measured figure broke its limit
      x InterruptedRunError           exit 128 + signal                  stopped by a signal, state saved
      x WorkersLostError              exit 75                            another process of the job is gone: start again

`x` marks a direct child, `+` a grandchild. Status numbers are plain ints, so that no framework is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "CheckpointError",
    "ClientError",
    "ConfigError",
    "ConfigProblem",
    "DataError",
    "DataLoss",
    "DeadlineExceeded",
    "ExportError",
    "FailedPrecondition",
    "Internal",
    "InterruptedRunError",
    "InvalidArgument",
    "LimitExceededError",
    "MissingExtraError",
    "ModelSpecError",
    "MoxserveError",
    "NotFound",
    "OutOfRange",
    "PartialFailureError",
    "PermissionDenied",
    "PluginError",
    "RequestError",
    "ResourceExhausted",
    "ServerUnreachableError",
    "ServingError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnknownError",
    "UsageError",
    "VerificationError",
    "VersionExistsError",
    "WorkersLostError",
    "did_you_mean",
    "first_line",
    "serving_error",
    "status_name",
]


def did_you_mean(name: str, known: Iterable[str], limit: int = 8) -> str:
    """Tell what a user may have meant by an unknown name.

    Args:
        name: what was given.
        known: the valid names.
        limit: how many valid names to list when none is near.

    Returns:
        `did you mean 'x'?`, or `known: a, b, c`, or `none are known`; never empty, so it can end a message.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not names:
        return "none are known"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return "known: " + ", ".join(names[:limit]) + more


class MoxserveError(Exception):
    """The base of every error raised on purpose: catch this to catch them all.

    Args:
        message: one sentence: what was expected, what came, where.
        hint: what to do about it, shown on a line of its own.

    Attributes:
        exit_code: exit status of the command line for this error.
        http_status: status code of a REST answer.
        grpc_code: number of the gRPC status code.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class UsageError(MoxserveError, ValueError):
    """A command line, flag or argument is wrong. Also a ValueError, as Python callers expect of a bad argument."""

    exit_code = 2
    http_status = 400
    grpc_code = 3


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong in a file that the user wrote.

    Attributes:
        message: what is wrong, what was expected, and the nearest valid name where there is one.
        path: the file, or `--set` for a command-line override.
        line: 1-based line, 0 when unknown.
        column: 1-based column, 0 when unknown.
        key: dotted key, such as `run.batch_size`.
        source_line: the text of that line, for the caret.
    """

    message: str
    path: str = ""
    line: int = 0
    column: int = 0
    key: str = ""
    source_line: str = ""

    def __str__(self) -> str:
        place = ":".join(str(p) for p in (self.path, self.line, self.column) if p)
        text = ": ".join(p for p in (place, self.key, self.message) if p)
        if self.source_line and self.column:
            text += f"\n    {self.source_line}\n    {' ' * (self.column - 1)}^"
        return text


class ConfigError(UsageError):
    """A configuration file is wrong; carries all its problems at once."""

    def __init__(self, problems: Sequence[ConfigProblem], *, hint: str | None = None) -> None:
        super().__init__("\n".join(str(p) for p in problems), hint=hint)
        self.problems = list(problems)


class MissingExtraError(UsageError):
    """An optional package that this call needs is not installed."""

    def __init__(self, package: str, extra: str, what: str = "this") -> None:
        super().__init__(f"{what} needs {package}", hint=f'pip install "moxserve[{extra}]"')
        self.package = package
        self.extra = extra


class PluginError(UsageError):
    """A plugin is unknown, registered twice, or failed to load."""


class ModelSpecError(UsageError):
    """input_fn, model_fn, optimizer_fn or output_fn broke its contract."""


class DataError(MoxserveError):
    """Input data cannot be read, or does not have the form that was promised."""

    http_status = 400
    grpc_code = 3


class CheckpointError(MoxserveError):
    """There is no checkpoint where one is needed, or it does not fit the model."""

    http_status = 404
    grpc_code = 5


class ExportError(MoxserveError):
    """An artifact could not be made. Nothing was published."""

    grpc_code = 13


class VersionExistsError(ExportError):
    """The version to be published is there already."""

    http_status = 409
    grpc_code = 6


class VerificationError(ExportError):
    """The artifact does not answer as the original does. Nothing was published."""

    exit_code = 5
    grpc_code = 15


class ServingError(MoxserveError):
    """A request cannot be answered. Each status has a class; transports map `grpc_code` and `http_status`."""

    @property
    def status(self) -> str:
        """Name of the gRPC status, such as `NOT_FOUND`."""
        return status_name(self.grpc_code)


def status_name(grpc_code: int) -> str:
    """Return the name of a gRPC status number, such as `NOT_FOUND`; `UNKNOWN` for a number that has none."""
    return _STATUS_NAMES[grpc_code] if 0 <= grpc_code < len(_STATUS_NAMES) else "UNKNOWN"


_STATUS_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


class Cancelled(ServingError):  # noqa: N818 - statuses keep their gRPC names
    """The caller gave up."""

    http_status = 499
    grpc_code = 1


class UnknownError(ServingError):
    """The backend failed in a way that has no status of its own."""

    http_status = 500
    grpc_code = 2


class InvalidArgument(ServingError):  # noqa: N818
    """The request itself is wrong."""

    http_status = 400
    grpc_code = 3


class DeadlineExceeded(ServingError):  # noqa: N818
    """The deadline passed before an answer was there."""

    http_status = 504
    grpc_code = 4


class NotFound(ServingError):  # noqa: N818
    """No such model, version or label."""

    http_status = 404
    grpc_code = 5


class AlreadyExists(ServingError):  # noqa: N818
    """What was to be made is there already."""

    http_status = 409
    grpc_code = 6


class ResourceExhausted(ServingError):  # noqa: N818
    """A quota or a size limit is used up."""

    http_status = 429
    grpc_code = 8


class FailedPrecondition(ServingError):  # noqa: N818
    """The model or the server is not in the state that the request needs."""

    http_status = 400
    grpc_code = 9


class Unimplemented(ServingError):  # noqa: N818
    """This server does not do that."""

    http_status = 501
    grpc_code = 12


class Internal(ServingError):  # noqa: N818
    """An invariant of the server broke."""

    http_status = 500
    grpc_code = 13


class Unavailable(ServingError):  # noqa: N818
    """Overloaded or shutting down; try again."""

    http_status = 503
    grpc_code = 14


class DataLoss(ServingError):  # noqa: N818
    """Stored data is damaged."""

    http_status = 500
    grpc_code = 15


class PermissionDenied(ServingError):  # noqa: N818
    """The caller may not do that."""

    http_status = 403
    grpc_code = 7


class Aborted(ServingError):  # noqa: N818
    """A conflict with another operation ended this one."""

    http_status = 409
    grpc_code = 10


class OutOfRange(ServingError):  # noqa: N818
    """An index or an iterator passed the end."""

    http_status = 400
    grpc_code = 11


class Unauthenticated(ServingError):  # noqa: N818
    """The caller did not say who it is."""

    http_status = 401
    grpc_code = 16


def serving_error(code: int, message: str) -> ServingError:
    """Make the error of a gRPC status number; `UnknownError` for a number that has no class."""
    classes = {cls.grpc_code: cls for cls in ServingError.__subclasses__()}
    return classes.get(code, UnknownError)(message)


class ClientError(MoxserveError):
    """The client could not get an answer."""


class ServerUnreachableError(ClientError):
    """Nobody answers at that address, or the server is not ready."""

    exit_code = 4
    http_status = 503
    grpc_code = 14


class RequestError(ClientError):
    """The server answered with an error.

    Attributes:
        status: gRPC status name, such as `INVALID_ARGUMENT`.
        target: the address that answered.
    """

    def __init__(self, message: str, *, status: str, target: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.target = target


class PartialFailureError(MoxserveError):
    """Part of the work failed; what succeeded is written."""

    exit_code = 3
    grpc_code = 15


class LimitExceededError(MoxserveError):
    """A measured figure broke a limit that the user set."""


class InterruptedRunError(MoxserveError, SystemExit):
    """A run was stopped by a signal, after its state was saved.

    Also a SystemExit, so that a plain script ends with the conventional status (130 for SIGINT, 143 for SIGTERM)
    and no traceback.
    """

    def __init__(self, message: str, signum: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signum = signum
        self.code = 128 + signum


class WorkersLostError(MoxserveError, SystemExit):
    """Another process of a distributed training is gone, and this one cannot go on without it.

    Started again, the training goes on from its last checkpoint. Also a SystemExit, so that a plain script ends with
    status 75 (EX_TEMPFAIL: a new attempt may succeed), by which whoever started it knows what to do.
    """

    exit_code = 75

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = self.exit_code


def first_line(error: BaseException) -> str:
    """Return what an error says in one line; of TensorFlow's long messages the line that tells the cause."""
    text = str(getattr(error, "message", None) or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if type(error).__module__.startswith("tensorflow"):
        # "Graph execution error:", where the node was made, "Node: ...", the cause, "[[{{node ...}}]]", and
        # a "Hint:" on memory that TensorFlow also gives when the disk is full.
        lines = [line for line in lines if not line.startswith(("[[", "Hint:"))][-1:]
    return lines[0] if lines else "no message"
