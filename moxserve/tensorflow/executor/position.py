"""How many rows of its training input a worker has been given, so that a run which goes on reads on where it was.

The file `input-<worker>.json` in `log_dir` has a line for each run that trained there: the global step that it began
at, the rows given before that, and the rows of its steps. The rows given up to any later step follow from it, so it is
written once a run, before the first step, and stays right for every checkpoint: also for an older one that is gone back
to, after a crash, and when the batch size changes from run to run.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from moxserve.file import atomic_write
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.skipped import skipped_file

__all__ = ["INPUT_COUNTS_STEPS", "INPUT_POSITIONS", "PositionLog"]

# Collection of scalars `int64` that a run which goes on feeds when it starts its input: how many rows this worker has
# been given before. They default to 0.
INPUT_POSITIONS = "moxserve/input_positions"
# Collection that is not empty where the input's positions count steps, since its batches differ in size.
INPUT_COUNTS_STEPS = "moxserve/input_counts_steps"


@dataclass(frozen=True)
class _Run:
    """A run that trained in a log_dir.

    Attributes:
        step: global step that it began at.
        rows: rows that were given before.
        rows_per_step: rows of each of its steps.
    """

    step: int
    rows: int
    rows_per_step: int

    def rows_at(self, step: int) -> int:
        """How many rows were given when a step was reached."""
        return self.rows + (step - self.step) * self.rows_per_step


class PositionLog:
    """The runs that trained in a `log_dir`, and what they were given.

    Args:
        folder: the `log_dir`.
        worker: number of this worker.

    Attributes:
        path: of the file.
        skipped_path: where the names of the rows are that were left out, see `skipped`.
    """

    def __init__(self, folder: str, worker: int = 0) -> None:
        self.path = os.path.join(folder, f"input-{worker}.json")
        self.skipped_path = skipped_file(folder, worker)

    def resume(self, step: int, rows_per_step: int, began: int = 0) -> int:
        """Note that a run goes on from a checkpoint of this folder, and return how many rows were given before.

        Without a file (the checkpoint is of a run that kept none) all steps so far count as steps of this run's size.

        Args:
            step: global step of the checkpoint.
            rows_per_step: of the run that begins.
            began: step at which the input was at its first row, for all that is known without the file.
        """
        before = [run for run in self._read() if run.step <= step]
        rows = before[-1].rows_at(step) if before else (step - began) * rows_per_step
        self._write([run for run in before if run.step < step], _Run(step, rows, rows_per_step))
        return rows

    def restart(self, step: int, rows_per_step: int) -> int:
        """Note that a run begins without a checkpoint of this folder: no rows were given, and none left out."""
        with suppress(FileNotFoundError):
            os.remove(self.skipped_path)
        self._write([], _Run(step, 0, rows_per_step))
        return 0

    def _write(self, before: list[_Run], run: _Run) -> None:
        atomic_write(self.path, json.dumps({"runs": [asdict(entry) for entry in (*before, run)]}, indent=1) + "\n")

    def _read(self) -> list[_Run]:
        try:
            with open(self.path, encoding="utf-8") as file:
                return sorted(map(_parse, json.load(file)["runs"]), key=lambda run: run.step)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            tf1.logging.warning(
                "%s cannot be read (%s): the rows given so far are taken from the step and the batch size",
                self.path,
                error,
            )
            return []


def _parse(entry: Any) -> _Run:
    numbers = [entry[name] for name in ("step", "rows", "rows_per_step")]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"expected whole numbers, got {numbers}")
    return _Run(*numbers)
