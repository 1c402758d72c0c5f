"""Flows of what is in memory, and of random numbers."""

from __future__ import annotations

import queue
from itertools import islice

import numpy as np
import pytest

import moxserve.dataflow as df
from moxserve.errors import DataError, UsageError


def test_fake_data() -> None:
    flow = df.FakeData([(4, 3), ()], 5, dtype=["uint8", "float64"], domain=[(10, 20), (-1, 0)])
    dps = list(flow)
    assert len(flow) == len(dps) == 5
    for image, number in dps:
        assert (image.shape, image.dtype, number.shape, number.dtype) == ((4, 3), np.uint8, (), np.float64)
        assert image.min() >= 10
        assert image.max() < 20
        assert -1 <= number < 0
    assert not np.array_equal(dps[0][0], dps[1][0])
    same = list(df.FakeData([(4,)], 3, random=False))
    assert np.array_equal(same[0][0], same[2][0])
    same[0][0] = None
    assert same[1][0] is not None
    with pytest.raises(UsageError, match="2 shapes and 1 values of dtype"):
        df.FakeData([(1,), (2,)], dtype=["uint8"])


def test_list() -> None:
    items = list(range(30))
    flow = df.DataFromList(items)
    orders = [list(flow) for _ in range(2)]
    assert [sorted(o) for o in orders] == [items, items]
    assert orders[0] != orders[1] != items
    assert list(df.DataFromList(items, shuffle=False)) == items
    assert len(flow) == 30


def test_generator() -> None:
    flow = df.DataFromGenerator(lambda: ([i] for i in range(3)))
    assert list(flow) == list(flow) == [[0], [1], [2]]
    with pytest.raises(NotImplementedError, match="FixedSizeData"):
        len(flow)
    assert len(df.DataFromGenerator([[1], [2]])) == 2
    assert len(df.DataFromGenerator(lambda: iter([[1]]), size=1)) == 1
    once = df.DataFromGenerator(iter([[1], [2], [3]]))
    assert list(islice(once, 2)) == [[1], [2]]
    assert list(once) == [[3]]
    with pytest.raises(DataError, match=r"used up(.|\n)*give the generator function"):
        list(once)
    with pytest.raises(UsageError, match="generator function or an iterable"):
        df.DataFromGenerator(3)  # type: ignore[arg-type]


def test_iterable() -> None:
    flow = df.DataFromIterable({"a": 1, "b": 2}.values())
    assert (list(flow), list(flow), len(flow)) == ([1, 2], [1, 2], 2)
    with pytest.raises(UsageError, match="expected an iterable"):
        df.DataFromIterable(lambda: [])  # type: ignore[arg-type]


def test_queue() -> None:
    source: queue.Queue[list[int]] = queue.Queue()
    for i in range(3):
        source.put([i])
    assert list(islice(df.DataFromQueue(source), 3)) == [[0], [1], [2]]
