"""Datapoints in slots of shared memory, and the workers that fill them."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moxserve.dataflow import DataFlowTerminated, processes, slots, transport
from moxserve.dataflow.slots import DATA, Message, Slots, WritableSlot
from moxserve.errors import DataError, UsageError

DTYPES = ["u1", "<i4", ">f8", "?", "<c8", "<M8[s]", "S5", "<U3", "f2"]
COMPONENTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: npst.arrays(np.dtype(dtype), npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    npst.arrays(np.dtype([("a", "i4"), ("b", "f4", 2)]), 3),
    npst.arrays(object, 2, elements=st.integers()),
)
DATAPOINTS = st.one_of(
    st.lists(COMPONENTS, max_size=4),
    st.lists(COMPONENTS, max_size=4).map(tuple),
    st.dictionaries(st.text(max_size=3), st.one_of(COMPONENTS, st.lists(COMPONENTS, max_size=2)), max_size=4),
    COMPONENTS,
)


@pytest.fixture(scope="module")
def memory() -> Slots:
    return Slots(3)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        same = type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape
        # Bytes, so that NaN is equal to itself.
        return same and (a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_types_of_other_packages_stay_what_they_are(memory: Slots) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    # The second one has the letter of NumPy's unsigned long.
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3b11fnuz):
        array = np.arange(3).astype(dtype)
        memory.write(0, Message(DATA, 0, 0, [array]))
        (found,) = memory.read(0).value
        assert found.dtype == dtype
        assert found.tobytes() == array.tobytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dp=DATAPOINTS, slot=st.integers(0, 2), number=st.integers(0, 2**64 - 1))
def test_what_comes_out_is_what_went_in(memory: Slots, dp: Any, slot: int, number: int) -> None:
    memory.write(slot, Message(DATA, 5, number, dp))
    message = memory.read(slot)
    assert equal(dp, message.value), (dp, message.value)
    assert (message.kind, message.worker, message.number) == (DATA, 5, number)


def test_arrays_of_any_layout_and_nested_ones(memory: Slots) -> None:
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    dp = [base[:, ::-1], base.T, np.asfortranarray(base), base[..., 1], {"deep": (base, [base[::-1]])}]
    memory.write(0, Message(DATA, 0, 0, dp))
    got = memory.read(0).value
    assert equal(dp, got)
    for array in [*got[:4], got[4]["deep"][0]]:
        array[...] = 0
    assert base.max() == 23


class Point(NamedTuple):
    x: Any
    y: Any


def test_a_named_tuple_stays_one(memory: Slots) -> None:
    memory.write(0, Message(DATA, 0, 0, Point(np.zeros(3), 1)))
    got = memory.read(0).value
    assert type(got) is Point
    assert got.x.tolist() == [0, 0, 0]


def test_arrays_that_were_read_do_not_change_with_the_slot(memory: Slots) -> None:
    memory.write(1, Message(DATA, 0, 0, [np.full(5, 1)]))
    first = memory.read(1).value[0]
    memory.write(1, Message(DATA, 0, 0, [np.full(5, 2)]))
    assert first.tolist() == [1] * 5
    assert first.flags.writeable


def test_a_slot_grows_with_its_datapoint(memory: Slots) -> None:
    for size in (10, 3_000_000, 100, 20_000_000, 7):
        array = np.random.default_rng(size).integers(0, 255, size, np.uint8)
        memory.write(2, Message(DATA, 0, 0, [array, size]))
        got = memory.read(2).value
        assert got[1] == size
        assert np.array_equal(got[0], array)


def test_an_array_made_in_the_slot_is_not_copied_and_arrives(memory: Slots) -> None:
    place = WritableSlot(memory, 0)
    batch = place.allocate((4, 1000, 1000), np.uint8)
    batch[...] = np.arange(4, dtype=np.uint8)[:, None, None]
    wider = place.allocate((2, 3), np.float64)
    wider[...] = 7
    # Another array that grows the slot while the first is in use.
    place.write(Message(DATA, 0, 0, {"batch": batch[:3], "wider": wider, "other": np.full(9_000_000, 3, np.uint8)}))
    got = memory.read(0).value
    assert got["batch"][:, 5, 5].tolist() == [0, 1, 2]
    assert got["wider"].tolist() == [[7.0] * 3] * 2
    assert got["other"].sum() == 27_000_000
    assert place.allocate((2,), object).dtype == object


def test_memory_without_memfd_is_a_file_that_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = Slots(4)
    memory.write(3, Message(DATA, 0, 0, [np.arange(1000)]))
    assert memory.read(3).value[0].sum() == 499500
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_file_sizes_makes_slots_smaller_and_then_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.ftruncate

    def limited(limit: int) -> Any:
        def truncate(file: int, size: int) -> None:
            if size > limit:
                raise OSError(27, "File too large")
            real(file, size)

        return truncate

    monkeypatch.setattr(slots.os, "ftruncate", limited(1 << 30))
    memory = Slots(2)
    with pytest.raises(DataError, match="larger than the 536870912 bytes of a slot"):
        memory.window(0, 1 << 30)
    monkeypatch.setattr(slots.os, "ftruncate", limited(1 << 20))
    with pytest.raises(DataError, match=r"no memory for 2 datapoints .* File too large\nhint: raise the limit"):
        Slots(2)


@pytest.mark.slow
def test_nothing_of_a_pool_stays_open() -> None:
    from moxserve.dataflow import DataFromList, MultiProcessRunnerZMQ

    def once() -> None:
        flow = MultiProcessRunnerZMQ(DataFromList([[np.zeros(100)]] * 5, shuffle=False), 2, hwm=4)
        assert len(list(flow)) == 5

    def held() -> int:
        # What a pool is made of. Sockets and files may come and go with servers of other tests.
        links = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/self/fd/{number}"))
        return sum(link.startswith("pipe:") or "(deleted)" in link for link in links)

    once()
    gc.collect()
    before = held()
    for _ in range(5):
        once()
    gc.collect()
    assert held() <= before


class Picky(Exception):
    """Can be pickled, and not made again."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def test_errors_that_cannot_travel_are_told_in_words() -> None:
    local = type("Local", (Exception,), {})
    for error, summary in ((Picky(1, 2), "Picky: 1 and 2"), (local("gone"), "Local: gone")):
        parts = processes.ErrorParts.of(error)
        assert parts.pickled is None
        again = parts.error(3)
        assert isinstance(again, processes.DataFlowWorkerError)
        assert str(again) == f"worker 3 failed with {summary}"
    kept = processes.ErrorParts.of(UsageError("wrong", hint="right")).error(0)
    assert (type(kept), str(kept)) == (UsageError, "wrong\nhint: right")
    assert "in worker 0" in str(kept.__cause__)


