"""Batching without parameters: batches of what waits, and how large they get."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moxserve.errors import InvalidArgument, Unavailable
from moxserve.serving.batching import execute
from moxserve.serving.batching.adaptive import BatchLimit
from moxserve.serving.execution.admission import ServiceTimes

Play = Callable[[Any], Any]
Cost = Callable[[int], float]
Takes = Callable[[float], None]

_SLOW_S = 0.006  # too slow for the event loop, so that a test can hold the thread up
_QUICK_S = 20e-6


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`takes(seconds)`: how long a run is found to take, whatever the machine does meanwhile. One run at a time."""
    told = [0.0, _QUICK_S]

    def perf_counter() -> float:
        told[0] += told[1]
        return told[0]

    monkeypatch.setattr(execute, "time", SimpleNamespace(perf_counter=perf_counter, monotonic=time.monotonic))

    def take(seconds: float) -> None:
        told[1] = seconds

    return take


def learned(cost: Cost, batches: int = 3000, row_bytes: int = 8, limit: BatchLimit | None = None) -> int:
    """The limit after full batches whose runs take `cost(rows)` seconds."""
    times = ServiceTimes()
    limit = limit or BatchLimit(times)
    limit._times = times
    for _ in range(batches):
        times.record(limit.rows, cost(limit.rows))
        limit.learn(limit.rows, row_bytes)
    return limit.rows


def test_it_grows_while_rows_get_cheaper() -> None:
    assert learned(lambda rows: 0.0001 + 1e-7 * rows) == 1024


def test_it_stops_where_they_do_not() -> None:
    # 1 ms for up to 32 rows, then in proportion.
    sizes = {learned(lambda rows: 0.001 * max(1, rows / 32), batches) for batches in range(500, 3000, 37)}
    assert sizes <= {32, 64}
    assert 32 in sizes


def test_it_shrinks_where_larger_batches_are_dearer() -> None:
    assert learned(lambda rows: 0.001 * rows**1.5) <= 2


def test_a_batch_does_not_take_long() -> None:
    rows = learned(lambda rows: 0.05 + 0.01 * rows)
    assert 8 <= rows <= 16
    assert 0.05 + 0.01 * rows <= 0.25


def test_a_model_that_became_slow_gets_smaller_batches() -> None:
    limit = BatchLimit(ServiceTimes())
    assert learned(lambda rows: 0.0001 + 1e-6 * rows, limit=limit) == 1024
    assert learned(lambda rows: 0.01 * rows, limit=limit) <= 16


def test_a_batch_does_not_get_huge() -> None:
    assert learned(lambda _: 0.001, row_bytes=600_000) == 64
    assert learned(lambda _: 0.001, row_bytes=1 << 40) == 1


def test_partial_batches_teach_nothing() -> None:
    times = ServiceTimes()
    limit = BatchLimit(times)
    for _ in range(100):
        times.record(1, 0.001)
        limit.learn(1, 8)
    assert limit.rows == 2


def test_requests_with_many_rows_make_the_limit_grow() -> None:
    times = ServiceTimes()
    limit = BatchLimit(times)
    for _ in range(40):
        rows = 24 * max(1, -(-limit.rows // 24))
        times.record(rows, 0.001 + 1e-6 * rows)
        limit.learn(rows, 8)
    assert limit.rows >= 256


def rows(*values: float) -> np.ndarray:
    return np.float32(values)


def test_what_waits_is_run_together_and_nothing_else_waits(stage: Any, play: Play, takes: Takes) -> None:
    one = stage(adaptive=True)
    takes(_SLOW_S)
    for _ in range(8):
        answers = play(one.meet(*[one.ask(rows(i)) for i in range(10)]))
        assert [a["y"].tolist() for a in answers] == [[2.0 * i] for i in range(10)]
    assert one.backend.sizes[0] == 1
    assert max(one.backend.sizes) > 1
    assert sum(one.backend.sizes) == 8 * 11
    assert "padding_size_bucket" not in one.metrics.page().decode()


def test_large_requests_are_not_refused(stage: Any, play: Play) -> None:
    one = stage(adaptive=True)
    answers = play(one.meet(one.ask(np.zeros(5000, np.float32)), one.ask(rows(1))))
    assert len(answers[0]["y"]) == 5000
    assert one.backend.sizes == [1, 5000, 1]


def test_the_queue_is_bounded(stage: Any, play: Play) -> None:
    one = stage(adaptive=True, max_waiting=3)
    answers = play(one.meet(*[one.ask(rows(i)) for i in range(5)]))
    assert [isinstance(a, Unavailable) for a in answers] == [False] * 3 + [True] * 2
    assert "is full; currently 3 requests enqueued and the most is 3" in answers[-1].message


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": ("float32", (None,))}, {"y": ("float32", ())}),
        ({"x": ("float32", (None,))}, {"y": ("float32", None)}),
        ({"x": ("float32", None)}, {"y": ("float32", (None,))}),
        ({"x": ("float32", (1,))}, {"y": ("float32", (None,))}),
        ({"x": ("float32", (None,))}, {"y": ("float32", (1,))}),
    ],
)
def test_what_does_not_say_that_it_has_rows_is_run_by_itself(
    inputs: Any, outputs: Any, stage: Any, make_backend: Any, play: Play
) -> None:
    backend = make_backend(lambda i: {"y": i["x"].sum()}, inputs, outputs)
    one = stage(adaptive=True, backend=backend)

    async def ask() -> list[Any]:
        return await asyncio.gather(*[one.ask(rows(i, 1)) for i in range(3)])

    assert [float(a["y"]) for a in play(ask())] == [1, 2, 3]
    assert backend.sizes == [2, 2, 2]
    assert all(not name.startswith("batch") for name in backend.threads)


