"""The rules of iterating a flow."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from moxserve.dataflow import DataFlow, ProxyDataFlow, RNGDataFlow, fix_rng_seed
from moxserve.dataflow.base import (
    DataFlowReentrantGuard,
    DataFlowResetStateNotCalledError,
    UnknownLengthError,
)
from moxserve.errors import UsageError


class Counting(RNGDataFlow):
    """Never calls the constructor of its parents."""

    def __init__(self, n: int = 3) -> None:
        self.n = n
        self.resets = 0

    def reset_state(self) -> None:
        super().reset_state()
        self.resets += 1

    def __iter__(self) -> Iterator[list[Any]]:
        for i in range(self.n):
            yield [i, self.rng.randint(1 << 30)]

    def __len__(self) -> int:
        return self.n


class Guarded(ProxyDataFlow):
    def __init__(self, ds: DataFlow) -> None:
        super().__init__(ds)
        self.guard = DataFlowReentrantGuard()

    def __iter__(self) -> Iterator[Any]:
        with self.guard:
            yield from self.ds


def in_child(action: Any) -> str:
    """Run in a forked process; what it returned, or the name and text of its error."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(action())
        except BaseException as error:  # noqa: BLE001 - tells the parent
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        text = f.read()
    os.waitpid(pid, 0)
    return text


def test_iterating_resets_each_flow_of_a_chain_once() -> None:
    inner = Counting()
    outer = ProxyDataFlow(ProxyDataFlow(inner))
    assert [dp[0] for dp in outer] == [0, 1, 2]
    assert [dp[0] for dp in outer] == [0, 1, 2]
    assert inner.resets == 1


def test_explicit_resets_are_harmless() -> None:
    inner = Counting()
    outer = ProxyDataFlow(inner)
    outer.reset_state()
    outer.reset_state()
    inner.reset_state()
    assert len(list(outer)) == 3
    assert inner.resets == 1


def test_looking_at_a_flow_before_wrapping_it_resets_it_once() -> None:
    inner = Counting()
    next(iter(inner))
    list(ProxyDataFlow(inner))
    assert inner.resets == 1


def test_a_failed_reset_can_be_tried_again() -> None:
    class Failing(Counting):
        def reset_state(self) -> None:
            super().reset_state()
            if self.resets == 1:
                raise OSError("not yet")

    flow = Failing()
    with pytest.raises(OSError, match="not yet"):
        iter(flow)
    assert len(list(flow)) == 3


def test_subclass_that_forgets_super_reset_state_is_told() -> None:
    class Forgets(Counting):
        def reset_state(self) -> None:
            pass

    with pytest.raises(DataFlowResetStateNotCalledError, match=r"Forgets\.rng was used before reset_state\(\)"):
        list(Forgets())


def test_iterating_in_a_fork_tells_to_reset() -> None:
    flow = ProxyDataFlow(Counting())
    flow.reset_state()
    told = in_child(lambda: list(flow))
    assert told.startswith("DataFlowResetStateNotCalledError: ProxyDataFlow was reset in process")
    assert "call reset_state() in the process that iterates" in told

    def reset_first() -> int:
        flow.reset_state()
        return len(list(flow))

    assert in_child(reset_first) == "3"
    assert in_child(lambda: len(list(ProxyDataFlow(Counting(4))))) == "4"


def test_rng_needs_a_reset() -> None:
    with pytest.raises(DataFlowResetStateNotCalledError, match="before reset_state"):
        Counting().rng  # noqa: B018


def test_seed_gives_each_flow_numbers_of_its_own_and_the_same_each_run() -> None:
    def draw() -> list[Any]:
        fix_rng_seed(7)
        try:
            return [list(Counting()), list(Counting())]
        finally:
            fix_rng_seed(None)

    first, second = draw()
    assert first != second
    assert draw() == [first, second]
    assert list(Counting()) != list(Counting())


