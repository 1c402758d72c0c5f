"""Maps in several processes and threads."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.dataflow import (
    BatchData,
    DataFlow,
    DataFlowTerminated,
    DataFromList,
    MapData,
    MultiProcessMapAndBatchData,
    MultiProcessMapAndBatchDataZMQ,
    MultiProcessMapData,
    MultiProcessMapDataZMQ,
    MultiThreadMapData,
    ThreadedMapData,
    fix_rng_seed,
)
from moxserve.dataflow.seeds import get_rng, next_number
from moxserve.errors import DataError, UsageError

MAPS = {"process": MultiProcessMapData, "thread": MultiThreadMapData}


@pytest.fixture(autouse=True)
def no_worker_stays(small_heap: None) -> Iterator[None]:
    yield
    gc.collect()
    assert multiprocessing.active_children() == []


def numbers(count: int) -> DataFlow:
    return DataFromList([[i] for i in range(count)], shuffle=False)


def double(dp: Any) -> Any:
    return [dp[0] * 2]


def firsts(flow: Any) -> list[Any]:
    return [dp[0] for dp in flow]


def until_error(flow: Any, got: list[Any]) -> None:
    """Collect the first components of a flow until it raises."""
    for dp in flow:
        got.append(dp[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_nothing_is_lost_where_tensorpack_lost_something(workers: int) -> None:
    # 200 datapoints, a cheap function and a small buffer: 25 of 40 of its runs lost datapoints, and then hung.
    flow = MultiProcessMapData(numbers(200), workers, double, buffer_size=20, strict=True)
    for _ in range(40):
        assert sorted(firsts(flow)) == list(range(0, 400, 2))
    flow.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
@settings(max_examples=12)
@given(count=st.integers(0, 30), workers=st.integers(1, 3), buffer=st.integers(1, 40), ordered=st.booleans())
def test_strict_is_exactly_the_set_of_map_data(kind: str, count: int, workers: int, buffer: int, ordered: bool) -> None:
    flow = MAPS[kind](numbers(count), workers, double, buffer_size=buffer, strict=True, ordered=ordered)
    expected = firsts(MapData(numbers(count), double))
    for _ in range(2):
        got = firsts(flow)
        assert (got if ordered else sorted(got)) == expected
    assert len(flow) == count
    flow.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
def test_a_pass_that_was_given_up_leaves_nothing_behind(kind: str) -> None:
    flow = MAPS[kind](numbers(30), 2, double, buffer_size=7, strict=True)
    for taken in (0, 1, 8, 29):
        partly = iter(flow)
        for _ in range(taken):
            next(partly)
        partly.close()
        assert sorted(firsts(flow)) == list(range(0, 60, 2))
    flow.close()


@pytest.mark.parametrize("kind", MAPS)
def test_not_strict_repeats_the_flow_and_goes_on(kind: str) -> None:
    flow = MAPS[kind](numbers(10), 3, double, buffer_size=4)
    iterator = iter(flow)
    got = firsts(itertools.islice(iterator, 45))
    iterator.close()
    got += firsts(itertools.islice(iter(flow), 55))
    # What is under way is all that may differ from ten whole passes.
    counts = Counter(got)
    assert set(counts) == set(range(0, 20, 2))
    assert all(abs(count - 10) <= 4 for count in counts.values())
    flow.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
def test_ordered_without_strict_is_the_order_of_endless_passes(kind: str) -> None:
    def uneven(dp: Any) -> Any:
        time.sleep(0.004 if dp[0] % 3 == 0 else 0)
        return dp if dp[0] != 4 else None

    flow = MAPS[kind](numbers(6), 3, uneven, buffer_size=5, ordered=True)
    assert firsts(itertools.islice(iter(flow), 12)) == [0, 1, 2, 3, 5, 0, 1, 2, 3, 5, 0, 1]
    flow.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
def test_none_drops_a_datapoint_and_is_forbidden_in_strict_mode(kind: str) -> None:
    def odd(dp: Any) -> Any:
        return dp if dp[0] % 2 else None

    loose = MAPS[kind](numbers(10), 2, odd, buffer_size=3)
    assert set(firsts(itertools.islice(iter(loose), 50))) == {1, 3, 5, 7, 9}
    strict = MAPS[kind](numbers(10), 2, odd, buffer_size=3, strict=True)
    with pytest.raises(DataError, match="map_func returned None for datapoint"):
        list(strict)
    loose.close()
    strict.close()


class BrokenError(Exception):
    """What breaks."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
