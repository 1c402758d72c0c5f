"""Flows made of several flows: one after the other, side by side, or in turns by chance."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow, RNGDataFlow
from moxserve.errors import DataError, UsageError

__all__ = ["ConcatData", "JoinData", "RandomChooseData", "RandomMixData"]

_log = logging.getLogger(__name__)
_END = object()


class _Several(DataFlow):
    """Holds flows; resets them all."""

    df_lists: list[DataFlow]

    def __init__(self, df_lists: Sequence[DataFlow]) -> None:
        self.df_lists = list(df_lists)
        name = type(self).__name__
        if not self.df_lists:
            raise UsageError(f"{name} needs at least one flow")
        for flow in self.df_lists:
            if not isinstance(flow, DataFlow):
                raise UsageError(f"{name} expected a list of DataFlows, got {type(flow).__name__} in it")

    def reset_state(self) -> None:
        """Reset each flow."""
        for flow in self.df_lists:
            flow.reset_state()


class _SeveralByChance(_Several, RNGDataFlow):
    def reset_state(self) -> None:
        """Make the generator, and reset each flow."""
        RNGDataFlow.reset_state(self)
        super().reset_state()


class ConcatData(_Several):
    """One flow after the other.

    Args:
        df_lists: the flows; all but the last must end.

    Raises:
        UsageError: there are none, or one is no flow.
    """

    def __len__(self) -> int:
        """The sum of the lengths."""
        return sum(len(flow) for flow in self.df_lists)

    def __iter__(self) -> Iterator[Any]:
        """Yield the datapoints of the first, then of the second, ..."""
        for flow in self.df_lists:
            yield from flow


class JoinData(_Several):
    """Flows side by side: a datapoint has the components of one of each.

    `[c1, c2]` and `[c3]` give `[c1, c2, c3]`; dicts are merged, the last flow wins where they have one key.
    The shortest flow ends it.

    Args:
        df_lists: the flows; all with dicts, or all with lists or tuples.

    Raises:
        UsageError: there are none, or one is no flow.
    """

    def __init__(self, df_lists: Sequence[DataFlow]) -> None:
        super().__init__(df_lists)
        try:
            lengths = [len(flow) for flow in self.df_lists]
        except NotImplementedError:
            return
        if len(set(lengths)) > 1:
            _log.warning("JoinData: the flows have the lengths %s; the shortest ends it", lengths)

    def __len__(self) -> int:
        """The length of the shortest."""
        return min(len(flow) for flow in self.df_lists)

    def __iter__(self) -> Iterator[Any]:
        """Yield joined datapoints.

        Raises:
            DataError: some are dicts and some are not.
        """
        for parts in zip(*self.df_lists, strict=False):
            yield self._join(parts)

    @staticmethod
    def _join(parts: tuple[Any, ...]) -> Any:
        if all(isinstance(p, (list, tuple)) for p in parts):
            return [c for p in parts for c in p]
        if all(isinstance(p, Mapping) for p in parts):
            joined: dict[Any, Any] = {}
            for p in parts:
                joined.update(p)
            return joined
        kinds = ", ".join(type(p).__name__ for p in parts)
        raise DataError(f"JoinData can join lists and tuples, or dicts; got datapoints of types {kinds}")


class RandomChooseData(_SeveralByChance):
    """Takes each datapoint from a flow chosen by chance; ends when the chosen one has ended.

    Args:
        df_lists: flows, chosen evenly, or pairs (flow, probability).

    Raises:
        UsageError: there are none, one is no flow, only some have a probability, or these do not sum up to 1.
    """

    def __init__(self, df_lists: Sequence[DataFlow | tuple[DataFlow, float]]) -> None:
        pairs = [item for item in df_lists if isinstance(item, (tuple, list))]
        if pairs and len(pairs) != len(df_lists):
            raise UsageError("RandomChooseData: give each flow a probability, as (flow, probability), or none")
        if any(len(pair) != 2 for pair in pairs):
            raise UsageError("RandomChooseData expected pairs (flow, probability)")
        super().__init__([p[0] for p in pairs] if pairs else [d for d in df_lists if not isinstance(d, tuple)])
        self.probs = [float(p[1]) for p in pairs] or [1.0 / len(self.df_lists)] * len(self.df_lists)
        if min(self.probs) < 0 or not np.isclose(sum(self.probs), 1.0, rtol=0, atol=1e-6):
            raise UsageError(f"RandomChooseData: the probabilities {self.probs} must be at least 0 and sum up to 1")

    def __iter__(self) -> Iterator[Any]:
        """Yield datapoints until the chosen flow has none."""
        flows = [iter(flow) for flow in self.df_lists]
        limits = np.cumsum(self.probs)
        limits /= limits[-1]
        while True:
            chosen = int(np.searchsorted(limits, self.rng.random_sample(), side="right"))
            dp = next(flows[chosen], _END)
            if dp is _END:
                return
            yield dp


class RandomMixData(_SeveralByChance):
    """All datapoints of all flows, in turns by chance: exactly as many of each as its length says.

    Args:
        df_lists: the flows; each must know its length.

    Raises:
        UsageError: there are none, one is no flow, or one does not know its length.
    """

    def __init__(self, df_lists: Sequence[DataFlow]) -> None:
        super().__init__(df_lists)
        self.sizes = [len(flow) for flow in self.df_lists]

    def __len__(self) -> int:
        """The sum of the lengths."""
        return sum(self.sizes)

    def __iter__(self) -> Iterator[Any]:
        """Yield the mixed datapoints.

        Raises:
            DataError: a flow ended before its length.
        """
        turns = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.rng.shuffle(turns)
        flows = [iter(flow) for flow in self.df_lists]
        for turn in turns:
            dp = next(flows[turn], _END)
            if dp is _END:
                raise DataError(
                    f"RandomMixData: flow {turn}, a {type(self.df_lists[turn]).__name__}, ended before its length"
                    f" of {self.sizes[turn]} datapoints"
                )
            yield dp
