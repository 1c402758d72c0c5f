"""Runners: flows in other processes and threads."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moxserve.dataflow import (
    BatchData,
    DataFlow,
    DataFlowTerminated,
    DataFlowWorkerError,
    DataFromList,
    MapData,
    MultiProcessMapData,
    MultiProcessPrefetchData,
    MultiProcessRunner,
    MultiProcessRunnerZMQ,
    MultiThreadMapData,
    MultiThreadPrefetchData,
    MultiThreadRunner,
    PrefetchData,
    PrefetchDataZMQ,
    RNGDataFlow,
    fix_rng_seed,
)
from moxserve.dataflow.order import EpochOrder
from moxserve.dataflow.seeds import get_rng, next_number
from moxserve.errors import DataError, MoxserveError, UsageError


class Count(DataFlow):
    """Numbers, with an array each."""

    def __init__(self, size: int | None, known: bool = True) -> None:
        self._size, self._known = size, known

    def __len__(self) -> int:
        return super().__len__() if self._size is None or not self._known else self._size

    def __iter__(self) -> Iterator[Any]:
        for i in itertools.count() if self._size is None else range(self._size):
            yield [i, np.full((4, 3), i, np.int64)]


class Draw(RNGDataFlow):
    """Random numbers without end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            # Of so many bits that two draws are never alike by chance, however many are made on a busy machine.
            yield [self.rng.bytes(16), os.getpid()]


def firsts(flow: Any) -> list[Any]:
    return [dp[0] for dp in flow]


def until_seen(flow: Any, workers: int, each: int) -> dict[int, list[Any]]:
    """Collect the first components by the processes that made them, until each has made some."""
    by_process: dict[int, list[Any]] = {}
    for value, pid in flow:
        by_process.setdefault(pid, []).append(value)
        if len(by_process) == workers and min(map(len, by_process.values())) >= each:
            break
    return by_process


def until_error(flow: Any, got: list[Any]) -> None:
    """Collect the first components of a flow until it raises."""
    for dp in flow:
        got.append(dp[0])


@pytest.fixture(autouse=True)
def no_worker_stays(small_heap: None) -> Iterator[None]:
    yield
    gc.collect()
    assert multiprocessing.active_children() == []


@pytest.fixture
def seeded() -> Iterator[Callable[[], None]]:
    yield lambda: fix_rng_seed(42)
    fix_rng_seed(None)


