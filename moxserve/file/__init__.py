"""`mox.file`: every byte that moxserve reads or writes by path goes through here.

`local` is the engine for plain paths. `atomic` is how files and directories come to be: complete, or not at all. A path
with a scheme (`s3://`, `obs://`) is sent to the engine of that scheme. `s3` holds the operations on objects that
publishing to a bucket needs.
"""

from moxserve.file.api import (
    File,
    MoxFileNameDuplicateException,
    MoxFileNotExistsException,
    append,
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
    staging_directory,
    sweep,
    temp_name,
)

__all__ = [
    "TEMP_PREFIX",
    "File",
    "MoxFileNameDuplicateException",
    "MoxFileNotExistsException",
    "abandoned",
    "append",
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
    "make_dirs",
    "mk_dir",
    "publish_directory",
    "read",
    "remove",
    "rename",
    "scan_dir",
    "staging_directory",
    "stat",
    "sweep",
    "temp_name",
    "walk",
    "write",
]