@pytest.mark.parametrize(
    "sent",
    [
        {"x": np.zeros((2, 2), np.float32), "n": rows(1, 2)},  # another rank than the signature says
        {"x": rows(1, 2), "n": rows(1)},  # no common rows
        {"x": rows(1, 2), "n": np.float32(1)},
    ],
)
def test_a_request_without_rows_is_run_by_itself(sent: Any, stage: Any, make_backend: Any, play: Play) -> None:
    vector = ("float32", (None,))
    backend = make_backend(lambda i: {"y": i["x"] + i["n"].sum()}, {"x": vector, "n": vector}, {"y": vector})
    one = stage(adaptive=True, backend=backend)
    assert play(one.ask(sent))["y"].shape == sent["x"].shape
    assert not backend.threads[0].startswith("batch")
    play(one.ask({"x": rows(1), "n": rows(1)}))
    assert backend.threads[1].startswith("batch")


def test_examples_have_rows_whatever_their_signature_says(
    stage: Any, make_backend: Any, play: Play, takes: Takes
) -> None:
    backend = make_backend(
        lambda i: {"outputs": np.float32([len(v) for v in i["inputs"]])}, {"inputs": ("string", None)},
        {"outputs": ("float32", None)}, method="tensorflow/serving/regress",
    )  # fmt: skip
    one = stage(adaptive=True, backend=backend)
    takes(_SLOW_S)

    async def scenario() -> Any:
        plug = await one.busy({"inputs": np.array([b"plug"], object)})
        tasks = [asyncio.ensure_future(one.ask({"inputs": np.array([b"a" * n], object)})) for n in (1, 2)]
        together = asyncio.ensure_future(one.runner.run_together(["s"], np.array([b"abc", b""], object), _context()))
        await asyncio.sleep(0)
        backend.release()
        await plug
        return [*await asyncio.gather(*tasks), *await together]

    for _ in range(8):
        answers = play(scenario())
        assert [a["outputs"].tolist() for a in answers] == [[1], [2], [3, 0]]
    assert sorted(backend.sizes[:4]) == [1, 1, 1, 2]
    assert sorted(backend.sizes[-3:]) == [1, 2, 2]
    assert all(name.startswith("batch") for name in backend.threads)


def _context() -> Any:
    from moxserve.serving.execution import RequestContext

    return RequestContext()


def test_a_broken_promise_is_noticed(
    stage: Any, make_backend: Any, play: Play, takes: Takes, caplog: pytest.LogCaptureFixture
) -> None:
    vector = ("float32", (None,))
    backend = make_backend(lambda i: {"y": i["x"].sum(keepdims=True)}, {"x": vector}, {"y": vector})
    one = stage(adaptive=True, backend=backend)
    takes(_SLOW_S)
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            answers = play(one.meet(*[one.ask(rows(i, 1)) for i in range(4)]))
            assert [a["y"].tolist() for a in answers] == [[1], [2], [3], [4]]
    assert max(backend.sizes) > 2
    assert caplog.text.count("requests are not put together any more") == 1
    before = len(backend.runs)
    play(one.meet(*[one.ask(rows(i, 1)) for i in range(4)]))
    assert backend.sizes[before:] == [1, 2, 2, 2, 2]


