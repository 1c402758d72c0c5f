"""Whether a store would take what is to be written there: known before the work that may take days, not after it."""

from __future__ import annotations

import contextlib

from moxserve.errors import MoxserveError
from moxserve.file.errors import MoxFileIsADirectoryException, MoxFileRespException
from moxserve.file.filesystem import Url, is_remote, text_of
from moxserve.file.multipart import Upload
from moxserve.file.s3 import open_bucket

__all__ = ["require_writable"]


def require_writable(url: Url) -> None:
    """Make sure that a file can be written to a store; of a local path nothing is asked.

    An upload in parts is begun and dropped: that takes the bucket and the right to write there, nothing else, and
    leaves nothing that anybody sees.

    Args:
        url: of the file.

    Raises:
        MoxFileIsADirectoryException: it is the name of a directory.
        MoxFileRespException: there is no such bucket, or these credentials may not write there.
        MoxFileConnectionException: the store does not answer.
    """
    path = text_of(url)
    if not is_remote(path):
        return
    bucket, key = open_bucket(path)
    if not key or key.endswith("/"):
        raise MoxFileIsADirectoryException(f"{path!r} is a directory; expected the name of the new file")
    try:
        upload = Upload(bucket.store, bucket.name, key, bucket.url(key), {})
    except MoxFileRespException as error:
        if error.resp.status != 501:  # a store without uploads in parts: it shows when the file is written
            raise
        return
    with contextlib.suppress(MoxserveError):
        bucket.abort_upload(key, upload.id)
