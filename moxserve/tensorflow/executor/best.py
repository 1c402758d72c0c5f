"""The best checkpoints of a training, by a value that was monitored: `log_dir/best`.

The folder holds checkpoints like any other, of which the file `checkpoint` names the best as the current one, so that
`checkpoint_path=log_dir/best` means the best; and `best.json`, which tells the value of each. That file is written
before the checkpoint, and what it says of one that is not there does not count: a crash at any moment leaves complete
checkpoints with values.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moxserve.errors import CheckpointError
from moxserve.file import atomic_write
from moxserve.tensorflow.executor.checkpoint import Checkpointer
from moxserve.tensorflow.executor.located import is_complete

__all__ = ["BEST_FILE", "BEST_FOLDER", "Best", "BestCheckpoints"]

BEST_FOLDER = "best"
BEST_FILE = "best.json"
_VERSION = 1


@dataclass(frozen=True)
class Best:
    """A checkpoint that was among the best.

    Attributes:
        name: of the checkpoint, within the folder.
        step: its global step.
        value: what was monitored.
        values: everything that was evaluated, by name.
    """

    name: str
    step: int
    value: float
    values: Mapping[str, float]


class BestCheckpoints:
    """Keeps the best checkpoints of a training.

    Made while the graph is open.

    Args:
        beside: writes the checkpoints of the run; the best go into a folder in its own.
        keep: how many stay.
        monitor: name of the value.
        more: whether larger values are better.

    Raises:
        CheckpointError: the folder's list cannot be read, or is of another value.
    """

    def __init__(self, beside: Checkpointer, keep: int, monitor: str, more: bool) -> None:
        self.folder = os.path.join(beside.folder, BEST_FOLDER)
        self._keep, self._monitor, self._mode = keep, monitor, "max" if more else "min"
        self._sign = 1.0 if more else -1.0
        self._path = os.path.join(self.folder, BEST_FILE)
        self._listed = self._read()
        self._checkpointer = Checkpointer(self.folder, keep, rank=self._rank, saver=beside.saver)

    @property
    def listed(self) -> list[Best]:
        """The checkpoints, best first."""
        return list(self._listed)

    @property
    def prefix(self) -> str | None:
        """The best checkpoint; None before the first."""
        return os.path.join(self.folder, self._listed[0].name) if self._listed else None

    def offer(self, session: Any, step: int, values: Mapping[str, float]) -> str | None:
        """Keep the present state of the variables if it is among the best.

        Args:
            session: holds them.
            step: the global step.
            values: what was evaluated.

        Returns:
            The checkpoint's prefix; None when there are enough better ones.

        Raises:
            CheckpointError: it cannot be written.
        """
        value = float(values[self._monitor])
        if not self._is_wanted(step, value):
            return None
        made = Best(os.path.basename(self._checkpointer.prefix(step)), step, value, dict(values))
        others = [best for best in self._listed if best.step != step]
        # Of equal ones the earlier is the better, as if the later had never been looked at.
        self._listed = sorted([*others, made], key=lambda best: (-self._sign * best.value, best.step))
        self._write()
        prefix = self._checkpointer.save(session, step)
        if len(self._listed) > self._keep:
            self._listed = self._listed[: self._keep]
            self._write()
        return prefix

    def _is_wanted(self, step: int, value: float) -> bool:
        if math.isnan(value):
            return False
        same = [best for best in self._listed if best.step == step]
        if same:  # a run that goes on comes by here again
            return self._sign * (value - same[0].value) > 0
        return len(self._listed) < self._keep or self._sign * (value - self._listed[-1].value) > 0

    def _rank(self, prefix: str) -> float:
        """Higher is better; what is not listed goes first."""
        names = [best.name for best in self._listed]
        name = os.path.basename(prefix)
        return -float(names.index(name)) if name in names else -math.inf

    def _write(self) -> None:
        content = {
            "version": _VERSION,
            "monitor": self._monitor,
            "mode": self._mode,
            "checkpoints": [asdict(best) for best in self._listed],
        }
        try:
            atomic_write(self._path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path!r}: {error}") from error

    def _read(self) -> list[Best]:
        try:
            with open(self._path, encoding="utf-8") as file:
                content = json.load(file)
            if content["version"] > _VERSION:
                raise ValueError(f"it is of version {content['version']}, this is version {_VERSION}")
            known = content["monitor"], content["mode"]
            listed = [
                Best(entry["name"], int(entry["step"]), float(entry["value"]), dict(entry["values"]))
                for entry in content["checkpoints"]
            ]
        except FileNotFoundError:
            return []
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"cannot read {self._path!r}, the list of the best checkpoints: {error}",
                hint=f"move the folder {self.folder} away to begin a new list",
            ) from error
        if known != (self._monitor, self._mode):
            raise CheckpointError(
                f"{self.folder!r} holds the checkpoints with the best {known[0]} ({known[1]}), and now the best "
                f"{self._monitor} ({self._mode}) are to be kept there",
                hint="monitor the same value, or move the folder away",
            )
        return [best for best in listed if is_complete(os.path.join(self.folder, best.name))]