def test_an_error_of_the_function_is_raised_and_the_next_pass_works(kind: str) -> None:
    def fragile(dp: Any) -> Any:
        if dp[0] == 12:
            raise BrokenError(f"cannot do {dp[0]}")
        return dp

    flow = MAPS[kind](numbers(20), 2, fragile, buffer_size=4, strict=True, ordered=True)
    for _ in range(2):
        got: list[Any] = []
        with pytest.raises(BrokenError, match="cannot do 12") as caught:
            until_error(flow, got)
        assert got == list(range(12))
    if kind == "process":
        assert "in fragile" in str(caught.value.__cause__)
    flow.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
def test_an_error_of_the_flow_comes_behind_the_results_before_it(kind: str) -> None:
    class Breaks(DataFlow):
        def __iter__(self) -> Iterator[Any]:
            yield from ([i] for i in range(7))
            raise BrokenError("at seven")

    for strict in (True, False):
        flow = MAPS[kind](Breaks(), 2, double, buffer_size=20, strict=strict)
        got: list[Any] = []
        with pytest.raises(BrokenError, match="at seven"):
            until_error(flow, got)
        assert sorted(got) == list(range(0, 14, 2))
        flow.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAPS)
def test_an_empty_flow(kind: str) -> None:
    strict = MAPS[kind](numbers(0), 2, double, strict=True)
    assert list(strict) == []
    loose = MAPS[kind](numbers(0), 2, double)
    with pytest.raises(DataError, match="without a datapoint"):
        next(iter(loose))
    strict.close()
    loose.close()


def test_the_function_runs_elsewhere_and_may_be_a_lambda() -> None:
    secret = object()
    flow = MultiProcessMapData(numbers(40), 2, lambda dp: [os.getpid(), id(secret)], strict=True)
    assert os.getpid() not in firsts(flow)
    flow.close()
    threads = MultiThreadMapData(numbers(40), 2, lambda dp: [threading.get_ident()], strict=True)
    assert threading.get_ident() not in firsts(threads)
    threads.close()


@pytest.mark.slow
def test_spawned_processes_take_functions_of_modules() -> None:
    flow = MultiProcessMapData(numbers(10), 1, double, strict=True, start_method="spawn")
    assert firsts(flow) == list(range(0, 20, 2))
    flow.close()


def test_a_thread_gets_a_datapoint_of_its_own() -> None:
    dps = [[i] for i in range(10)]

    def change(dp: Any) -> Any:
        dp[0] = -1
        return dp

    assert firsts(MultiThreadMapData(DataFromList(dps, shuffle=False), 2, change, strict=True)) == [-1] * 10
    assert dps == [[i] for i in range(10)]


def test_large_results_of_small_datapoints() -> None:
    flow = MultiProcessMapData(numbers(8), 2, lambda dp: [np.full(dp[0] * 100_000, dp[0])], strict=True, ordered=True)
    for i, dp in enumerate(flow):
        assert dp[0].shape == (i * 100_000,)
        assert (dp[0] == i).all()
    flow.close()


class Jitter:
    """Draws like an augmentor does."""

    def __init__(self) -> None:
        self.rng = get_rng(next_number())

    def __call__(self, dp: Any) -> Any:
        return [dp[0], self.rng.bytes(16), self.rng.normal(), random.random(), np.random.rand()]


@pytest.fixture
def unfixed() -> Iterator[None]:
    yield
    fix_rng_seed(None)


@pytest.mark.slow
@pytest.mark.usefixtures("unfixed")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_with_a_seed_results_do_not_depend_on_the_number_of_processes(start_method: str) -> None:
    def run(workers: int, buffer: int) -> list[Any]:
        fix_rng_seed(7)
        flow = MultiProcessMapData(
            numbers(12), workers, Jitter(), buffer, strict=True, ordered=True, start_method=start_method
        )
        passes = [list(flow), list(flow)]
        flow.close()
        return passes

    first = run(1, 3)
    assert run(3, 9) == first
    # Each datapoint has numbers of its own, another pass others.
    drawn = [dp[1] for dp in first[0] + first[1]]
    assert len(set(drawn)) == 24
    fix_rng_seed(8)
    other = MultiProcessMapData(numbers(12), 2, Jitter(), strict=True, ordered=True)
    assert list(other) != first[0]
    other.close()


