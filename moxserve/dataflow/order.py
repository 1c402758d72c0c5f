"""In which order the rows of a data set are read: an exact permutation an epoch, its part for each worker, from any row
on.

    epoch e, seed s:   a permutation of 0..count-1 that depends on s and e only
    worker i of n:     its rows i, i+n, i+2n, ... : no row twice, none left out; the first workers may have one more

The order does not depend on how many threads or processes read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from moxserve.dataflow.seeds import draw_seed
from moxserve.errors import DataError

__all__ = ["EpochOrder"]


@dataclass(frozen=True)
class EpochOrder:
    """The order of a data set's rows.

    Attributes:
        count: how many rows the whole data set has.
        shuffle: another permutation each epoch; otherwise the rows' own order.
        seed: of the permutations, at least 0; None draws one, which workers that share a data set must not do.
        shard: number of this worker, from 0, and how many there are.

    Raises:
        DataError: the number of rows or the seed is negative, or the shard is none.
    """

    count: int
    shuffle: bool = True
    seed: int | None = None
    shard: tuple[int, int] = (0, 1)
    _seed: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        """Check the arguments."""
        index, workers = self.shard
        if self.count < 0:
            raise DataError(f"a data set cannot have {self.count} rows")
        if self.seed is not None and self.seed < 0:
            raise DataError(f"seed {self.seed}: expected at least 0, or None for one that is drawn")
        if not 0 <= index < workers:
            raise DataError(f"shard {index} of {workers}: expected a number from 0 to {workers - 1}")
        if self.shuffle and self.seed is None and workers > 1:
            raise DataError(
                f"shard {index} of {workers} shuffles without a seed: the workers would not know each other's order",
                hint="give all workers the same seed",
            )
        object.__setattr__(self, "_seed", draw_seed() if self.seed is None else self.seed)

    @property
    def base_seed(self) -> int:
        """The seed that is used: `seed`, or what was drawn in its place."""
        return self._seed

    @property
    def rows(self) -> int:
        """How many rows an epoch has for this worker."""
        index, workers = self.shard
        return len(range(index, self.count, workers))

    def epoch(self, number: int) -> np.ndarray:
        """Return the rows of an epoch for this worker: `[rows] int64`.

        Args:
            number: of the epoch, from 0.
        """
        if not self.shuffle:
            order = np.arange(self.count, dtype=np.int64)
        else:
            order = np.random.default_rng([self._seed, number]).permutation(self.count)
        index, workers = self.shard
        return np.asarray(order[index::workers], np.int64)

    def iterate(self, position: int = 0, epochs: int | None = None) -> Iterator[int]:
        """Yield rows one by one, from a position on.

        Args:
            position: how many rows have been given already, over all epochs.
            epochs: how many there are in all; None for no end.
        """
        if not self.rows:
            return
        number, start = divmod(position, self.rows)
        while epochs is None or number < epochs:
            yield from self.epoch(number)[start:].tolist()
            number, start = number + 1, 0
