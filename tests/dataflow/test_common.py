"""Flows that batch, map, repeat, keep, order, mix and measure."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import moxserve.dataflow as df
from moxserve.errors import DataError, UsageError


def numbers(n: int, start: int = 0) -> df.DataFlow:
    return df.DataFromList([[i] for i in range(start, start + n)], shuffle=False)


def first(flow: df.DataFlow) -> list[Any]:
    return [dp[0] for dp in flow]


# Batches


def test_batch_stacks_component_by_component() -> None:
    flow = df.BatchData(df.FakeData([(4, 5, 3), (2,)], 7, dtype=["uint8", "float32"], domain=[(0, 255), (0, 1)]), 3)
    for images, numbers_ in flow:
        assert (images.shape, images.dtype, numbers_.shape, numbers_.dtype) == (
            (3, 4, 5, 3),
            "uint8",
            (3, 2),
            "float32",
        )
    assert len(flow) == 2
    kept = df.BatchData(numbers(7), 3, remainder=True)
    assert [b[0].tolist() for b in kept] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(kept) == 3
    assert len(df.BatchData(numbers(6), 3, remainder=True)) == 2


def test_batch_does_not_share_memory_with_its_datapoints() -> None:
    one = np.zeros(3)

    def reuses_its_buffer() -> Iterator[Any]:
        for i in range(4):
            one[:] = i
            yield [one]

    batches = [b[0][:, 0].tolist() for b in df.BatchData(df.DataFromGenerator(reuses_its_buffer), 2)]
    assert batches == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([True, False], "bool"),
        ([1, 2], "int32"),
        ([1, True], "int32"),
        ([2**31 - 1, -(2**31)], "int32"),
        ([1, 2**31], "int64"),
        ([1, 2**63], "uint64"),
        ([1.5, 2.5], "float32"),
        ([1, 2.5], "float32"),
        ([1.0, 1e300], "float64"),
        ([float("inf"), 1.0], "float32"),
        (["a", "bcd"], "<U3"),
        (["a\0", "b"], "object"),
        ([b"a\0\0", b""], "object"),
        ([np.int8(1), np.int8(2)], "int8"),
        ([np.float64(1), np.float64(2)], "float64"),
        ([np.uint8(1), 3], "int32"),
        ([np.zeros(2, np.uint8), np.ones(2, np.uint8)], "uint8"),
        ([np.zeros(2, np.uint8), np.full(2, 0.5, np.float32)], "float32"),
        ([np.array(1.0), np.array(2.0)], "float64"),
        ([np.array(["a", "b"]), np.array(["abc", "d"])], "<U3"),
        ([np.array([b"a", None], object)] * 2, "object"),
        ([np.datetime64("2020-01-01"), np.datetime64("2021-01-01")], "datetime64[D]"),
    ],
)
def test_batch_keeps_types_and_values(values: list[Any], dtype: str) -> None:
    (batch,) = df.aggregate_batch([[v] for v in values])
    assert batch.dtype == np.dtype(dtype)
    for got, value in zip(batch, values, strict=True):
        assert np.array_equal(got, np.float32(value) if dtype == "float32" and isinstance(value, float) else value)
    if dtype == "object":
        assert all(type(g) is type(v) for g, v in zip(batch, values, strict=True))


def test_batch_of_dicts_and_of_lists() -> None:
    dps = [{"image": np.zeros((2, 2)), "label": 1}, {"label": 2, "image": np.ones((2, 2))}]
    batch = df.BatchData.aggregate_batch(dps)
    assert batch["image"].shape == (2, 2, 2)
    assert batch["label"].tolist() == [1, 2]
    ragged = [[np.zeros(2), "a"], (np.zeros(3), None)]
    kept = df.BatchData.aggregate_batch(ragged, use_list=True)
    assert [list(map(len, kept[0])), kept[1]] == [[2, 3], ["a", None]]
    flow = df.BatchData(df.DataFromList(dps, shuffle=False), 2, use_list=True)
    assert next(iter(flow))["label"] == [1, 2]


@pytest.mark.parametrize(
    ("dps", "told"),
    [
        ([[np.zeros((2, 3))], [np.zeros((2, 3))], [np.zeros((2, 4))]], r"component 0: .*\(2, 3\), \(2, 3\), \(2, 4\)"),
        ([[np.zeros(2)]] * 9 + [[np.zeros(3)]], r"component 0: .* got 9 x \(2,\), 1 x \(3,\)"),
        ([{"a": np.zeros(2)}, {"a": 1.5}], r"component 'a': .*\(2,\), \(\)"),
        ([[1], [np.zeros(2)]], r"component 0: .*\(\), \(2,\)"),
        ([[1], ["a"]], "cannot batch component 0: .* got int, str"),
        ([["a"], [b"a"]], "cannot batch component 0: "),
        ([[np.array("a")], [np.array(b"a")]], "cannot batch component 0: expected one kind of values"),
        ([[None], [None]], "cannot batch component 0: .* got NoneType"),
        ([[[1, 2]], [[3, 4]]], "cannot batch component 0: .* got list"),
        ([[np.zeros(2)], [None]], "cannot batch component 0: .* got NoneType, ndarray"),
        ([[np.zeros(2)], [np.array(["a", "b"])]], "cannot batch component 0: .*"),
        ([[1, 2], [1]], "datapoint 1 of a batch has 1 components; the ones before it have 2 components"),
        ([{"a": 1}, {"b": 1}], r"datapoint 1 of a batch has the keys \['b'\]; .* the keys \['a'\]"),
        ([{0: 1}, [1]], r"datapoint 1 of a batch has 1 components; .* the keys \[0\]"),
        ([np.zeros(3), np.zeros(3)], "a datapoint is a list, tuple or dict of components; got ndarray"),
        ([[2**64], [0]], "cannot batch integers from 0 to 18446744073709551616"),
    ],
)
def test_batch_of_what_does_not_fit_tells_why(dps: list[Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        df.aggregate_batch(dps)


def test_unsupported_component_is_a_type_error_as_well() -> None:
    with pytest.raises(TypeError, match="use_list=True"):
        list(df.BatchData(df.DataFromList([[{}], [{}]]), 2))


def test_batch_size_must_fit() -> None:
    with pytest.raises(UsageError, match="batch_size 4 is more than the 3 datapoints"):
        df.BatchData(numbers(3), 4)
    assert len(list(df.BatchData(numbers(3), 4, remainder=True))) == 1
    with pytest.raises(UsageError, match="at least 1, got 0"):
        df.BatchData(numbers(3), 0)
    with pytest.raises(UsageError, match="no datapoints"):
        df.aggregate_batch([])


@given(
    st.integers(1, 4).flatmap(lambda rank: npst.array_shapes(min_dims=rank, max_dims=rank, max_side=4)),
    npst.scalar_dtypes(),
    st.integers(1, 5),
    st.data(),
)
def test_batch_is_numpy_stack(shape: tuple[int, ...], dtype: Any, n: int, data: st.DataObject) -> None:
    arrays = [data.draw(npst.arrays(dtype, shape)) for _ in range(n)]
    (batch,) = df.aggregate_batch([[a] for a in arrays])
    expected = np.stack(arrays)
    assert batch.dtype == arrays[0].dtype
    np.testing.assert_array_equal(batch, expected)


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(width=32), min_size=1, max_size=9))
def test_batch_of_python_numbers_loses_no_integer(values: list[Any]) -> None:
    (batch,) = df.aggregate_batch([[v] for v in values])
    if not any(isinstance(v, float) for v in values):
        assert batch.tolist() == values
    assert len(batch) == len(values)


@given(st.integers(0, 30), st.integers(1, 7), st.booleans())
def test_batch_lengths(n: int, size: int, remainder: bool) -> None:
    if n < size and not remainder:
        return
    flow = df.BatchData(numbers(n), size, remainder=remainder)
    batches = [b[0].tolist() for b in flow]
    assert len(batches) == len(flow)
    together = [i for b in batches for i in b]
    assert together == list(range(n if remainder else n - n % size))


def test_batch_by_shape() -> None:
    sides = [1, 2, 1, 3, 2, 1, 1]
    dps = [{"x": np.zeros((s, s)), "i": i} for i, s in enumerate(sides)]
    flow = df.BatchDataByShape(df.DataFromList(dps, shuffle=False), 2, "x")
    assert [b["i"].tolist() for b in flow] == [[0, 2], [1, 4], [5, 6]]
    # The one of side 3 waited for its like.
    assert [b["i"].tolist() for b in flow] == [[0, 2], [3, 3], [1, 4], [5, 6]]
    with pytest.raises(NotImplementedError):
        len(flow)
    with pytest.raises(DataError, match=r"no component 'y': a dict with the keys \['x', 'i'\]"):
        list(df.BatchDataByShape(df.DataFromList(dps), 2, "y"))


# One flow


def test_map_gets_a_copy_and_may_drop() -> None:
    source = [[1], [2], [3]]

    def change(dp: list[Any]) -> list[Any] | None:
        dp[0] *= 10
        return dp if dp[0] != 20 else None

    flow = df.MapData(df.DataFromList(source, shuffle=False), change)
    assert list(flow) == [[10], [30]]
    assert source == [[1], [2], [3]]
    assert len(flow) == 3


def test_map_component() -> None:
    flow = df.DataFromList([(1, "a"), (2, "b")], shuffle=False)
    assert list(df.MapDataComponent(flow, lambda c: c.upper(), 1)) == [[1, "A"], [2, "B"]]
    assert list(df.MapDataComponent(flow, lambda c: c if c > 1 else None)) == [[2, "b"]]
    dicts = [{"x": 1, "y": 2}]
    assert list(df.MapDataComponent(df.DataFromList(dicts), lambda x: -x, "x")) == [{"x": -1, "y": 2}]
    assert dicts == [{"x": 1, "y": 2}]
    with pytest.raises(DataError, match="no component 2: a tuple with 2 components"):
        list(df.MapDataComponent(flow, str, 2))


def test_select_component() -> None:
    flow = df.DataFromList([["c1", "c2", "c3"]])
    assert list(df.SelectComponent(flow, [2, 1])) == [["c3", "c2"]]
    assert list(df.SelectComponent(df.DataFromList([{"a": 1, "b": 2}]), ["b"])) == [[2]]


def test_fixed_size_goes_on_where_it_stopped() -> None:
    flow = df.FixedSizeData(numbers(5), 3)
    assert [first(flow) for _ in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    again = df.FixedSizeData(numbers(5), 7, keep_state=False)
    assert first(again) == first(again) == [0, 1, 2, 3, 4, 0, 1]
    assert len(again) == 7
    with pytest.raises(DataError, match="DataFromList is empty"):
        list(df.FixedSizeData(numbers(0), 1))
    opened = iter(flow)
    next(opened)
    with pytest.raises(RuntimeError, match="not reentrant"):
        next(iter(flow))


def test_repeated() -> None:
    flow = df.RepeatedData(numbers(2), 3)
    assert (first(flow), len(flow)) == ([0, 1] * 3, 6)
    endless = df.RepeatedData(numbers(2), -1)
    assert [dp[0] for dp in islice(endless, 5)] == [0, 1, 0, 1, 0]
    with pytest.raises(NotImplementedError, match="has no end"):
        len(endless)
    with pytest.raises(DataError, match="is empty"):
        next(iter(df.RepeatedData(numbers(0), -1)))
    assert list(df.RepeatedData(numbers(0), 2)) == []
    points = df.RepeatedDataPoint(numbers(2), 2)
    assert (first(points), len(points)) == ([0, 0, 1, 1], 4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: df.FixedSizeData(numbers(1), 0),
        lambda: df.RepeatedData(numbers(1), -2),
        lambda: df.RepeatedDataPoint(numbers(1), 0),
        lambda: df.LocallyShuffleData(numbers(1), 0),
        lambda: df.LocallyShuffleData(numbers(1), 1, num_reuse=0),
        lambda: df.LocallyShuffleData(numbers(1), 1, shuffle_interval=0),
        lambda: df.TestDataSpeed(numbers(1), size=0),
        lambda: df.JoinData([]),
        lambda: df.ConcatData([[1]]),  # type: ignore[list-item]
        lambda: df.RandomChooseData([(numbers(1), 0.5)]),
        lambda: df.RandomChooseData([(numbers(1), 1.5), (numbers(1), -0.5)]),
        lambda: df.RandomChooseData([(numbers(1), 1.0), numbers(1)]),
    ],
)
def test_wrong_arguments(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()


def test_cache_reads_once() -> None:
    passes = []

    def source() -> Iterator[Any]:
        passes.append(1)
        yield from [[0], [1], [2]]

    flow = df.CacheData(df.DataFromGenerator(source))
    next(iter(flow))
    assert [first(flow) for _ in range(3)] == [[0, 1, 2]] * 3
    # The abandoned pass is not taken for the whole.
    assert len(passes) == 2
    shuffled = df.CacheData(numbers(20), shuffle=True)
    orders = [first(shuffled) for _ in range(3)]
    assert orders[0] == list(range(20))
    assert sorted(orders[1]) == sorted(orders[2]) == orders[0]
    assert orders[1] != orders[2]


@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 15), st.none() | st.integers(1, 5))
def test_local_shuffle_loses_and_invents_nothing(n: int, reuse: int, buffer: int, interval: int | None) -> None:
    flow = df.LocallyShuffleData(numbers(n), buffer, num_reuse=reuse, shuffle_interval=interval)
    passes = 6
    seen = Counter(dp[0] for dp in islice(flow, passes * n * reuse))
    assert len(flow) == n * reuse
    for i in range(n):
        # What is still in the buffer came later than what was yielded.
        assert abs(seen[i] - passes * reuse) <= buffer + reuse


def test_local_shuffle_goes_on_where_it_was_closed() -> None:
    flow = df.LocallyShuffleData(numbers(100), 10, nr_reuse=2)
    seen = []
    for _ in range(18):
        opened = iter(flow)
        seen += [next(opened)[0] for _ in range(5)]
        with pytest.raises(RuntimeError, match="not reentrant"):
            next(iter(flow))
        opened.close()
    # Not the beginning of the flow again and again: 90 of 200, in the order of a queue.
    assert max(Counter(seen).values()) == 2
    assert len(set(seen)) >= 40
    assert len(flow) == 200


def test_local_shuffle_after_an_error() -> None:
    broken = [True]

    def source() -> Iterator[Any]:
        yield from [[0], [1]]
        if broken[0]:
            raise OSError("disk gone")

    flow = df.LocallyShuffleData(df.DataFromGenerator(source), 5)
    with pytest.raises(OSError, match="disk gone"):
        next(iter(flow))
    broken[0] = False
    assert next(iter(flow))[0] in (0, 1)


def test_local_shuffle_shuffles_within_its_buffer() -> None:
    order = [dp[0] for dp in islice(df.LocallyShuffleData(numbers(1000), 30), 900)]
    assert order[:30] != sorted(order[:30])
    # A queue: nothing leaves before it came, and most leaves soon.
    assert all(value <= place + 30 for place, value in enumerate(order))
    assert len(set(order)) == len(order)
    tiny = [dp[0] for dp in islice(df.LocallyShuffleData(numbers(4), 1), 8)]
    assert Counter(tiny) == Counter([0, 1, 2, 3] * 2)


# Several flows


def test_concat() -> None:
    flow = df.ConcatData([numbers(2), numbers(1, 5)])
    assert (first(flow), first(flow), len(flow)) == ([0, 1, 5], [0, 1, 5], 3)


def test_join(caplog: pytest.LogCaptureFixture) -> None:
    pairs = df.DataFromList([(1, 2), (3, 4), (5, 6)], shuffle=False)
    flow = df.JoinData([pairs, numbers(2, 10)])
    assert (list(flow), len(flow)) == ([[1, 2, 10], [3, 4, 11]], 2)
    assert "the flows have the lengths [3, 2]; the shortest ends it" in caplog.text
    dicts = df.JoinData([df.DataFromList([{"a": 1, "b": 1}]), df.DataFromList([{"b": 2}])])
    assert list(dicts) == [{"a": 1, "b": 2}]
    with pytest.raises(DataError, match="got datapoints of types list, dict"):
        list(df.JoinData([numbers(1), df.DataFromList([{}])]))


def test_random_choose() -> None:
    flow = df.RandomChooseData([(df.RepeatedData(numbers(1), -1), 0.2), (df.RepeatedData(numbers(1, 1), -1), 0.8)])
    share = np.mean([dp[0] for dp in islice(flow, 4000)])
    assert 0.75 < share < 0.85
    even = df.RandomChooseData([numbers(50), numbers(50, 100)])
    seen = first(even)
    assert 50 <= len(seen) <= 100
    assert [i for i in seen if i < 100] == list(range(sum(i < 100 for i in seen)))
    assert first(df.RandomChooseData([(numbers(3), 1.0), (numbers(3, 5), 0.0)])) == [0, 1, 2]


def test_random_mix_is_exact() -> None:
    flow = df.RandomMixData([numbers(30), numbers(10, 100)])
    seen = first(flow)
    assert len(flow) == len(seen) == 40
    assert [i for i in seen if i < 100] == list(range(30))
    assert [i for i in seen if i >= 100] == list(range(100, 110))
    assert seen != first(flow)

    class Short(df.ProxyDataFlow):
        def __len__(self) -> int:
            return 5

    with pytest.raises(DataError, match="flow 0, a Short, ended before its length of 5"):
        list(df.RandomMixData([Short(numbers(2))]))
    with pytest.raises(NotImplementedError):
        df.RandomMixData([df.DataFromGenerator(lambda: [])])


@pytest.mark.parametrize(
    "make",
    [
        lambda: df.DataFromList(list(range(50))),
        lambda: df.FakeData([(3,)], 5),
        lambda: df.RandomMixData([numbers(20), numbers(20)]),
        lambda: df.RandomChooseData([numbers(20), numbers(20)]),
        lambda: df.FixedSizeData(df.LocallyShuffleData(numbers(20), 6), 40),
        lambda: df.RepeatedData(df.CacheData(numbers(20), shuffle=True), 3),
    ],
)
def test_a_seed_makes_a_flow_the_same_each_run(make: Any) -> None:
    def run() -> str:
        df.fix_rng_seed(3)
        try:
            return str(list(make()))
        finally:
            df.fix_rng_seed(None)

    assert run() == run()
    assert run() != str(list(make()))


# Looking


def test_speed_measures_and_tells(capsys: pytest.CaptureFixture[str]) -> None:
    test = df.TestDataSpeed(df.FakeData([(10,)], 100), size=40, warmup=5)
    measured = test.start()
    assert (measured.datapoints, measured.data_bytes) == (40, 1600)
    assert "FakeData: 40 datapoints in " in capsys.readouterr().err
    assert test.start_test().datapoints == 40
    assert df.TestDataSpeed(df.FakeData([(1,)], 7)).start().datapoints == 7
    assert df.TestDataSpeed(df.FakeData([(1,)], 7), warmup=10).start().datapoints == 7
    with pytest.raises(DataError, match="is empty"):
        df.TestDataSpeed(numbers(0)).start()


def test_speed_as_a_flow(capsys: pytest.CaptureFixture[str]) -> None:
    assert first(df.TestDataSpeed(df.FixedSizeData(numbers(3), 2, keep_state=False), size=1)) == [0, 1]
    assert "datapoints/s" in capsys.readouterr().err


def test_speed_shows_a_bar_on_a_terminal() -> None:
    code = (
        "import sys; sys.stderr.isatty = lambda: True\n"
        "import moxserve.dataflow as df\n"
        "df.TestDataSpeed(df.FakeData([(1,)], 500), size=300).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "reading" in done.stderr
    assert "300/300" in done.stderr


def test_print_data(capsys: pytest.CaptureFixture[str]) -> None:
    dp = [1.5, np.arange(6).reshape(2, 3), {"boxes": [1, 2, 3, 4]}, b"x" * 100, np.array(["a"]), (), np.zeros(0)]
    flow = df.PrintData(df.DataFromList([dp] * 3, shuffle=False), num=2, name="mine")
    assert len(list(flow)) == 3
    told = capsys.readouterr().err
    assert told.count("mine: datapoint") == 2
    for line in (
        "mine: datapoint 1 of 2 shown: list of len 7",
        "0: float with value 1.5",
        "1: ndarray:int64 of shape (2, 3) in range [0, 5]",
        "2: dict of len 1",
        "boxes: list of len 4",
        "… and 1 more",
        "3: bytes of len 100, begins with b'xxxxxxxxxxxxxxxxxxxx'",
    ):
        assert line in told
    list(flow)
    assert capsys.readouterr().err == ""
