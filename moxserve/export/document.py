"""JSON files of one schema: written whole or not at all, and read back with an error that names the place.

Keys that a reader does not know are the schema's own business; a `schema_version` beyond the one known is refused.
"""

from __future__ import annotations

import os
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from moxserve import file
from moxserve.errors import DataError

__all__ = ["Document", "read_document", "write_document"]

_OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class Document(BaseModel):
    """A whole file.

    Attributes:
        schema_version: of its format.
    """

    schema_version: int


DocumentT = TypeVar("DocumentT", bound=Document)


def write_document(path: str, document: Document, name: str) -> None:
    """Write a model as indented JSON; the folder is made if it is not there.

    Args:
        path: of the file.
        document: what to write.
        name: what errors call the part that cannot be written.

    Raises:
        DataError: something in it cannot be written as JSON.
    """
    try:
        text = orjson.dumps(document.model_dump(), option=_OPTIONS)
    except TypeError as error:
        raise DataError(f"{name}: expected JSON values, NumPy numbers and dates: {error}") from error
    file.make_dirs(os.path.dirname(path))
    file.write(path, text, binary=True)


def read_document(path: str, kind: type[DocumentT], known: int, expected: str) -> DocumentT:
    """Read what `write_document` wrote.

    Args:
        path: of the file.
        kind: the model.
        known: the newest schema version that this program knows.
        expected: what the file should be, for the error.

    Raises:
        DataError: it is none, or of a newer schema.
    """
    try:
        document = kind.model_validate_json(file.read(path, binary=True))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise DataError(f"{path}: {place + ': ' if place else ''}{first['msg']}; expected {expected}") from None
    if document.schema_version > known:
        raise DataError(
            f"{path}: schema version {document.schema_version}; this moxserve knows up to {known}",
            hint="upgrade moxserve",
        )
    return document