def test_old_names() -> None:
    class Old(DataFlow):
        def get_data(self) -> Iterator[Any]:
            yield [1]

        def size(self) -> int:
            return 1

    flow = Old()
    assert (list(flow), len(flow), list(flow.get_data()), flow.size()) == ([[1]], 1, [[1]], 1)
    new = Counting()
    assert ([dp[0] for dp in new.get_data()], new.size()) == ([0, 1, 2], 3)


def test_subclass_overrides_only_the_old_name_of_a_class_that_has_both() -> None:
    class Both(DataFlow):
        def get_data(self) -> Iterator[Any]:
            yield "old"

        def __iter__(self) -> Iterator[Any]:
            yield "new"

        def __len__(self) -> int:
            return 1

    class Child(Both):
        def get_data(self) -> Iterator[Any]:
            yield "child"
            yield from super().get_data()
            yield from super().__iter__()

        def size(self) -> int:
            return 3

    class Grandchild(Child):
        def __iter__(self) -> Iterator[Any]:
            yield from ["grandchild"]

    assert list(Child()) == list(Child().get_data()) == ["child", "old", "new"]
    assert len(Child()) == 3
    assert list(Grandchild().get_data()) == ["grandchild"]


def test_mixin_that_is_no_flow() -> None:
    class Mixin:
        def __iter__(self) -> Iterator[Any]:
            yield self.rng.randint(1, 2)  # type: ignore[attr-defined]

        def __len__(self) -> int:
            return 1

    class Mixed(Mixin, RNGDataFlow):
        pass

    flow = Mixed()
    assert (list(flow), list(flow.get_data()), flow.size()) == ([1], [1], 1)


def test_size_that_is_no_method_is_left_alone() -> None:
    class Sized(Counting):
        size = 7  # type: ignore[assignment]

    assert (len(Sized(2)), Sized(2).size) == (2, 7)


def test_flow_without_length_or_data() -> None:
    class Endless(DataFlow):
        def __iter__(self) -> Iterator[Any]:
            yield from [[1], [2]]

    flow = Endless()
    with pytest.raises(NotImplementedError, match="Endless does not know its length"):
        len(flow)
    with pytest.raises(UnknownLengthError):
        len(ProxyDataFlow(flow))
    assert list(flow) == list(ProxyDataFlow(flow)) == [[1], [2]]
    assert flow
    with pytest.raises(TypeError, match="defines neither __iter__ nor get_data"):
        list(DataFlow())


def test_proxy_refuses_what_is_no_flow() -> None:
    with pytest.raises(UsageError, match=r"ProxyDataFlow expected a DataFlow, got list(.|\n)*DataFromList"):
        ProxyDataFlow([1, 2])  # type: ignore[arg-type]


@pytest.mark.slow
def test_guard_lets_one_iteration_in() -> None:
    flow = Guarded(Counting())
    first = iter(flow)
    next(first)
    with pytest.raises(threading.ThreadError, match="not reentrant"):
        next(iter(flow))
    first.close()
    second = iter(flow)
    next(second)
    del second
    gc.collect()
    assert len(list(flow)) == len(list(flow)) == 3


def test_guard_survives_a_refusal() -> None:
    guard = DataFlowReentrantGuard()
    with guard, pytest.raises(RuntimeError, match="still open"), guard:
        raise AssertionError("was let in")
    with guard:
        pass


def test_guard_is_released_by_an_error() -> None:
    guard = DataFlowReentrantGuard()
    with pytest.raises(KeyError), guard:
        raise KeyError
    with guard:
        pass


def test_guard_is_free_in_a_fork() -> None:
    flow = Guarded(Counting())
    open_one = iter(flow)
    next(open_one)

    def child() -> int:
        flow.reset_state()
        return len(list(flow))

    assert in_child(child) == "3"
    assert len(list(open_one)) == 2


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_a_copy_is_a_flow_that_was_not_reset(clone: Any) -> None:
    inner = Counting()
    flow = Guarded(inner)
    opened = iter(flow)
    next(opened)
    other = clone(flow)
    assert other._reset_pid is None
    if clone is not copy.copy:
        assert len(list(other)) == 3
        assert other.ds.resets == 2
    assert len(list(opened)) == 2