RUNNERS = {
    "zmq": lambda ds: MultiProcessRunnerZMQ(ds, 1, hwm=3),
    "queue": lambda ds: MultiProcessRunner(ds, 3, 1),
    "thread": lambda ds: MultiThreadRunner(lambda: ds, 3, 1),
    "spawn": lambda ds: MultiProcessRunnerZMQ(ds, 1, hwm=3, start_method="spawn"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_one_worker_gives_the_same_data_in_the_same_order_and_goes_on(kind: str) -> None:
    flow = RUNNERS[kind](Count(10))
    assert len(flow) == 10
    assert firsts(flow) == list(range(10))
    partly = iter(flow)
    assert [next(partly)[0] for _ in range(4)] == [0, 1, 2, 3]
    partly.close()
    # The stream goes on, and an iteration has the length of the flow.
    assert firsts(flow) == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3]
    array = next(iter(flow))[1]
    assert array.tolist() == np.full((4, 3), 4).tolist()
    assert array.flags.writeable
    flow.close()


@pytest.mark.parametrize("kind", ["zmq", "thread"])
def test_a_flow_without_a_length_has_no_end(kind: str) -> None:
    flow = RUNNERS[kind](Count(7, known=False))
    assert firsts(itertools.islice(iter(flow), 20)) == [i % 7 for i in range(20)]
    with pytest.raises(NotImplementedError):
        len(flow)
    flow.close()


def test_several_workers_each_run_the_whole_flow() -> None:
    flow = MultiProcessRunnerZMQ(Count(50), 3, hwm=4)
    got = [firsts(flow) for _ in range(9)]
    assert all(len(run) == 50 for run in got)
    counts = np.bincount(list(itertools.chain(*got)), minlength=50)
    # 450 datapoints of three copies: each copy's numbers are consecutive, and none of them is lost.
    assert counts.sum() == 450
    assert counts.min() >= 3
    flow.close()


def test_old_names_and_aliases() -> None:
    assert PrefetchDataZMQ is MultiProcessRunnerZMQ
    assert PrefetchData is MultiProcessPrefetchData is MultiProcessRunner
    assert MultiThreadPrefetchData is MultiThreadRunner
    assert firsts(PrefetchDataZMQ(Count(5), nr_proc=1)) == list(range(5))
    assert firsts(PrefetchData(Count(5), nr_prefetch=2, nr_proc=1)) == list(range(5))
    assert firsts(MultiThreadPrefetchData(lambda: Count(5), nr_prefetch=2, nr_thread=1)) == list(range(5))
    assert PrefetchDataZMQ(Count(5), 3, 20).num_proc == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MultiProcessRunnerZMQ(Count(1), 0), UsageError, "num_proc must be at least 1, got 0"),
        (lambda: MultiProcessRunnerZMQ(Count(1), hwm=0), UsageError, "hwm must be at least 1"),
        (lambda: MultiProcessRunnerZMQ(Count(1), 2, nr_proc=2), UsageError, "two names of one argument"),
        (lambda: MultiProcessRunnerZMQ(Count(1), workers=2), TypeError, "unexpected keyword argument 'workers'"),
        (lambda: MultiProcessRunner(Count(1), 2), UsageError, "num_proc was not given"),
        (lambda: MultiProcessRunner([1], 2, 2), UsageError, "expected a DataFlow"),
        (lambda: MultiThreadRunner(lambda: [1], 2, 2), UsageError, "get_df must return a DataFlow, got list"),
        (
            lambda: firsts(MultiProcessRunnerZMQ(Count(1), start_method="frok")),
            UsageError,
            "expected one of fork, spawn",
        ),
        (
            lambda: firsts(MultiProcessRunnerZMQ(MapData(Count(1), lambda dp: dp), start_method="spawn")),
            UsageError,
            r"has to pickle the flow(.|\n)*instead of lambdas",
        ),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_one_flow_for_several_threads_is_refused() -> None:
    ds = Count(3)
    with pytest.raises(UsageError, match="one flow for several threads"):
        MultiThreadRunner(lambda: ds, 2, 2)


class BrokenError(Exception):
    """What breaks."""


class Breaks(DataFlow):
    """Fails at a datapoint."""

    def __init__(self, at: int, error: BaseException, reset: bool = False) -> None:
        self.at, self.error, self.reset = at, error, reset

    def reset_state(self) -> None:
        if self.reset:
            raise self.error

    def __iter__(self) -> Iterator[Any]:
        for i in range(100):
            if i == self.at:
                raise self.error
            yield [i]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_an_error_arrives_behind_the_datapoints_before_it_and_stays(kind: str) -> None:
    flow = RUNNERS[kind](Breaks(5, BrokenError("at five")))
    got: list[Any] = []
    with pytest.raises(BrokenError, match="at five") as caught:
        until_error(flow, got)
    assert got == [0, 1, 2, 3, 4]
    if kind != "thread":
        assert "in worker 0" in str(caught.value.__cause__)
        assert "raise self.error" in str(caught.value.__cause__)
    with pytest.raises(BrokenError, match="at five"):
        next(iter(flow))


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_an_error_in_reset_state(kind: str) -> None:
    with pytest.raises(BrokenError, match="reset"):
        next(iter(RUNNERS[kind](Breaks(-1, BrokenError("reset"), reset=True))))


