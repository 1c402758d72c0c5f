"""What a client asks and what it gets back: the values that pass through a transport. No input, no output."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from moxserve.errors import UsageError
from moxserve.types import DEFAULT_SIGNATURE, ModelRef, Signature

__all__ = [
    "UNSET",
    "Array",
    "Call",
    "ListCall",
    "ListReply",
    "ListedModel",
    "MetadataCall",
    "ModelMetadata",
    "PredictCall",
    "PredictReply",
    "ReloadCall",
    "ReloadReply",
    "Reply",
    "Retry",
    "StatusCall",
    "StatusReply",
    "Timeout",
    "Unset",
    "VersionStatus",
]


Array = npt.NDArray[Any]


class Unset(enum.Enum):
    """The type of `UNSET`, which means "as the client was made", and is told apart from None, "no limit"."""

    UNSET = "UNSET"


UNSET = Unset.UNSET
Timeout = float | None | Unset


@dataclass(frozen=True, slots=True)
class PredictCall:
    """Ask a model for its outputs.

    Attributes:
        model: which model, and which version or label of it.
        inputs: arrays by alias, already fitted to the signature where that is known; strings as object arrays of bytes.
        signature_name: key of the signature.
        outputs: aliases wanted; None means all of them.
        signature: the signature itself, when the client knows it. REST needs it to restore dtypes.
        timeout_s: seconds until the caller gives up; None is no limit.
    """

    model: ModelRef
    inputs: Mapping[str, Array]
    signature_name: str = DEFAULT_SIGNATURE
    outputs: Sequence[str] | None = None
    signature: Signature | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class MetadataCall:
    """Ask for a model's signatures."""

    model: ModelRef
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class StatusCall:
    """Ask which versions of a model there are, and in which state."""

    model: ModelRef
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class ListCall:
    """Ask which models there are."""

    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReloadCall:
    """Tell the server to serve other models.

    Attributes:
        config: serialized ModelServerConfig message.
        timeout_s: seconds until the caller gives up; None is no limit.
    """

    config: bytes
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class PredictReply:
    """A model's outputs.

    Attributes:
        outputs: arrays by alias.
        version: version that answered; None when the transport does not tell (REST).
    """

    outputs: Mapping[str, Array]
    version: int | None = None


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a server tells about a model.

    Attributes:
        name: the model's name.
        version: the version that these signatures belong to; None when the server does not tell.
        signatures: by key. Those that cannot be called with tensors (initialisers) are left out.
    """

    name: str
    version: int | None
    signatures: Mapping[str, Signature] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """State of one version.

    Attributes:
        version: number.
        state: `START`, `LOADING`, `AVAILABLE`, `UNLOADING`, `END` or `UNKNOWN`.
        error_code: status name, `OK` when there is no error.
        error_message: empty when there is none.
    """

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""

    def __str__(self) -> str:
        error = f" ({self.error_code}: {self.error_message})" if self.error_code != "OK" else ""
        return f"version {self.version} {self.state}{error}"


@dataclass(frozen=True, slots=True)
class StatusReply:
    """States of a model's versions, as the server lists them (highest first)."""

    versions: Sequence[VersionStatus]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One of a server's models.

    Attributes:
        name: that requests use.
        labels: label -> version; None when the transport does not tell (gRPC).
        versions: states of its versions, highest first; None when the list does not tell them (gRPC).
    """

    name: str
    labels: Mapping[str, int] | None = None
    versions: Sequence[VersionStatus] | None = None


@dataclass(frozen=True, slots=True)
class ListReply:
    """A server's models, in its order."""

    models: Sequence[ListedModel]


@dataclass(frozen=True, slots=True)
class ReloadReply:
    """The new configuration is in effect."""


Call = PredictCall | MetadataCall | StatusCall | ListCall | ReloadCall
Reply = PredictReply | ModelMetadata | StatusReply | ListReply | ReloadReply


@dataclass(frozen=True, slots=True)
class Retry:
    """When a server that does not answer is asked again. Only reads are repeated: predict and metadata.

    Attributes:
        attempts: how many times more; 0 turns retries off.
        pause_s: pause before the first repetition; doubled for each further one, then shortened at random by up to
            half.
        max_pause_s: longest pause.

    Raises:
        UsageError: a figure is negative.
    """

    attempts: int = 2
    pause_s: float = 0.1
    max_pause_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 0 or self.pause_s < 0 or self.max_pause_s < 0:
            raise UsageError(f"{self}: expected figures of 0 or more")
