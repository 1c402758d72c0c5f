"""Look at a flow: how fast it is, and what its datapoints are made of."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moxserve.dataflow.base import DataFlow, ProxyDataFlow
from moxserve.errors import DataError, UsageError

__all__ = ["DataSpeed", "PrintData", "TestDataSpeed"]

_PERIOD_S = 0.1


@dataclass(frozen=True)
class DataSpeed:
    """What TestDataSpeed measured.

    Attributes:
        datapoints: how many were read, after the warm-up.
        elapsed_s: how long that took.
        cpu_s: processor time of this process and of the workers that ended meanwhile.
        data_bytes: size of the arrays, strings and bytes in them.
    """

    datapoints: int
    elapsed_s: float
    cpu_s: float
    data_bytes: int

    @property
    def per_second(self) -> float:
        """Datapoints a second."""
        return self.datapoints / self.elapsed_s if self.elapsed_s else float("inf")

    def __str__(self) -> str:
        rate = self.data_bytes / self.elapsed_s / 1e6 if self.elapsed_s else 0.0
        each_us = 1e6 / self.per_second if self.per_second else 0.0
        return (
            f"{self.datapoints} datapoints in {self.elapsed_s:.2f} s: {self.per_second:.1f} datapoints/s,"
            f" {each_us:.0f} µs each, {rate:.1f} MB/s, {self.cpu_s:.2f} s of processor time"
        )


def _bytes_of(dp: Any) -> int:
    if isinstance(dp, np.ndarray) and dp.dtype != object:
        return int(dp.nbytes)
    if isinstance(dp, (bytes, bytearray, str)):
        return len(dp)
    if isinstance(dp, Mapping):
        return sum(map(_bytes_of, dp.values()))
    if isinstance(dp, (list, tuple, np.ndarray)):
        return sum(map(_bytes_of, dp))
    return int(getattr(dp, "nbytes", 8))


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how many are done, a few times a second; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.1f}/s")

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=total)
        shown_at = time.monotonic()

        def show(done: int) -> None:
            nonlocal shown_at
            if done == total or time.monotonic() - shown_at > _PERIOD_S:
                shown_at = time.monotonic()
                bar.update(task, completed=done)

        yield show


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


class TestDataSpeed(ProxyDataFlow):
    """Measures how fast a flow is.

    As a flow it measures first, when it is iterated, and then yields what the flow yields.

    Args:
        ds: the flow.
        size: datapoints to read; fewer are read if the flow ends before.
        warmup: datapoints that are read before, and not measured; a flow that ends meanwhile is begun again.

    Raises:
        UsageError: `size` is less than 1, or `warmup` less than 0.
    """

    __test__: ClassVar[bool] = False  # no test, whatever pytest takes its name for

    def __init__(self, ds: DataFlow, size: int = 5000, warmup: int = 0) -> None:
        super().__init__(ds)
        if size < 1 or warmup < 0:
            raise UsageError(f"TestDataSpeed needs a size of at least 1 and a warmup of at least 0: {size}, {warmup}")
        self.test_size, self.warmup = int(size), int(warmup)

    def __iter__(self) -> Iterator[Any]:
        """Measure, then yield the datapoints of a new pass."""
        self.start()
        yield from self.ds

    def start(self) -> DataSpeed:
        """Measure; tells the result on the standard error, with a progress bar where that is a terminal.

        Returns:
            What was measured.

        Raises:
            DataError: the flow is empty.
        """
        datapoints = iter(self.ds)
        if sum(1 for _ in itertools.islice(datapoints, self.warmup)) < self.warmup:
            datapoints = iter(self.ds)
        done, size, cpu, start = 0, 0, _cpu_s(), time.perf_counter()
        with _progress(self.test_size) as show:
            for dp in itertools.islice(datapoints, self.test_size):
                done += 1
                size += _bytes_of(dp)
                show(done)
        measured = DataSpeed(done, time.perf_counter() - start, _cpu_s() - cpu, size)
        if not done:
            raise DataError(f"{type(self.ds).__name__} is empty: there is no speed to measure")
        # An iteration that is left open would keep a flow with state from being iterated again.
        if hasattr(datapoints, "close"):
            datapoints.close()
        _say(f"{type(self.ds).__name__}: {measured}")
        return measured

    def start_test(self) -> DataSpeed:
        """Measure: the older name of `start`."""
        return self.start()


def _cpu_s() -> float:
    return sum(os.times()[:4])


class PrintData(ProxyDataFlow):
    """Shows what the first datapoints are made of, on the standard error; otherwise changes nothing.

    Args:
        ds: the flow.
        num: how many datapoints to show, over all passes.
        name: shown with them, to tell several apart.
        max_depth: levels of lists, tuples and dicts inside one another that are shown.
        max_list: items of each that are shown.
    """

    def __init__(
        self, ds: DataFlow, num: int = 1, name: str | None = None, max_depth: int = 3, max_list: int = 3
    ) -> None:
        super().__init__(ds)
        self.num, self.name, self.max_depth, self.max_list = num, name, max_depth, max_list
        self._shown = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the datapoints of the flow."""
        for dp in self.ds:
            if self._shown < self.num:
                self._shown += 1
                _say(self._tell(dp))
            yield dp

    def _tell(self, dp: Any) -> str:
        title = self.name or type(self.ds).__name__
        lines = [f"{title}: datapoint {self._shown} of {self.num} shown: {_describe(dp)}"]
        return "\n".join([*lines, *self._inside(dp, 1)])

    def _inside(self, value: Any, depth: int) -> Iterator[str]:
        if not isinstance(value, (list, tuple, Mapping)) or depth > self.max_depth:
            return
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        # All components of the datapoint itself, some of what is in them.
        shown = items if depth == 1 else items[: self.max_list]
        for key, item in shown:
            yield f"{'   ' * depth}{key}: {_describe(item)}"
            yield from self._inside(item, depth + 1)
        if len(shown) < len(items):
            yield f"{'   ' * depth}… and {len(items) - len(shown)} more"


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"ndarray:{value.dtype} of shape {value.shape}{_range(value)}"
    if isinstance(value, (list, tuple, Mapping)):
        return f"{type(value).__name__} of len {len(value)}"
    if isinstance(value, (bytes, str)) and len(value) > 40:
        return f"{type(value).__name__} of len {len(value)}, begins with {value[:20]!r}"
    return f"{type(value).__name__} with value {value!r}"


def _range(array: np.ndarray) -> str:
    if not array.size or array.dtype.kind not in "biuf":
        return ""
    return f" in range [{array.min()}, {array.max()}]"
