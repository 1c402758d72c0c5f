"""Batches of rows of arrays: the files are read once, when the first batch is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moxserve.errors import DataError
from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.inputs import array_table, batch_rows, gather_rows
from moxserve_plugins.numpy_arrays.arrays import check_alike, read_arrays, read_specs

if TYPE_CHECKING:
    from moxserve_plugins.numpy_arrays.config import NumpyArrays

__all__ = ["bundle"]

_PARTS = {"TRAIN": "train", "EVAL": "eval", "PREDICT": "eval"}


def bundle(config: NumpyArrays) -> InputBundle:
    """Return the input: one tensor `[batch, ...]` for each name, with the dtype of its array.

    Raises:
        DataError: a file or name is missing, or arrays do not go together.
    """
    sources = {part: source for part, source in (("train", config.train), ("eval", config.eval)) if source is not None}
    specs = {part: read_specs(source, config.names) for part, source in sources.items()}
    if len(specs) == 2 and (wrong := check_alike(specs["train"], specs["eval"])):
        raise DataError(wrong)

    # Not kept here: TensorFlow keeps its own copy, and one is enough.
    def load(part: str) -> list[Any]:
        return list(read_arrays(sources[part], config.names))

    def input_fn(mode: str, **_: Any) -> Any:
        part = _PARTS[mode]
        if part not in specs:
            raise DataError(f"no arrays for {mode}: input.{part} is not set")
        shapes = [
            np.broadcast_to(np.zeros((), object if s.dtype.kind in "SU" else s.dtype.newbyteorder("=")), s.shape)
            for s in specs[part]
        ]
        table = array_table(lambda: load(part), shapes)
        return batch_rows(config, mode, specs[part][0].shape[0], lambda numbers: gather_rows(table, numbers))

    return InputBundle(
        input_fn=input_fn,
        names=tuple(config.names),
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        labels=tuple(config.labels) if config.labels is not None else None,
        num_samples={mode: specs[part][0].shape[0] for mode, part in _PARTS.items() if part in specs},
    )
