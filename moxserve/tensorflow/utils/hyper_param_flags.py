"""`mox_flags`: the run-time flags of this process, with `get_help()`."""

from moxserve.tensorflow.executor.flags import store as mox_flags

__all__ = ["mox_flags"]