@pytest.mark.slow
def test_without_a_seed_workers_do_not_draw_the_same() -> None:
    flow = MultiProcessMapData(numbers(60), 3, Jitter(), buffer_size=6, strict=True)
    got = list(flow)
    assert len({dp[1] for dp in got}) == 60
    assert len({dp[3] for dp in got}) == 60
    assert len({dp[4] for dp in got}) == 60
    flow.close()


def images(count: int) -> DataFlow:
    return DataFromList([[np.full((5, 4), i, np.uint8), i] for i in range(count)], shuffle=False)


def brighten(dp: Any) -> Any:
    return [dp[0] + 1, dp[1]]


@pytest.mark.slow
@pytest.mark.parametrize("remainder", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_made_in_workers_are_those_of_batch_data(workers: int, remainder: bool) -> None:
    flow = MultiProcessMapAndBatchData(images(22), workers, brighten, 4, strict=True, remainder=remainder, ordered=True)
    plain = list(BatchData(MapData(images(22), brighten), 4, remainder=remainder))
    assert len(flow) == len(plain)
    for _ in range(2):
        for ours, expected in zip(flow, plain, strict=True):
            assert np.array_equal(ours[0], expected[0])
            assert ours[0].dtype == np.uint8
            assert np.array_equal(ours[1], expected[1])
            assert ours[1].dtype == expected[1].dtype
    flow.close()


def test_map_and_batch_without_strict_drops_and_never_ends() -> None:
    flow = MultiProcessMapAndBatchData(images(10), 2, lambda dp: dp if dp[1] % 3 else None, 4, 12)
    assert len(flow) == 2
    got = np.concatenate([dp[1] for dp in itertools.islice(iter(flow), 30)])
    assert got.shape == (120,)
    counts = np.bincount(got, minlength=10)
    assert counts[[0, 3, 6, 9]].sum() == 0
    assert counts[[1, 2, 4, 5, 7, 8]].min() > 10
    flow.close()


@pytest.mark.slow
def test_map_and_batch_tells_of_none_errors_and_ragged_shapes() -> None:
    strict = MultiProcessMapAndBatchData(images(8), 2, lambda dp: None, 4, strict=True)
    with pytest.raises(DataError, match="None for datapoint 0 of a batch"):
        next(iter(strict))
    ragged = MultiProcessMapAndBatchData(images(8), 2, lambda dp: [np.zeros(dp[1])], 4)
    with pytest.raises(DataError, match="cannot batch component 0"):
        next(iter(ragged))
    strict.close()
    ragged.close()


def test_aliases_old_names_and_positions() -> None:
    assert MultiProcessMapDataZMQ is MultiProcessMapData
    assert MultiProcessMapAndBatchDataZMQ is MultiProcessMapAndBatchData
    assert ThreadedMapData is MultiThreadMapData
    for flow in (
        ThreadedMapData(numbers(5), nr_thread=2, map_func=double, buffer_size=2, strict=True),
        MultiProcessMapData(numbers(5), nr_proc=2, map_func=double, strict=True),
        MultiProcessMapData(numbers(5), 2, double, 3, True),
    ):
        assert sorted(firsts(flow)) == [0, 2, 4, 6, 8]
        flow.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiProcessMapData(numbers(1), 0, double), "num_proc must be at least 1"),
        (lambda: MultiProcessMapData(numbers(1), 1), "map_func must be a function"),
        (lambda: MultiProcessMapData(numbers(1), 1, double, 0), "buffer_size must be at least 1"),
        (lambda: MultiThreadMapData(numbers(1), map_func=double), "num_thread was not given"),
        (lambda: MultiProcessMapAndBatchData(numbers(1), 1, double), "batch_size must be at least 1"),
        (lambda: MultiProcessMapAndBatchData(numbers(1), 1, double, 8, 7), "at least a batch of 8"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("kind", MAPS)
def test_a_flow_that_was_closed_says_so(kind: str) -> None:
    flow = MAPS[kind](numbers(5), 1, double, strict=True)
    list(flow)
    flow.close()
    with pytest.raises(DataFlowTerminated):
        next(iter(flow))


def test_a_buffer_larger_than_the_transport_has_room_for() -> None:
    flow = MultiProcessMapData(numbers(3000), 2, double, buffer_size=10_000, strict=True, ordered=True)
    assert firsts(flow) == list(range(0, 6000, 2))
    flow.close()