def test_inputs_with_defaults(stage: Any, make_backend: Any, play: Play) -> None:
    """A scalar that is left out is the same for all who leave it out; one with rows would have to grow with them."""
    vector, scalar = ("float32", (None,)), ("float32", ())

    def function(inputs: Any) -> Any:
        return {"y": inputs["x"] * inputs.get("factor", np.float32(3))}

    for default, together in ((np.float32(3), True), (np.float32([3]), False)):
        backend = make_backend(function, {"x": vector, "factor": scalar}, {"y": vector}, defaults={"factor": default})
        one = stage(adaptive=True, backend=backend)
        assert play(one.ask({"x": rows(1)}))["y"].tolist() == [3]
        # A scalar cannot have rows, so this signature does not say that it works row by row, if the scalar is sent.
        assert play(one.ask({"x": rows(1), "factor": np.float32(2)}))["y"].tolist() == [2]
        assert [name.startswith("batch") for name in backend.threads] == [together, False]


def test_unknown_names_are_refused_before_they_wait(stage: Any, play: Play) -> None:
    one = stage(adaptive=True)
    with pytest.raises(InvalidArgument, match="not found in request"):
        play(one.ask({"q": rows(1)}))
    with pytest.raises(InvalidArgument, match="output tensor alias not found"):
        play(one.ask(rows(1), outputs=["q"]))
    assert one.backend.runs == []


def test_many_forms_of_a_request_are_forgotten_again(stage: Any, make_backend: Any, play: Play) -> None:
    names = [f"o{i}" for i in range(9)]
    backend = make_backend(
        lambda i: dict.fromkeys(names, i["x"]), {"x": ("float32", (None,))},
        {name: ("float32", (None,)) for name in names},
    )  # fmt: skip
    one = stage(adaptive=True, backend=backend)

    async def all_subsets() -> None:
        for bits in range(1, 512):
            wanted = [name for i, name in enumerate(names) if bits >> i & 1]
            assert sorted(await one.ask(rows(1), outputs=wanted)) == wanted

    play(all_subsets())
    assert len(one.runner._forms) <= 256
    assert len(one.runner._lanes) <= 256


@pytest.mark.usefixtures("takes")
def test_a_quick_model_runs_on_the_loop_in_batches(stage: Any, play: Play) -> None:
    one = stage(adaptive=True)

    async def scenario() -> None:
        for _ in range(300):
            answers = await asyncio.gather(*[one.ask(rows(i, i + 1)) for i in range(8)])
            assert [a["y"].tolist() for a in answers] == [[2.0 * i, 2.0 * i + 2] for i in range(8)]

    play(scenario())
    on_loop = [size for size, name in zip(one.backend.sizes, one.backend.threads, strict=True) if name == "MainThread"]
    assert max(on_loop) >= 8
    assert one.backend.here == len(on_loop)


@pytest.mark.usefixtures("takes")
def test_on_the_loop_too_one_bad_request_harms_nobody(stage: Any, backend: Any, play: Play) -> None:
    plain = backend.function

    def picky(inputs: Any) -> Any:
        if (inputs["x"] < 0).any():
            raise InvalidArgument("negative")
        return plain(inputs)

    backend.function = picky
    one = stage(adaptive=True)

    async def scenario() -> None:
        for _ in range(100):
            answers = await asyncio.gather(*[one.ask(rows(3 - i)) for i in range(5)], return_exceptions=True)
            assert [a["y"].tolist() for a in answers[:4]] == [[6], [4], [2], [0]]
            assert isinstance(answers[4], InvalidArgument)

    play(scenario())
    assert not all(name.startswith("batch") for name in backend.threads)


@pytest.mark.usefixtures("takes")
def test_on_the_loop_too_who_left_is_not_run(stage: Any, play: Play) -> None:
    one = stage(adaptive=True)

    async def scenario() -> None:
        while not one.backend.threads or one.backend.threads[-1].startswith("batch"):
            await one.ask(rows(0))
        before = len(one.backend.runs)
        tasks = [asyncio.ensure_future(one.ask(rows(i))) for i in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        ran = [value for run in one.backend.runs[before:] for value in run[1]["x"].tolist()]
        assert ran in ([0, 2], [0, 1, 2])  # it may have been too late to leave

    play(scenario())


def test_a_model_that_pauses_leaves_the_loop(stage: Any, backend: Any, play: Play, takes: Takes) -> None:
    one = stage(adaptive=True)

    async def scenario() -> None:
        while not backend.threads or backend.threads[-1].startswith("batch"):
            await one.ask(rows(0))
        takes(0.02)
        for _ in range(4):
            await one.ask(rows(0))

    play(scenario())
    assert all(name.startswith("batch") for name in backend.threads[-3:])