@pytest.mark.parametrize("kind", ["zmq", "thread"])
def test_the_end_of_what_a_flow_reads_from_arrives_too(kind: str) -> None:
    with pytest.raises(DataFlowTerminated, match="over"):
        list(RUNNERS[kind](Breaks(2, DataFlowTerminated("over"))))


@pytest.mark.parametrize("kind", ["zmq", "thread"])
def test_a_flow_of_nothing_is_told_instead_of_repeated(kind: str) -> None:
    with pytest.raises(DataError, match="Count ended without a datapoint"):
        next(iter(RUNNERS[kind](Count(0, known=False))))
    assert list(RUNNERS[kind](Count(0))) == []


def test_a_datapoint_that_cannot_be_pickled_is_an_error() -> None:
    flow = MultiProcessRunnerZMQ(MapData(Count(3), lambda dp: [dp[0], threading.Lock()]))
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock'"):
        next(iter(flow))


def test_a_worker_that_exits_is_told() -> None:
    flow = MultiProcessRunnerZMQ(MapData(Count(3), lambda dp: os._exit(7)), 2)
    with pytest.raises(
        DataFlowWorkerError, match=r"worker \d \(process \d+\) of MultiProcessRunnerZMQ ended with exit code 7"
    ):
        next(iter(flow))
    assert issubclass(DataFlowWorkerError, MoxserveError)


def test_sys_exit_in_a_flow_is_the_programs() -> None:
    with pytest.raises(SystemExit):
        next(iter(MultiProcessRunnerZMQ(Breaks(0, SystemExit(3)))))


def test_batches_are_the_same_as_without_a_worker() -> None:
    for remainder, use_list in itertools.product([False, True], repeat=2):
        plain = list(BatchData(Count(10), 4, remainder=remainder, use_list=use_list))
        flow = MultiProcessRunnerZMQ(BatchData(Count(10), 4, remainder=remainder, use_list=use_list), hwm=2)
        for _ in range(3):
            ours = list(flow)
            assert len(ours) == len(plain)
            for a, b in zip(ours, plain, strict=True):
                assert np.array_equal(a[0], b[0])
                assert np.array_equal(a[1], b[1])
                assert type(a[1]) is type(b[1])
        flow.close()


def test_batches_whose_type_grows_in_the_slot() -> None:
    dps = [[np.zeros(3, np.uint8)], [np.full(3, 0.5, np.float32)], [np.full(3, 2.0**40)]]
    (plain,) = BatchData(DataFromList(dps, shuffle=False), 3)
    (ours,) = MultiProcessRunnerZMQ(BatchData(DataFromList(dps, shuffle=False), 3))
    assert ours[0].dtype == plain[0].dtype == np.float64
    assert np.array_equal(ours[0], plain[0])


@pytest.mark.slow
@pytest.mark.parametrize("hwm", [1, 2, 12])
def test_arrays_that_are_not_copied_stay_as_long_as_they_are_kept(hwm: int) -> None:
    flow = MultiProcessRunnerZMQ(Count(60), hwm=hwm, copy=False)
    # All of them, which is more than there are slots.
    kept = list(flow)
    assert [dp[1].tolist() for dp in kept] == [np.full((4, 3), i).tolist() for i in range(60)]
    part = kept[3][1][1:, :2]
    del kept
    for _ in range(3):
        for i, dp in enumerate(flow):
            assert (dp[1] == i).all()
            dp[1][...] = -1
    assert part.tolist() == np.full((3, 2), 3).tolist()
    flow.close()
    assert part.tolist() == np.full((3, 2), 3).tolist()


def test_most_arrays_lie_in_the_slots_where_they_need_not_be_copied() -> None:
    flow = MultiProcessRunnerZMQ(BatchData(Count(400), 4), hwm=9, copy=False)
    assert sum(dp[1].base is not None for dp in flow) == 100
    assert [dp[0].tolist() for dp in flow][7] == [28, 29, 30, 31]
    flow.close()


