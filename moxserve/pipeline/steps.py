"""Evaluation and prediction with a checkpoint: what run plugins and the stages after them have in common.

TensorFlow is imported inside the functions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from moxserve.errors import CheckpointError, DataError
from moxserve.file import atomic_open, copy, scratch_directory
from moxserve.file.filesystem import is_remote
from moxserve.pipeline.slots import InputBundle

__all__ = ["evaluate", "find_checkpoint", "open_output", "predict"]

_ROWS_A_WRITE = 10


def find_checkpoint(path: str) -> str:
    """Return the prefix of a checkpoint: the path itself, or the newest in that folder. What a URL leads to is found by
    who fetches it.

    Raises:
        CheckpointError: there is none.
    """
    from moxserve.tensorflow.executor.checkpoint import find_checkpoint as find

    if is_remote(path):
        return path
    prefix: str | None = find(path)
    if prefix is None:
        raise CheckpointError(f"no checkpoint at {path!r}", hint="give a folder that a training run wrote, or a prefix")
    return prefix


@contextlib.contextmanager
def open_output(path: str) -> Iterator[IO[bytes]]:
    """Give a file to write to; at the end of the block it is complete at a path or URL, after an error it is not there.

    Args:
        path: where to; folders are made.

    Raises:
        OSError: it cannot be written there.
    """
    if not is_remote(path):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with atomic_open(path) as f:
            yield f
        return
    with scratch_directory() as scratch:
        here = os.path.join(scratch, "output")
        with open(here, "wb") as f:
            yield f
        copy(here, path)


def evaluate(data: InputBundle, model_fn: Callable[..., Any], checkpoint: str | None, log_dir: str) -> dict[str, float]:
    """Evaluate a checkpoint on the whole evaluation data, each row once and with the same weight.

    Args:
        data: the input.
        model_fn: the model; its log_info are means over a batch.
        checkpoint: prefix.
        log_dir: summaries go to `eval/` below it.

    Returns:
        Each of log_info, as the mean over all rows.
    """
    import moxserve.tensorflow as mox

    steps = data.steps("EVAL")
    result = mox.run(
        input_fn=data.input_fn,
        model_fn=model_fn,
        run_mode=mox.ModeKeys.EVAL,
        batch_size=data.rows_per_step("EVAL"),
        auto_batch=data.auto_batch,
        log_dir=os.path.join(log_dir, "eval"),
        checkpoint_path=checkpoint,
        max_number_of_steps=steps,
        log_every_n_steps=steps,
    )
    return {name: float(value) for name, value in result.metrics.items()}


def predict(data: InputBundle, model_fn: Callable[..., Any], checkpoint: str, output: str, log_dir: str) -> int:
    """Write the outputs of every evaluation row, in order, one JSON object a line; complete or not at all.

    A line holds `index` and, where they are known, `input` (the row's name), `label` and `class` (names for the outputs
    `labels` and `classes`), then every output of the model.

    Returns:
        How many rows were written.

    Raises:
        DataError: an output has no row dimension.
    """
    import moxserve.tensorflow as mox

    steps = data.steps("PREDICT")
    with open_output(output) as f:
        writer = _RowWriter(f, data.row_names.get("PREDICT", ()), data.labels)
        mox.run(
            input_fn=data.input_fn,
            model_fn=model_fn,
            output_fn=writer.write,
            run_mode=mox.ModeKeys.PREDICT,
            batch_size=data.rows_per_step("PREDICT"),
            auto_batch=data.auto_batch,
            log_dir=os.path.join(log_dir, "predict"),
            checkpoint_path=checkpoint,
            max_number_of_steps=steps,
            output_every_n_steps=min(steps, _ROWS_A_WRITE),
            log_every_n_steps=steps,
        )
    return writer.rows


class _RowWriter:
    """Turns batches of outputs into lines."""

    def __init__(self, f: IO[bytes], names: Sequence[str], labels: Sequence[str] | None) -> None:
        self._file = f
        self._names = names
        self._labels = labels
        self.rows = 0

    def write(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the batches that `mox.run` hands over."""
        import orjson

        for batch in outputs:
            for row in self._rows(batch):
                self._file.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))

    def _rows(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        arrays = {name: np.asarray(value) for name, value in batch.items()}
        sizes = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
        if len(set(sizes.values())) != 1 or None in sizes.values():
            told = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise DataError(f"outputs must have one row for each input row; got {told}")
        for i in range(next(iter(sizes.values())) or 0):
            row: dict[str, Any] = {"index": self.rows}
            if self.rows < len(self._names):
                row["input"] = self._names[self.rows]
            for key, name in (("label", "labels"), ("class", "classes")):
                if name in arrays and (text := self._label(arrays[name][i])) is not None:
                    row[key] = text
            row.update({name: _plain(array[i]) for name, array in arrays.items()})
            self.rows += 1
            yield row

    def _label(self, value: Any) -> str | None:
        if self._labels is None or not np.issubdtype(np.asarray(value).dtype, np.integer) or np.ndim(value):
            return None
        return self._labels[int(value)] if 0 <= int(value) < len(self._labels) else None


def _plain(value: Any) -> Any:
    """Make a value that JSON has: text for bytes, lists for arrays."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
