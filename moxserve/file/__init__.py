"""`mox.file`: every byte that moxserve reads or writes by path goes through here.

`api` has the functions, `handle` the file object, for local paths, `s3://` and `obs://`; `filesystem` knows which is
which. `local` and `objects` are the file systems. Below `objects`: `s3` (buckets), `keys` (URLs), `reader`, `writer`
and `streams` (open objects), `multipart`, `client` (boto3, which is imported by the first URL), `auth` (`set_auth`,
environment, files). `shift` teaches Python's own functions URLs, `local_copies` is for what only
takes local paths. `atomic` is how local files and directories come to be: complete, or not at all.
"""

from moxserve.file.api import (
    append,
    append_remote,
    copy,
    copy_parallel,
    exists,
    get_size,
    glob,
    is_directory,
    list_directory,
    make_dirs,
    mk_dir,
    read,
    remove,
    rename,
    scan_dir,
    stat,
    walk,
    write,
)
from moxserve.file.atomic import (
    TEMP_PREFIX,
    abandoned,
    atomic_open,
    atomic_write,
    fsync_directory,
    fsync_path,
    publish_directory,
    scratch_directory,
    staging_directory,
    sweep,
    temp_name,
)
from moxserve.file.auth import set_auth
from moxserve.file.errors import (
    MoxFileConnectionException,
    MoxFileIsADirectoryException,
    MoxFileNameDuplicateException,
    MoxFileNotExistsException,
    MoxFilePermissionException,
    MoxFileReadException,
    MoxFileRespException,
)
from moxserve.file.handle import File
from moxserve.file.local_copies import local_copy
from moxserve.file.shift import shift

__all__ = [
    "TEMP_PREFIX",
    "File",
    "MoxFileConnectionException",
    "MoxFileIsADirectoryException",
    "MoxFileNameDuplicateException",
    "MoxFileNotExistsException",
    "MoxFilePermissionException",
    "MoxFileReadException",
    "MoxFileRespException",
    "abandoned",
    "append",
    "append_remote",
    "atomic_open",
    "atomic_write",
    "copy",
    "copy_parallel",
    "exists",
    "fsync_directory",
    "fsync_path",
    "get_size",
    "glob",
    "is_directory",
    "list_directory",
    "local_copy",
    "make_dirs",
    "mk_dir",
    "publish_directory",
    "read",
    "remove",
    "rename",
    "scan_dir",
    "scratch_directory",
    "set_auth",
    "shift",
    "staging_directory",
    "stat",
    "sweep",
    "temp_name",
    "walk",
    "write",
]
