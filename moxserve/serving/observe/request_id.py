"""The name of a request, by which its caller finds it again in the server's log.

A caller gives it as `x-request-id`, a header of HTTP or metadata of gRPC, and gets it back under the same name. One
that is too long, or that would make a mess of a log, counts as none.
"""

from __future__ import annotations

import os
import re

__all__ = ["HEADER", "MAX_LENGTH", "new_request_id", "valid_request_id"]

HEADER = "x-request-id"
MAX_LENGTH = 128
# Visible ASCII: what headers and metadata carry unchanged, and no line of a log is broken by.
_VALID = re.compile(rf"[\x21-\x7e]{{1,{MAX_LENGTH}}}")


def valid_request_id(given: str | bytes) -> str:
    """Return the id that a caller gave; empty when it is none that can be used."""
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    return text if _VALID.fullmatch(text) else ""


def new_request_id() -> str:
    """Return an id for a request whose caller gave none: 16 hexadecimal digits."""
    return os.urandom(8).hex()
