"""The files between the two processes of a probe: what is asked, and what is answered so far."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moxserve.export.facts import Measured
from moxserve.export.manifest import Variant

__all__ = ["ANSWER_FILE", "LOG_FILE", "REQUEST_FILE", "Answer", "Request", "Stored"]

REQUEST_FILE = "request.json"
ANSWER_FILE = "answer.json"
LOG_FILE = "log.txt"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Request(_Message):
    """What is asked.

    Attributes:
        version_dir: absolute path.
        variant: as it is declared; None when only its name is known.
        name: of the variant; empty for the SavedModel.
        signature: key.
        rows: fields of `Rows`.
        options: fields of `ProbeOptions`.
        parent: process that asks.
    """

    version_dir: str
    variant: Variant | None = None
    name: str = ""
    signature: str
    rows: dict[str, Any]
    options: dict[str, Any]
    parent: int


class Stored(_Message):
    """An array in a file.

    Attributes:
        file: name in the folder.
        dtype: TensorFlow's name of the element type, since NumPy's files do not know bfloat16.
    """

    file: str
    dtype: str


class Answer(_Message):
    """What is known so far; written after each step, so that a crash leaves what came before it.

    Attributes:
        at: what is done next, as the end of a sentence such as `while it was loaded`.
        error: why it ended early; empty when it did not.
        platform: the runtime.
        outputs: by alias.
        singles: by alias.
        size_bytes: of the variant's files.
        digest: of the variant's files.
        measured: None when that was not asked for, or was not reached.
        notes: what was left out and why.
    """

    at: str = ""
    error: str = ""
    platform: str = ""
    outputs: dict[str, Stored] = Field(default_factory=dict)
    singles: dict[str, Stored] = Field(default_factory=dict)
    size_bytes: int = 0
    digest: str = ""
    measured: Measured | None = None
    notes: list[str] = Field(default_factory=list)