def test_dicts_and_large_datapoints_pass_small_slots() -> None:
    dps = [{"image": np.full((size, 7), size % 251, np.uint8), "n": size} for size in (1, 300_000, 5, 900_000, 20)]
    got = list(MultiProcessRunnerZMQ(DataFromList(dps, shuffle=False), hwm=1))
    for a, b in zip(got, dps, strict=True):
        assert a["n"] == b["n"]
        assert np.array_equal(a["image"], b["image"])


@pytest.mark.slow
def test_runners_nest() -> None:
    inner = MultiProcessRunner(Draw(), 2, 2)
    flow = MultiProcessRunnerZMQ(MultiProcessRunnerZMQ(inner, 1), 2)
    got = list(itertools.chain(*until_seen(flow, 4, 20).values()))
    assert len(set(got)) == len(got)
    flow.close()


def test_each_worker_draws_numbers_of_its_own(seeded: Callable[[], None]) -> None:
    def draws() -> list[list[int]]:
        seeded()
        flow = MultiProcessRunnerZMQ(Draw(), 2)
        by_process = until_seen(flow, 2, 20)
        flow.close()
        return sorted(numbers[:20] for numbers in by_process.values())

    first, again = draws(), draws()
    everything = list(itertools.chain(*first))
    assert len(set(everything)) == len(everything)
    # The same program draws the same.
    assert first == again


@pytest.mark.slow
def test_global_generators_differ_between_workers() -> None:
    flow = MultiProcessRunnerZMQ(MapData(Count(None), lambda dp: [np.random.rand(), os.getpid()]), 2)
    got = list(itertools.chain(*until_seen(flow, 2, 50).values()))
    assert len(set(got)) == len(got)
    flow.close()


def test_threads_draw_numbers_of_their_own() -> None:
    flow = MultiThreadRunner(Draw, 5, 3)
    got = firsts(itertools.islice(iter(flow), 300))
    assert len(set(got)) == 300
    flow.close()


def test_workers_start_while_other_threads_draw() -> None:
    rng = get_rng(next_number())
    flow = MultiProcessRunnerZMQ(MapData(Count(5), lambda dp: [dp[0], rng.randint(9), np.random.rand()]))
    held, done = threading.Event(), threading.Event()

    def draw() -> None:
        with rng._bit_generator.lock, np.random.get_bit_generator().lock:  # as in the middle of a draw
            held.set()
            done.wait()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        assert held.wait(60)
        assert firsts(flow) == list(range(5))
    finally:
        flow.close()
        done.set()
        thread.join()


def test_a_second_iteration_while_one_is_open_is_refused() -> None:
    flow = MultiProcessRunnerZMQ(Count(5))
    open_one = iter(flow)
    next(open_one)
    with pytest.raises(RuntimeError, match="not reentrant"):
        next(iter(flow))
    open_one.close()
    assert len(firsts(flow)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zmq", "thread"])
def test_close_ends_an_iteration_that_waits(kind: str) -> None:
    flow = RUNNERS[kind](MapData(Count(None), lambda dp: time.sleep(0.3 if dp[0] else 0) or dp))
    ended: list[BaseException] = []

    def read() -> None:
        try:
            list(flow)
        except BaseException as error:  # noqa: BLE001 - looked at below
            ended.append(error)

    flow.reset_state()
    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)
    flow.close()
    thread.join(60)
    assert [type(error) for error in ended] == [DataFlowTerminated]
    with pytest.raises(DataFlowTerminated):
        next(iter(flow))