def echo(station: transport.Station) -> None:
    """Give each slot back with its own number."""
    for slot in station.take():
        station.give(slot, DATA, slot, [slot])


class Owner:
    """Something that can be collected."""


@pytest.mark.parametrize("workers", [1, 3])
def test_a_pool_gives_every_slot_back_many_times(workers: int) -> None:
    owner = Owner()
    pool = transport.Pool(transport.PoolOptions("Test", workers, 7), echo, owner)
    pool.put(range(7))
    counts = dict.fromkeys(range(7), 0)
    for _ in range(700):
        slot, message = pool.receive()
        assert message.value == [slot]
        counts[slot] += 1
        pool.put_back(slot)
    assert sum(counts.values()) == 700
    assert min(counts.values()) > 0
    pool.close()
    pool.close()


@pytest.mark.parametrize(("workers", "room"), [(0, 5), (5, 0), (-1, 1)])
def test_a_pool_of_nothing(workers: int, room: int) -> None:
    with pytest.raises(UsageError, match="at least one worker and room"):
        transport.Pool(transport.PoolOptions("Test", workers, room), echo, Owner())


def test_a_forked_child_is_told_even_if_the_pool_was_in_use() -> None:
    owner = Owner()
    pool = transport.Pool(transport.PoolOptions("Test", 1, 2), echo, owner)

    def put() -> None:
        try:
            pool.put([0])
        except DataFlowTerminated:
            os._exit(7)

    child = multiprocessing.get_context("fork").Process(target=put)
    with pool._lock:  # as another thread may hold it
        child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    child.join()
    pool.close()
    assert code == 7


def test_a_pool_that_starts_while_another_closes_keeps_its_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner()
    first = transport.Pool(transport.PoolOptions("Test", 1, 2), echo, owner)
    closing, close = threading.Event(), Connection._close

    def half_close(connection: Any) -> None:
        close(connection)
        if connection is first._down:
            closing.set()
            time.sleep(0.2)

    monkeypatch.setattr(Connection, "_close", half_close)
    thread = threading.Thread(target=first.close)
    thread.start()
    assert closing.wait(60)
    second = transport.Pool(transport.PoolOptions("Test", 1, 2), echo, owner)
    monkeypatch.undo()
    second.put([1])
    assert second.receive()[1].value == [1]
    thread.join()
    second.close()
