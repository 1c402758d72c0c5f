"""Where a run's folder really is: the seam between what a training writes and a `log_dir` that is not local.

TensorFlow writes checkpoints and events to local files. A `Staging` gives the local folder that they are written to,
and is told when something in it is complete. For a local `log_dir` that is the folder itself, and there is nothing to
do.
"""

from __future__ import annotations

from collections.abc import Sequence

from moxserve.tensorflow.executor.located import local_path

__all__ = ["Staging", "staging_of"]


class Staging:
    """A local `log_dir`, which is its own stage.

    A stage of a store overrides the three methods: what is complete is named by them in the order in which it must
    become visible, so that whoever reads the store never finds a checkpoint that is named and not there.

    Args:
        folder: local folder that everything is written to; None where nothing is.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder

    def open(self) -> None:
        """Bring here what earlier runs left: called before anybody looks for a checkpoint in `folder`."""

    def saved(self, names: Sequence[str], removed: Sequence[str]) -> None:
        """A checkpoint is complete, on disk, and named in the state file.

        Args:
            names: of its files in `folder`, and of the state file, which comes last.
            removed: prefixes of checkpoints that were dropped for it.
        """

    def close(self) -> None:
        """The run is over, well or not: wait until everything has arrived."""


def staging_of(log_dir: str | None) -> Staging:
    """Choose the stage of a `log_dir`, as the user gave it.

    Raises:
        UsageError: it is a URL; this version keeps runs in local folders.
    """
    return Staging(None if log_dir is None else local_path(log_dir, "log_dir"))