@pytest.mark.slow
def test_collecting_a_flow_with_an_open_iteration_ends_its_workers() -> None:
    flow = MultiProcessRunnerZMQ(Count(None), 2)
    iterator = iter(flow)
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    del flow, iterator
    gc.collect()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_collecting_a_thread_runner_ends_its_threads() -> None:
    flow = MultiThreadRunner(lambda: Count(None), 2, 3)
    next(iter(flow))
    del flow
    gc.collect()
    deadline = time.monotonic() + 60
    while any(thread.name.startswith("moxserve-flow") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_no_more_is_made_than_there_is_room_for() -> None:
    made = multiprocessing.Value("i", 0)

    def count(dp: Any) -> Any:
        with made.get_lock():
            made.value += 1
        return dp

    flow = MultiProcessRunnerZMQ(MapData(Count(None), count), 1, hwm=4)
    next(iter(flow))
    time.sleep(0.5)
    assert made.value <= 8
    flow.close()


def test_a_daemonic_process_is_told_that_it_may_not(tmp_path: Any) -> None:
    def run() -> None:
        try:
            next(iter(MultiProcessRunnerZMQ(Count(3))))
        except UsageError as error:
            (tmp_path / "told").write_text(str(error))

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    process.join(120)
    assert "daemonic process" in (tmp_path / "told").read_text()


@pytest.mark.slow
def test_a_map_inside_a_runner() -> None:
    flow = MultiProcessRunnerZMQ(MultiProcessMapData(Count(20), 2, lambda dp: [dp[0] * 2], strict=True, ordered=True))
    for _ in range(2):
        assert firsts(flow) == list(range(0, 40, 2))
    flow.close()


@pytest.mark.slow
def test_workers_fork_after_tensorflow_was_imported() -> None:
    program = (
        "import tensorflow as tf\n"
        "from moxserve.dataflow import *\n"
        "ds = DataFromList([[i] for i in range(50)], shuffle=False)\n"
        "print(sum(dp[0] for dp in MultiProcessRunnerZMQ(ds, 1)))\n"
        "print(sum(dp[0] for dp in MultiProcessMapData(ds, 2, lambda dp: [dp[0] * 2], strict=True)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["1225", "2450"], done.stderr


class InThreads(DataFlow):
    """Draws in a thread that it starts on its own."""

    def __iter__(self) -> Iterator[list[int]]:
        drawn: list[int] = []

        def draw() -> None:
            flow = Drawing()
            flow.reset_state()
            drawn.extend(number for (number,) in flow)

        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
        yield from ([number] for number in drawn)


class Drawing(RNGDataFlow):
    def __iter__(self) -> Iterator[list[int]]:
        yield from ([self.rng.randint(1 << 30)] for _ in range(4))


def test_threads_that_a_worker_starts_on_its_own_draw_what_no_other_worker_draws() -> None:
    fix_rng_seed(3)
    try:
        flow = MultiProcessRunnerZMQ(InThreads(), 2, hwm=4)
        drawn = [number for (number,) in itertools.islice(flow, 100)]
        flow.close()
    finally:
        fix_rng_seed(None)
    assert len(set(drawn)) == len(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_is_a_number_from_0(seed: Any) -> None:
    with pytest.raises(UsageError, match="expected an integer of at least 0"):
        fix_rng_seed(seed)


def test_an_order_refuses_a_negative_seed() -> None:
    with pytest.raises(DataError, match="seed -1: expected at least 0"):
        EpochOrder(3, seed=-1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["runner", "map"])
def test_an_iteration_that_goes_on_in_a_forked_child_ends(kind: str) -> None:
    def wait(dp: list[int]) -> list[int]:
        time.sleep(0.001)
        return dp

    if kind == "runner":
        flow: DataFlow = MultiThreadRunner(lambda: MapData(Count(None), wait), 2, 1)
    else:
        flow = MultiThreadMapData(Count(None), 1, wait, buffer_size=5)
    datapoints = iter(flow)
    next(datapoints)

    def go_on(ended: Any) -> None:
        try:
            for _ in itertools.islice(datapoints, 20):
                pass
        except DataFlowTerminated:
            ended.set()

    context = multiprocessing.get_context("fork")
    ended = context.Event()
    child = context.Process(target=go_on, args=(ended,))
    child.start()
    try:
        assert ended.wait(120)
    finally:
        child.kill()
        child.join()
    next(datapoints)
